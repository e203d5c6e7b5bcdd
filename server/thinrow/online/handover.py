"""The hand-over of events to the store: seal, publish, forget, erase, purge.

An export seals a watermark: no event arrives before it any more. Compaction builds a generation of
the exported events. Once that is published, the tier forgets events by retention, and erases the
events of users whom the generation erased.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from thinrow.errors import RequestError
from thinrow.online.database import EVERYTHING, KeyRange
from thinrow.online.erased_users import MARKS, mark_erased
from thinrow.online.event_log import keys_before, keys_of_run
from thinrow.store.directory import NEVER_TS

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from thinrow.online.database import TierDatabase
    from thinrow.online.event_log import EventLog
    from thinrow.online.ids import IdIndex
    from thinrow.online.state import StoredState

__all__ = ["HandOver", "WatermarkClock"]


class WatermarkClock(Protocol):
    """The clock of a tier, as far as watermarks need it."""

    @property
    def now_ts(self) -> int:
        """The time, ms."""

    @property
    def floor_ts(self) -> int:
        """The latest arrival of an event so far, or later, ms."""

    def promise(self, moment_ts: int, subject: str = "") -> int:
        """Lets no event arrive before a moment. Raises RequestError where that is not possible."""

    def wait_committed(self, moment_ts: int) -> None:
        """Waits until events that arrive before a moment can be read; the tier's lock is held."""


class HandOver:
    """Moves the tier's watermarks. Thread-safe, but for `purge`, which one thread calls.

    Args:
        database: Holds events and ids.
        state: Keeps the watermarks.
        clock: Promises that no event arrives before a watermark.
        changed: The tier's lock.
        events: The log of events.
        ids: The index of ids.
        retention_ms: Shortest time from arrival for which events are kept.
        dedup_window_ms: Shortest span of arrivals for which ids are kept.
    """

    def __init__(
        self,
        database: TierDatabase,
        state: StoredState,
        clock: WatermarkClock,
        changed: threading.Condition,
        events: EventLog,
        ids: IdIndex,
        retention_ms: int,
        dedup_window_ms: int,
    ) -> None:
        self._database = database
        self._state = state
        self._clock = clock
        self._changed = changed
        self._events = events
        self._ids = ids
        self._retention_ms = retention_ms
        self._dedup_window_ms = dedup_window_ms
        self._to_purge: list[KeyRange] = [EVERYTHING] if state.now.purge_due else []

    def seal(self, watermark_ts: int, published_ts: int = NEVER_TS) -> None:
        """Lets no event arrive before a watermark, durably. Sealing again changes nothing.

        Args:
            watermark_ts: The watermark.
            published_ts: The watermark published at this moment, accepted by the tier or not.

        Raises:
            RequestError: The watermark lies too far ahead of the clock, or the published
                generation may lack events.
        """
        with self._changed:
            if watermark_ts <= self._state.now.sealed_ts:
                return
            # A later seal would make such a generation pass for an exported one.
            if not self.is_covered(published_ts):
                raise RequestError(
                    f"The store has a generation of watermark {published_ts} already, which this "
                    f"tier never sealed and which may lack events it holds; roll that generation "
                    f"back, and export before compacting."
                )
            self._seal(watermark_ts, published_ts, "The watermark")

    def _seal(self, watermark_ts: int, published_ts: int, subject: str = "") -> None:
        self._clock.promise(watermark_ts, subject)
        state = self._state.now
        if watermark_ts <= state.sealed_ts:
            return  # another thread sealed a later one meanwhile
        # All watermarks sealed before one is published begin one epoch, because requests read all
        # epochs since the published watermark.
        if state.epoch_sealed_ts > published_ts:
            self._state.update(sealed_ts=watermark_ts)
            return
        # Events that arrived before keep their epoch.
        start_ts = max(watermark_ts, self._clock.floor_ts + 1)
        self._state.update(
            sealed_ts=watermark_ts,
            epoch_sealed_ts=watermark_ts,
            epoch_starts=(*state.epoch_starts, start_ts),
        )

    def accept_generation(self, watermarks: Sequence[int], *, is_whole: bool = False) -> bool:
        """Serves requests from a published generation, and forgets events by retention.

        Args:
            watermarks: All watermarks of the generation, ascending.
            is_whole: True if the generation is known to have all that arrived before its watermark.

        Returns:
            False if the tier holds events that arrived before the generation's watermark and never
            sealed it: requests must then be served from older watermarks.
        """
        with self._changed:
            newest_ts = watermarks[-1]
            if not is_whole and not self.is_covered(newest_ts):
                return False
            if newest_ts > self._state.now.sealed_ts:
                if self._state.is_new:
                    self._state.update(kept_from_ts=newest_ts)
                self._seal(newest_ts, newest_ts)
            self._state.is_new = False
            if newest_ts > self._state.now.accepted_ts:
                self._state.update(accepted_ts=newest_ts)
            self._forget(watermarks)
            return True

    def is_covered(self, watermark_ts: int) -> bool:
        """Returns whether a generation of that watermark can lack no event that is here.

        The caller holds the tier's lock.
        """
        if watermark_ts <= self._state.now.sealed_ts:
            return True
        # Events of the commit in progress may arrive before the watermark.
        self._clock.wait_committed(watermark_ts)
        state = self._state.now
        # Some events of the first epoch read may have arrived before the seal.
        return watermark_ts <= state.sealed_ts or self._events.is_empty_since(
            state.epoch(state.sealed_ts)
        )

    def _forget(self, watermarks: Sequence[int]) -> None:
        state = self._state.now
        retained_ts = _newest_before(watermarks, self._clock.now_ts - self._retention_ms)
        # Compaction looks for duplicates no further back than this.
        ids_from_ts = _newest_before(watermarks, watermarks[-1] - self._dedup_window_ms)
        # Lower than all buckets if there is no such watermark.
        first_bucket = max(state.first_bucket, state.bucket(ids_from_ts))
        kept_from_ts = max(state.kept_from_ts, retained_ts)
        if (kept_from_ts, first_bucket) == (state.kept_from_ts, state.first_bucket):
            return
        epoch = state.epoch(kept_from_ts)
        marks, erased_until_ts = [], state.erased_until_ts
        if erased_until_ts <= kept_from_ts:  # of users whose events are forgotten anyway
            marks, erased_until_ts = [MARKS], NEVER_TS
        # The state is durable before the events are deleted.
        self._state.update(
            kept_from_ts=kept_from_ts,
            first_bucket=first_bucket,
            first_epoch=epoch,
            epoch_starts=state.epoch_starts[epoch - state.first_epoch :],
            erased_until_ts=erased_until_ts,
            purge_due=True,
        )
        self._delete(keys_before(epoch) + self._ids.forget(first_bucket) + marks)

    def forget_ids(self, before_ts: int) -> None:
        """Forgets the ids of buckets that end before an arrival."""
        with self._changed:
            first_bucket = self._state.now.bucket(before_ts)
            if first_bucket <= self._state.now.first_bucket:
                return
            self._state.update(first_bucket=first_bucket, purge_due=True)
        self._delete(self._ids.forget(first_bucket))

    def restart(self, watermark_ts: int) -> None:
        """Deletes all events and ids, and starts again behind a generation; the caller locks.

        Args:
            watermark_ts: Watermark of the generation; NEVER_TS for none.
        """
        state = self._state.now
        epoch = state.first_epoch + len(state.epoch_starts) + 1
        # The state is durable before the events are deleted: requests that read them are refused.
        self._state.update(
            kept_from_ts=watermark_ts,
            sealed_ts=watermark_ts,
            accepted_ts=watermark_ts,
            epoch_sealed_ts=watermark_ts,
            first_epoch=epoch,
            epoch_starts=(),
            first_bucket=0,
            erased_until_ts=NEVER_TS,
            purge_due=True,
        )
        self._state.is_new = False
        self._delete([*keys_before(epoch), *self._ids.forget_all(), MARKS])

    def erase(self, runs: Sequence[tuple[int, int, int]]) -> None:
        """Deletes events of users; `purge` must follow.

        Args:
            runs: Epochs, users, and the times before which their events arrived.
        """
        with self._changed:
            erased_until_ts = max(until_ts for _, _, until_ts in runs)
            erased_until_ts = max(self._state.now.erased_until_ts, erased_until_ts)
            # Durable with the state, before the events are deleted.
            with self._database.storing():
                mark_erased(self._database, runs)
            self._state.update(purge_due=True, erased_until_ts=erased_until_ts)
        self._delete([keys_of_run(*run) for run in runs])

    def _delete(self, ranges: Sequence[tuple[bytes, bytes]]) -> None:
        with self._database.storing():
            self._database.delete(ranges)
        self._to_purge.extend(ranges)

    def purge(self) -> None:
        """Removes deleted events from all files."""
        with self._changed:
            ranges, self._to_purge = self._to_purge, []
        if not ranges:
            return
        with self._database.storing():
            self._database.rewrite(ranges)
        with self._changed:
            if not self._to_purge:
                self._state.update(purge_due=False)


def _newest_before(watermarks: Sequence[int], moment_ts: int) -> int:
    place = bisect_right(watermarks, moment_ts)
    return watermarks[place - 1] if place else NEVER_TS
