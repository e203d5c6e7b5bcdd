"""Real events through Spark, S3 and a mirrored server: fat rows equal the oracle's."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import polars as pl
import pytest
from support.real_data import CASES, oracle_schema, truth, with_late_and_early
from support.spark_worlds import ON_SPARK
from support.worlds import DAY_MS, REPEATS, running_server, thinrow
from thinrow.compaction.config import CompactionConfig
from thinrow.demo.sample_data import requests_every
from thinrow.engines.choice import run_compact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.object_storage import ObjectStorage
    from thinrow.demo.sample_data import SampleData

FEWER = max(1, 6 // REPEATS)
"""tests/property has all of its users without Spark."""
SLICE_BYTES = 256 << 10
RANGE_EVENTS = 5000


@pytest.mark.usefixtures("local_spark")
@pytest.mark.parametrize(("name", "load", "one_user_in", "every"), CASES, ids=[c[0] for c in CASES])
def test_every_event_of_every_request_of_a_fleet(
    object_storage: ObjectStorage,
    name: str,
    load: Callable[[], SampleData],
    one_user_in: int,
    every: int,
    tmp_path: Path,
) -> None:
    """Two runs, the second with what arrived late, into shards of which some servers have few."""
    sample = load()
    chosen = sample.events.filter(pl.col("user_id") % (one_user_in * FEWER) == 0)
    requests = requests_every(chosen, every)
    events = with_late_and_early(chosen)
    schema = oracle_schema(sample.schema)
    paths = {part: tmp_path / f"{part}.parquet" for part in ("requests", "rows", "fat", "oracle")}
    (tmp_path / "schema.toml").write_text(sample.schema)
    requests.write_parquet(paths["requests"])
    truth(paths["oracle"], events, requests, schema)

    url = object_storage.new_url()
    last = (int(requests["request_ts"].to_numpy().max()) // DAY_MS + 1) * DAY_MS
    first = int(events["arrival_ts"].to_numpy().min())
    middle = (first + last) // 2 // DAY_MS * DAY_MS
    files = []
    for watermark in (middle, last):
        # Each run has some of what the next one needs, or the last one had: it is left out again.
        since, until = (0, middle + DAY_MS) if watermark == middle else (middle - DAY_MS, last)
        path = tmp_path / f"events-{watermark}.parquet"
        arrived = pl.col("arrival_ts")
        part = events.filter((arrived >= since) & ((arrived < until) | (watermark == last)))
        part.write_parquet(path, row_group_size=4096)
        files.append(path)
        with (
            mock.patch("thinrow.engines.spark.slices.SLICE_BYTES", SLICE_BYTES),
            mock.patch("thinrow.engines.spark.slices.RANGE_EVENTS", RANGE_EVENTS),
        ):
            report = run_compact(
                CompactionConfig(
                    events=[path],
                    store=url,
                    schema=tmp_path / "schema.toml",
                    shards=8,
                    watermark_ts=watermark,
                    cadence_ms=DAY_MS,
                ),
                ON_SPARK,
            )
        assert report.rows_read == len(part)
    assert report.event_count + report.left_for_later == len(events)

    options = [part for file in files for part in ("--events", file)]
    done = thinrow(
        *("backfill", paths["requests"], "--store", url, *options, "--out", paths["rows"]),
        timeout_s=240,
    )
    assert done.returncode == 0, done.stderr
    with running_server(url, "--mirror", tmp_path / "mirror", log=tmp_path / "log") as server:
        address = ("--server", server.address)
        result = [
            thinrow("materialize", paths["rows"], *address, "--out", paths["fat"], timeout_s=240),
            thinrow(
                *("verify", paths["rows"], *address, "--against", paths["oracle"]), timeout_s=240
            ),
        ]
    for done in result:
        assert done.returncode == 0, done.stderr
    assert "Every event is equal." in result[-1].stdout
    ours, theirs = pl.read_parquet(paths["fat"]), pl.read_parquet(paths["oracle"])
    assert ours.select(theirs.columns).equals(theirs), name
