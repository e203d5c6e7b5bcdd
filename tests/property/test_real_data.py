"""Real events through the commands, from raw files to fat rows, each event equal the oracle's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from support.real_data import CASES, oracle_schema, truth, with_late_and_early
from support.worlds import DAY_MS, running_server, thinrow
from thinrow.demo.sample_data import requests_every

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.demo.sample_data import SampleData


@pytest.mark.parametrize(("name", "load", "one_user_in", "every"), CASES, ids=[c[0] for c in CASES])
def test_every_event_of_every_request(
    name: str,
    load: Callable[[], SampleData],
    one_user_in: int,
    every: int,
    tmp_path: Path,
) -> None:
    sample = load()
    chosen = sample.events.filter(pl.col("user_id") % one_user_in == 0)
    requests = requests_every(chosen, every)
    events = with_late_and_early(chosen)
    schema = oracle_schema(sample.schema)
    paths = {part: tmp_path / f"{part}.parquet" for part in ("events", "requests", "rows", "fat")}
    (tmp_path / "schema.toml").write_text(sample.schema)
    events.write_parquet(paths["events"])
    requests.write_parquet(paths["requests"])
    truth(tmp_path / "oracle.parquet", events, requests, schema)

    store = tmp_path / "store"
    watermark = (int(requests["request_ts"].to_numpy().max()) // DAY_MS + 1) * DAY_MS
    result = [
        thinrow(
            *("compact", paths["events"], "--store", store, "--cadence", "1d"),
            *("--schema", tmp_path / "schema.toml", "--watermark", watermark),
            timeout_s=240,
        ),
        thinrow(
            *("backfill", paths["requests"], "--store", store),
            *("--events", paths["events"], "--out", paths["rows"]),
            timeout_s=240,
        ),
    ]
    with running_server(store) as server:
        address = ("--server", server.address)
        result.append(
            thinrow("materialize", paths["rows"], *address, "--out", paths["fat"], timeout_s=240)
        )
        for fat in (tmp_path / "oracle.parquet", paths["fat"]):
            result.append(
                thinrow("verify", paths["rows"], *address, "--against", fat, timeout_s=240)
            )
            assert "Every event is equal." in result[-1].stdout
    for done in result:
        assert done.returncode == 0, done.stderr
    ours, theirs = pl.read_parquet(paths["fat"]), pl.read_parquet(tmp_path / "oracle.parquet")
    assert ours.select(theirs.columns).equals(theirs), name
