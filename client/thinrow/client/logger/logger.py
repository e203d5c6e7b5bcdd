"""The logger: takes rows and labels from the serving threads, and makes them durable."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from thinrow.client.logger.journal import Journal
from thinrow.client.logger.metrics import LoggerCounts, register
from thinrow.client.logger.outputs import Files, Output, Topic
from thinrow.client.logger.publisher import Publisher
from thinrow.client.logger.schema import Tables, fitting
from thinrow.client.logger.state import State
from thinrow.core.files.io_errors import failure_reason, first_line
from thinrow.errors import (
    DeadlineError,
    InputError,
    JournalError,
    LoggerFullError,
    ThinRowError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from thinrow.client.logger.config import LoggerConfig
    from thinrow.core.thin_row import ThinRow

__all__ = ["Receipt", "ThinRowLogger"]

log = logging.getLogger("thinrow.logger")

FRAME_ENTRIES_MAX = 1024
"""Most rows and labels that are made durable together, and read back together."""

CONVERTED_ROWS = 16
"""Rows converted at once: meanwhile no other thread of the process runs Python code."""

WARN_INTERVAL_S = 60.0
"""Least seconds between two warnings of one kind."""

WHAT_TO_DO = "serve without logging until it has caught up, or raise the bound"

WARNINGS = {
    "rows_refused": "rows were refused, for their values do not fit the columns",
    "labels_refused": "calls of label() were refused, for their values do not fit the columns",
    "labels_unmatched": "calls of label() found no row in the window: too late, or a wrong id",
}


class Receipt:
    """What log() and label() return: the way to know that the call is durable."""

    __slots__ = (
        "_error",
        "_events",
        "_logged_ts",
        "_logger",
        "_number",
        "_request_id",
        "_row",
        "_values",
    )

    def __init__(
        self,
        logger: ThinRowLogger,
        number: int,
        logged_ts: int,
        request_id: str,
        row: ThinRow | None,
        values: dict[str, object],
        events: int,
    ) -> None:
        self._logger, self._number, self._logged_ts = logger, number, logged_ts
        self._request_id, self._row, self._values = request_id, row, values
        self._events = events
        self._error: ThinRowError | None = None

    def wait(self, timeout_s: float = 10.0) -> None:
        """Waits until a crash can no longer lose it, and does not wait for more to join it.

        Raises InputError where its values do not fit the columns, DeadlineError after `timeout_s`.
        """
        self._logger._wait_for(self._number, timeout_s)
        if self._error is not None:
            raise self._error


class ThinRowLogger:
    """Joins thin rows with labels that come later, and writes them to files, a topic or both.

    Safe to share between threads; a process that forks does so before it has one. What a crash
    left in the journal is taken up again here. docs/guides/logging.md has the guarantees.

    clock: now in ms, for tests. A time before the last one counts as the last one.
    registry: of Prometheus, for the counts.

    Raises JournalError if the journal is damaged, in use or not accessible, UsageError for columns
    that what is in it does not fit.
    """

    def __init__(
        self,
        config: LoggerConfig,
        *,
        clock: Callable[[], int] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config
        self._tables = Tables(config)
        self._feature_names = frozenset(config.features.names)
        self._label_names = frozenset(config.labels.names)
        self._clock = clock or wall_clock()
        self._queue: list[Receipt] = []
        self._queued_events = self._queued_rows = self._pending_rows = 0
        self._numbers = 0
        self._durable = 0
        """Calls up to this one are durable, or refused."""
        self._refused: ThinRowError | None = None
        self._full_of: dict[str, str] = {}
        self._mutex = threading.Lock()
        """For what callers touch."""
        self._appending = threading.RLock()
        """For the journal's end, so that a checkpoint has all that stands before it."""
        self._hurry, self._stopping = threading.Event(), threading.Event()
        self._closed = False
        self._failure: BaseException | None = None
        self._trouble: OSError | None = None
        self._warned: dict[str, tuple[float, int]] = {}
        self._state = State(config)
        try:
            self._journal = Journal(config.journal, (self._tables.rows, self._tables.labels))
        except OSError as error:
            raise not_accessible(config.journal, error) from error
        try:
            left = self._state.replay(self._journal, self._tables)
            for name, rows in left.items():
                log.warning("%d rows were logged for %s, which is no output any more", rows, name)
            for name, output in self._state.outputs.items():
                if name == "kafka" and output.emitting is not None:
                    log.warning("rows %d to %d may come twice to the topic", *output.emitting)
            # Time goes on from where the journal ends, also where clocks were set back.
            self._offset_ms = max(self._state.now_ts - self._clock(), 0)
            self._now_ts = self._state.now_ts
            self._journal.roll(self._state.checkpoint())
            outputs: dict[str, Output] = {}
            if config.files is not None:
                outputs["files"] = Files(config.files, self._state.journal_id)
            if config.kafka is not None:
                outputs["kafka"] = Topic(config.kafka)
        except OSError as error:
            self._journal.close()
            raise not_accessible(config.journal, error) from error
        except BaseException:
            self._journal.close()
            raise
        self._publishers = {
            name: Publisher(
                name, output, config, self._tables, self._state, self._journal, self._control
            )
            for name, output in outputs.items()
        }
        self._writer = threading.Thread(target=self._write, name="thinrow-journal", daemon=True)
        self._registry = registry
        self._collector = None if registry is None else register(registry, lambda: self.counts)
        self._writer.start()
        for publisher in self._publishers.values():
            publisher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, request_id: str, row: ThinRow, features: Mapping[str, object]) -> Receipt:
        """Takes the thin row of a request, and the features it was served with.

        request_id: unique among requests within the window; the same again within it is left out.
        row: its events must not be changed any more.
        features: a value for each of `config.features`.

        Returns at once; see Receipt. Raises InputError for other features or sizes, and
        LoggerFullError where a bound is reached.
        """
        config = self._config
        if features.keys() != self._feature_names:
            raise InputError(
                f"The features must be {', '.join(sorted(self._feature_names)) or 'none'}, but are "
                f"{', '.join(sorted(features)) or 'none'}."
            )
        events = len(row.mutable)
        if events > config.mutable_events_max:
            raise InputError(
                f"The row has {events} mutable events, but mutable_events_max is "
                f"{config.mutable_events_max}."
            )
        return self._enqueue(request_id, row, dict(features), events + 1)

    def label(self, request_id: str, labels: Mapping[str, object]) -> Receipt:
        """Takes labels of a request, which may be logged before or later.

        labels: values for some of `config.labels`, or all. None counts as not given. Where a label
            has a value already, the first one stays.

        Returns and raises as `log`.
        """
        given = {name: value for name, value in labels.items() if value is not None}
        if not given or not given.keys() <= self._label_names:
            raise InputError(
                f"The labels must be some of {', '.join(sorted(self._label_names))}, but are "
                f"{', '.join(sorted(given)) or 'none'}."
            )
        return self._enqueue(request_id, None, given, 1)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Waits until everything logged before is durable.

        Raises the InputError of the first call since the last flush whose values did not fit the
        columns, DeadlineError after `timeout_s`.
        """
        self._wait_for(self._numbers, timeout_s)
        with self._state.lock:
            refused, self._refused = self._refused, None
        if refused is not None:
            raise refused

    def drain(self, timeout_s: float) -> None:
        """Waits until every row logged before is in all outputs, its window being over.

        For a logger that ends for good. Rows are published as soon as their windows end. Raises
        DeadlineError after `timeout_s`.
        """
        end_s = time.monotonic() + timeout_s
        self._wait_for(self._numbers, timeout_s)
        with self._state.lock:
            self._state.hurried = True
            last = self._state.next_row
            while not self._state_done(last):
                self._raise_failure()
                if self._stopping.is_set():
                    raise UsageError("The logger is closed; drain it before.")
                if time.monotonic() > end_s:
                    self._state.hurried = False
                    raise DeadlineError(
                        f"{self._state.rows_pending} rows are not in all outputs after "
                        f"{timeout_s} s{self._because()}; they are safe in the journal."
                    )
                self._state.lock.wait(0.05)
            self._state.hurried = False

    def close(self) -> None:
        """Makes everything durable, publishes rows whose windows are over, and ends the threads.

        Rows whose windows are not over stay in the journal, and go on when it is opened again.
        Raises DeadlineError where what was logged could not be made durable in `close_ms`.
        """
        with self._mutex:
            if self._closed:
                return
            self._closed = True
        end_s = time.monotonic() + self._config.close_ms / 1000
        try:
            self._wait_for(self._numbers, max(end_s - time.monotonic(), 0))
            with self._state.lock:
                self._state.hurried = True
                self._state.lock.notify_all()
                while any(output.ready for output in self._state.outputs.values()):
                    # What fails now is tried again at the next start.
                    if time.monotonic() > end_s or any(
                        publisher.trouble for publisher in self._publishers.values()
                    ):
                        break
                    self._state.lock.wait(0.05)
        finally:
            self._stopping.set()
            self._hurry.set()
            ended = [
                publisher.stop(max(end_s - time.monotonic(), 1))
                for publisher in self._publishers.values()
            ]
            self._writer.join()
            if all(ended):
                # Otherwise nobody else may have the journal before this process ends.
                self._journal.close()
            if self._registry is not None and self._collector is not None:
                self._registry.unregister(self._collector)  # type: ignore[arg-type]

    @property
    def counts(self) -> LoggerCounts:
        """What happened since the start, and how things stand."""
        with self._state.lock:
            joined, own = self._state.join.counts, self._state.counts
            return LoggerCounts(
                rows=joined["rows"],
                rows_repeated=joined["rows_repeated"],
                rows_refused=own["rows_refused"],
                rows_unlabelled=joined["rows_unlabelled"],
                rows_published={name: own[f"published {name}"] for name in self._publishers},
                labels=joined["labels"],
                labels_repeated=joined["labels_repeated"],
                labels_unmatched=joined["labels_unmatched"],
                labels_refused=own["labels_refused"],
                failures={name: own[f"failed {name}"] for name in ("journal", *self._publishers)},
                rows_pending=self._state.rows_pending,
                labels_pending=self._state.join.labels_pending,
                queued_events=self._queued_events,
                journal_bytes=self._journal.size_bytes,
                behind_ms=self._state.behind_ms,
            )

    def _enqueue(
        self, request_id: str, row: ThinRow | None, values: dict[str, object], events: int
    ) -> Receipt:
        bytes_max = self._config.request_id_bytes_max
        # A character has one byte at least and four at most.
        if not request_id or (
            len(request_id) * 4 > bytes_max and len(request_id.encode()) > bytes_max
        ):
            raise InputError(f"A request id has 1 to {bytes_max} bytes, not {len(request_id)}.")
        if self._full_of and (full := self._full_of.get("labels" if row is None else "rows")):
            raise LoggerFullError(full)
        with self._mutex:
            if self._queued_events + events > self._config.queued_events_max and self._queue:
                self._raise_failure()
                raise LoggerFullError(
                    f"The logger has {self._queued_events} events to write (queued_events_max)"
                    f"{self._because()}; {WHAT_TO_DO}."
                )
            if self._closed or self._failure is not None:
                self._raise_failure()
                raise UsageError("The logger is closed; log before it is.")
            if row is not None:
                if self._pending_rows + self._queued_rows >= self._config.rows_pending_max:
                    raise LoggerFullError(
                        f"The logger has {self._pending_rows + self._queued_rows} rows pending "
                        f"(rows_pending_max){self._because()}; {WHAT_TO_DO}."
                    )
                self._queued_rows += 1
            self._numbers += 1
            self._queued_events += events
            receipt = Receipt(self, self._numbers, self._now(), request_id, row, values, events)
            self._queue.append(receipt)
        return receipt

    def _now(self) -> int:
        """The logger's time, ms, which never goes back."""
        self._now_ts = max(self._now_ts, self._clock() + self._offset_ms)
        return self._now_ts

    def _wait_for(self, number: int, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        with self._state.lock:
            while self._durable < number:
                self._raise_failure()
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineError(
                        f"What was logged is not durable after {timeout_s} s{self._because()}; it "
                        f"may be lost in a crash."
                    )
                self._hurry.set()
                self._state.lock.wait(left_s)

    def _because(self) -> str:
        """Says what keeps the logger from going on."""
        troubles = {"the journal": self._trouble} | {
            name: publisher.trouble for name, publisher in self._publishers.items()
        }
        told = [f"{name}: {trouble}" for name, trouble in troubles.items() if trouble is not None]
        return f" because of trouble with {'; '.join(told)}" if told else ""

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ThinRowError(
                f"The logger ended with an error of its own: {self._failure!r}; start it anew."
            ) from self._failure

    def _state_done(self, last: int) -> bool:
        oldest = self._state.join.oldest
        return (oldest is None or oldest.number >= last) and all(
            not output.ready or output.ready[0].number >= last
            for output in self._state.outputs.values()
        )

    # The thread that writes.

    def _write(self) -> None:
        try:
            while True:
                self._hurry.wait(self._config.commit_ms / 1000)
                self._hurry.clear()
                ending = self._stopping.is_set()
                with self._mutex:
                    now_ts = self._now()
                    entries, self._queue = self._queue, []
                for start in range(0, len(entries), FRAME_ENTRIES_MAX):
                    self._commit(entries[start : start + FRAME_ENTRIES_MAX])
                self._tick(now_ts)
                if ending:
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
            batch, taken, refused = fitting(given[start : start + CONVERTED_ROWS], self._row_batch)
            self._refuse("rows_refused", refused)
            rows += taken
            batches += [] if batch is None else [batch]
        given = [entry for entry in entries if entry._row is None]
        label_batch, labels, refused = fitting(given, self._label_batch)
        self._refuse("labels_refused", refused)
        if rows or labels:
            row_batch = pa.concat_batches(batches) if batches else None
            while not self._append(row_batch, label_batch, rows, labels):
                if self._stopping.wait(self._config.retry_ms / 1000):
                    raise AbandonedError
        events = sum(entry._events for entry in entries)
        for entry in entries:
            entry._row, entry._values = None, {}
        with self._mutex:
            self._queued_events -= events
            self._queued_rows -= given_rows
        self._look_at_bounds()
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
        """Writes to the journal; False where that fails, which is told."""
        with self._appending:
            try:
                self._roll()
                place = self._journal.append(row_batch, label_batch)
            except OSError as error:
                self._trouble = error
                with self._state.lock:
                    self._state.counts["failed journal"] += 1
                log.warning("the journal cannot be written, which is tried again: %s", error)
                return False
            self._trouble = None
            with self._state.lock:
                self._state.fold(
                    place,
                    [(entry._logged_ts, entry._request_id) for entry in rows],
                    [(entry._logged_ts, entry._request_id, entry._values) for entry in labels],
                )
            return True

    def _roll(self) -> None:
        """Goes on in a new segment where this one is full, or writing it failed."""
        if self._journal.broken or self._journal.segment_bytes >= self._config.segment_bytes:
            with self._state.lock:
                checkpoint = self._state.checkpoint()
            self._journal.roll(checkpoint)

    def _control(self, record: dict[str, Any], then: Callable[[], None]) -> None:
        """Journals what an output does, and notes it before any checkpoint can miss it."""
        with self._appending:
            self._roll()
            with self._state.lock:
                now_ts = self._state.now_ts
            self._journal.control({**record, "ts": now_ts})
            with self._state.lock:
                then()
                self._state.lock.notify_all()

    def _tick(self, now_ts: int) -> None:
        """Closes windows, lets go of old segments, and tells what is wrong."""
        with self._state.lock:
            self._state.advance(now_ts)
            needed = self._state.needless(self._journal.segment)
            counts = self._state.join.counts + self._state.counts
        try:
            self._journal.forget(needed)
        except OSError as error:
            self._warn("forgetting", 1, f"files of the journal cannot be removed: {error}")
        self._look_at_bounds()
        for what, text in WARNINGS.items():
            self._warn(what, counts[what], text)

    def _look_at_bounds(self) -> None:
        """Finds what is full; what is queued was taken and is written all the same."""
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
        self._full_of = {
            what: f"The logger has {most}{self._because()}; {WHAT_TO_DO}."
            for what, most in full.items()
        }

    def _warn(self, what: str, count: int, text: str) -> None:
        """Warns of what there is more of than last time, now and then."""
        warned_s, told = self._warned.get(what, (-WARN_INTERVAL_S, 0))
        if count > told and time.monotonic() - warned_s >= WARN_INTERVAL_S:
            self._warned[what] = time.monotonic(), count
            log.warning("%d %s", count - told, text)

    def _refuse(self, what: str, refused: list[tuple[Receipt, Exception]]) -> None:
        for entry, error in refused:
            kind, was = ("row", "was") if entry._row is not None else ("labels", "were")
            entry._error = InputError(
                f"The {kind} of request {entry._request_id!r} {was} refused: "
                f"{first_line(error)}; correct what the caller logs."
            )
            with self._state.lock:
                self._state.counts[what] += 1
                self._refused = self._refused or entry._error

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


def wall_clock() -> Callable[[], int]:
    """A clock in ms that is right when it is made, and that nobody sets meanwhile."""
    start_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (start_ns + time.monotonic_ns()) // 1_000_000


def not_accessible(journal: Path, error: OSError) -> JournalError:
    """Makes the error of a logger whose files the operating system refuses."""
    path = error.filename or journal
    return JournalError(f"The logger cannot use {path}: {failure_reason(error)}.")
