"""The join of rows and labels by request id: a fold over what the journal holds, in its order.

It uses only the times of the entries, never the present time, so a replay of the journal gives the
same rows with the same labels.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Join", "Joined"]


@dataclass(slots=True, eq=False)
class Joined:
    """A row of the journal, and the labels that came for it."""

    number: int
    logged_ts: int
    request_id: str
    labels: dict[str, object] | None = None
    """The first value of each column; None as long as there are none."""


class Join:
    """Rows whose window is open, and labels that wait for their row.

    A row logged at t takes the labels of its request id logged in (t - window, t + window).
    """

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._open: dict[str, Joined] = {}
        self._by_time: deque[Joined] = deque()
        """The open rows, oldest first."""
        self._early: dict[str, list[tuple[int, Mapping[str, object]]]] = {}
        self._early_by_time: deque[tuple[int, str]] = deque()
        self.closed: deque[Joined] = deque()
        """Rows whose window is over, by number; the consumer pops them."""
        self.counts: Counter[str] = Counter()
        self.labels_pending = 0
        """Calls whose labels wait for their row."""

    @property
    def oldest(self) -> Joined | None:
        """The open row that was logged first."""
        return self._by_time[0] if self._by_time else None

    @property
    def open_rows(self) -> int:
        """Rows whose window is open."""
        return len(self._by_time)

    def row(self, logged_ts: int, request_id: str, number: int) -> None:
        """Adds a row. A second one of a request whose window is open is left out."""
        self.advance(logged_ts)
        if request_id in self._open:
            self.counts["rows_repeated"] += 1
            return
        self.counts["rows"] += 1
        row = Joined(number, logged_ts, request_id)
        self._open[request_id] = row
        self._by_time.append(row)
        for _, labels in self._early.pop(request_id, ()):
            self._add(row, labels)
            self.labels_pending -= 1

    def label(self, logged_ts: int, request_id: str, labels: Mapping[str, object]) -> None:
        """Adds the labels of one call."""
        self.advance(logged_ts)
        self.counts["labels"] += 1
        row = self._open.get(request_id)
        if row is not None:
            self._add(row, labels)
        else:
            self._early.setdefault(request_id, []).append((logged_ts, labels))
            self._early_by_time.append((logged_ts, request_id))
            self.labels_pending += 1

    def advance(self, now_ts: int) -> None:
        """Closes the windows of entries with `logged_ts + window <= now_ts`."""
        over_ts = now_ts - self._window_ms
        while self._by_time and self._by_time[0].logged_ts <= over_ts:
            self._close()
        while self._early_by_time and self._early_by_time[0][0] <= over_ts:
            logged_ts, request_id = self._early_by_time.popleft()
            waiting = self._early.get(request_id)
            # Labels that found their row left `_early`, but not the queue; later ones may wait.
            if waiting and waiting[0][0] == logged_ts:
                waiting.pop(0)
                self.counts["labels_unmatched"] += 1
                self.labels_pending -= 1
                if not waiting:
                    del self._early[request_id]

    def close_before(self, number: int) -> None:
        """Closes the windows of rows with lower numbers at once."""
        while self._by_time and self._by_time[0].number < number:
            self._close()

    def _close(self) -> None:
        row = self._by_time.popleft()
        del self._open[row.request_id]
        if row.labels is None:
            self.counts["rows_unlabelled"] += 1
        self.closed.append(row)

    def _add(self, row: Joined, labels: Mapping[str, object]) -> None:
        if row.labels is None:
            row.labels = {}
        known = len(row.labels)
        row.labels = {**labels, **row.labels}
        if len(row.labels) < known + len(labels):
            self.counts["labels_repeated"] += 1
