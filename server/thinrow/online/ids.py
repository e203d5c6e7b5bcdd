"""The index of event ids that finds duplicates among recent arrivals.

A key is ``i bucket(4) user(8) event_id(8)``, numbers big-endian; the value is empty, or what a
topic keeps of the event (topic/duplicates.py). A bucket holds the ids of one dedup window of
arrivals, and is deleted as a whole.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.online.database import TierDatabase
    from thinrow.online.formats import RecordFormats
    from thinrow.online.records import Batch

__all__ = ["IdIndex"]

LOOKUP_IDS_MAX = 512
"""Ids in one lookup, during which the interpreter's lock is free."""


class IdIndex:
    """Ids that the tier has seen. One thread looks up and adds; any thread forgets.

    Args:
        database: Holds the index.
        formats: Order equal ids of one commit.
    """

    def __init__(self, database: TierDatabase, formats: RecordFormats) -> None:
        self._database = database
        self._formats = formats
        # Where the clock was far off there may be ages between two buckets.
        with database.reading():
            found = database.keys_apart(b"i", b"i", lambda key: _prefix(_bucket_of(key) + 1))
            self._buckets = {_bucket_of(key) for key in found}

    def rows_to_store(self, batches: Sequence[Batch]) -> list[list[int]]:
        """Returns the rows of each batch that are no duplicates, ascending.

        Of equal ids in the batches, the event that comes first in the order of a history is stored.
        """
        first: dict[bytes, tuple[int, int]] = {}
        chosen: list[list[int]] = []
        for number, batch in enumerate(batches):
            rows = []
            for row, event_id in enumerate(batch.ids):
                if event_id is None:
                    rows.append(row)
                    continue
                rival = first.setdefault(event_id, (number, row))
                if rival != (number, row) and self._formats.order(
                    batch.records[row]
                ) < self._formats.order(batches[rival[0]].records[rival[1]]):
                    first[event_id] = (number, row)
            chosen.append(rows)
        known = self.values(list(first))
        for event_id, (number, row) in first.items():
            if event_id not in known:
                chosen[number].append(row)
        for rows in chosen:
            rows.sort()
        return chosen

    def values(self, ids: list[bytes]) -> dict[bytes, bytes]:
        """Returns the newest value of each id that is there already."""
        found: dict[bytes, bytes] = {}
        for bucket in sorted(self._buckets, reverse=True):
            prefix = _prefix(bucket)
            for at in range(0, len(ids), LOOKUP_IDS_MAX):
                part = ids[at : at + LOOKUP_IDS_MAX]
                values = self._database.get_many([prefix + event_id for event_id in part])
                for event_id, value in zip(part, values, strict=True):
                    if value is not None:
                        found.setdefault(event_id, value)
                time.sleep(0)  # other threads get the interpreter
        return found

    def add_bucket(self, bucket: int) -> bytes:
        """Returns the prefix of keys in a bucket, which later lookups include."""
        self._buckets.add(bucket)
        return _prefix(bucket)

    def forget(self, first_bucket: int) -> list[tuple[bytes, bytes]]:
        """Excludes buckets before ``first_bucket`` from lookups; returns their range of keys."""
        for bucket in list(self._buckets):
            if bucket < first_bucket:
                self._buckets.discard(bucket)
        return [(_prefix(0), _prefix(first_bucket))] if first_bucket else []

    def forget_all(self) -> list[tuple[bytes, bytes]]:
        """Excludes all buckets from lookups; returns their range of keys."""
        self._buckets.clear()
        return [(b"i", b"j")]


def _prefix(bucket: int) -> bytes:
    return b"i" + bucket.to_bytes(4, "big")


def _bucket_of(key: bytes) -> int:
    return int.from_bytes(key[1:5], "big")
