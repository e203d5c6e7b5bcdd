"""The wall: the model's costs are those of real files and processes where it was not measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from support.small_disks import run
from support.worlds import DAY_MS, running_server, thinrow
from thinrow.client import Client, Projection, connect, read_thin_rows
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.errors import UsageError
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.materialize import materialize
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.wall.command import parse_tenants
from thinrow.wall.config import GivenFigures, Power
from thinrow.wall.curve import Curve
from thinrow.wall.figures import SHIPPED, Figures, read_figures
from thinrow.wall.model import (
    SHARE_MAX,
    Workload,
    costs_of,
    energy_at,
    find_walls,
    rewritten_events,
    share_at,
    store_written_per_day,
)
from thinrow.wall.sample import measured_workload
from thinrow.wall.workloads import platform_workloads, with_given
from wall import measured
from workload import SCHEMA, workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REQUEST_DAYS = 4
SMALL_EVENTS = 1 << 17
BY_HAND = Workload(
    order="by hand",
    sharing=2,
    users=10,
    requests_per_day=20,
    histories=np.array([65_536.0]),
    stored_events=65_536,
    events_per_day=180,
    increment_events=300,
    rows_kept_days=30,
    fat_row=Curve.line(50, 4),
    fat_read_cpu_s=Curve.line(0, 2e-7),
    fat_write_cpu_s=Curve.line(0, 1e-7),
    thin_row=120,
    stored=Curve.line(0, 25),
    layer_event=30,
    compaction_read_per_written=1.5,
    compaction_cpu_s_per_mb=0.1,
    store_read=Curve.line(0, 5),
    answer=Curve.line(0, 3),
    thin_read_cpu_s=Curve.line(0, 1e-8),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thin rows of a made-up workload, and their store."""
    folder = tmp_path_factory.mktemp("wall")
    made = workload(
        users=200, events_median=800, days=60, request_days=REQUEST_DAYS, requests_per_day=5
    )
    made.events.write_parquet(folder / "events.parquet")
    made.requests.write_parquet(folder / "requests.parquet")
    (folder / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    compact(
        CompactionConfig(
            store=folder / "store",
            events=[folder / "events.parquet"],
            schema=folder / "schema.toml",
            watermark_ts=made.watermark_ts,
            cadence_ms=DAY_MS,
        )
    )
    backfill(
        BackfillConfig(
            requests=folder / "requests.parquet",
            store=folder / "store",
            events=[folder / "events.parquet"],
            rows=folder / "rows.parquet",
        )
    )
    return folder


@pytest.fixture(scope="module")
def client(built: Path) -> Iterator[Client]:
    config = ServerConfig(store=built / "store", listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def found(built: Path, client: Client) -> Workload:
    return measured_workload(client, built / "rows.parquet", read_figures())


@pytest.mark.parametrize("length", [100, 700, 3000])
def test_sampled_rows_against_their_files_and_answers(
    built: Path, client: Client, found: Workload, length: int
) -> None:
    projection, fat = Projection(length), built / "fat.parquet"
    rows = materialize(client, built / "rows.parquet", projection, fat).rows
    requested = (rows for rows, _ in read_thin_rows(built / "rows.parquet", examples=512))
    answered = sum(answer.answer_bytes for answer in client.answers(requested, projection))
    thin = (built / "rows.parquet").stat().st_size
    files = sum(path.stat().st_size for path in (built / "store").rglob("*") if path.is_file())
    model_fat, model_thin = costs_of(found, length, length)
    print(  # with -s: what was reported and what there was
        f"{length}: fat {model_fat.stored:,.0f} {fat.stat().st_size:,}, "
        f"thin {model_thin.stored:,.0f} {thin + files:,}, "
        f"sent {model_thin.each_time.network_bytes:,.0f} {(thin + answered) / rows:,.0f}"
    )
    assert model_fat.stored == pytest.approx(fat.stat().st_size, rel=0.1)
    assert model_thin.stored == pytest.approx(thin + files, rel=0.1)
    assert model_fat.each_time.disk_bytes == pytest.approx(fat.stat().st_size / rows, rel=0.1)
    assert model_thin.each_time.network_bytes == pytest.approx((thin + answered) / rows, rel=0.1)
    assert model_fat.written_per_day == pytest.approx(fat.stat().st_size / REQUEST_DAYS, rel=0.1)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_figures_against_a_length_between(tmp_path: Path) -> None:
    """Figures of 1,024 and 4,096 events predict what 2,048 cost, in both orders."""
    lines, stores = {}, {}
    for length in (1024, 2048, 4096):
        folder = tmp_path / str(length)
        folder.mkdir()
        lines[length], stores[length] = measured(folder, length, SMALL_EVENTS // length, rounds=1)
    figures = Figures.model_validate(
        {
            "machine": "this one",
            "date": "today",
            "lines": lines[1024] + lines[4096],
            "stores": [stores[1024], stores[4096]],
        }
    )
    model = platform_workloads(figures, GivenFigures())
    for ours, line in zip(model, lines[2048], strict=True):
        assert (ours.order, ours.sharing) == (line["order"], line["sharing"])
        fat, thin = (cost.each_time for cost in costs_of(ours, 2048, 2048))
        read, sent = line["store_read_event_bytes"], line["sent_event_bytes"]
        stored = stores[2048]["event_bytes"]
        print(line, fat, thin, ours.stored.at(2048) / 2048, stored)  # with -s
        assert fat.disk_bytes == pytest.approx(2048 * line["fat_event_bytes"], rel=0.1)
        assert thin.disk_bytes - ours.thin_row == pytest.approx(2048 * read, rel=0.1)
        assert thin.network_bytes - ours.thin_row == pytest.approx(2048 * sent, rel=0.1)
        assert ours.stored.at(2048) == pytest.approx(2048 * stored, rel=0.1)
        # Passes of a fraction of a second, on a machine that may be busy: seconds of CPU vary.
        fat_s = line["fat_read_cpu_s_per_million"]
        thin_s = line["client_cpu_s_per_million"] + line["server_cpu_s_per_million"]
        assert fat_s / 3 < 1e6 * fat.cpu_s / 2048 < 3 * fat_s
        assert thin_s / 3 < 1e6 * thin.cpu_s / 2048 < 3 * thin_s


@pytest.mark.parametrize(("events_median", "days"), [(5_000, 60), (700, 30)])
def test_model_against_measured_increments(tmp_path: Path, events_median: int, days: int) -> None:
    """Long histories are written whole when it is due, short ones also as their layers grow."""
    made = workload(
        users=40, events_median=events_median, days=days, request_days=1, requests_per_day=1, seed=2
    )
    made.events.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    config = CompactionConfig(
        store=tmp_path / "store",
        events=[tmp_path / "events.parquet"],
        schema=tmp_path / "schema.toml",
        watermark_ts=made.watermark_ts - 13 * DAY_MS,
        cadence_ms=DAY_MS,
        keep=14,
        shards=1,
    )
    written: list[int] = []
    files: set[int] = set()
    events: list[int] = []
    while len(written) < 14:  # shard 0 is due whole in generations 7 and 14
        events.append(compact(config).event_count)
        new = [
            path.stat()
            for path in config.folder.rglob("shard-*/*")
            if path.stat().st_ino not in files  # tables shared with older generations are links
        ]
        files.update(file.st_ino for file in new)
        written.append(sum(file.st_size for file in new))
        config = replace(config, watermark_ts=config.watermark_ts + DAY_MS)
    rewritten = [_rewritten(made.events, made.watermark_ts - left * DAY_MS) for left in range(13)]
    event_bytes = written[6] / events[6]
    layer_event = written[1] / rewritten[-1]
    users = made.events["user_id"].n_unique()
    model = replace(
        BY_HAND,
        users=users,
        stored_events=float(np.mean(events[7:])) / users,
        increment_events=float(np.mean(rewritten[:7])) / users,
        stored=Curve.line(0, event_bytes),
        layer_event=layer_event,
    )
    print(written, store_written_per_day(model), np.mean(written[7:]))  # with -s
    assert store_written_per_day(model) == pytest.approx(np.mean(written[7:]), rel=0.1)


def _rewritten(events: pl.DataFrame, until_ts: int) -> int:
    """Events that the increment of a day writes."""
    before, after = (
        np.bincount(events.filter(pl.col("event_ts") < cut_ts)["user_id"].to_numpy(), minlength=40)
        for cut_ts in (until_ts - DAY_MS, until_ts)
    )
    return int(rewritten_events(before[after > before], after[after > before]).sum())


def test_figures_that_are_given_count(found: Workload) -> None:
    given = GivenFigures(users=5.0, fat_row_event=10.0, retention_days=2.0, events_per_day=100.0)
    changed = with_given(found, given)
    assert (changed.users, changed.stored_events) == (5, 200)
    assert changed.fat_row.at(1000) == pytest.approx(10_000)
    scale = changed.histories.mean() / found.histories.mean()
    assert scale == pytest.approx(200 / found.stored_events)
    assert changed.thin_row == found.thin_row
    smaller = with_given(BY_HAND, GivenFigures(store_event=5.0))
    assert smaller.stored.at(100) == pytest.approx(500)
    assert smaller.store_read.at(100) == pytest.approx(100)
    assert smaller.layer_event == pytest.approx(6)


def test_costs_by_hand() -> None:
    (fat, thin), (alone, same) = costs_of(BY_HAND, 100, 10_000), costs_of(BY_HAND, 100, 100)
    assert fat.each_time.disk_bytes == pytest.approx(50 + 4 * 10_000)
    assert alone.each_time.disk_bytes == pytest.approx(50 + 4 * 100)
    assert thin == same
    assert thin.each_time.disk_bytes == pytest.approx(120 + 100 * 5)
    assert thin.each_time.network_bytes == pytest.approx(120 + 100 * 3)
    assert thin.each_time.cpu_s == pytest.approx(100e-8)
    # 300 events of 30 bytes are a layer: six of them are less than a quarter of the store.
    store, layer = 10 * 65_536 * 25, 10 * 300 * 30
    written = (store + 6 * layer) / 7
    assert thin.written_per_day == pytest.approx(200 * 120 + written)
    assert thin.once.disk_bytes == pytest.approx(120 + 2.5 * written / 200)
    assert thin.once.cpu_s == pytest.approx(0.1 * written / 1e6 / 200)


def test_the_wall_is_where_the_share_passes() -> None:
    walls = find_walls(BY_HAND, Power())
    assert walls.fat is not None
    assert share_at(BY_HAND, Power(), walls.fat - 1)[0] <= SHARE_MAX
    assert share_at(BY_HAND, Power(), walls.fat)[0] > SHARE_MAX
    # Written, and read or sent: 400 W for 200 MB/s of disks, 3,125 MB/s of network, or 32 cores.
    row = 50 + 4 * walls.fat
    joules = 400 * 2 * row * (1 / 200e6 + 1 / 3125e6) + 400 * 3e-7 * walls.fat / 32
    assert energy_at(BY_HAND, Power(), walls.fat)[0].total == pytest.approx(joules)
    assert joules / (700 / 5000) == pytest.approx(SHARE_MAX, rel=1e-3)
    assert walls.thin is None or walls.thin > walls.fat
    idle = replace(Power(), gpu_examples_per_second=1)
    assert find_walls(BY_HAND, idle).fat is None


def test_rows_beyond_what_was_measured() -> None:
    curve = Curve((0, 10, 20), (5, 10, 20))
    assert [curve.at(events) for events in (0, 5, 10, 15, 30)] == [5, 7.5, 10, 15, 30]


def test_command(built: Path) -> None:
    picture = built / "plots" / "wall.png"
    pq.write_table(pq.read_table(built / "rows.parquet").slice(0, 100), built / "some.parquet")
    with running_server(built / "store") as server:
        result = thinrow(
            *("wall", "--rows", built / "some.parquet", "--server", server.address),
            *("--tenant", "long=2000", "--tenant", "short=50", "--out", picture),
            timeout_s=120,
        )
    assert result.returncode == 0, result.stderr
    assert "as the rows lie" in result.stdout
    assert "The wall" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    shipped = run("wall", "--out", picture, "--gpu-examples", 20_000)
    assert "streaming, fat rows: at" in shipped.stdout, shipped.stderr
    assert "batch, thin rows:" in shipped.stdout
    assert "given" in shipped.stdout
    assert read_figures().date in shipped.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda figures: figures.pop("machine"), "machine"),
        (lambda figures: figures["lines"].pop(), "each length once"),
        (lambda figures: figures["lines"][0].update(fat_event_bytes=-1), "fat_event_bytes"),
        (lambda figures: figures["stores"].pop(), "lengths of the lines"),
        (
            lambda figures: [one.update(layer_event_bytes=None) for one in figures["stores"]],
            "daily increments",
        ),
    ],
)
def test_files_that_hold_no_figures(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    figures = json.loads(SHIPPED.read_text(encoding="utf-8"))
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(figures), encoding="utf-8")
    assert read_figures(file) == read_figures()
    change(figures)
    file.write_text(json.dumps(figures), encoding="utf-8")
    result = run("wall", "--figures", file)
    assert result.exit_code == 2
    assert "bench-wall" in result.stderr
    assert message in " ".join(result.stderr.split())


def test_missing_figures(tmp_path: Path) -> None:
    result = run("wall", "--figures", tmp_path / "none.json")
    assert result.exit_code == 2
    assert "Cannot read" in result.stderr


@pytest.mark.parametrize("text", ["", "long", "=5", "long=", "long=0", "long=-3"])
def test_tenants_are_names_with_lengths(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=LENGTH"):
        parse_tenants([text])


def test_rows_need_their_server(tmp_path: Path) -> None:
    result = run("wall", "--rows", tmp_path / "rows.parquet")
    assert result.exit_code == 2
    assert "give both or neither" in result.stderr
