"""Times as people write them: other units, wrong ones, watermarks off the grid, equal ones."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fat_tables import slimmed
from support.row_answers import answers
from support.worlds import DAY_MS, World, as_of, new_world
from thinrow.cli.app import app
from thinrow.compaction.compact import compact
from thinrow.errors import InputError, UsageError
from thinrow.events.units import check_typed
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.store.generation import Generation
from thinrow.store.layout import MANIFEST
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA = '[item]\nitem_id = { type = "int64", key = true }\n'
HOUR_MS = 3_600_000
NS_PER = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path, SCHEMA)


def daily(times: pa.Array, **more: Any) -> pa.Table:  # noqa: ANN401
    """Events of user 1 at these times, items from 100 on."""
    items = list(range(100, 100 + len(times)))
    return pa.table({"user_id": [1] * len(times), "event_ts": times, "item_id": items, **more})


def rows_of(
    world: World,
    requests: pa.Table,
    events: Sequence[Path] | None = None,
    **options: Any,  # noqa: ANN401
) -> Path:
    rows = world.folder / "rows.parquet"
    config = BackfillConfig(
        requests=world.write("requests.parquet", requests),
        store=world.store,
        events=list(events or sorted(world.folder.glob("events*.parquet"))),
        rows=rows,
        **options,
    )
    backfill(config)
    return rows


def requests_at(*times: int) -> pa.Table:
    return pa.table({"user_id": [1] * len(times), "request_ts": pa.array(times, pa.int64())})


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_integers_of_another_unit_are_refused_or_named(world: World, unit: str) -> None:
    per = NS_PER[unit]
    ticks = pa.array([as_of(day) * 10**6 // per for day in range(10)], pa.int64())
    path = world.write("events.parquet", daily(ticks))
    with pytest.raises(InputError, match=f"events.parquet: event_ts .*give --time-unit {unit}"):
        compact(world.compaction([path], 10, cadence_ms=DAY_MS))
    assert not (world.store / "CURRENT").exists()
    for other in {"s", "us", "ns"} - {unit}:
        with pytest.raises(InputError, match=f"give --time-unit {unit}|or the --time-unit"):
            compact(world.compaction([path], 10, cadence_ms=DAY_MS, time_unit=other))
    report = compact(world.compaction([path], 10, cadence_ms=DAY_MS, time_unit=unit))
    assert report.times["event_ts"].earliest_ts == as_of(0)
    assert report.times["event_ts"].latest_ts == as_of(9)
    request = pa.table(
        {"user_id": [1], "request_ts": pa.array([as_of(3) + HOUR_MS], pa.timestamp("ms"))}
    )
    with pytest.raises(InputError, match="--time-unit"):
        rows_of(world, request)
    rows = rows_of(world, request, time_unit=unit)
    assert answers(world, rows) == [("STATUS_OK", [100, 101, 102, 103])]


def test_requests_in_another_unit_than_events_get_a_way_out(world: World) -> None:
    events = world.write("events.parquet", daily(pa.array([as_of(day) for day in range(3)])))
    compact(world.compaction([events], 10, cadence_ms=DAY_MS))
    requests = pa.table({"user_id": [1], "request_ts": [as_of(3) // 1000]})
    with pytest.raises(InputError, match=r"events.parquet: event_ts .* column as timestamps"):
        rows_of(world, requests, time_unit="s")


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.float64()])
def test_empty_requests_may_have_any_type(world: World, kind: pa.DataType) -> None:
    events = world.write("events.parquet", daily(pa.array([as_of(day) for day in range(3)])))
    compact(world.compaction([events], 10, cadence_ms=DAY_MS))
    nothing = pa.array([], kind)
    rows = rows_of(world, pa.table({"user_id": nothing, "request_ts": nothing}))
    kinds = {field.name: field.type for field in pq.read_schema(rows)}
    assert (kinds["user_id"], kinds["request_ts"]) == (pa.int64(), pa.int64())


def test_narrow_integers_and_arrivals_are_refused(world: World) -> None:
    seconds = [as_of(day) // 1000 for day in range(3)]
    path = world.write("events.parquet", daily(pa.array(seconds, pa.int32())))
    with pytest.raises(InputError, match=r"event_ts is int32.*--time-unit s"):
        compact(world.compaction([path], 10))
    times = pa.array([as_of(day) for day in range(3)], pa.int64())
    path = world.write("events.parquet", daily(times, arrival_ts=pa.array(seconds, pa.int64())))
    with pytest.raises(InputError, match="arrival_ts is int64, and as milliseconds"):
        compact(world.compaction([path], 10))
    path = world.write("events.parquet", daily(times))
    compact(world.compaction([path], 10, cadence_ms=DAY_MS))
    with pytest.raises(InputError, match=r"request_ts .*give --time-unit s"):
        rows_of(world, pa.table({"user_id": [1], "request_ts": [as_of(3) // 1000]}))


def test_timestamps_converted_from_another_unit(world: World) -> None:
    wrong = pa.array([as_of(day) // 1000 for day in range(3)], pa.timestamp("ns"))
    path = world.write("events.parquet", daily(wrong))
    with pytest.raises(InputError, match=r"event_ts is timestamp\[ns\].*fix the job"):
        compact(world.compaction([path], 10))
    assert compact(world.compaction([path], 10, time_unit="ms")).events_added == 3


def test_times_that_do_not_fit_into_milliseconds(world: World) -> None:
    path = world.write("events.parquet", daily(pa.array([2**62], pa.int64())))
    with pytest.raises(InputError, match="do not fit into int64 milliseconds"):
        compact(world.compaction([path], 10, time_unit="s"))


@pytest.mark.parametrize("scale", [1 / 1000, 1000, 10**6])
def test_watermarks_typed_in_another_unit(world: World, scale: float) -> None:
    typed = int(as_of(3) * scale)
    with pytest.raises(UsageError, match=f"--watermark {typed} .* give {as_of(3)}"):
        replace(world.compaction([], 3), watermark_ts=typed)
    with pytest.raises(UsageError, match="before 2100"):
        replace(world.compaction([], 3), watermark_ts=253_370_764_800_000)
    with pytest.raises(UsageError, match=f"--as-of {typed} .* give {as_of(3)}"):
        check_typed(typed, "--as-of")


@pytest.mark.parametrize("wrong", [[0], [-1], [-(10**15), 0, 9 * 10**15], [as_of(0) // 1000]])
def test_a_few_wrong_times_do_not_move_the_grid(world: World, wrong: list[int]) -> None:
    times = [as_of(0) + n * HOUR_MS for n in range(72)]
    path = world.write("events.parquet", daily(pa.array([*wrong, *times], pa.int64())))
    report = compact(world.compaction([path], 3, cadence_ms=DAY_MS))
    assert report.times["event_ts"].outliers == len(wrong)
    with Generation.open_current(world.store) as generation:
        assert generation.watermarks.tolist() == [as_of(1), as_of(2), as_of(3)]
    [(status, items)] = answers(world, rows_of(world, requests_at(as_of(1) + HOUR_MS // 2)))
    early = [100 + n for n, time in enumerate(wrong) if time < as_of(0)]
    early.sort(key=lambda item: wrong[item - 100])
    first = 100 + len(wrong)
    assert (status, items) == ("STATUS_OK", [*early, *range(first, first + 25)])


def test_slim_and_compaction_agree_about_wrong_times(tmp_path: Path) -> None:
    requests = [as_of(day) + HOUR_MS for day in range(1, 5)]
    lists = [[0, *(as_of(0) + n * HOUR_MS for n in range(24 * day + 1))] for day in range(1, 5)]
    fat = pa.table(
        {
            "user_id": [1] * 4,
            "request_ts": pa.array([*requests[:3], 9 * 10**15]),
            "event_ts": lists,
            "item_id": [list(range(len(times))) for times in lists],
        }
    )
    pq.write_table(fat, tmp_path / "fat.parquet")
    done = slimmed(tmp_path, [tmp_path / "fat.parquet"])
    assert done.report.watermark_ts < as_of(6)
    assert done.report.times["event_ts"].outliers == 4
    done.check()


@pytest.mark.parametrize("one_run", [True, False])
def test_backfill_from_watermarks_off_the_grid(world: World, one_run: bool) -> None:
    times = [as_of(0) + n * HOUR_MS for n in range(96)]
    path = world.write("events.parquet", daily(pa.array(times, pa.int64())))
    five = 5 * HOUR_MS
    if one_run:
        config = world.compaction([path], 3, cadence_ms=DAY_MS, cadence_offset_ms=five)
        compact(replace(config, watermark_ts=as_of(3) + five))
    else:
        for day in range(4):
            compact(replace(world.compaction([path], 3), watermark_ts=as_of(day) + five))
    requests = requests_at(*(as_of(0) + n * HOUR_MS + 1 for n in range(0, 90, 3)))
    right = [("STATUS_OK", list(range(100, 101 + n))) for n in range(0, 90, 3)]
    rows = rows_of(world, requests)
    assert answers(world, rows) == right
    ends = {uih["end_ts"] for uih in pq.read_table(rows)["uih"].to_pylist()} - {0}
    assert ends == {as_of(day) + five for day in range(4)}
    rows_of(world, requests, cadence_ms=DAY_MS, cadence_offset_ms=five)
    for offset_ms in (0, 4 * HOUR_MS):
        with pytest.raises(UsageError, match="leave --cadence out"):
            rows_of(world, requests, cadence_ms=DAY_MS, cadence_offset_ms=offset_ms)


def test_cadence_offsets_out_of_range(world: World) -> None:
    with pytest.raises(UsageError, match="--cadence-offset shorter than --cadence"):
        world.compaction([], 3, cadence_ms=DAY_MS, cadence_offset_ms=DAY_MS)
    with pytest.raises(UsageError, match="give both"):
        world.compaction([], 3, cadence_offset_ms=5)


def test_manifests_without_new_options_are_as_before(world: World) -> None:
    path = world.write("events.parquet", daily(pa.array([as_of(0)], pa.int64())))
    compact(world.compaction([path], 3, cadence_ms=DAY_MS))
    text = (world.store / "generation-000001" / MANIFEST).read_text(encoding="utf-8")
    assert "cadence_ms" in text
    assert "offset" not in text
    assert "time_unit" not in text


@pytest.mark.parametrize("unit", ["us", "ns", "int"])
@pytest.mark.parametrize("ids", [False, True])
def test_finer_times_order_events_before_ids(world: World, unit: str, ids: bool) -> None:
    kind = pa.int64() if unit == "int" else pa.timestamp(unit)
    time_unit = "us" if unit == "int" else None
    per_ms = 10**6 if unit == "ns" else 1000
    ticks = [as_of(0) * per_ms + 9 - n for n in range(8)]
    more = {"event_id": list(range(8))} if ids else {}
    table = daily(pa.array(ticks, pa.int64()).cast(kind), **more).take([3, 1, 4, 0, 5, 2, 7, 6])
    path = world.write("events.parquet", table)
    report = compact(world.compaction([path], 1, cadence_ms=DAY_MS, time_unit=time_unit))
    assert report.tied_events == 0
    timed = pa.table(
        {
            "user_id": [1, 1],
            "request_ts": pa.array([as_of(0) + HOUR_MS, as_of(1)], pa.timestamp("ms")),
        }
    )
    rows = rows_of(world, timed, time_unit=time_unit)
    assert answers(world, rows) == [("STATUS_OK", list(range(107, 99, -1)))] * 2


def test_events_whose_order_only_traits_decide_are_counted(world: World) -> None:
    times = pa.array([as_of(0)] * 4 + [as_of(0) + 1], pa.int64())
    path = world.write("events.parquet", daily(times))
    assert compact(world.compaction([path], 1)).tied_events == 4
    path = world.write("events.parquet", daily(times, event_id=[4, 3, None, 1, 0]))
    other = replace(world.compaction([path], 1), store=world.folder / "other")
    assert compact(other).tied_events == 0


def test_slim_keeps_what_is_finer_than_a_millisecond(tmp_path: Path) -> None:
    start = as_of(0) * 1000
    lists = [[start, start + 100, start + 200], [start, start + 100, start + 200, start + 300]]
    fat = pa.table(
        {
            "user_id": [1, 1],
            "request_ts": pa.array([as_of(1), as_of(2)]),
            "event_ts": pa.array(lists, pa.list_(pa.timestamp("us"))),
            "event_id": [[9, 5, 7], [9, 5, 7, 1]],
            "item_id": [[1, 2, 3], [1, 2, 3, 4]],
        }
    )
    pq.write_table(fat, tmp_path / "fat.parquet")
    done = slimmed(tmp_path, [tmp_path / "fat.parquet"])
    assert done.report.facts.rows_disagreeing == 0
    events = [tmp_path / "events.parquet"]
    config = new_world(tmp_path, SCHEMA).compaction(events, 2, cadence_ms=DAY_MS)
    compacted = compact(config)
    assert compacted.tied_events == 0
    assert answers(World(tmp_path), tmp_path / "rows.parquet") == [
        ("STATUS_OK", [1, 2, 3]),
        ("STATUS_OK", [1, 2, 3, 4]),
    ]


def test_int96_timestamps_do_not_wrap(world: World) -> None:
    years = [1500, 2023, 2023, 2023, 3000]
    times = [dt.datetime(year, 11, 14, 1, 2, 3) for year in years]  # noqa: DTZ001
    table = daily(pa.array(times, pa.timestamp("us")), arrival_ts=[as_of(0)] * 5)
    path = world.folder / "events.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    report = compact(world.compaction([path], 1))
    right = [int(time.replace(tzinfo=dt.UTC).timestamp()) * 1000 for time in times]
    span = report.times["event_ts"]
    assert (span.earliest_ts, span.latest_ts) == (right[0], right[-1])
    labelled = requests_at(as_of(1)).append_column("due", pa.array(times[-1:], pa.timestamp("us")))
    requests = world.folder / "requests.parquet"
    rows = rows_of(world, labelled)
    pq.write_table(labelled, requests, use_deprecated_int96_timestamps=True)
    config = BackfillConfig(requests=requests, store=world.store, events=[path], rows=rows)
    backfill(config)
    assert pq.read_table(rows)["due"].to_pylist() == times[-1:]


def test_rows_far_from_any_watermark_are_counted(world: World) -> None:
    times = pa.array([as_of(0) + n * HOUR_MS for n in range(240)], pa.int64())
    path = world.write("events.parquet", daily(times))
    report = compact(world.compaction([path], 10))
    assert report.uncut_ms == 239 * HOUR_MS
    requests = world.write("requests.parquet", requests_at(as_of(1), as_of(5), as_of(9)))
    rows = world.folder / "rows.parquet"
    config = BackfillConfig(requests=requests, store=world.store, events=[path], rows=rows)
    assert backfill(config).far_rows == 2
    again = replace(world.compaction([path], 10, cadence_ms=DAY_MS), store=world.folder / "cut")
    assert compact(again).uncut_ms == 0
    assert backfill(replace(config, store=again.folder)).far_rows == 0


def test_rows_that_leave_out_events_of_their_millisecond_are_counted(world: World) -> None:
    """Labels of one millisecond drop each other, as in logs of ratings given in one form."""
    first, later = as_of(0) + HOUR_MS, as_of(0) + 2 * HOUR_MS
    path = world.write("events.parquet", daily(pa.array([first, later, later, later], pa.int64())))
    compact(world.compaction([path], 1))
    rows = world.folder / "rows.parquet"

    def counted(*times: int) -> tuple[int, int, str]:
        requests = world.write("requests.parquet", requests_at(*times))
        config = BackfillConfig(requests=requests, store=world.store, events=[path], rows=rows)
        report = backfill(config)
        options = [requests, "--store", world.store, "--events", path, "--out", rows]
        shown = CliRunner().invoke(app, ["backfill", *map(str, options)])
        assert shown.exit_code == 0, shown.output
        return report.tied_rows, report.crowded_rows, " ".join(shown.output.split())

    tied, crowded, shown = counted(first, later, later, later + 1)
    assert (tied, crowded) == (3, 2)
    assert "2 of 4 rows (50.0%) have the millisecond of several events" in shown
    assert "times of their own, one millisecond apart" in shown
    carried = pq.read_table(rows)["mutable"].to_pylist()
    assert [len(events) for events in carried] == [0, 1, 1, 4]
    tied, crowded, shown = counted(first, later + 1)
    assert (tied, crowded) == (1, 0)
    assert "1 of 2 rows (50.0%) have the millisecond of one event" in shown
    tied, crowded, shown = counted(first + 1)
    assert (tied, crowded) == (0, 0)
    assert "have the millisecond" not in shown
    # Events of other users are none of theirs.
    requests = pa.table({"user_id": [2], "request_ts": [later]})
    config = BackfillConfig(
        requests=world.write("other.parquet", requests),
        store=world.store,
        events=[path],
        rows=rows,
    )
    assert backfill(config).tied_rows == 0
