"""The mutable tier: events that are too new for the store, in a RocksDB of their own.

Keys by their first byte::

    e    events                                 event_log.py
    i    ids of events, to find duplicates      ids.py
    m    the state, and the ceiling of times    state.py, clock.py
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.errors import RequestError
from thinrow.online.clock import TierClock, Wall, wall_ts
from thinrow.online.database import TierDatabase
from thinrow.online.event_log import EventLog
from thinrow.online.formats import RecordFormats
from thinrow.online.handover import HandOver
from thinrow.online.ids import IdIndex
from thinrow.online.state import StoredState
from thinrow.schema.evolution import check_id_kinds
from thinrow.store.directory import NEVER_TS
from thinrow.store.times import DAY_MS
from thinrow.store.user_texts import collision

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.online.records import Batch, RecordFormat
    from thinrow.schema import Schema

__all__ = ["CommittedBatch", "MutableTier", "TierConfig"]

BUCKET_MS_MIN = 3600 * 1000
"""Shortest span of arrivals whose ids are forgotten together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """Settings of one tier."""

    folder: Path
    """Folder of the RocksDB; made if it is missing."""
    retention_ms: int = 2 * DAY_MS
    """Shortest time from arrival for which requests can be answered; longer than the cadence."""
    dedup_window_ms: int = 7 * DAY_MS
    """Shortest span of arrivals for which ids are kept; not shorter than compaction's."""
    commit_lead_ms: int = 50
    """Shortest time that a commit is expected to take; 0 if requests wait for commits."""
    wall: Wall = wall_ts
    """The clock on the wall."""


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """Result of committing a batch."""

    appended: int
    duplicates: int
    arrival_ts: int


class MutableTier:
    """Holds events from their arrival until a generation has them and retention has passed.

    Thread-safe, but for `commit`, which one thread calls, and `purge`, which another calls. Every
    method may raise StoreError.

    Raises:
        StoreLockedError: Another process has the tier open.
    """

    def __init__(self, config: TierConfig) -> None:
        changed = threading.Condition()
        self._changed = changed
        self.database = TierDatabase(config.folder)
        """The RocksDB."""
        bucket_ms = max(config.dedup_window_ms, BUCKET_MS_MIN)
        self.state = StoredState(self.database, bucket_ms, config.wall())
        """Watermarks and epochs."""
        self.formats = RecordFormats(self.state)
        self.clock = TierClock(config.wall, self.database, changed, config.commit_lead_ms)
        self.ids = IdIndex(self.database, self.formats)
        self.events = EventLog(self.database, self.state, self.formats)
        self._hand_over = HandOver(
            self.database,
            self.state,
            self.clock,
            changed,
            self.events,
            self.ids,
            config.retention_ms,
            config.dedup_window_ms,
        )

    def close(self) -> None:
        """Closes the files. Committed events are durable already."""
        reported = self.database.failure
        self.clock.close()
        self.database.close()
        if self.database.failure is not reported:
            self.database.require_healthy()

    def use_schema(self, schema: Schema) -> RecordFormat:
        """Returns the format of events of this schema, durably registered if it is new.

        Raises:
            SchemaError: Its ids are of another kind than those of the tier.
        """
        with self._changed:
            known = self.formats.newest
            if known is not None:
                check_id_kinds(known.schema, schema)
            return self.formats.add(schema)

    @property
    def format(self) -> RecordFormat | None:
        """The format of new events; None before the tier has a schema."""
        return self.formats.newest

    def to_wire(self, arrivals: Sequence[int], records: list[bytes]) -> bytes:
        """Encodes events of any schemas as a MutableEvents of the newest schema."""
        return self.formats.to_wire(arrivals, records)

    @property
    def now_ts(self) -> int:
        """The tier's clock, ms."""
        return self.clock.now_ts

    @property
    def sealed_ts(self) -> int:
        """No event arrives before this watermark any more; NEVER_TS if nothing was sealed."""
        return self.state.now.sealed_ts

    @property
    def kept_from_ts(self) -> int:
        """The tier has all events since this watermark; NEVER_TS if it has all events."""
        return self.state.now.kept_from_ts

    def begin(self, request_ts: int) -> int:
        """Returns the moment of a request, ms; a ``request_ts`` of 0 stands for now.

        From now on no event arrives before that moment, and those that did can be read.

        Raises:
            RequestError: The moment lies too far ahead of the clock.
            StoreError: The disk failed, so that earlier arrivals are unknown.
        """
        return self.clock.promise(request_ts, "The request")

    def commit(self, batches: Sequence[Batch]) -> list[CommittedBatch]:
        """Makes batches durable together: their events arrive at one moment.

        Raises:
            StoreError: The disk failed. The tier then refuses all requests, because which data is
                durable is unknown until the next start.
        """
        with self.clock.commit() as arrival_ts:
            chosen = self.ids.rows_to_store(batches)
            id_prefix = self.ids.add_bucket(self.state.now.bucket(arrival_ts))
            self.events.write(batches, chosen, arrival_ts, id_prefix)
        return [
            CommittedBatch(len(rows), len(batch) - len(rows), arrival_ts)
            for batch, rows in zip(batches, chosen, strict=True)
        ]

    def collision(self, batch: Batch, users: dict[bytes, str]) -> RequestError | None:
        """Returns the error of a batch with a user whose key another text has; None for others.

        The thread that commits calls it, before.

        Args:
            batch: The batch.
            users: Texts of users by key, from batches to be committed together; those of this one
                are added.
        """
        added: dict[bytes, str] = {}
        for key, text in zip(batch.users, batch.texts, strict=False):
            known = users.get(key, added.get(key))
            if known is None:
                stored = self.events.text_of(key)
                known = added[key] = text if stored is None else stored.decode()
            if known != text:
                return RequestError(str(collision(known, text)))
        users.update(added)
        return None

    def renew_lease(self) -> None:
        """Keeps the clock's lease, while nothing is committed. Raises StoreError."""
        self.clock.renew_lease()

    def read(
        self,
        user_id: int,
        from_ts: int,
        until_ts: int,
        bytes_max: int = sys.maxsize,
        text: bytes | None = None,
    ) -> tuple[list[int], list[bytes]]:
        """Returns a user's events that arrived in a window; see `EventLog.read`."""
        return self.events.read(user_id, from_ts, until_ts, bytes_max, text)

    def measure(
        self,
        user_id: int,
        from_ts: int,
        until_ts: int,
        bytes_max: int,
        text: bytes | None = None,
    ) -> tuple[int, int]:
        """Returns the number and bytes of events that `read` would return."""
        return self.events.measure(user_id, from_ts, until_ts, bytes_max, text)

    def scan(
        self, from_ts: int, until_ts: int
    ) -> Iterator[tuple[list[int], list[int], list[bytes]]]:
        """Yields all events that arrived in a window; see `EventLog.scan`."""
        return self.events.scan(from_ts, until_ts)

    def seal(self, watermark_ts: int, published_ts: int = NEVER_TS) -> None:
        """Lets no event arrive before a watermark, durably; see `HandOver.seal`."""
        self._hand_over.seal(watermark_ts, published_ts)

    def accept_generation(self, watermarks: Sequence[int]) -> bool:
        """Serves requests from a published generation; see `HandOver.accept_generation`."""
        return self._hand_over.accept_generation(watermarks)

    def user_runs(self, until_ts: int) -> Iterator[tuple[int, int, int]]:
        """Yields epoch, user and first arrival of runs of events; see `EventLog.user_runs`."""
        return self.events.user_runs(until_ts)

    def erase(self, runs: Sequence[tuple[int, int, int]]) -> None:
        """Deletes events of users; see `HandOver.erase`."""
        self._hand_over.erase(runs)

    def purge(self) -> None:
        """Removes deleted events from all files."""
        self._hand_over.purge()
