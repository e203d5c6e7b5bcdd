"""The shards of a store that one process opens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from thinrow.errors import UsageError

__all__ = ["ALL_SHARDS", "ShardChoice"]


@dataclass(frozen=True, slots=True)
class ShardChoice:
    """A range of shards, whose bounds may follow from their number; called with that number."""

    first: int = 0
    last: int | None = None
    """The last one, included; None with `groups`."""
    groups: int = 1
    """Equal groups of which `first` is one, if `last` is None."""

    @classmethod
    def parse(cls, shards: str | None, group: str | None) -> Self:
        """Reads the options of a server.

        Args:
            shards: `A-B` or one number; None for all.
            group: `I/G`, the group I from 0 of G groups; None for all.

        Raises:
            UsageError: They are malformed, or both are given.
        """
        if shards is not None and group is not None:
            raise UsageError("--shards and --group both choose shards; give one of them.")
        if shards is not None:
            match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", shards)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                raise UsageError(f"--shards is {shards!r}; write A-B, such as 0-15, or one number.")
            return cls(int(match[1]), int(match[2] or match[1]))
        if group is not None:
            match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", group)
            if match is None or int(match[1]) >= int(match[2]):
                raise UsageError(
                    f"--group is {group!r}; write I/G with I from 0 to G-1, such as 0/4."
                )
            return cls(int(match[1]), None, int(match[2]))
        return cls()

    def __call__(self, count: int) -> range:
        """Returns the numbers of the shards, of a store that has `count`.

        Raises:
            UsageError: The store has too few shards.
        """
        if self.last is None:
            if count < self.groups:
                raise UsageError(
                    f"The store has {count} shards, too few for {self.groups} groups; give --group "
                    f"at most {count} groups."
                )
            return range(self.first * count // self.groups, (self.first + 1) * count // self.groups)
        if self.last >= count:
            raise UsageError(
                f"The store has shards 0 to {count - 1}, and --shards goes to {self.last}; give "
                f"numbers of shards that it has."
            )
        return range(self.first, self.last + 1)


ALL_SHARDS = ShardChoice()
