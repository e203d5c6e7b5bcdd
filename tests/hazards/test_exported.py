"""Exports that lack events, or have some twice: compaction refuses them before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.worlds import START_TS, World, as_of, leftovers, new_world, some_events
from thinrow.compaction.compact import compact
from thinrow.errors import InputError, UsageError
from thinrow.events.exported import EARLIEST_TS, FROM_KEY, UNTIL_KEY, Span

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)


def export(world: World, name: str, from_ts: int, until_ts: int) -> Path:
    """Day 1's to 6's events that such an export holds."""
    path = world.folder / name
    events = some_events(days=6)
    times = events["event_ts"].to_numpy()
    with pq.ParquetWriter(path, events.schema) as writer:
        writer.write_table(events.filter((from_ts <= times) & (times < until_ts)))
        Span(from_ts, until_ts, path).mark(writer)
    return path


def test_a_chain_of_exports_is_taken_whole(world: World) -> None:
    parts = [
        export(world, "b", as_of(2), as_of(4)),
        export(world, "a", EARLIEST_TS, as_of(2)),
    ]
    assert compact(world.compaction(parts, 3)).left_for_later
    later = export(world, "c", as_of(3), as_of(6))
    report = compact(world.compaction([later], 6))
    assert report.event_count == len(some_events(days=6))
    assert not report.late


@pytest.mark.parametrize(
    ("spans", "day", "result"),
    [
        ([(EARLIEST_TS, 3)], 4, "lacks what arrived since"),
        ([(EARLIEST_TS, 3), (2, 4)], 4, "would count twice"),
        ([(EARLIEST_TS, 3), (EARLIEST_TS, 3)], 3, "would count twice"),
        ([(EARLIEST_TS, 2), (3, 4)], 4, "lack what arrived from"),
        ([(1, 4)], 4, "lack what arrived before"),
    ],
)
def test_others_are_refused(
    world: World, spans: list[tuple[int, int]], day: int, result: str
) -> None:
    files = [
        export(world, f"{n}.parquet", start if start == EARLIEST_TS else as_of(start), as_of(stop))
        for n, (start, stop) in enumerate(spans)
    ]
    with pytest.raises(UsageError, match=result):
        compact(world.compaction(files, day))
    assert leftovers(world.store) == []


def test_a_gap_behind_the_last_generation_is_refused(world: World) -> None:
    compact(world.compaction([export(world, "a", EARLIEST_TS, as_of(2))], 2))
    with pytest.raises(UsageError, match="lack what arrived from"):
        compact(world.compaction([export(world, "b", as_of(3), as_of(4))], 4))
    compact(world.compaction([export(world, "c", as_of(1), as_of(4))], 4))


def test_a_span_that_makes_no_sense_is_an_error(world: World) -> None:
    path = world.folder / "a.parquet"
    table = some_events()
    pq.write_table(table.replace_schema_metadata({UNTIL_KEY: b"soon", FROM_KEY: b"1"}), path)
    with pytest.raises(InputError, match="export it again"):
        compact(world.compaction([path], 3))


@pytest.mark.parametrize("unit", [None, "s"])
def test_times_of_exports_are_milliseconds(world: World, unit: str | None) -> None:
    """However early the events that callers appended, and whatever the other files hold."""
    table = some_events()
    arrivals = table["event_ts"]
    early = pa.array(range(1, len(table) + 1), pa.int64())
    place = table.schema.get_field_index("event_ts")
    table = table.set_column(place, "event_ts", early)
    if "arrival_ts" in table.schema.names:
        table = table.drop(["arrival_ts"])
    table = table.append_column("arrival_ts", arrivals)
    path = world.folder / "a.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        Span(EARLIEST_TS, as_of(3), path).mark(writer)
    files = [path]
    if unit == "s":
        raw = some_events(5, users=1, seed=9)
        seconds = pc.divide(raw["event_ts"], 1000)
        raw = raw.set_column(raw.schema.get_field_index("event_ts"), "event_ts", seconds)
        files.append(world.write("raw.parquet", raw.drop(["event_id"])))
    report = compact(world.compaction(files, 3, time_unit=unit))
    assert report.event_count == len(table) + (5 if unit else 0)
    assert report.times["event_ts"].earliest_ts == 1
    assert report.times["event_ts"].latest_ts < as_of(3)
    assert report.times["arrival_ts"].earliest_ts >= START_TS
