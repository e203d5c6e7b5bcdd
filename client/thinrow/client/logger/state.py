"""The logger's state: the fold of its journal, and the progress of each output."""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from thinrow.client.logger.join import Join, Joined
from thinrow.client.logger.journal import VERSION, VERSION_OF_PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinrow.client.logger.config import LoggerConfig
    from thinrow.client.logger.journal import Entries, Journal, Place
    from thinrow.client.logger.schema import Tables

__all__ = ["Frame", "Progress", "RowBatch", "State"]


@dataclass(frozen=True, slots=True)
class Frame:
    """Consecutive rows of the journal, and the number of the first."""

    first: int
    rows: int
    place: Place


class RowBatch(NamedTuple):
    """Rows that an output publishes together, and their layout, which never changes again."""

    first: int
    """Number of the first row."""
    last: int
    """Number after that of the last row."""
    row_parts: int = 0
    """Number of parts of files; 0 for none."""


@dataclass(slots=True, eq=False)
class Progress:
    """The progress of an output."""

    batch_rows: int
    wait_ms: int
    row_parts: int = 0
    """Number of parts of the batches that begin from now on."""
    done: int = 0
    """Rows with lower numbers are published."""
    emitting: RowBatch | None = None
    """The batch that is being published, or was at a crash."""
    ready: deque[Joined] = field(default_factory=deque)
    """Rows whose window is over, from `done` on."""


class State:
    """Shared between the threads of a logger, which hold `lock` to read or change it."""

    def __init__(self, config: LoggerConfig) -> None:
        self.lock = threading.Condition()
        self.join = Join(config.join_window_ms)
        self.journal_id = secrets.token_hex(4)
        self.next_row = 0
        self.now_ts = 0
        """Time up to which windows are closed; ms."""
        self.frames: list[Frame] = []
        self.outputs: dict[str, Progress] = {}
        if config.files is not None:
            files = config.files
            self.outputs["files"] = Progress(files.part_rows, files.part_ms, files.row_parts)
        if config.kafka is not None:
            self.outputs["kafka"] = Progress(config.kafka.batch_rows, config.kafka.linger_ms)
        self.counts: Counter[str] = Counter()
        """Rows published by output, rejections and failures."""
        self.troubles: dict[str, Exception] = {}
        """Errors of the last attempts: of the journal, and of outputs by name."""
        self.hurried = False
        """True if rows are published without waiting for more."""
        self._window_ms = config.join_window_ms
        self._segments: dict[int, int] = {}
        """Time of the last row or label of each segment; ms."""

    def replay(self, journal: Journal, tables: Tables) -> dict[str, int]:
        """Folds a whole journal; returns the unpublished rows of outputs that exist no more."""
        known: dict[str, int] = {}
        emitting: dict[str, RowBatch] = {}
        for record in journal.replay():
            if not isinstance(record, dict):
                self.fold(record.place, *decoded(record, tables))
                continue
            self.now_ts = max(self.now_ts, record["ts"])
            if record["kind"] == "checkpoint":
                self.journal_id = record["id"]
                self.next_row = record["next_row"]
                known = record["done"]
                row_parts = record.get("row_parts", {})  # journals from before parts have none
                emitting = {
                    name: RowBatch(first, last, row_parts.get(name, 0))
                    for name, (first, last) in record["emitting"].items()
                }
            elif record["kind"] == "emit":
                emitting[record["output"]] = RowBatch(
                    record["first"], record["last"], record.get("row_parts", 0)
                )
            else:
                known[record["output"]] = record["last"]
                emitting.pop(record["output"], None)
        self.join.advance(self.now_ts)
        for name, output in self.outputs.items():
            # A new output begins with the next row; a new journal has no rows.
            output.done = known.get(name, self.next_row)
            output.emitting = emitting.get(name)
            # The window may be longer now; rows that an output has, or is publishing, stay closed.
            begun = output.done if output.emitting is None else output.emitting.last
            self.join.close_before(max(output.done, begun))
        self.distribute()
        done = min(output.done for output in self.outputs.values())
        for frame in self.frames:
            if frame.first + frame.rows > done and not journal.has_schema(frame.place):
                tables.conformed(journal.read(frame.place))
        self.join.counts.clear()
        return {
            name: self.next_row - done
            for name, done in known.items()
            if name not in self.outputs and done < self.next_row
        }

    def fold(
        self,
        place: Place,
        rows: Iterable[tuple[int, str]],
        labels: Iterable[tuple[int, str, dict[str, object]]],
    ) -> None:
        """Folds a frame in the order of its times; rows precede labels of the same ms."""
        first = self.next_row
        entries: list[tuple[int, int, str, dict[str, object] | None]] = []
        for logged_ts, request_id in rows:
            entries.append((logged_ts, self.next_row, request_id, None))
            self.next_row += 1
        if self.next_row > first:
            self.frames.append(Frame(first, self.next_row - first, place))
        entries += [(logged_ts, self.next_row, name, given) for logged_ts, name, given in labels]
        for logged_ts, number, request_id, given in sorted(entries, key=lambda entry: entry[:2]):
            if given is None:
                self.join.row(logged_ts, request_id, number)
            else:
                self.join.label(logged_ts, request_id, given)
            self.now_ts = logged_ts
        self._segments[place.segment] = self.now_ts

    def advance(self, now_ts: int) -> None:
        """Closes windows, and wakes outputs that have rows to publish."""
        self.now_ts = max(self.now_ts, now_ts)
        self.join.advance(self.now_ts)
        self.distribute()
        if any(self.due(output) for output in self.outputs.values()):
            self.lock.notify_all()

    def distribute(self) -> None:
        """Distributes the rows whose windows are over to the outputs."""
        closed = self.join.closed
        while closed:
            row = closed.popleft()
            for output in self.outputs.values():
                if row.number >= output.done:
                    output.ready.append(row)

    def due(self, output: Progress) -> bool:
        """Returns True if an output has enough rows, or they have waited long enough."""
        ready = output.ready
        if not ready:
            return False
        waited_ms = self.now_ts - ready[0].logged_ts - self._window_ms
        return self.hurried or len(ready) >= output.batch_rows or waited_ms >= output.wait_ms

    def batch(self, output: Progress) -> list[Joined]:
        """Returns the rows to publish next; those of an interrupted attempt alone."""
        if output.emitting is None:
            return list(islice(output.ready, output.batch_rows))
        last = output.emitting.last
        return list(takewhile(lambda row: row.number < last, output.ready))

    def published(self, output: Progress, last: int) -> None:
        """Records that the rows below `last` are published."""
        output.done, output.emitting = last, None
        while output.ready and output.ready[0].number < last:
            output.ready.popleft()

    def frames_of(self, rows: list[Joined]) -> list[Frame]:
        """Returns the frames that hold some rows."""
        start = bisect_right(self.frames, rows[0].number, key=lambda frame: frame.first) - 1
        stop = bisect_right(self.frames, rows[-1].number, key=lambda frame: frame.first)
        return self.frames[start:stop]

    def first_needed(self, current: int) -> int:
        """Returns the first segment that is still needed, and drops the frames before it.

        A label may belong to a row logged up to a window later. Rows up to a window before decide
        whether another row has the label already.
        """
        oldest_ts = self._oldest_ts()
        segments = iter(sorted(self._segments))
        needed = next(
            (
                number
                for number in segments
                if number >= current or self._segments[number] + 2 * self._window_ms > oldest_ts
            ),
            current,
        )
        for number in [number for number in self._segments if number < needed]:
            del self._segments[number]
        kept = bisect_right(self.frames, needed - 1, key=lambda frame: frame.place.segment)
        del self.frames[:kept]
        return needed

    def checkpoint(self) -> dict[str, Any]:
        """Returns the record that a new segment begins with: a summary of all before it."""
        emitting = {
            name: output.emitting
            for name, output in self.outputs.items()
            if output.emitting is not None
        }
        row_parts = {name: batch.row_parts for name, batch in emitting.items()}
        in_parts = any(row_parts.values()) or any(one.row_parts for one in self.outputs.values())
        return {
            "kind": "checkpoint",
            "version": VERSION_OF_PARTS if in_parts else VERSION,
            "id": self.journal_id,
            "ts": self.now_ts,
            "next_row": self.next_row,
            "done": {name: output.done for name, output in self.outputs.items()},
            "emitting": {name: (batch.first, batch.last) for name, batch in emitting.items()},
            "row_parts": row_parts,
        }

    def is_published(self, number: int) -> bool:
        """Returns True if all outputs have the rows below a number."""
        oldest = self.join.oldest
        return (oldest is None or oldest.number >= number) and all(
            not output.ready or output.ready[0].number >= number for output in self.outputs.values()
        )

    def because(self) -> str:
        """Returns the cause of a delay as a part of a sentence; "" if there is no trouble."""
        # The journal comes first: no call is durable without it.
        troubles = sorted(dict(self.troubles).items(), key=lambda item: item[0] != "the journal")
        causes = [f"{name}: {trouble}" for name, trouble in troubles]
        return f" because of trouble with {'; '.join(causes)}" if causes else ""

    @property
    def rows_pending(self) -> int:
        """Rows that some output lacks."""
        return self.join.open_rows + max(len(output.ready) for output in self.outputs.values())

    @property
    def behind_ms(self) -> int:
        """Time since the end of the window of the oldest row that some output lacks."""
        first = [output.ready[0].logged_ts for output in self.outputs.values() if output.ready]
        return max(self.now_ts - min(first) - self._window_ms, 0) if first else 0

    def _oldest_ts(self) -> int:
        """Returns the time of the oldest row that some output lacks; ms."""
        first = [output.ready[0] for output in self.outputs.values() if output.ready]
        if self.join.oldest is not None:
            first.append(self.join.oldest)
        return min((row.logged_ts for row in first), default=self.now_ts)


def decoded(
    record: Entries, tables: Tables
) -> tuple[Iterable[tuple[int, str]], Iterable[tuple[int, str, dict[str, object]]]]:
    """Returns a frame's rows and labels for `State.fold`, without labels that exist no more."""
    rows: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    if record.rows is not None:
        rows = record.rows.select(["logged_ts", "request_id"]).to_pylist()
    if record.labels is not None:
        names = [name for name in tables.labels.names if name in record.labels.schema.names]
        labels = record.labels.select(names).to_pylist()
    return (
        [(row["logged_ts"], row["request_id"]) for row in rows],
        [
            (
                entry.pop("logged_ts"),
                entry.pop("request_id"),
                {name: value for name, value in entry.items() if value is not None},
            )
            for entry in labels
        ],
    )
