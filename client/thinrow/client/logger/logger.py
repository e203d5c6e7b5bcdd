"""The logger: accepts rows and labels from the serving threads, and makes them durable."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Self

from thinrow.client.logger.journal import Journal
from thinrow.client.logger.metrics import LoggerCounts, register
from thinrow.client.logger.outputs import Files, Output, Topic
from thinrow.client.logger.publisher import Publisher
from thinrow.client.logger.schema import Tables
from thinrow.client.logger.state import State
from thinrow.client.logger.writer import JournalWriter, Receipt
from thinrow.core.files.io_errors import failure_reason
from thinrow.errors import DeadlineError, InputError, JournalError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from thinrow.client.logger.config import LoggerConfig
    from thinrow.core.thin_row import ThinRow

__all__ = ["Receipt", "ThinRowLogger"]

log = logging.getLogger("thinrow.logger")

POLL_S = 0.05
"""Longest wait between two looks at the outputs."""


class ThinRowLogger:
    """Joins thin rows with labels that come later, and writes them to files, a topic or both.

    Threads may share it; a process that forks must do so before it has one. Rows that a crash left
    in the journal go on here. docs/guides/logging.md has the guarantees.

    Args:
        config: Columns, the window of the join, outputs and bounds.
        clock: Returns the time in ms, for tests. A time before the last one counts as the last one.
        registry: Of Prometheus, for the counts.

    Raises:
        JournalError: The journal is damaged, in use or not accessible.
        UsageError: The columns do not fit the rows in the journal.
    """

    def __init__(
        self,
        config: LoggerConfig,
        *,
        clock: Callable[[], int] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config
        tables = Tables(config)
        self._feature_names = frozenset(config.features.names)
        self._label_names = frozenset(config.labels.names)
        self._state = State(config)
        try:
            self._journal = Journal(config.journal, (tables.rows, tables.labels))
        except OSError as error:
            raise not_accessible(config.journal, error) from error
        try:
            dropped = self._state.replay(self._journal, tables)
            for name, rows in dropped.items():
                log.warning("%d rows were logged for %s, which is no output any more", rows, name)
            for name, output in self._state.outputs.items():
                if name == "kafka" and output.emitting is not None:
                    log.warning("rows %d to %d may come twice to the topic", *output.emitting[:2])
            self._writer = JournalWriter(
                config, tables, self._state, self._journal, clock or wall_clock()
            )
            self._journal.roll(self._state.checkpoint())
            outputs: dict[str, Output] = {}
            if config.files is not None:
                outputs["files"] = Files(config.files, self._state.journal_id, config.user_ids)
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
                name, output, config, tables, self._state, self._journal, self._writer.control
            )
            for name, output in outputs.items()
        }
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
        """Logs the thin row of a request, and the features that served it; returns at once.

        Args:
            request_id: Unique among requests within the window; a second row of it is left out.
            row: Its events must not change any more.
            features: A value for each of `config.features`.

        Raises:
            InputError: The features or sizes are not those of the config.
            LoggerFullError: A bound is reached.
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
        return self._writer.submit(request_id, row, dict(features), events + 1)

    def label(self, request_id: str, labels: Mapping[str, object]) -> Receipt:
        """Logs labels of a request, whose row may come before or after; returns at once.

        Args:
            request_id: That of the row.
            labels: Values for some or all of `config.labels`. None counts as not given. If a label
                has a value already, the first one stays.

        Raises:
            InputError, LoggerFullError: As `log`.
        """
        given = {name: value for name, value in labels.items() if value is not None}
        if not given or not given.keys() <= self._label_names:
            raise InputError(
                f"The labels must be some of {', '.join(sorted(self._label_names))}, but are "
                f"{', '.join(sorted(given)) or 'none'}."
            )
        return self._writer.submit(request_id, None, given, 1)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Waits until everything logged before is durable.

        Raises:
            InputError: The values of a call since the last flush did not fit the columns.
            DeadlineError: It is not durable after `timeout_s`.
        """
        self._writer.wait_for(self._writer.submitted, timeout_s)
        rejection = self._writer.pop_rejection()
        if rejection is not None:
            raise rejection

    def drain(self, timeout_s: float) -> None:
        """Waits until all outputs have every row logged before, each after its window.

        Call it before the logger ends permanently: rows are then published as soon as their
        windows end.

        Raises:
            DeadlineError: The outputs lack rows after `timeout_s`.
        """
        end_s = time.monotonic() + timeout_s
        self._writer.wait_for(self._writer.submitted, timeout_s)
        state = self._state
        with state.lock:
            state.hurried = True
            last = state.next_row
            while not state.is_published(last):
                self._writer.raise_failure()
                if self._writer.stopping.is_set():
                    raise UsageError("The logger is closed; drain it before.")
                if time.monotonic() > end_s:
                    state.hurried = False
                    raise DeadlineError(
                        f"{state.rows_pending} rows are not in all outputs after {timeout_s} s"
                        f"{state.because()}; they are safe in the journal."
                    )
                state.lock.wait(POLL_S)
            state.hurried = False

    def close(self) -> None:
        """Makes everything durable, publishes rows whose windows are over, and ends the threads.

        Rows whose windows are not over stay in the journal, and go on when it is opened again.

        Raises:
            DeadlineError: Logged calls could not be made durable in `close_ms`.
        """
        if not self._writer.close_queue():
            return
        state = self._state
        end_s = time.monotonic() + self._config.close_ms / 1000
        try:
            self._writer.wait_for(self._writer.submitted, max(end_s - time.monotonic(), 0))
            with state.lock:
                state.hurried = True
                state.lock.notify_all()
                while any(output.ready for output in state.outputs.values()):
                    # A batch that fails now is repeated at the next start.
                    if time.monotonic() > end_s or state.troubles.keys() & self._publishers.keys():
                        break
                    state.lock.wait(POLL_S)
        finally:
            self._writer.stop()
            ended = [
                publisher.stop(max(end_s - time.monotonic(), 1))
                for publisher in self._publishers.values()
            ]
            self._writer.join()
            if all(ended):
                # Otherwise no other logger may have the journal before this process ends.
                self._journal.close()
            if self._registry is not None and self._collector is not None:
                self._registry.unregister(self._collector)  # type: ignore[arg-type]

    @property
    def counts(self) -> LoggerCounts:
        """Counts since the start, and the present state."""
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
                queued_events=self._writer.queued_events,
                journal_bytes=self._journal.size_bytes,
                behind_ms=self._state.behind_ms,
            )


def wall_clock() -> Callable[[], int]:
    """Returns a clock in ms that is right when it is made, and that changes of time do not move."""
    start_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (start_ns + time.monotonic_ns()) // 1_000_000


def not_accessible(journal: Path, error: OSError) -> JournalError:
    """Returns the error of a logger whose files the operating system refuses."""
    path = error.filename or journal
    return JournalError(f"The logger cannot use {path}: {failure_reason(error)}.")
