"""The desired state of a cluster: a TOML file of groups and addresses, which is kept in git."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from thinrow.cluster.cluster_map import GROUPS_MAX, LIFETIME_MS_MAX, Group, GroupName
from thinrow.core.files.io_errors import failure_reason
from thinrow.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

__all__ = ["DESIRED_BYTES_MAX", "DesiredCluster", "read_desired"]

DESIRED_BYTES_MAX = 32 << 20
LIFETIME_S = 30.0
GROUP = "{group}"
"""Stands for the number of a group in the pattern of an address."""
KEYS = "lifetime_s, groups and targets, or targets in a table [group.NAME] for each group"

_Texts = Annotated[list[Annotated[str, StringConstraints(max_length=300)]], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class DesiredCluster:
    """Groups as they are to be."""

    lifetime_ms: int
    """Time for which clients use a map."""
    targets: dict[str, tuple[str, ...]]
    """HOST:PORT of each replica, by the name of the group."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: _Texts


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lifetime_s: Annotated[float, Field(ge=0.001, le=LIFETIME_MS_MAX / 1000)] = LIFETIME_S
    groups: Annotated[int, Field(ge=1, le=GROUPS_MAX)] | None = None
    targets: _Texts | None = None
    group: Annotated[dict[GroupName, _Table], Field(min_length=1, max_length=GROUPS_MAX)] | None = (
        None
    )


def read_desired(path: Path) -> DesiredCluster:
    """Reads `cluster.toml`.

    Raises:
        InputError: The file is unusable; the message names the key at fault.
    """
    try:
        with path.open("rb") as file:
            data = file.read(DESIRED_BYTES_MAX + 1)
        if len(data) > DESIRED_BYTES_MAX:
            raise InputError(f"{path} has more than {DESIRED_BYTES_MAX:,} bytes; name fewer hosts.")
        tables = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"Cannot read {path}: {failure_reason(error)}.") from error
    try:
        found = _File.model_validate(tables)
        targets = _targets(found, path)
        owners: dict[str, str] = {}
        for name, addresses in targets.items():
            Group(targets=addresses)
            for address in addresses:
                owner = owners.setdefault(address, name)
                if owner != name:
                    raise InputError(
                        f"{path}: {address} is in the groups {owner} and {name}; a replica belongs "
                        f"to one group."
                    )
    except ValidationError as error:
        raise InputError(f"{path}: {_mistake(error.errors()[0])}") from error
    return DesiredCluster(round(found.lifetime_s * 1000), targets)


def _mistake(found: ErrorDetails) -> str:
    """Returns what is wrong with a key of the file, in one sentence."""
    *_, last = found["loc"] or ("",)
    where, given = ".".join(str(part) for part in found["loc"]), found["input"]
    if found["type"] == "extra_forbidden":
        return f"{where} is no key of this file; it has {KEYS}."
    if found["type"] == "string_pattern_mismatch":
        if last == "[key]":
            return f"{given!r} is no name of a group; write letters, digits, _, . and -."
        return f"{given!r} is not HOST:PORT."
    message = found["msg"].removeprefix("Value error, ")
    if message == found["msg"]:
        _, _, wanted = message.partition(" ")  # Input should be …, List should have …
        message = f"{where} is {given!r}; it {wanted}"
    return f"{message}."


def _targets(found: _File, path: Path) -> dict[str, tuple[str, ...]]:
    if found.group is not None and found.groups is None and found.targets is None:
        return {name: tuple(table.targets) for name, table in found.group.items()}
    if found.groups is None or found.targets is None or found.group is not None:
        raise InputError(
            f"{path} names no groups; write groups = NUMBER and targets = "
            f'["HOST-{GROUP}:PORT", …], or a table [group.NAME] with targets for each group.'
        )
    for pattern in found.targets:
        if found.groups > 1 and GROUP not in pattern:
            raise InputError(
                f"{path}: {pattern} is the same address for all groups; write {GROUP} where the "
                f"number of the group belongs."
            )
    return {
        str(number): tuple(pattern.replace(GROUP, str(number)) for pattern in found.targets)
        for number in range(found.groups)
    }
