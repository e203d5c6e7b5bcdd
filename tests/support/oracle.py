"""The oracle: docs/concepts/semantics.md in plain Python, slow and obvious.

Shares no code with the product; only loops, dicts, sorted lists (and pyarrow, to write files).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Value = int | float | bool | str | tuple[Any, ...] | None
Key = tuple[Any, ...]

DAY_MS = 86_400_000
BUILT_IN = ("event_ts", "event_id", "visible_ts")


@dataclass(frozen=True)
class Trait:
    """One column of an event; `size` is the length of a fixed-size vector, 0 for a scalar.

    A list has `length_max` elements at most; that of a scalar or a vector is 0.
    """

    name: str
    type: str
    size: int = 0
    length_max: int = 0
    sparse: bool = False
    default: Value = None
    key: bool = False
    coded: bool = False  # with a vocabulary of the store, whose codes an answer has


@dataclass(frozen=True)
class Schema:
    """Feature groups, in order."""

    groups: dict[str, list[Trait]]
    user_ids: str = "int64"
    event_ids: str = "int64"

    @property
    def traits(self) -> list[Trait]:
        return [trait for group in self.groups.values() for trait in group]


@dataclass(frozen=True)
class Event:
    user_id: int
    event_ts: int
    arrival_ts: int
    event_id: int | str | None = None
    traits: dict[str, Value] = field(default_factory=dict)
    finer_ns: int = 0  # of event_ts, as the input has it; it orders and is not kept
    ordered_by: dict[str, Value] | None = None  # traits before a fill, which leaves the order


class Entry(NamedTuple):
    """An event in its place; a mutable event has none."""

    visible_ts: int | None
    event: Event


@dataclass(frozen=True)
class Run:
    """One compaction."""

    events: list[Event]
    watermark_ts: int
    cadence_ms: int | None = None
    cadence_offset_ms: int = 0
    dedup_window_ms: int = 7 * DAY_MS
    lookback_ms: int | None = None
    erase: frozenset[int] = frozenset()
    accept_late: bool = False


@dataclass(frozen=True)
class Fill:
    """Values for stored events; rows have the columns of the key, and of the traits."""

    group: str
    by: str
    key: tuple[str, ...]
    traits: tuple[str, ...]
    rows: list[dict[str, Value]]


@dataclass
class FillCounts:
    """Counters of one fill."""

    rows: int = 0
    rows_unmatched: int = 0
    events: int = 0
    events_unmatched: int = 0


@dataclass
class Report:
    """Counters of one compaction."""

    rows_read: int = 0
    duplicates: int = 0
    late: int = 0
    left_for_later: int = 0
    erased_users: int = 0
    events_added: int = 0


@dataclass(frozen=True)
class Pointer:
    user_id: int
    start_ts: int
    end_ts: int
    max_length: int = 0


@dataclass(frozen=True)
class Wanted:
    """A projection."""

    sequence_length: int = 0
    head: bool = False
    feature_groups: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()


def order(value: Value) -> Key:
    """Total order of values: absent first, floats by IEEE 754 totalOrder, text by UTF-8 bytes."""
    if value is None:
        return (0,)
    if isinstance(value, float):
        bits = int.from_bytes(struct.pack(">d", value), "big")
        # totalOrder: negatives descend by magnitude, so all their bits flip; positives follow.
        return (1, bits ^ (2**64 - 1) if bits >> 63 else bits | 1 << 63)
    if isinstance(value, str):
        return (1, value.encode())
    if isinstance(value, tuple):
        return (1, tuple(order(element) for element in value))
    return (1, int(value))


def trait_value(event: Event, trait: Trait) -> Value:
    """An absent value reads as the default."""
    value = event.traits.get(trait.name)
    return trait.default if value is None else value


def traits_order(event: Event, schema: Schema) -> Key:
    if event.ordered_by is not None:
        event = replace(event, traits=event.ordered_by)
    return tuple(order(trait_value(event, trait)) for trait in schema.traits)


def event_order(event: Event, schema: Schema) -> Key:
    return (event.event_ts, event.finer_ns, order(event.event_id), traits_order(event, schema))


def place(entry: Entry, schema: Schema) -> Key:
    return (entry.visible_ts, *event_order(entry.event, schema))


def arrival_order(event: Event, schema: Schema) -> Key:
    """The first of these among duplicates is the one that counts."""
    return (event.arrival_ts, event.event_ts, event.finer_ns, traits_order(event, schema))


def columns(wanted: Wanted, schema: Schema) -> list[str]:
    """The columns of an answer, in order."""
    if not wanted.feature_groups and not wanted.traits:
        return ["event_ts", *(trait.name for trait in schema.traits)]
    return [name for name in BUILT_IN if name in wanted.traits] + [
        trait.name
        for group, traits in schema.groups.items()
        for trait in traits
        if group in wanted.feature_groups or trait.name in wanted.traits
    ]


def column(entries: Iterable[Entry], name: str, schema: Schema) -> list[Value]:
    """One column of a sequence."""
    entries = list(entries)
    if name == "event_ts":
        return [entry.event.event_ts for entry in entries]
    if name == "event_id":
        return [entry.event.event_id for entry in entries]
    if name == "visible_ts":
        return [entry.visible_ts for entry in entries]
    (trait,) = [trait for trait in schema.traits if trait.name == name]
    return [trait_value(entry.event, trait) for entry in entries]


def truncate(sequence: list[Entry], wanted: Wanted) -> list[Entry]:
    if wanted.sequence_length == 0:
        return sequence
    if wanted.head:
        return sequence[: wanted.sequence_length]
    return sequence[-wanted.sequence_length :]


class Oracle:
    """A store: runs are applied one after another, pointers answered from the newest."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.watermarks: list[int] = []
        self.kept: defaultdict[int, list[Entry]] = defaultdict(list)
        self.dropped: defaultdict[int, list[Entry]] = defaultdict(list)
        self.erased_at: dict[int, int] = {}
        self.codes: dict[str, dict[Value, int]] = {t.name: {} for t in schema.traits if t.coded}

    def number(self, run: Run) -> None:
        """Gives codes to new values of a run."""
        last = self.watermarks[-1] if self.watermarks else None
        brought = [
            event
            for event in run.events
            if event.arrival_ts < run.watermark_ts
            and (run.accept_late or last is None or event.arrival_ts >= last)
            and event.user_id not in run.erase
        ]
        for name in self.codes:
            self.add_codes(name, [event.traits.get(name) for event in brought])

    def add_codes(self, name: str, values: Iterable[Value]) -> None:
        """Gives codes to new values of a trait, in order."""
        codes = self.codes[name]
        for value in sorted({*values} - {None, *codes}, key=order):
            codes[value] = 2 + len(codes)

    def column(self, entries: Iterable[Entry], name: str) -> list[Value]:
        """One column of a sequence, as an answer has it."""
        values = column(entries, name, self.schema)
        if name not in self.codes:
            return values
        return [0 if value is None else self.codes[name].get(value, 1) for value in values]

    @property
    def event_count(self) -> int:
        return sum(len(history) for history in self.kept.values())

    @property
    def user_count(self) -> int:
        return sum(1 for history in self.kept.values() if history)

    def cuts(self, run: Run) -> list[int]:
        """Watermarks of the generations that one run cuts."""
        cuts = []
        if run.cadence_ms is not None:
            after = None
            if self.watermarks:
                after = self.watermarks[-1]
            elif run.events:
                after = min(event.arrival_ts for event in run.events)
            if after is not None:
                whole = (after - run.cadence_offset_ms) // run.cadence_ms
                cut = (whole + 1) * run.cadence_ms + run.cadence_offset_ms
                while cut < run.watermark_ts:
                    cuts.append(cut)
                    cut += run.cadence_ms
        return [*cuts, run.watermark_ts]

    def compact(self, run: Run) -> Report:
        report = Report(rows_read=len(run.events), erased_users=len(run.erase))
        last = self.watermarks[-1] if self.watermarks else None
        assert last is None or last < run.watermark_ts
        self.number(run)
        cuts = self.cuts(run)

        events = run.events
        if run.accept_late and last is not None:
            # What was erased stays erased, however late it comes again.
            staying = [
                event
                for event in events
                if event.arrival_ts >= self.erased_at.get(event.user_id, event.arrival_ts)
            ]
            report.late += len(events) - len(staying)
            events = staying
            events = [replace(event, arrival_ts=max(event.arrival_ts, last)) for event in events]
        seen = set()
        for event in sorted(events, key=lambda event: arrival_order(event, self.schema)):
            name = (event.user_id, event.event_id)
            if event.event_id is not None and name in seen:
                report.duplicates += 1
                continue
            seen.add(name)
            if last is not None and event.arrival_ts < last:
                report.late += 1
            elif last is not None and self.holds(event, last - run.dedup_window_ms):
                report.duplicates += 1
            elif event.arrival_ts >= run.watermark_ts:
                report.left_for_later += 1
            else:
                self.kept[event.user_id].append(Entry(clamped(event, [last, *cuts]), event))
                report.events_added += 1

        self.watermarks += cuts
        for user_id in self.kept:
            self.kept[user_id].sort(key=lambda entry: place(entry, self.schema))
            if run.lookback_ms is not None:
                self.retain(user_id, run.watermark_ts - run.lookback_ms)
        for user_id in run.erase:
            self.kept.pop(user_id, None)
            self.dropped.pop(user_id, None)
            self.erased_at[user_id] = run.watermark_ts
        return report

    def fill(self, fill: Fill, schema: Schema) -> FillCounts:
        """Gives stored events the values of their rows; their order and digests stay."""
        known = {trait.name: trait for trait in schema.traits}

        def value(of: Event, name: str) -> Key:
            if name in known:
                return order(trait_value(of, known[name]))
            return order(getattr(of, name))

        rows = {}
        for row in fill.rows:
            named = Event(0, 0, 0, None, row)
            # A key trait that is absent reads as its default.
            rows[
                tuple(
                    value(named, name) if name in known else order(row[name]) for name in fill.key
                )
            ] = row
        counts = FillCounts(rows=len(rows))
        found = set()
        self.schema = schema
        for trait in schema.traits:
            if trait.coded:
                self.codes.setdefault(trait.name, {})
                if trait.name in fill.traits:
                    self.add_codes(trait.name, [row[trait.name] for row in fill.rows])
        for history in self.kept.values():
            for place, (visible_ts, event) in enumerate(history):
                key = tuple(value(event, name) for name in fill.key)
                if key not in rows:
                    counts.events_unmatched += 1
                    continue
                counts.events += 1
                found.add(key)
                filled = event.traits | {name: rows[key][name] for name in fill.traits}
                before = event.traits if event.ordered_by is None else event.ordered_by
                history[place] = Entry(visible_ts, replace(event, traits=filled, ordered_by=before))
        counts.rows_unmatched = len(rows.keys() - found)
        return counts

    def holds(self, event: Event, since_ts: int) -> bool:
        """True if the user's history since then has an event of the same id."""
        return event.event_id is not None and any(
            visible_ts is not None and visible_ts >= since_ts and old.event_id == event.event_id
            for visible_ts, old in self.kept.get(event.user_id, ())
        )

    def retain(self, user_id: int, from_ts: int) -> None:
        history = self.kept[user_id]
        self.kept[user_id] = []
        for entry in history:
            assert entry.visible_ts is not None
            where = self.kept if entry.visible_ts >= from_ts else self.dropped
            where[user_id].append(entry)

    def last_dropped_ts(self, user_id: int) -> int | None:
        dropped = self.dropped.get(user_id, ())
        return max((ts for ts, _ in dropped if ts is not None), default=None)

    def answer(
        self,
        pointer: Pointer,
        wanted: Wanted,
        mutable: Sequence[Event],
        request_ts: int,
        digest_matches: bool = True,
    ) -> tuple[str, list[Entry]]:
        """The example's status and, where it is OK, its sequence."""
        user_id, start_ts, end_ts, max_length = (
            pointer.user_id,
            pointer.start_ts,
            pointer.end_ts,
            pointer.max_length,
        )
        empty = start_ts == end_ts
        cut = min((ts for ts in self.watermarks if ts >= end_ts), default=None)
        if start_ts > end_ts or max_length < 0 or end_ts > request_ts:
            return "INVALID", []
        if not empty and cut is not None and cut > request_ts:
            return "INVALID", []
        for event in mutable:
            # A pointer to nothing was written before the first generation: all is mutable then.
            if event.arrival_ts >= request_ts or (not empty and event.arrival_ts < end_ts):
                return "INVALID", []
        snapshot = [Entry(None, event) for event in mutable]
        if not empty and cut is None:
            return "NOT_READY", []
        if user_id in self.erased_at and end_ts < self.erased_at[user_id]:
            return "ERASED", []
        if empty:
            return "OK", truncate(snapshot, wanted)

        window = [
            entry
            for entry in self.kept.get(user_id, ())
            if entry.visible_ts is not None
            and entry.visible_ts < end_ts
            and (start_ts == 0 or entry.visible_ts >= start_ts)
        ]
        last_dropped_ts = self.last_dropped_ts(user_id)
        if last_dropped_ts is not None and (start_ts == 0 or last_dropped_ts >= start_ts):
            needed = [max_length] if max_length else []
            if wanted.sequence_length and not wanted.head:
                needed.append(max(0, wanted.sequence_length - len(mutable)))
            if not needed or len(window) < min(needed):
                return "EXPIRED", []
        if not digest_matches:
            return "DIGEST_MISMATCH", []
        immutable = window[-max_length:] if max_length else window
        return "OK", truncate(immutable + snapshot, wanted)

    def digest_content(self, user_id: int, end_ts: int) -> Key | None:
        """Content of the digest at end_ts; None where the store cannot show."""
        if not self.watermarks or end_ts > self.watermarks[-1]:
            return None
        if end_ts < self.erased_at.get(user_id, end_ts):
            return None
        last_dropped_ts = self.last_dropped_ts(user_id)
        if last_dropped_ts is not None and last_dropped_ts >= end_ts:
            return None
        history = [*self.dropped.get(user_id, ()), *self.kept.get(user_id, ())]
        keys = [trait for trait in self.schema.traits if trait.key]
        return tuple(
            (
                visible_ts,
                event.event_ts,
                event.event_id,
                *(order(trait_value(event, trait)) for trait in keys),
            )
            for visible_ts, event in history
            if visible_ts is not None and visible_ts < end_ts
        )


def clamped(event: Event, bounds: Sequence[int | None]) -> int:
    """The event's visible_ts, given the watermark before the run and those of the run."""
    for low, high in pairwise(bounds):
        assert high is not None
        if event.arrival_ts < high:
            visible_ts = min(event.event_ts, high - 1)
            return visible_ts if low is None else max(visible_ts, low)
    raise AssertionError("left for later")


class Seen(NamedTuple):
    """Sequence of one request."""

    pointer: Pointer
    mutable: list[Event]
    sequence: list[Entry]


class Past:
    """Sequences of requests, from the raw events and the definition alone: no store, no runs.

    Generations are cut at every multiple of the cadence, moved by an offset, the first one after
    the earliest arrival; the very last may lie off this grid. Each is published a delay later.
    """

    def __init__(
        self,
        events: Iterable[Event],
        schema: Schema,
        cadence_ms: int,
        publish_delay_ms: int = 0,
        lookback_ms: int | None = None,
        max_length: int = 0,
        cadence_offset_ms: int = 0,
        last_cut: int | None = None,
    ) -> None:
        self.schema = schema
        self.cadence_offset_ms = cadence_offset_ms
        self.last_cut = last_cut
        self.cadence_ms = cadence_ms
        self.publish_delay_ms = publish_delay_ms
        self.lookback_ms = lookback_ms
        self.max_length = max_length
        self.first_cut: int | None = None
        # Neither which duplicate counts nor an event's place depends on the request, so both are
        # found once: real data has too many requests for anything slower.
        self.histories: defaultdict[int, list[Entry]] = defaultdict(list)
        seen = set()
        for event in sorted(events, key=lambda event: arrival_order(event, schema)):
            if self.first_cut is None:
                self.first_cut = self.interval(event.arrival_ts)[1]
            name = (event.user_id, event.event_id)
            if event.event_id is None or name not in seen:
                self.histories[event.user_id].append(Entry(self.visible_ts(event), event))
            seen.add(name)
        if self.first_cut is not None and last_cut is not None:
            self.first_cut = min(self.first_cut, last_cut)
        for history in self.histories.values():
            history.sort(key=lambda entry: place(entry, schema))

    def visible_ts(self, event: Event) -> int:
        """Clamps into the cadence interval of the arrival; the first reaches back for ever."""
        assert self.first_cut is not None
        low, high = self.interval(event.arrival_ts)
        ahead = min(event.event_ts, high - 1)
        return ahead if low < self.first_cut else max(ahead, low)

    def interval(self, time_ts: int) -> tuple[int, int]:
        """The cuts before and after a moment; a cut belongs to what follows."""
        whole = (time_ts - self.cadence_offset_ms) // self.cadence_ms
        low = whole * self.cadence_ms + self.cadence_offset_ms
        high = low + self.cadence_ms
        if self.last_cut is not None and time_ts < self.last_cut < high:
            high = self.last_cut
        elif self.last_cut is not None and low < self.last_cut <= time_ts:
            low = self.last_cut
        return low, high

    def sees(self, user_id: int, request_ts: int) -> Seen:
        history = [
            entry
            for entry in self.histories.get(user_id, ())
            if entry.event.arrival_ts < request_ts
        ]
        start_ts = 0 if self.lookback_ms is None else request_ts - self.lookback_ms
        newest, _ = self.interval(request_ts - self.publish_delay_ms)
        if self.first_cut is None or newest < self.first_cut:
            pointer = Pointer(user_id, start_ts, start_ts, self.max_length)
            mutable = [entry.event for entry in history]
            immutable = []
        else:
            # A lookback shorter than the generation's age leaves nothing to point at.
            start_ts = min(start_ts, newest)
            pointer = Pointer(user_id, start_ts, newest, self.max_length)
            mutable = [entry.event for entry in history if entry.event.arrival_ts >= newest]
            immutable = [
                entry
                for entry in history
                if entry.event.arrival_ts < newest
                and (start_ts == 0 or (entry.visible_ts or 0) >= start_ts)
            ]
            if self.max_length:
                immutable = immutable[-self.max_length :]
        mutable.sort(key=lambda event: event_order(event, self.schema))
        return Seen(pointer, mutable, immutable + [Entry(None, event) for event in mutable])


ARROW = {
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "categorical": pa.int64(),
    **{
        f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def arrow_type(trait: Trait) -> pa.DataType:
    if trait.length_max:
        return pa.list_(ARROW[trait.type])
    return pa.list_(ARROW[trait.type], trait.size) if trait.size else ARROW[trait.type]


def fat_rows(
    path: Path,
    requests: pa.Table,
    sequences: Sequence[Sequence[Entry]],
    schema: Schema,
    statuses: Sequence[str] | None = None,
) -> None:
    """Writes fat rows: the requests' columns, a status, and a list column per trait."""
    table = requests.append_column("uih_status", pa.array(statuses or ["OK"] * len(sequences)))
    types = {"event_ts": pa.int64()} | {t.name: arrow_type(t) for t in schema.traits}
    for name, kind in types.items():
        values = [column(sequence, name, schema) for sequence in sequences]
        table = table.append_column(name, pa.array(values, pa.list_(kind)))
    pq.write_table(table, path)
