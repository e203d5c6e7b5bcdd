"""The thread that publishes joined rows to one output."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.client.logger.state import RowBatch
from thinrow.core.files.arrow import rows_at
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from thinrow.client.logger.config import LoggerConfig
    from thinrow.client.logger.join import Joined
    from thinrow.client.logger.journal import Journal
    from thinrow.client.logger.outputs import Output
    from thinrow.client.logger.schema import Tables
    from thinrow.client.logger.state import Frame, State

__all__ = ["Publisher"]

log = logging.getLogger("thinrow.logger")


class Publisher:
    """Publishes rows whose windows are over, batch after batch, and repeats a batch that fails.

    The journal records the start and end of each batch, so a crash neither loses nor doubles it.
    """

    def __init__(
        self,
        name: str,
        output: Output,
        config: LoggerConfig,
        tables: Tables,
        state: State,
        journal: Journal,
        control: Callable[[dict[str, Any], Callable[[], None]], None],
    ) -> None:
        self._name, self._output = name, output
        self._config, self._tables = config, tables
        self._state, self._journal, self._control = state, journal, control
        self._progress = state.outputs[name]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"thinrow-{name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread after its batch; returns False if that takes longer."""
        self._stopping.set()
        with self._state.lock:
            self._state.lock.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._output.close()
        return True

    def _run(self) -> None:
        while True:
            with self._state.lock:
                while not self._stopping.is_set() and not self._state.due(self._progress):
                    self._state.lock.wait()
                if self._stopping.is_set():
                    return
                rows = self._state.batch(self._progress)
                frames = self._state.frames_of(rows) if rows else []
            try:
                self._publish(rows, frames)
                with self._state.lock:
                    self._state.troubles.pop(self._name, None)
            except Exception as error:
                # The rows are safe in the journal, and a later attempt may succeed.
                expected = isinstance(error, OSError | ThinRowError)
                log.warning(
                    "%s: publishing failed and is tried again: %s",
                    self._name,
                    error,
                    exc_info=not expected,
                )
                with self._state.lock:
                    self._state.troubles[self._name] = error
                    self._state.counts[f"failed {self._name}"] += 1
                self._stopping.wait(self._config.retry_ms / 1000)

    def _publish(self, rows: Sequence[Joined], frames: Sequence[Frame]) -> None:
        progress = self._progress
        if progress.emitting is None:
            batch = RowBatch(rows[0].number, rows[-1].number + 1, progress.row_parts)

            def begun() -> None:
                progress.emitting = batch

            self._control(self._record("emit", **batch._asdict()), begun)
        else:
            batch = progress.emitting
        count = 0
        if rows:
            table = self._table(rows, frames)
            count = len(table)
            if count:
                self._output.publish(batch, table)

        def ended() -> None:
            self._state.published(progress, batch.last)
            self._state.counts[f"published {self._name}"] += count

        self._control(self._record("done", last=batch.last), ended)

    def _record(self, kind: str, **fields: int) -> dict[str, Any]:
        return {"kind": kind, "output": self._name, **fields}

    def _table(self, rows: Sequence[Joined], frames: Sequence[Frame]) -> pa.Table:
        """Reads rows back and joins their labels."""
        if self._config.unlabelled == "drop":
            rows = [row for row in rows if row.labels is not None]
        batches = []
        start = 0
        for frame in frames:
            stop = start
            while stop < len(rows) and rows[stop].number < frame.first + frame.rows:
                stop += 1
            mine = rows[start:stop]
            start = stop
            if not mine:
                continue
            batch = self._tables.conformed(self._journal.read(frame.place))
            if len(mine) < len(batch):
                batch = rows_at(batch, np.array([row.number - frame.first for row in mine]))
            batches.append(self._tables.join(batch, [row.labels for row in mine]))
        return pa.Table.from_batches(batches, self._tables.joined)
