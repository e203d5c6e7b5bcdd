"""The shards that a reader of a store has open: always the same ones, or those that others say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from thinrow.store.manifest import read_manifest
from thinrow.store.shard_choice import ALL_SHARDS, ShardChoice

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from thinrow.store.generation import Generation

__all__ = ["EVERY_SHARD", "FixedShards", "ShardSource"]


class ShardSource(Protocol):
    """Says which shards of a generation are to be open, now and later."""

    def to_open(self, folder: Path) -> Collection[int] | None:
        """Returns the numbers of the shards to open of the generation in `folder`; None for all.

        Raises:
            UsageError: The generation has too few shards.
            StoreError: The folder cannot be read.
        """
        ...

    def has_changed(self, generation: Generation) -> bool:
        """Returns True if other shards of an open generation are to be open now.

        Raises:
            StoreError: Its folder cannot be read.
        """
        ...


class FixedShards:
    """The shards of a choice that never changes."""

    def __init__(self, choice: ShardChoice) -> None:
        self._choice = choice

    def to_open(self, folder: Path) -> Collection[int] | None:
        """Returns the shards of the choice."""
        if self._choice == ALL_SHARDS:
            return None
        return self._choice(read_manifest(folder).shard_count)

    def has_changed(self, generation: Generation) -> bool:  # noqa: ARG002 - they never change
        """Returns False."""
        return False


EVERY_SHARD = FixedShards(ALL_SHARDS)
