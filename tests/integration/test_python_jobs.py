"""docs/guides/python.md runs as written, and so does examples/dagster_daily.py."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import thinrow
from support.paths import DOCS, ROOT
from support.worlds import DAY_MS, START_TS, World, new_world
from thinrow.client.online import connect_online
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer

if TYPE_CHECKING:
    import dagster as dg
    import pytest

DAY = "2023-11-14"
"""The day of START_TS."""


def test_guide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "guides/python.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
        promised = re.findall(r"print\(.*\)  # (.*)", block)
        for printed, said in zip(capsys.readouterr().out.splitlines(), promised, strict=True):
            assert printed.startswith(said.removesuffix("…")), block
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fat.parquet",
        "rows.parquet",
        "store",
    ]


def test_daily_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day that failed at its last task is run again, and nothing is done twice."""
    import dagster as dg  # of all workers only the one that runs this test waits for it

    world = new_world(tmp_path)
    sample = tmp_path / "samples" / DAY
    now = [START_TS + DAY_MS // 2]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        data=tmp_path / "data",
        listen="127.0.0.1:0",
        metrics=None,
        wall=lambda: now[0],
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        times = [now[0] - 3_000, now[0] - 2_000, now[0] - 1_000]
        traits = {"item_id": [5, 6, 7], "brand": ["a", "b", "c"], "price": [1.0, 2.0, 3.0]}
        client.append([1, 2, 1], times, {"event_id": [1, 2, 3], **traits})
        now[0] = START_TS + DAY_MS + 1

        monkeypatch.setenv("THINROW_FIRST_DAY", DAY)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        example = runpy.run_path(str(ROOT / "examples/dagster_daily.py"))
        places = example["Places"](
            online=server.address,
            store=str(world.store),
            schema_file=str(world.schema),
            exports=str(tmp_path / "exports"),
            samples=str(tmp_path / "samples"),
        )

        def run() -> dg.ExecuteInProcessResult:
            names = ("exported_events", "generation", "verified_sample", "collected_garbage")
            assets = [example[name] for name in names]
            return dg.materialize(
                assets, partition_key=DAY, resources={"places": places}, raise_on_error=False
            )

        first = run()
        assert not first.success
        assert [event.step_key for event in first.get_step_failure_events()] == ["verified_sample"]
        assert metadata(first, "exported_events")["events"].value == 3
        assert metadata(first, "generation")["events_added"].value == 3

        write_sample(
            world, tmp_path / "exports" / f"{DAY}.parquet", sample, histories=[[5, 7], [6]]
        )
        second = run()
        assert second.success
        assert metadata(second, "generation")["generation"].value == 1
        assert metadata(second, "generation")["events_added"].value == 0
        assert metadata(second, "verified_sample")["rows"].value == 2
        assert "Removed no generation" in metadata(second, "collected_garbage")["report"].value

        write_sample(
            world, tmp_path / "exports" / f"{DAY}.parquet", sample, histories=[[5, 8], [6]]
        )
        third = run()
        assert "1 rows differ" in str(third.get_step_failure_events()[0].event_specific_data)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> Any:  # noqa: ANN401
    [done] = result.asset_materializations_for_node(asset)
    return done.metadata


def write_sample(world: World, events: Path, sample: Path, histories: list[list[int]]) -> None:
    """Thin rows of both users at the end of the day, and what serving is said to have seen."""
    requests = pa.table({"user_id": [1, 2], "request_ts": [START_TS + DAY_MS] * 2})
    sample.mkdir(parents=True, exist_ok=True)
    thinrow.backfill(requests, store=world.store, events=events, out=sample / "rows.parquet")
    pq.write_table(requests.append_column("item_id", pa.array(histories)), sample / "fat.parquet")
