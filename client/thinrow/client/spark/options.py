"""Options of the reader for Spark, which come as texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from thinrow.client.arrow.config import ReadConfig
from thinrow.client.target import parse_targets
from thinrow.core.pointers import Projection
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Literal

__all__ = ["ReadOptions"]

NAMES = (
    "rows",
    "target",
    "columns",
    "tenant",
    "traits",
    "feature_groups",
    "sequence_length",
    "truncation",
    "as_served",
    "lookup_rows",
    "partition_rows",
)
PROJECTION = ("traits", "feature_groups", "sequence_length", "truncation", "as_served")
PARTITION_ROWS = 1 << 16
"""Rows of a partition, unless an option sets another number."""
TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Rows, target and projection of a reader, with its sizes."""

    rows: tuple[str, ...]
    target: tuple[str, ...] | Path
    projection: Projection | str
    columns: tuple[str, ...] | None
    partition_rows: int
    """Fewest rows of each partition but the last; a partition has whole row groups."""
    config: ReadConfig

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> ReadOptions:
        """Reads options from texts; names without regard to case.

        Raises:
            UsageError: An option is unknown, missing or out of its range.
        """
        given = {name.lower(): text for name, text in texts.items()}
        if unknown := sorted(given.keys() - set(NAMES)):
            raise UsageError(
                f"The reader for Spark has no option {unknown[0]!r}; there are {', '.join(NAMES)}."
            )
        for name in ("rows", "target"):
            if not parts(given.get(name, "")):
                raise UsageError(f'The reader for Spark needs .option("{name}", …).')
        targets = parts(given["target"])
        return cls(
            rows=parts(given["rows"]),
            target=parse_targets(targets),
            projection=projection(given),
            columns=parts(given["columns"]) if "columns" in given else None,
            partition_rows=number(given, "partition_rows", PARTITION_ROWS, 1),
            config=ReadConfig(lookup_rows=number(given, "lookup_rows", ReadConfig().lookup_rows)),
        )


def projection(given: Mapping[str, str]) -> Projection | str:
    """Returns the projection, or the name of the tenant that has one."""
    if "tenant" in given:
        if beside := [name for name in PROJECTION if name in given]:
            raise UsageError(
                f"The tenant {given['tenant']!r} has a projection; leave out {beside[0]}."
            )
        return given["tenant"]
    as_served = given.get("as_served", "false").lower()
    if as_served not in TRUTHS:
        raise UsageError(f"as_served is {as_served!r}, but must be true or false.")
    return Projection(
        sequence_length=number(given, "sequence_length", 0),
        feature_groups=parts(given.get("feature_groups", "")),
        traits=parts(given.get("traits", "")),
        truncation=cast("Literal['newest', 'head']", given.get("truncation", "newest")),
        as_served=TRUTHS[as_served],
    )


def parts(text: str) -> tuple[str, ...]:
    """Returns the names in a text, which commas separate."""
    return tuple(name for name in map(str.strip, text.split(",")) if name)


def number(given: Mapping[str, str], name: str, default: int, least: int | None = None) -> int:
    """Returns the whole number of an option."""
    text = given.get(name, str(default))
    try:
        found = int(text)
    except ValueError as error:
        raise UsageError(f"{name} is {text!r}, but must be a whole number.") from error
    if least is not None and found < least:
        raise UsageError(f"{name} is {found}, but must be {least} or more.")
    return found
