"""The wall: the model's bytes are those of real files and answers, at lengths it was not given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
from thinrow.wall.command import (
    ASSUMED,
    measured_workload,
    parse_tenants,
    with_given,
)
from thinrow.wall.config import GivenFigures, Power
from thinrow.wall.model import (
    SHARE_MAX,
    Curve,
    bytes_of,
    find_wall,
    rewritten_events,
    share_at,
    store_written_per_day,
)
from workload import SCHEMA, workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.wall.model import Workload

REQUEST_DAYS = 4


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
    return measured_workload(client, built / "rows.parquet")


@pytest.mark.parametrize("length", [100, 700, 3000])
def test_model_against_measured_bytes(
    built: Path, client: Client, found: Workload, length: int
) -> None:
    projection, fat = Projection(length), built / "fat.parquet"
    rows = materialize(client, built / "rows.parquet", projection, fat).rows
    requested = (rows for rows, _ in read_thin_rows(built / "rows.parquet", examples=512))
    answered = sum(answer.answer_bytes for answer in client.answers(requested, projection))
    thin = (built / "rows.parquet").stat().st_size
    files = sum(path.stat().st_size for path in (built / "store").rglob("*") if path.is_file())
    model_fat, model_thin = bytes_of(found, length, length)
    print(  # with -s: what was reported and what there was
        f"{length}: fat {model_fat.stored:,.0f} {fat.stat().st_size:,}, "
        f"thin {model_thin.stored:,.0f} {thin + files:,}, "
        f"sent {model_thin.sent_per_example:,.0f} {(thin + answered) / rows:,.0f}"
    )
    assert model_fat.stored == pytest.approx(fat.stat().st_size, rel=0.1)
    assert model_thin.stored == pytest.approx(thin + files, rel=0.1)
    assert model_fat.read_per_example == pytest.approx(fat.stat().st_size / rows, rel=0.1)
    assert model_thin.sent_per_example == pytest.approx((thin + answered) / rows, rel=0.1)
    assert model_fat.written_per_day == pytest.approx(fat.stat().st_size / REQUEST_DAYS, rel=0.1)


def test_model_against_measured_increments(tmp_path: Path) -> None:
    days = 60
    made = workload(
        users=40, events_median=5_000, days=days, request_days=1, requests_per_day=1, seed=2
    )
    made.events.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    config = CompactionConfig(
        store=tmp_path / "store",
        events=[tmp_path / "events.parquet"],
        schema=tmp_path / "schema.toml",
        watermark_ts=made.watermark_ts - 6 * DAY_MS,
        cadence_ms=DAY_MS,
        keep=10,
        shards=1,
    )
    written: list[int] = []
    files: set[int] = set()
    while len(written) < 2 or written[-1] < written[0] / 2:  # up to the next whole writing
        compact(config)
        new = [
            path.stat()
            for path in config.folder.rglob("shard-*/*")
            if path.stat().st_ino not in files  # tables shared with older generations are links
        ]
        files.update(file.st_ino for file in new)
        written.append(sum(file.st_size for file in new))
        config = replace(config, watermark_ts=config.watermark_ts + DAY_MS)
    counts = [
        dict(made.events.filter(pl.col("event_ts") < cut_ts).group_by("user_id").len().iter_rows())
        for cut_ts in (made.watermark_ts - days_left * DAY_MS for days_left in (6, 5))
    ]
    before, after = (np.array([each[user] for user in sorted(counts[0])]) for each in counts)
    event_bytes = written[0] / before.sum()
    active = after > before
    layer = rewritten_events(before[active], after[active]).sum() * event_bytes
    # The model leaves out directories and the headers of stripes, of which short ones have more.
    assert layer == pytest.approx(written[1], rel=0.2)
    layers = len(written) - 2
    model = replace(
        ASSUMED,
        users=len(before),
        stored_events=float(before.mean()),
        increment_events=written[1] / event_bytes / len(before),
        store_event=event_bytes,
    )
    cycle = (layers * written[1] + written[0]) / (layers + 1)
    assert store_written_per_day(model) == pytest.approx(cycle)


def test_figures_that_are_given_count(found: Workload) -> None:
    given = GivenFigures(users=5.0, fat_row_event=10.0, retention_days=2.0, events_per_day=100.0)
    changed = with_given(found, given)
    assert (changed.users, changed.stored_events) == (5, 200)
    assert changed.fat_row.at(1000) - changed.fat_row.at(0) == pytest.approx(10_000)
    scale = changed.histories.mean() / found.histories.mean()
    assert scale == pytest.approx(200 / found.stored_events)
    assert changed.thin_row == found.thin_row


def test_fat_rows_are_read_as_long_as_the_longest_tenant_wants() -> None:
    (fat, thin), (alone, same) = bytes_of(ASSUMED, 100, 10_000), bytes_of(ASSUMED, 100, 100)
    assert fat.read_per_example == pytest.approx(50 + 4 * 10_000)
    assert alone.read_per_example == pytest.approx(50 + 4 * 100)
    assert thin == same
    # A day later, 180 newer events lie behind the 100 newest, in stripes of 16 to 128 events.
    assert ASSUMED.events_read(100) == 128
    assert thin.read_per_example == pytest.approx(120 + 128 * 25 / 8)
    layer = 1e6 * ASSUMED.increment_events * 25
    assert thin.written_per_day == pytest.approx(20e6 * 120 + (6 * layer + 65_536e6 * 25) / 7)
    assert thin.sent_per_example == pytest.approx(120 + (50 + 28 * 100) / 8)


def test_the_wall_is_where_the_share_passes() -> None:
    wall = find_wall(ASSUMED, Power())
    assert wall.fat is not None
    assert share_at(ASSUMED, Power(), wall.fat - 1)[0] <= SHARE_MAX
    assert share_at(ASSUMED, Power(), wall.fat)[0] > SHARE_MAX
    # Written, read and sent once each, at 400 W for 200 MB/s, beside 700 W for 5000 examples/s.
    joules = 2e-6 * 3 * (50 + 4 * wall.fat)
    assert joules / (700 / 5000) == pytest.approx(SHARE_MAX, rel=1e-3)
    assert wall.thin is None or wall.thin > wall.fat
    idle = replace(Power(), gpu_examples_per_second=1)
    assert find_wall(ASSUMED, idle).fat is None


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
    assert "long" in result.stdout
    assert "The wall" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assumed = run("wall", "--out", picture, "--gpu-examples", 20_000)
    assert "fat rows: at" in assumed.stdout, assumed.stderr


@pytest.mark.parametrize("text", ["", "long", "=5", "long=", "long=0", "long=-3"])
def test_tenants_are_names_with_lengths(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=LENGTH"):
        parse_tenants([text])


def test_rows_need_their_server(tmp_path: Path) -> None:
    result = run("wall", "--rows", tmp_path / "rows.parquet")
    assert result.exit_code == 2
    assert "give both or neither" in result.stderr
