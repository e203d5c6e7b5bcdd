"""The mutable tier that is its own log: one process takes events, and gives them their arrivals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.online.clock import TierClock, Wall, wall_ts
from thinrow.online.event_tier import EventTier, RequestMoment, TakeUp
from thinrow.online.handover import HandOver
from thinrow.store.directory import NEVER_TS
from thinrow.store.times import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.online.records import Batch
    from thinrow.store.generation import Generation

__all__ = ["CommittedBatch", "MutableTier", "TierConfig"]


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


class MutableTier(EventTier):
    """Holds events from their arrival until a generation has them and retention has passed.

    Its own log: `commit` makes events durable. Thread-safe, but for `commit`, which one thread
    calls, and `purge`, which another calls. Every method may raise StoreError.

    Raises:
        StoreLockedError: Another process has the tier open.
        UsageError: The folder's events come from another log.
    """

    def __init__(self, config: TierConfig) -> None:
        super().__init__(config.folder, config.dedup_window_ms, config.wall())
        self._taken_up = 0
        self.clock = TierClock(config.wall, self.database, self._changed, config.commit_lead_ms)
        self._hand_over = HandOver(
            self.database,
            self.state,
            self.clock,
            self._changed,
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

    @property
    def now_ts(self) -> int:
        """The tier's clock, ms."""
        return self.clock.now_ts

    def begin(
        self,
        request_ts: int,
        users: Sequence[int] = (),  # noqa: ARG002 - one clock
        lag_max_ms: int | None = None,  # noqa: ARG002 - it never lags
    ) -> RequestMoment:
        """Returns the moment of a request; a ``request_ts`` of 0 stands for now.

        From now on no event arrives before that moment, and those that did can be read.

        Raises:
            RequestError: The moment lies too far ahead of the clock.
            StoreError: The disk failed, so that earlier arrivals are unknown.
        """
        return RequestMoment(self.clock.promise(request_ts, "The request"))

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

    def renew_lease(self) -> None:
        """Keeps the clock's lease, while nothing is committed. Raises StoreError."""
        self.clock.renew_lease()

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

    def forget_ids(self) -> None:
        """Keeps all ids: the first generation has every event, however old."""

    def take_up(self, generation: Generation) -> TakeUp:
        """Serves requests from a published generation, whose schema new events have."""
        if self._taken_up < generation.number:
            self.use_schema(generation.schema)
        if not self.accept_generation(generation.watermarks.tolist()):
            return TakeUp(
                False,
                f"It was not sealed here: its watermark is {generation.watermark_ts}, and this "
                f"tier has sealed {self.sealed_ts}.",
            )
        self._taken_up = generation.number
        return TakeUp(True)
