"""Fat rows made thin: every row comes out as it was, whatever the rows disagree about."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import datasets, oracle
from support.fat_tables import SCHEMA, hour_ts, slimmed
from support.fat_worlds import fat_tables, spoiled, write_fat
from support.paths import SUPPORT
from support.scenarios import examples, schema_toml
from support.worlds import REPEATS, START_TS, THINROW, running_server, thinrow
from thinrow.demo.sample_data import requests_every
from thinrow.errors import InputError, StoreFullError, UsageError
from thinrow.jobs.finished_parts import locked_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.oracle import Entry, Past

pytestmark = pytest.mark.usefixtures("no_pause_before_goaway")

STEPS = SUPPORT / "steps.py"


@given(fat_tables(), st.integers(1, 3), st.booleans(), st.booleans(), st.randoms())
@examples(50)
def test_every_row_comes_out_as_it_was(
    table: tuple[oracle.Schema, Past, list[tuple[int, int]], list[list[Entry]]],
    parts: int,
    small: bool,
    ids: bool,
    rng: random.Random,
) -> None:
    schema, past, requested, sequences = table
    spoil = rng.random() < 0.4
    if spoil:
        sequences = spoiled(sequences, schema, rng)
    with (
        TemporaryDirectory() as name,
        mock.patch("thinrow.jobs.slim_plan.PARTITION_EVENTS", 20 if small else 1 << 23),
        mock.patch("thinrow.jobs.fat.PIECE_ROWS", 4),
        mock.patch("thinrow.jobs.fat.BATCH_EVENTS", 10),
    ):
        folder = Path(name)
        cut = -(-len(requested) // parts)
        fat = [
            write_fat(
                folder / f"fat-{n}.parquet",
                requested[n : n + cut],
                sequences[n : n + cut],
                schema,
                ids,
            )
            for n in range(0, len(requested), cut)
        ]
        grid = {"cadence_ms": past.cadence_ms, "cadence_offset_ms": past.cadence_offset_ms}
        done = slimmed(folder, fat, schema_toml(schema), time_unit="ms", **grid)
        done.check(**grid)
        assert done.rows.columns == ["user_id", "request_ts", "label", "uih", "mutable"]
        if not (spoil or ids or past.publish_delay_ms):
            # Histories that only grow at their end have nothing to disagree about.
            assert done.report.facts.rows_disagreeing == 0, done.report.facts
            assert done.report.facts.rows_carried_whole == 0


Row = tuple[int, int, list[tuple[int, int]]]


def fat_file(folder: Path, rows: Sequence[Row], name: str = "fat.parquet") -> Path:
    """Rows of (user, hour of the request, events as (hour, item)), hours since START_TS."""
    table = pa.table(
        {
            "user_id": pa.array([user for user, _, _ in rows], pa.int64()),
            "request_ts": pa.array([hour_ts(hour) for _, hour, _ in rows], pa.int64()),
            "event_ts": pa.array(
                [[hour_ts(hour) for hour, _ in seen] for _, _, seen in rows], pa.list_(pa.int64())
            ),
            "item_id": pa.array(
                [[item for _, item in seen] for _, _, seen in rows], pa.list_(pa.int64())
            ),
        }
    )
    pq.write_table(table, folder / name)
    return folder / name


A, B, C, D, E = ((hour, 10 * hour) for hour in (1, 2, 3, 30, 40))


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("vanished", [(1, 25, [A, B, C]), (1, 50, [A, C, D])]),
        ("changed", [(1, 25, [A, B, C]), (1, 50, [A, (2, 99), C, D])]),
        ("missing", [(1, 25, [A, B, C]), (1, 50, [A, C, D]), (1, 60, [A, B, C, D, E])]),
        ("missing", [(1, 25, [A, B, C]), (1, 50, [A, B]), (1, 60, [A, B, C])]),
        ("missing", [(1, 25, [A]), (1, 50, []), (1, 60, [A])]),
        ("elsewhere", [(1, 25, [A, B, C]), (1, 50, [A, C, B, D])]),
    ],
)
def test_disagreements_are_reported(tmp_path: Path, kind: str, rows: list[Row]) -> None:
    peace = [(2, hour, seen) for hour, seen in [(25, [A, B]), (50, [A, B, C, D]), (60, [C, D, E])]]
    done = slimmed(tmp_path, [fat_file(tmp_path, [*peace, *rows])])
    assert done.report.facts.rows_disagreeing == 1
    assert done.report.facts.disagreements == {kind: 1}
    [example] = done.report.facts.examples
    assert (example.kind, example.user_id) == (kind, 1)
    assert example.event == f"item_id={10 * (example.event_ts - START_TS) // 3_600_000}"
    assert example.request_ts != example.seen_request_ts
    done.check()


def test_the_wish_to_fail_on_disagreements(tmp_path: Path) -> None:
    fat = fat_file(tmp_path, [(1, 25, [A, B, C]), (1, 50, [A, C, D])])
    (tmp_path / "schema.toml").write_text(SCHEMA)
    outputs = ("--out-events", tmp_path / "events.parquet", "--out-rows", tmp_path / "rows.parquet")
    options = ("--schema", tmp_path / "schema.toml", "--on-disagreement", "fail")
    result = thinrow("slim", fat, *outputs, *options)
    assert result.returncode == 1
    assert "1 vanished" in result.stdout
    assert "nothing was written" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fat.parquet", "schema.toml"]


def test_rows_are_pointers_where_they_can_be(tmp_path: Path) -> None:
    rows = [
        (1, 10, [A, B, C]),
        (1, 31, [A, B, C, D]),
        (1, 50, [C, D, E]),  # no more than three
        (2, 50, []),
    ]
    done = slimmed(tmp_path, [fat_file(tmp_path, rows)])
    uih = done.rows["uih"].struct
    assert uih.field("end_ts").to_list() == [0, hour_ts(24), hour_ts(48), 0]
    assert uih.field("max_length").to_list() == [0, 3, 3, 0]
    digests = uih.field("digest").to_list()
    assert (digests[0], digests[3]) == (0, 0)
    assert digests[1] != digests[2] != 0
    assert done.rows["mutable"].list.len().to_list() == [3, 1, 0, 0]
    assert done.events.height == 5
    assert done.report.facts.fat_events == 10
    assert done.report.facts.carried_events == 4
    assert done.report.watermark_ts == hour_ts(48)
    done.check()


def test_short_rows_of_new_events_have_nothing_to_point_at_yet(tmp_path: Path) -> None:
    """The day before them has older events of the user, which rows of one event do not show."""
    rows = [(1, 10, [A]), (1, 26, [C]), (1, 31, [D]), (1, 50, [E])]
    done = slimmed(tmp_path, [fat_file(tmp_path, rows)])
    facts = done.report.facts
    assert (facts.rows_all_newer, facts.rows_carried_whole) == (2, 0)
    assert done.rows["mutable"].list.len().to_list() == [1, 0, 1, 0]
    done.check()


def test_late_events_arrive_when_rows_first_lacked_them(tmp_path: Path) -> None:
    late = (2, 20)
    rows = [(1, 5, [A, C]), (1, 6, [A, late, C]), (2, 26, [A, C]), (2, 60, [A, C, late, D])]
    done = slimmed(tmp_path, [fat_file(tmp_path, rows)])
    found = done.events.filter(pl.col("item_id") == 20).sort("user_id")
    # The first within its day; the second in the day after, where it stands.
    assert found["arrival_ts"].to_list() == [hour_ts(5), hour_ts(26)]
    assert (done.report.facts.late, done.report.facts.rows_disagreeing) == (2, 0)
    assert done.report.facts.late_in_place == 0
    done.check()


def test_a_contradiction_at_the_very_watermark(tmp_path: Path) -> None:
    seen = [(1, 1), (2, 2), (3, 3), (4, 4)]
    rows = [(1, 24, [*seen[:2], (3, 9), (20, 5)]), (1, 26, seen), (1, 50, seen)]
    slimmed(tmp_path, [fat_file(tmp_path, rows)]).check()


def test_late_events_in_their_old_place(tmp_path: Path) -> None:
    """Rows sorted by event_ts: no order of arrival gives both, so the early row carries more."""
    rows = [(1, 10, [A, C]), (1, 50, [A, C, D]), (1, 60, [A, B, C, D]), (1, 80, [A, B, C, D])]
    done = slimmed(tmp_path, [fat_file(tmp_path, rows)])
    facts = done.report.facts
    assert (facts.late_in_place, facts.late, facts.rows_disagreeing) == (1, 1, 0)
    assert done.rows["mutable"].list.len().to_list() == [2, 3, 0, 0]
    done.check()


def test_equal_events_and_ties_keep_their_order(tmp_path: Path) -> None:
    twin, rival = (2, 20), (2, 7)
    seen = [A, twin, rival, twin, C]
    rows = [(1, 10, seen), (1, 30, seen), (1, 50, seen[2:]), (1, 51, seen[3:])]
    done = slimmed(tmp_path, [fat_file(tmp_path, rows)])
    assert done.events.height == 5
    assert done.rows["mutable"].list.len().to_list() == [5, 0, 0, 0]
    assert done.report.facts.rows_disagreeing == 0
    done.check()


def test_no_schema_is_derived_without_times(tmp_path: Path) -> None:
    fat = write_fat_of_all_kinds(tmp_path / "fat.parquet")
    pq.write_table(pq.read_table(fat).drop_columns("event_ts"), fat)
    with pytest.raises(InputError, match="no list column event_ts; it holds no fat rows"):
        slimmed(tmp_path, [fat], schema=None)


def test_a_schema_is_derived(tmp_path: Path) -> None:
    fat = write_fat_of_all_kinds(tmp_path / "fat.parquet")
    done = slimmed(tmp_path, [fat], schema=None)
    assert (tmp_path / "events.toml").read_text().splitlines() == [
        "[history]",
        'item = { type = "uint64" }',
        'rating = { type = "int8", sparse = true }',
        'price = { type = "float32" }',
        'liked = { type = "bool" }',
        'brand = { type = "string" }',
        'taste = { type = "float16", size = 2 }',
    ]
    (tmp_path / "events.toml").rename(tmp_path / "schema.toml")
    done.check()


def write_fat_of_all_kinds(path: Path) -> Path:
    half = pa.list_(pa.float16(), 2)
    table = pa.table(
        {
            "user_id": pa.array([1, 1, 2], pa.int32()),
            "request_ts": pa.array([hour_ts(5), hour_ts(30), hour_ts(31)], pa.timestamp("ms")),
            "event_ts": pa.array(
                [[hour_ts(1)], [hour_ts(1), hour_ts(9)], []], pa.list_(pa.timestamp("ms"))
            ),
            "item": pa.array([[2**63], [2**63, 5], []], pa.large_list(pa.uint64())),
            "rating": pa.array([[None], [None, 3], []], pa.list_(pa.int8())),
            "price": pa.array([[1.5], [1.5, -0.0], []], pa.list_(pa.float32())),
            "liked": pa.array([[True], [True, False], []], pa.list_(pa.bool_())),
            "brand": pa.array([["é"], ["é", ""], []], pa.list_(pa.string())),
            "taste": pa.array([[[1, 2]], [[1, 2], [3, 4]], []], pa.list_(half)),
        }
    )
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("event_ts"), "no column event_ts"),
        (lambda t: t.drop_columns("request_ts"), "no column request_ts"),
        (lambda t: t.drop_columns("item_id"), "no column item_id"),
        (lambda t: t.append_column("uih", t["user_id"]), "already has a column uih"),
        (lambda t: t.append_column("visible_ts", t["event_ts"]), "without it"),
        (
            lambda t: t.set_column(3, "item_id", pa.array([[1], []], pa.list_(pa.int64()))),
            "all lists of a row",
        ),
        (
            lambda t: t.set_column(3, "item_id", pa.array([None, []], pa.list_(pa.int64()))),
            "null lists",
        ),
        (lambda t: t.set_column(3, "item_id", t["user_id"]), "must be a list"),
        (
            lambda t: t.set_column(3, "item_id", pa.array([["a", "b"], ["c"]])),
            "must be an integer",
        ),
    ],
)
def test_files_that_are_no_fat_rows(tmp_path: Path, change: Any, message: str) -> None:  # noqa: ANN401
    fat = fat_file(tmp_path, [(1, 5, [A, B]), (2, 5, [C])])
    pq.write_table(change(pq.read_table(fat)), fat)
    with pytest.raises(InputError, match=message):
        slimmed(tmp_path, [fat])
    assert not (tmp_path / "rows.parquet").exists()


def test_an_output_that_is_also_an_input(tmp_path: Path) -> None:
    fat = fat_file(tmp_path, [(1, 5, [A, B])])
    for name in ("events", "rows"):
        with pytest.raises(InputError, match="is also an input"):
            slimmed(tmp_path, [fat], SCHEMA, **{name: fat})
    with pytest.raises(UsageError, match="name two"):
        slimmed(tmp_path, [fat], events=tmp_path / "rows.parquet")


def test_no_rows_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fat rows"):
        slimmed(tmp_path, [fat_file(tmp_path, [])])


def test_a_file_without_rows_beside_others(tmp_path: Path) -> None:
    fat = [fat_file(tmp_path, rows, f"{n}.parquet") for n, rows in enumerate([[], [(1, 5, [A])]])]
    done = slimmed(tmp_path, fat)
    assert done.rows.height == 1
    done.check()


def journey_fat_rows(folder: Path, users_every: int) -> Path:
    """Real purchases as fat rows: the newest 300 before each request, by time."""
    sample = datasets.complete_journey()
    events = sample.events.filter(pl.col("user_id") % users_every == 0).sort("event_ts")
    requests = requests_every(events, 20).with_row_index("request")
    lists = (
        requests.select("request", "user_id", "request_ts")
        .join(events, on="user_id")
        .filter(pl.col("event_ts") < pl.col("request_ts"))
        .sort("request", "event_ts", maintain_order=True)
        .group_by("request", maintain_order=True)
        .agg(pl.exclude("user_id", "request_ts").tail(300))
    )
    fat = requests.join(lists, on="request", how="left", maintain_order="left")
    empty = pl.exclude("request", "user_id", "request_ts", "^label_.*$").fill_null([])
    (folder / "schema.toml").write_text(sample.schema, encoding="utf-8")
    fat.with_columns(empty).drop("request").write_parquet(
        folder / "fat.parquet", row_group_size=500
    )
    return folder / "fat.parquet"


def slim_command(folder: Path, fat: Path) -> list[str]:
    return [
        *(*THINROW, "slim", str(fat), "--schema", str(folder / "schema.toml")),
        *("--out-events", str(folder / "events.parquet")),
        *("--out-rows", str(folder / "rows.parquet")),
    ]


def test_real_fat_rows_through_the_commands(tmp_path: Path) -> None:
    fat = journey_fat_rows(tmp_path, 10)
    result = thinrow(*slim_command(tmp_path, fat)[3:], timeout_s=120)
    assert result.returncode == 0, result.stderr
    assert re.search(r"disagree with others +│ +0 ", result.stdout), result.stdout
    next_step = result.stdout[result.stdout.index("thinrow compact") :].strip()
    compacted = thinrow(*next_step.replace("STORE", str(tmp_path / "store")).split()[1:])
    assert compacted.returncode == 0, compacted.stderr
    with running_server(tmp_path / "store") as server:
        rows = tmp_path / "rows.parquet"
        checked = thinrow("verify", rows, "--server", server.address, "--against", fat)
    assert "Every event is equal." in checked.stdout, checked.stdout
    thin = sum((tmp_path / name).stat().st_size for name in ("events.parquet", "rows.parquet"))
    assert thin < fat.stat().st_size / 3


def test_killed_at_its_steps(tmp_path: Path) -> None:
    """Kills by its own hand, two runs of each round, the second on what the first left."""
    rng = random.Random(5)
    fat = journey_fat_rows(tmp_path, max(20, 120 // REPEATS))
    script = (
        "import runpy, sys; from unittest import mock; sys.argv.pop(0)\n"
        "with mock.patch('thinrow.jobs.slim_plan.PARTITION_EVENTS', 8_000), "
        "mock.patch('thinrow.jobs.fat.PIECE_EVENTS', 16_000): runpy.run_path(sys.argv[0])"
    )

    def run(step: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, str(STEPS), str(step), str(tmp_path)]
        command += slim_command(tmp_path, fat)[len(THINROW) :]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = run(0)
    [counted] = re.findall(r"steps: (\d+)", whole.stderr)
    steps = int(counted)
    outputs = [tmp_path / "events.parquet", tmp_path / "rows.parquet"]
    expected = [path.read_bytes() for path in outputs]
    scratch = tmp_path / ".rows.parquet-slim"
    killed = went_on = 0
    rounds = 2 * REPEATS
    for number in range(rounds):
        for path in outputs:
            path.unlink(missing_ok=True)
        # Every part of the work has its turn; a run that goes on has fewer steps to take.
        first = round(steps * (number + rng.random()) / rounds)
        for step in (max(1, first), rng.randint(1, steps)):
            if run(step).returncode == -signal.SIGKILL:
                killed += 1
                went_on += any(scratch.glob("piece-??????"))
        ended = run(0)
        assert ended.returncode == 0, ended.stderr
        assert [path.read_bytes() for path in outputs] == expected
        assert not scratch.exists()
    assert killed >= rounds
    assert went_on, "no run was killed in the middle of its work"


def test_parts_of_another_run_are_thrown_away(tmp_path: Path) -> None:
    fat = fat_file(tmp_path, [(1, 50, [A, B])])
    with (
        mock.patch("thinrow.jobs.slim._Run._write", side_effect=OSError(28, "full")),
        pytest.raises(StoreFullError),
    ):
        slimmed(tmp_path, [fat])
    assert list(tmp_path.glob(".rows.parquet-slim/partition-*"))
    fat_file(tmp_path, [(1, 50, [A, C])])
    done = slimmed(tmp_path, [fat])
    assert done.events["item_id"].to_list() == [10, 30]


def test_two_runs_at_once(tmp_path: Path) -> None:
    fat = fat_file(tmp_path, [(1, 50, [A, B])])
    with (
        locked_folder(tmp_path / ".rows.parquet-slim"),
        pytest.raises(UsageError, match="Another run"),
    ):
        slimmed(tmp_path, [fat])
