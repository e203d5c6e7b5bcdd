"""Names of tables with versions: FORMAT:TABLE, or FORMAT:TABLE@FIRST..LAST."""

from __future__ import annotations

import re
from dataclasses import dataclass

from thinrow.errors import InputError

__all__ = ["TableRange", "is_versioned"]

FORMATS = ("delta", "iceberg")
NAME = re.compile(r"(?P<format>\w+):(?P<table>.+?)(@(?P<first>\d*)\.\.(?P<last>\d*))?")
VERSION = re.compile(r"@[^@/:]*$")
"""The end of a name that is meant as a range; URLs have their own @ before a slash or a colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRange:
    """A table, and which of its versions to read."""

    name: str
    """The whole name, as errors show it."""
    table: str
    first: int | None
    """None: everything that the table held at `last`."""
    last: int | None
    """None: the newest."""

    @classmethod
    def parse(cls, name: str) -> TableRange:
        """Reads a name.

        Raises:
            InputError: It names no table, or its range is none.
        """
        found = NAME.fullmatch(name)
        if found is None or (found["first"] is None and VERSION.search(name)):
            raise InputError(
                f"{name} is no table with versions; write {name.partition(':')[0]}:TABLE, or "
                f"{name.partition(':')[0]}:TABLE@FIRST..LAST with whole numbers."
            )
        first, last = (int(found[end]) if found[end] else None for end in ("first", "last"))
        return cls(name=name, table=found["table"], first=first, last=last)


def is_versioned(name: str) -> bool:
    """Returns True for the name of a table of Delta Lake or Iceberg."""
    return name.startswith(tuple(f"{each}:" for each in FORMATS))
