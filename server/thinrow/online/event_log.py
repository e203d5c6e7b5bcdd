"""The log of events that are too new for the store.

A key is ``e epoch(4) user(8) arrival_ts(8) sequence(4)``, numbers big-endian, times and users as
unsigned numbers; the value is the event's record. Each seal begins an epoch: a user's events of an
epoch are one run of keys, and an epoch that is no longer read is one range of keys.
"""

from __future__ import annotations

import sys
import time
from itertools import chain
from typing import TYPE_CHECKING

from rocksdict import WriteBatch
from thinrow import _native
from thinrow.errors import AnswerTooLargeError
from thinrow.online.records import user_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.online.database import TierDatabase
    from thinrow.online.formats import RecordFormats
    from thinrow.online.records import Batch
    from thinrow.online.state import StoredState

__all__ = ["WRITE_PAIRS_MAX", "EventLog", "keys_before", "keys_of_run", "unsigned"]

WRITE_PAIRS_MAX = 64
"""Pairs in one write, during which RocksDB's binding holds the interpreter's lock, some 0.15 ms."""
SCAN_EVENTS_MAX = 2048
SCAN_BYTES_MAX = 1024 * 1024
"""Limits on the events of an export in memory; one record may exceed the latter."""
HIGHEST_TS = (1 << 63) - 1
_LAST_RUN_KEY = b"\xff" * 12


class EventLog:
    """Events by epoch, user and arrival. One thread writes; any thread reads.

    Args:
        database: Holds the log.
        state: The epochs.
        formats: Order the events of a user.
    """

    def __init__(self, database: TierDatabase, state: StoredState, formats: RecordFormats) -> None:
        self._database = database
        self._state = state
        self._formats = formats
        self._sequence = (0, 0)

    def write(
        self,
        batches: Sequence[Batch],
        chosen: Sequence[Sequence[int]],
        arrival_ts: int,
        id_prefix: bytes,
    ) -> None:
        """Writes the chosen rows of batches, and their ids; the caller makes them durable."""
        at_ts, sequence = self._sequence
        if at_ts != arrival_ts:
            sequence = 0
        prefix = self.prefix(arrival_ts)
        arrived = unsigned(arrival_ts)
        pairs = WriteBatch(raw_mode=True)
        for batch, rows in zip(batches, chosen, strict=True):
            for row in rows:
                key = prefix + batch.users[row] + arrived + sequence.to_bytes(4, "big")
                pairs.put(key, batch.records[row])
                event_id = batch.ids[row]
                if event_id is not None:
                    pairs.put(id_prefix + event_id, b"")
                sequence += 1
                if pairs.len() >= WRITE_PAIRS_MAX:
                    self._database.write(pairs)
                    pairs = WriteBatch(raw_mode=True)
                    time.sleep(0)  # other threads get the interpreter
        self._database.write(pairs)
        self._sequence = (arrival_ts, sequence)

    def prefix(self, arrival_ts: int) -> bytes:
        """Returns the start of the keys of events that arrive at a moment."""
        return _epoch_prefix(self._state.now.epoch(arrival_ts))

    def read(
        self,
        user_id: int,
        from_ts: int,
        until_ts: int,
        bytes_max: int = sys.maxsize,
        text: bytes | None = None,
    ) -> tuple[list[int], list[bytes]]:
        """Returns a user's events that arrived in ``[from_ts, until_ts)``.

        Args:
            user_id: The user's key.
            from_ts: First arrival, ms.
            until_ts: End of arrivals, ms; a moment that `MutableTier.begin` returned.
            bytes_max: Limit on the bytes of the records.
            text: The user, where ids are texts; others of the same key have other events.

        Returns:
            Arrival times and records, in the order of a history.

        Raises:
            RequestError: Retention deleted some of them.
            AnswerTooLargeError: The records exceed ``bytes_max``.
        """
        arrivals: list[int] = []
        records: list[bytes] = []
        number = int.from_bytes
        for key, record in self._of_user(user_id, from_ts, until_ts, text):
            arrivals.append(number(key[-12:-4], "big"))
            records.append(record)
            bytes_max -= len(record)
            if bytes_max < 0:
                raise _too_large()
        self._state.now.check_kept(from_ts)
        if len(records) > 1:
            order = self._ordered(records)
            arrivals = [arrivals[row] for row in order]
            records = [records[row] for row in order]
        return arrivals, records

    def measure(
        self,
        user_id: int,
        from_ts: int,
        until_ts: int,
        bytes_max: int,
        text: bytes | None = None,
    ) -> tuple[int, int]:
        """Returns the number of events that `read` would return, and the bytes of their records.

        Raises:
            RequestError: Retention deleted some of them.
            AnswerTooLargeError: The records exceed ``bytes_max``.
        """
        count = size = 0
        for _, record in self._of_user(user_id, from_ts, until_ts, text):
            count += 1
            size += len(record)
            if size > bytes_max:
                raise _too_large()
        self._state.now.check_kept(from_ts)
        return count, size

    def text_of(self, user: bytes) -> bytes | None:
        """Returns the text of the user who has events under a key; None without such a user."""
        now = self._state.now
        for epoch in now.epochs(now.kept_from_ts, HIGHEST_TS):
            prefix = _epoch_prefix(epoch) + user
            found = next(self._database.items(prefix, prefix + _LAST_RUN_KEY, one_user=True), None)
            if found is not None:
                return user_text(found[1])
        return None

    def _of_user(
        self, user_id: int, from_ts: int, until_ts: int, text: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        user = unsigned(user_id)
        first, last = unsigned(max(from_ts, 0)), unsigned(max(until_ts, 0))
        prefixes = (_epoch_prefix(n) + user for n in self._state.now.epochs(from_ts, until_ts))
        # Two generators, one within the other, would take a tenth longer for each event.
        found = chain.from_iterable(
            self._database.items(prefix + first, prefix + last, one_user=True)
            for prefix in prefixes
        )
        return found if text is None else (pair for pair in found if user_text(pair[1]) == text)

    def _ordered(self, records: list[bytes]) -> list[int]:
        order = _native.record_order(records, self._formats.event_id_type)
        if order:
            return order
        full = [self._formats.order(record) for record in records]
        return sorted(range(len(full)), key=full.__getitem__)

    def scan(
        self, from_ts: int, until_ts: int
    ) -> Iterator[tuple[list[int], list[int], list[bytes]]]:
        """Yields users, arrival times and records of all that arrived in ``[from_ts, until_ts)``.

        Each part has at most SCAN_EVENTS_MAX events and about SCAN_BYTES_MAX bytes. Once
        ``until_ts`` is sealed, all scans yield the same parts.

        Raises:
            RequestError: Retention or erasure deleted some of them.
        """
        users: list[int] = []
        arrivals: list[int] = []
        records: list[bytes] = []
        size = 0
        for epoch in self._state.now.epochs(from_ts, until_ts):
            for key, record in self._database.items(_epoch_prefix(epoch), _epoch_prefix(epoch + 1)):
                arrival_ts = _arrival_of(key)
                if from_ts <= arrival_ts < until_ts:
                    users.append(_user_of(key))
                    arrivals.append(arrival_ts)
                    records.append(record)
                    size += len(record)
                if len(records) == SCAN_EVENTS_MAX or size >= SCAN_BYTES_MAX:
                    yield users, arrivals, records
                    users, arrivals, records, size = [], [], [], 0
        self._state.now.check_whole(from_ts)
        if records:
            yield users, arrivals, records

    def user_runs(self, until_ts: int) -> Iterator[tuple[int, int, int]]:
        """Yields epoch, user and first arrival of each run of events that begins before a moment.

        A run is a user's events of one epoch.
        """
        for epoch in self._state.now.epochs(self._state.now.kept_from_ts, until_ts):
            prefix = _epoch_prefix(epoch)
            for key in self._database.keys_apart(
                prefix, prefix, lambda key: key[:-12] + _LAST_RUN_KEY
            ):
                yield epoch, _user_of(key), _arrival_of(key)

    def is_empty_since(self, epoch: int) -> bool:
        """Returns whether an epoch and all later ones hold no event."""
        return next(self._database.items(_epoch_prefix(epoch), b"f"), None) is None


def keys_before(epoch: int) -> list[tuple[bytes, bytes]]:
    """Returns the range of keys of all earlier epochs."""
    return [(_epoch_prefix(0), _epoch_prefix(epoch))] if epoch else []


def keys_of_run(epoch: int, user_id: int, until_ts: int) -> tuple[bytes, bytes]:
    """Returns the range of keys of a user's events in an epoch that arrived before a time."""
    prefix = _epoch_prefix(epoch) + unsigned(user_id)
    return prefix, prefix + unsigned(until_ts)


def _epoch_prefix(epoch: int) -> bytes:
    return b"e" + epoch.to_bytes(4, "big")


def _user_of(key: bytes) -> int:
    return int.from_bytes(key[5:13], "big", signed=True)


def _arrival_of(key: bytes) -> int:
    return int.from_bytes(key[-12:-4], "big")


def unsigned(number: int) -> bytes:
    """Returns the eight bytes of a time or a user in a key."""
    return (number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def _too_large() -> AnswerTooLargeError:
    return AnswerTooLargeError(
        "The mutable events would take more bytes than this server sends (response_bytes_max); "
        "request fewer users at once, and publish generations more often."
    )
