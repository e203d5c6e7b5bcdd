"""docs/guides/object-stores.md runs as written, against an S3 server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from support.paths import ROOT
from support.worlds import SCHEMA, running_server, some_events

if TYPE_CHECKING:
    from support.object_storage import ObjectStorage

PAGE = ROOT / "docs/guides/object-stores.md"

SERVE = "thinrow serve --store s3://my-bucket/histories --mirror mirror-0 --group 0/2"

REQUEST_TS = 1_700_006_400_000
"""2023-11-15, the first watermark of the page."""


def commands() -> list[str]:
    """Every command of the page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line for line in lines if line.startswith("thinrow serve")] == [SERVE]
    return [line for line in lines if line != SERVE]


def test_commands_of_the_guide(object_storage: ObjectStorage, tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    for day in (0, 1):
        events = some_events(40, days=1, first_day=day)
        pq.write_table(events, tmp_path / f"events-{day + 1}.parquet")
    requests = pa.table({"user_id": [1, 2], "request_ts": [REQUEST_TS] * 2})
    pq.write_table(requests, tmp_path / "requests.parquet")
    bucket = urllib.request.Request(f"{object_storage.endpoint}/my-bucket", method="PUT")
    with urllib.request.urlopen(bucket, timeout=60) as answer:
        assert answer.status == 200
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = [
        subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for command in commands()
    ]
    for each in done:
        assert each.returncode == 0, (each.args, each.stderr)
    assert len(done) == 9
    assert "item_id" in next(each.stdout for each in done if "inspect" in str(each.args))
    rows = pq.read_table(tmp_path / "rows.parquet")
    assert rows.column("user_id").to_pylist() == [1, 2]
    _, _, _, store, *options = SERVE.split()
    options[1] = str(tmp_path / options[1])
    with running_server(store, *options, log=tmp_path / "log") as server:
        assert server.wait_for("serving")["generation"] == 2
        assert server.scrape()["thinrow_mirror_generation"] == 2
