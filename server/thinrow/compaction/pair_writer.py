"""Writing of a shard's next pairs, user after user: as a layer over the shard so far, or whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.core.ids import is_text_kind
from thinrow.schema import DIRECTORY_GROUP, EVENT_GROUP, USER_GROUP
from thinrow.store.keys import USER_BYTES, group_and_stripe
from thinrow.store.kv_digest import stream_digest
from thinrow.store.shard import ShardWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.compaction.rewrite import Rewritten
    from thinrow.schema import Schema
    from thinrow.store.manifest import ShardSummary
    from thinrow.store.shard import Shard
    from thinrow.store.shard_manifest import ShardManifest

__all__ = ["PairWriter", "PreviousShard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousShard:
    """The shard as the last generation left it."""

    shard: Shard
    summary: ShardSummary
    manifest: ShardManifest


class PairWriter:
    """Writes what was rewritten: as a layer over the previous shard, or with it as a whole.

    Args:
        previous: The shard so far; None in a first build.
        schema: The next generation's schema.
        path: Folder to create.
        whole: Writes every pair.
    """

    def __init__(
        self, previous: PreviousShard | None, schema: Schema, path: Path, *, whole: bool
    ) -> None:
        self._old: Iterator[tuple[bytes, bytes]] = iter(())
        self._is_layer = previous is not None and not whole and previous.shard.takes_layer
        if previous is not None and self._is_layer:
            below = previous.summary.kv_xxh3_128 or stream_digest(
                previous.shard.items(previous.summary.keys)
            )
            self._writer = ShardWriter(path, previous.shard.path, below)
            self._key_count = previous.summary.keys
        else:
            self._writer = ShardWriter(path)
            if previous is not None:
                self._old = previous.shard.items(previous.summary.keys)
        self._groups = {DIRECTORY_GROUP, EVENT_GROUP, *(group.number for group in schema.groups)}
        if is_text_kind(schema.user_ids):
            self._groups.add(USER_GROUP)
        self._pair = next(self._old, None)

    def add(self, part: Rewritten) -> None:
        """Writes some users, all of whom come after those of the parts before."""
        if self._is_layer:
            self._lay_over(part)
        else:
            self._merge(part)

    def finish(self) -> tuple[int, ShardWriter]:
        """Writes the old pairs that follow.

        Returns:
            The pairs of the shard, and its writer, which is still to be finished.
        """
        if self._is_layer:
            return self._key_count, self._writer
        while self._pair is not None:
            self._keep(self._pair)
        return self._writer.key_count, self._writer

    def _lay_over(self, part: Rewritten) -> None:
        """Writes what differs from the pairs below."""
        self._key_count += len(part.keys) - len(part.replaced)
        changes: dict[bytes, bytes | None] = dict.fromkeys(part.replaced)
        changes.update(zip(part.keys, part.values, strict=True))
        for key in sorted(changes):
            self._writer.put(key, changes[key])

    def _merge(self, part: Rewritten) -> None:
        """Writes new pairs and, between them, the old ones that stay, as they are."""
        replaced = frozenset(part.replaced)
        put = self._writer.put
        for key, value in zip(part.keys, part.values, strict=True):
            while self._pair is not None and self._pair[0] <= key:
                self._keep(self._pair, replaced)
            put(key, value)
        # Old pairs of the last user of a part may follow its last new one.
        last_user = part.keys[-1][:USER_BYTES]
        while self._pair is not None and self._pair[0][:USER_BYTES] == last_user:
            self._keep(self._pair, replaced)

    def _keep(self, pair: tuple[bytes, bytes], replaced: frozenset[bytes] = frozenset()) -> None:
        """Writes an old pair, unless it is replaced or its group went, and reads the next."""
        if pair[0] not in replaced and group_and_stripe(pair[0])[0] in self._groups:
            self._writer.put(*pair)
        self._pair = next(self._old, None)
