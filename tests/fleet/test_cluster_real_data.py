"""Real events through a cluster of four groups: each fat row is the one that the oracle writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from support.cluster import running_cluster
from support.real_data import CASES, oracle_schema, truth, with_late_and_early
from support.worlds import DAY_MS, thinrow
from thinrow.demo.sample_data import requests_every

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.demo.sample_data import SampleData

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(("name", "load", "one_user_in", "every"), CASES, ids=[c[0] for c in CASES])
def test_every_event_comes_through_four_groups(
    name: str, load: Callable[[], SampleData], one_user_in: int, every: int, tmp_path: Path
) -> None:
    sample = load()
    chosen = sample.events.filter(pl.col("user_id") % one_user_in == 0)
    requests = requests_every(chosen, every)
    events = with_late_and_early(chosen)
    paths = {part: tmp_path / f"{part}.parquet" for part in ("events", "requests", "rows", "fat")}
    (tmp_path / "schema.toml").write_text(sample.schema)
    (tmp_path / "bucket").mkdir()
    events.write_parquet(paths["events"])
    requests.write_parquet(paths["requests"])
    truth(tmp_path / "oracle.parquet", events, requests, oracle_schema(sample.schema))

    store = f"file://{tmp_path}/bucket/store"
    watermark = (int(requests["request_ts"].to_numpy().max()) // DAY_MS + 1) * DAY_MS
    done = [
        thinrow(
            *("compact", paths["events"], "--store", store, "--cadence", "1d", "--shards", 16),
            *("--schema", tmp_path / "schema.toml", "--watermark", watermark),
            timeout_s=240,
        ),
        thinrow(
            *("backfill", paths["requests"], "--store", store),
            *("--events", paths["events"], "--out", paths["rows"]),
            timeout_s=240,
        ),
    ]
    with running_cluster(store, tmp_path / "cluster", groups=4, copies=1) as cluster:
        address = ("--server", cluster.addresses[0])
        done.append(
            thinrow("materialize", paths["rows"], *address, "--out", paths["fat"], timeout_s=240)
        )
        for fat in (tmp_path / "oracle.parquet", paths["fat"]):
            done.append(thinrow("verify", paths["rows"], *address, "--against", fat, timeout_s=240))
            assert "Every event is equal." in done[-1].stdout, done[-1].stderr
    for each in done:
        assert each.returncode == 0, each.stderr
    ours, theirs = pl.read_parquet(paths["fat"]), pl.read_parquet(tmp_path / "oracle.parquet")
    assert ours.select(theirs.columns).equals(theirs), name
