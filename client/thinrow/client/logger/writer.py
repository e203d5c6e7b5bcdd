"""The logger's queue, and the thread that makes its calls durable."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from thinrow.client.logger.schema import fitting
from thinrow.core.files.io_errors import first_line
from thinrow.errors import DeadlineError, InputError, LoggerFullError, ThinRowError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.client.logger.config import LoggerConfig
    from thinrow.client.logger.journal import Journal
    from thinrow.client.logger.schema import Tables
    from thinrow.client.logger.state import State
    from thinrow.core.thin_row import ThinRow

__all__ = ["JournalWriter", "Receipt"]

log = logging.getLogger("thinrow.logger")

FRAME_ENTRIES_MAX = 1024
"""Most rows and labels of one frame of the journal."""

CONVERTED_ROWS = 16
"""Rows converted at once; no other thread of the process runs Python code meanwhile."""

WARN_INTERVAL_S = 60.0
"""Least seconds between two warnings of one kind."""

ADVICE = "serve without logging until it has caught up, or raise the bound"

WARNINGS = {
    "rows_refused": "rows were refused, for their values do not fit the columns",
    "labels_refused": "calls of label() were refused, for their values do not fit the columns",
    "labels_unmatched": "calls of label() found no row in the window: too late, or a wrong id",
}


class Receipt:
    """The result of log() and label(), which reports when the call is durable."""

    __slots__ = (
        "_error",
        "_events",
        "_logged_ts",
        "_number",
        "_request_id",
        "_row",
        "_values",
        "_writer",
    )

    def __init__(
        self,
        writer: JournalWriter,
        number: int,
        logged_ts: int,
        request_id: str,
        row: ThinRow | None,
        values: dict[str, object],
        events: int,
    ) -> None:
        self._writer, self._number, self._logged_ts = writer, number, logged_ts
        self._request_id, self._row, self._values = request_id, row, values
        self._events = events
        self._error: ThinRowError | None = None

    def wait(self, timeout_s: float = 10.0) -> None:
        """Waits until a crash can no longer lose the call, and commits without waiting for more.

        Raises:
            InputError: The values do not fit the columns.
            DeadlineError: It is not durable after `timeout_s`.
        """
        self._writer.wait_for(self._number, timeout_s)
        if self._error is not None:
            raise self._error


class JournalWriter:
    """Queues calls, and writes them to the journal in a thread of its own. Thread-safe."""

    def __init__(
        self,
        config: LoggerConfig,
        tables: Tables,
        state: State,
        journal: Journal,
        clock: Callable[[], int],
    ) -> None:
        self._config, self._tables = config, tables
        self._state, self._journal = state, journal
        self._clock = clock
        # Time goes on from the end of the journal, also if clocks were set back.
        self._offset_ms = max(state.now_ts - clock(), 0)
        self._now_ts = state.now_ts
        self._queue: list[Receipt] = []
        self.queued_events = 0
        """Events that are not durable yet."""
        self._queued_rows = self._pending_rows = 0
        self.submitted = 0
        """Number of the last call."""
        self._durable = 0
        """Calls up to this number are durable, or rejected."""
        self._rejected: ThinRowError | None = None
        self._full: dict[str, str] = {}
        self._mutex = threading.Lock()
        """Guards the queue."""
        self._appending = threading.RLock()
        """Guards the end of the journal, so that a checkpoint covers all before it."""
        self._wake, self.stopping = threading.Event(), threading.Event()
        self._closed = False
        self._failure: BaseException | None = None
        self._warned: dict[str, tuple[float, int]] = {}
        self._thread = threading.Thread(target=self._run, name="thinrow-journal", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(
        self, request_id: str, row: ThinRow | None, values: dict[str, object], events: int
    ) -> Receipt:
        """Queues a row, or labels if there is none; returns at once.

        Raises:
            InputError: The request id is empty or too long.
            LoggerFullError: A bound is reached.
            UsageError: The queue is closed.
        """
        bytes_max = self._config.request_id_bytes_max
        # A character has one byte at least and four at most.
        if not request_id or (
            len(request_id) * 4 > bytes_max and len(request_id.encode()) > bytes_max
        ):
            raise InputError(f"A request id has 1 to {bytes_max} bytes, not {len(request_id)}.")
        if self._full and (full := self._full.get("labels" if row is None else "rows")):
            raise LoggerFullError(full)
        with self._mutex:
            if self.queued_events + events > self._config.queued_events_max and self._queue:
                self.raise_failure()
                raise self._full_error(f"{self.queued_events} events to write (queued_events_max)")
            if self._closed or self._failure is not None:
                self.raise_failure()
                raise UsageError("The logger is closed; log before it is.")
            if row is not None:
                pending = self._pending_rows + self._queued_rows
                if pending >= self._config.rows_pending_max:
                    raise self._full_error(f"{pending} rows pending (rows_pending_max)")
                self._queued_rows += 1
            self.submitted += 1
            self.queued_events += events
            receipt = Receipt(self, self.submitted, self._now(), request_id, row, values, events)
            self._queue.append(receipt)
        return receipt

    def wait_for(self, number: int, timeout_s: float) -> None:
        """Waits until the calls up to a number are durable, or rejected.

        Raises:
            DeadlineError: They are not after `timeout_s`.
        """
        end_s = time.monotonic() + timeout_s
        with self._state.lock:
            while self._durable < number:
                self.raise_failure()
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineError(
                        f"The logged calls are not durable after {timeout_s} s"
                        f"{self._state.because()}; a crash may lose them."
                    )
                self._wake.set()
                self._state.lock.wait(left_s)

    def pop_rejection(self) -> ThinRowError | None:
        """Returns the first rejection since the last call of this method."""
        with self._state.lock:
            rejected, self._rejected = self._rejected, None
        return rejected

    def close_queue(self) -> bool:
        """Accepts no more calls; returns False if that was so already."""
        with self._mutex:
            was_closed, self._closed = self._closed, True
        return not was_closed

    def stop(self) -> None:
        """Ends the thread, once it has tried to write the queue."""
        self.stopping.set()
        self._wake.set()

    def join(self) -> None:
        """Waits for the end of the thread."""
        self._thread.join()

    def control(self, record: dict[str, Any], apply: Callable[[], None]) -> None:
        """Journals a step of an output and applies it, before any checkpoint can miss it."""
        with self._appending:
            self._roll()
            with self._state.lock:
                now_ts = self._state.now_ts
            self._journal.control({**record, "ts": now_ts})
            with self._state.lock:
                apply()
                self._state.lock.notify_all()

    def raise_failure(self) -> None:
        """Raises the error that ended the thread, if one did."""
        if self._failure is not None:
            raise ThinRowError(
                f"The logger ended with an error of its own: {self._failure!r}; start it again."
            ) from self._failure

    def _now(self) -> int:
        """Returns the logger's time, ms, which never goes back."""
        self._now_ts = max(self._now_ts, self._clock() + self._offset_ms)
        return self._now_ts

    def _run(self) -> None:
        try:
            while True:
                self._wake.wait(self._config.commit_ms / 1000)
                self._wake.clear()
                is_last = self.stopping.is_set()
                with self._mutex:
                    now_ts = self._now()
                    entries, self._queue = self._queue, []
                for start in range(0, len(entries), FRAME_ENTRIES_MAX):
                    self._commit(entries[start : start + FRAME_ENTRIES_MAX])
                self._advance(now_ts)
                if is_last:
                    return
        except BaseException as error:
            self._failure = error
            with self._state.lock:
                self._state.lock.notify_all()
            if not isinstance(error, AbandonedError):
                log.exception("the logger ended with an error of its own")

    def _commit(self, entries: list[Receipt]) -> None:
        """Makes some calls durable, and folds them into the state."""
        rows: list[Receipt] = []
        batches: list[pa.RecordBatch] = []
        given = [entry for entry in entries if entry._row is not None]
        given_rows = len(given)
        for start in range(0, given_rows, CONVERTED_ROWS):
            batch, fit, rejected = fitting(given[start : start + CONVERTED_ROWS], self._row_batch)
            self._reject("rows_refused", rejected)
            rows += fit
            batches += [] if batch is None else [batch]
        given = [entry for entry in entries if entry._row is None]
        label_batch, labels, rejected = fitting(given, self._label_batch)
        self._reject("labels_refused", rejected)
        if rows or labels:
            row_batch = pa.concat_batches(batches) if batches else None
            while not self._append(row_batch, label_batch, rows, labels):
                if self.stopping.wait(self._config.retry_ms / 1000):
                    raise AbandonedError
        events = sum(entry._events for entry in entries)
        for entry in entries:
            entry._row, entry._values = None, {}
        with self._mutex:
            self.queued_events -= events
            self._queued_rows -= given_rows
        self._check_bounds()
        with self._state.lock:
            self._durable = entries[-1]._number
            self._state.lock.notify_all()

    def _append(
        self,
        row_batch: pa.RecordBatch | None,
        label_batch: pa.RecordBatch | None,
        rows: list[Receipt],
        labels: list[Receipt],
    ) -> bool:
        """Writes to the journal; returns False, after a warning, if that fails."""
        with self._appending:
            try:
                self._roll()
                place = self._journal.append(row_batch, label_batch)
            except OSError as error:
                with self._state.lock:
                    self._state.troubles["the journal"] = error
                    self._state.counts["failed journal"] += 1
                log.warning("the journal cannot be written, which is tried again: %s", error)
                return False
            with self._state.lock:
                self._state.troubles.pop("the journal", None)
                self._state.fold(
                    place,
                    [(entry._logged_ts, entry._request_id) for entry in rows],
                    [(entry._logged_ts, entry._request_id, entry._values) for entry in labels],
                )
            return True

    def _roll(self) -> None:
        """Starts a new segment if this one is full, or writing it failed."""
        if self._journal.broken or self._journal.segment_bytes >= self._config.segment_bytes:
            with self._state.lock:
                checkpoint = self._state.checkpoint()
            self._journal.roll(checkpoint)

    def _advance(self, now_ts: int) -> None:
        """Closes windows, removes old segments, and warns of rejections."""
        with self._state.lock:
            self._state.advance(now_ts)
            needed = self._state.first_needed(self._journal.segment)
            counts = self._state.join.counts + self._state.counts
        try:
            self._journal.forget(needed)
        except OSError as error:
            self._warn("forgetting", 1, f"files of the journal cannot be removed: {error}")
        self._check_bounds()
        for kind, text in WARNINGS.items():
            self._warn(kind, counts[kind], text)

    def _check_bounds(self) -> None:
        """Notes which bounds are reached; queued calls are written all the same."""
        config = self._config
        with self._state.lock:
            rows, labels = self._state.rows_pending, self._state.join.labels_pending
        with self._mutex:
            self._pending_rows = rows
        full: dict[str, str] = {}
        if labels >= config.labels_pending_max:
            full["labels"] = f"{labels} labels that wait for rows (labels_pending_max)"
        if (size := self._journal.size_bytes) >= config.journal_bytes_max:
            full["rows"] = full["labels"] = f"{size} bytes in its journal (journal_bytes_max)"
        self._full = {kind: str(self._full_error(amount)) for kind, amount in full.items()}

    def _full_error(self, amount: str) -> LoggerFullError:
        return LoggerFullError(f"The logger has {amount}{self._state.because()}; {ADVICE}.")

    def _warn(self, kind: str, count: int, text: str) -> None:
        """Warns, at most once in WARN_INTERVAL_S, of a count that has grown."""
        warned_s, warned = self._warned.get(kind, (-WARN_INTERVAL_S, 0))
        if count > warned and time.monotonic() - warned_s >= WARN_INTERVAL_S:
            self._warned[kind] = time.monotonic(), count
            log.warning("%d %s", count - warned, text)

    def _reject(self, kind: str, rejected: list[tuple[Receipt, Exception]]) -> None:
        for entry, error in rejected:
            noun, was = ("row", "was") if entry._row is not None else ("labels", "were")
            entry._error = InputError(
                f"The {noun} of request {entry._request_id!r} {was} refused: "
                f"{first_line(error)}; correct what the caller logs."
            )
            with self._state.lock:
                self._state.counts[kind] += 1
                self._rejected = self._rejected or entry._error

    def _row_batch(self, entries: list[Receipt]) -> pa.RecordBatch:
        return self._tables.row_batch(
            [
                (entry._logged_ts, entry._request_id, entry._row, entry._values)
                for entry in entries
                if entry._row is not None
            ]
        )

    def _label_batch(self, entries: list[Receipt]) -> pa.RecordBatch:
        return self._tables.label_batch(
            [(entry._logged_ts, entry._request_id, entry._values) for entry in entries]
        )


class AbandonedError(Exception):
    """The logger is closed while the journal cannot be written."""
