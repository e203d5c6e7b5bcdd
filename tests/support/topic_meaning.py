"""The meaning of a topic, by its own rules: arrivals and duplicates in the order of the log."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.oracle import Event, Oracle

END_TS = 4_102_444_800_000  # 2100: later timestamps are no times in milliseconds


@dataclass
class TopicMeaning:
    """The events that count, of all partitions of a topic."""

    window_ms: int
    built_ts: int | None = None
    """Events that arrived before are a store's."""
    arrived: list[Event] = field(default_factory=list)
    repeated: int = 0
    """Events that were duplicates."""
    as_of: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Arrival of the last message of each partition."""
    crossings: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Messages that moved the arrival of each partition: arrival and offset."""
    watermarks: list[int] = field(default_factory=list)
    """Those of the generation that is known."""
    erased: dict[int, int] = field(default_factory=dict)
    """Watermark at which each user was erased."""
    _last: dict[tuple[int, object], tuple[int, int]] = field(default_factory=dict)

    def read(self, partition: int, offset: int, timestamp_ts: int, events: Iterable[Event]) -> None:
        """Takes the next message of a partition."""
        if self.as_of[partition] < timestamp_ts < END_TS:
            self.as_of[partition] = timestamp_ts
            self.crossings[partition].append((timestamp_ts, offset))
        arrival_ts = self.as_of[partition]
        for event in events:
            name = (event.user_id, event.event_id)
            if self.built_ts is not None and arrival_ts < self.built_ts:
                continue
            if event.event_id is not None and self.is_duplicate(name, arrival_ts):
                self.repeated += 1
                continue
            self._last[name] = (arrival_ts, event.event_ts)
            self.arrived.append(replace(event, arrival_ts=arrival_ts))

    def is_duplicate(self, name: tuple[int, object], arrival_ts: int) -> bool:
        if name not in self._last:
            return False
        arrived_ts, event_ts = self._last[name]
        if arrived_ts < self.erased.get(name[0], 0):
            return False
        time_ts = arrived_ts
        number = bisect_right(self.watermarks, arrived_ts)
        if number < len(self.watermarks):
            time_ts = min(event_ts, self.watermarks[number] - 1)
            if number:
                time_ts = max(time_ts, self.watermarks[number - 1])
        return time_ts >= arrival_ts - self.window_ms

    def know(self, oracle: Oracle) -> None:
        """Takes up the newest generation."""
        self.watermarks = list(oracle.watermarks)
        self.erased = dict(oracle.erased_at)

    def begin_behind(self, oracle: Oracle) -> None:
        """Begins with what the newest generation has."""
        self.know(oracle)
        self.built_ts = watermark_ts = oracle.watermarks[-1]
        for user_id, entries in oracle.kept.items():
            for visible_ts, event in entries:
                assert visible_ts is not None
                if event.event_id is not None and visible_ts >= watermark_ts - self.window_ms:
                    self._last[user_id, event.event_id] = (visible_ts, visible_ts)

    def sealing_offset(self, partition: int, watermark_ts: int) -> int:
        """Offset of the first message that arrived at a watermark or later."""
        return next(offset for ts, offset in self.crossings[partition] if ts >= watermark_ts)
