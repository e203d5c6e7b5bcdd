"""Duplicates among a topic's events, found alike by replicas that lived all along and rebuilt ones.

An event is a duplicate if the last event of its user and id that counted happened, as the store
sees it, no longer than the dedup window before its arrival. Thus all that matters of an event is
what its generation has of it, and a replica that begins behind a generation reads the rest there.
The value of an id is the arrival of its event and its event_ts, of the store's ids twice their
visible_ts; the key ``s user(8)`` says that a user's ids were read from the store.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from rocksdict import WriteBatch
from thinrow.core.ids import is_text_kind
from thinrow.core.shards import shard_of
from thinrow.online.event_log import WRITE_PAIRS_MAX
from thinrow.store.directory import NEVER_TS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from thinrow.online.database import TierDatabase
    from thinrow.online.ids import IdIndex
    from thinrow.online.state import StoredState
    from thinrow.store.generation import Generation
    from thinrow.store.recent_ids import StoredIds

    Histories = Callable[[], AbstractContextManager[Generation | None]]

__all__ = ["Duplicates", "id_value"]

USERS_PER_READ = 64
"""Users whose recent ids are in memory together."""
_VALUE = struct.Struct(">qq")
RECORD_TS_AT = 2
"""Place of event_ts in every record, after the number of its schema."""
_SEEDED = (b"s", b"t")


def id_value(arrived: bytes, record: bytes) -> bytes:
    """Returns the value of an id, from the arrival as in a key and the record."""
    return arrived + record[RECORD_TS_AT + 7 : RECORD_TS_AT - 1 : -1]


class Duplicates:
    """Finds duplicates. One thread calls all but `learn`, which the tier's lock guards.

    Args:
        database: Holds the marks of users whose ids were read from the store.
        ids: The index of ids.
        state: The watermark up to which generations were accepted.
        window_ms: The dedup window.
        histories: Opens the newest generation.
    """

    def __init__(
        self,
        database: TierDatabase,
        ids: IdIndex,
        state: StoredState,
        window_ms: int,
        histories: Histories,
    ) -> None:
        self._database = database
        self._ids = ids
        self._state = state
        self._window_ms = window_ms
        self._histories = histories
        self._watermarks: Sequence[int] = ()

    def learn(self, watermarks: Sequence[int]) -> None:
        """Takes the watermarks of the newest generation that was accepted, ascending."""
        self._watermarks = watermarks

    def is_one(self, value: bytes, arrival_ts: int) -> bool:
        """Returns whether an event that arrives now is a duplicate of the event of a value."""
        arrived_ts, event_ts = _VALUE.unpack(value)
        return self._time_of(arrived_ts, event_ts) >= arrival_ts - self._window_ms

    def _time_of(self, arrival_ts: int, event_ts: int) -> int:
        """Returns the visible_ts of an event that a generation has; else its arrival."""
        number = bisect_right(self._watermarks, arrival_ts)
        if number == len(self._watermarks):
            return arrival_ts
        lower_ts = self._watermarks[number - 1] if number else NEVER_TS
        return min(max(event_ts, lower_ts), self._watermarks[number] - 1)

    def values(self, ids: Sequence[bytes | None], built_ts: int) -> dict[bytes, bytes]:
        """Returns the values of ids that are there already.

        Args:
            ids: Ids as in keys, of events that are to be applied; None for events without one.
            built_ts: Watermark of the generation that the tier began with; NEVER_TS if it has the
                ids of all events that may matter.
        """
        wanted = list(dict.fromkeys(key for key in ids if key is not None))
        with self._database.reading():
            if built_ts != NEVER_TS and wanted:
                self._seed(wanted, built_ts)
            found = self._ids.values(wanted)
            return self._less_erased(found) if found else found

    def _less_erased(self, found: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Returns the values without those of users who were erased since, as the store is."""
        with self._histories() as generation:
            if generation is None:
                return found
            users = _users_of(found)
            erased = generation.directories(users).erased_ts
        erased[erased > self._state.now.accepted_ts] = NEVER_TS
        if (erased == NEVER_TS).all():
            return found
        erased_ts = dict(zip(_keys_of(users), erased.tolist(), strict=True))
        return {
            key: value
            for key, value in found.items()
            if _VALUE.unpack(value)[0] >= erased_ts[key[:8]]
        }

    def forget_seeded(self) -> None:
        """Removes the marks of users, once no id of the store matters any more."""
        self._database.delete([_SEEDED])

    def _seed(self, ids: Sequence[bytes], built_ts: int) -> None:
        """Adds the store's recent ids of users whom the tier has not seen before."""
        users = list(dict.fromkeys(key[:8] for key in ids))
        marks = self._database.get_many([b"s" + user for user in users])
        new = [user for user, mark in zip(users, marks, strict=True) if mark is None]
        if not new:
            return
        with self._histories() as generation:
            assert generation is not None, "a tier that began with a generation follows its store"
            rest = iter(new)
            while part := list(islice(rest, USERS_PER_READ)):
                self._add(part, built_ts, generation)

    def _add(self, users: Sequence[bytes], built_ts: int, generation: Generation) -> None:
        numbers = _numbers_of(users)
        shards = shard_of(numbers, generation.shard_count)
        pairs = WriteBatch(raw_mode=True)
        for shard in np.unique(shards).tolist():
            for event_id, visible_ts in _stored(
                generation, shard, numbers[shards == shard], built_ts - self._window_ms
            ):
                if visible_ts < built_ts:
                    prefix = self._ids.add_bucket(self._state.now.bucket(visible_ts))
                    pairs.put(prefix + event_id, _VALUE.pack(visible_ts, visible_ts))
                if pairs.len() >= WRITE_PAIRS_MAX:
                    self._write(pairs)
                    pairs = WriteBatch(raw_mode=True)
        # Last, so that a mark is only there with all the ids.
        for user in users:
            pairs.put(b"s" + user, b"")
        self._write(pairs)

    def _write(self, pairs: WriteBatch) -> None:
        with self._database.storing():
            self._database.write_unlogged(pairs)


def _stored(
    generation: Generation, shard: int, users: NDArray[np.int64], since_ts: int
) -> Iterator[tuple[bytes, int]]:
    """Yields user and id as in a key, and visible_ts, of stored events since a moment."""
    from thinrow.store.recent_ids import stored_ids_since

    with generation.naming_damage():
        stored = stored_ids_since(
            generation.shard(shard), np.sort(users), since_ts, generation.schema
        )
    place = stored.ids.present
    rows = np.arange(len(stored.users)) if place is None else np.flatnonzero(place)
    recent = stored.visible_ts[rows] >= since_ts
    owners = _keys_of(stored.users[rows])
    for user, event_id, visible_ts, is_recent in zip(
        owners,
        _id_keys(stored, generation),
        stored.visible_ts[rows].tolist(),
        recent.tolist(),
        strict=True,
    ):
        if is_recent:
            yield user + event_id, visible_ts


def _id_keys(stored: StoredIds, generation: Generation) -> list[bytes]:
    """Returns the ids that are present, as in keys."""
    words = stored.ids.words
    if not is_text_kind(generation.schema.event_ids):
        return _keys_of(words.view(np.int64))
    assert stored.ids.texts is not None
    texts = [text.encode() for text in stored.ids.texts.to_pylist()]
    return [texts[word] for word in words.tolist()]


def _users_of(found: dict[bytes, bytes]) -> NDArray[np.int64]:
    return _numbers_of(list(dict.fromkeys(key[:8] for key in found)))


def _numbers_of(keys: Sequence[bytes]) -> NDArray[np.int64]:
    return np.frombuffer(b"".join(keys), ">i8").astype(np.int64)


def _keys_of(numbers: NDArray[np.int64]) -> list[bytes]:
    data = numbers.astype(">i8").tobytes()
    return [data[at : at + 8] for at in range(0, len(data), 8)]
