"""Build a tiny store with an installed ThinRow, and read it: the test of a wheel.

Needs the extra `server` and nothing of the tests: `make wheels` runs this file beside the wheel
alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.client import Pointers, Projection, connect

__all__: list[str] = []

DAY_MS = 86_400_000
SCHEMA = '[item]\nitem_id = { type = "int64", key = true }\n[feedback]\nrating = "float32"\n'
EVENTS = {
    "user_id": [1, 1, 2, 1],
    "event_ts": [20_000 * DAY_MS + hour * 3_600_000 for hour in (1, 2, 3, 4)],
    "item_id": [10, 11, 12, 13],
    "rating": [1.0, 4.5, 3.0, 2.5],
}


def main(folder: Path) -> None:
    """Compacts events into a store in a folder, and compares what it reads with them."""
    schema, events, store = folder / "schema.toml", folder / "events.parquet", folder / "store"
    schema.write_text(SCHEMA, encoding="utf-8")
    pq.write_table(pa.table(EVENTS), events)
    thinrow = Path(sys.executable).with_name("thinrow")
    watermark_ts = 20_001 * DAY_MS
    options = ("--store", store, "--schema", schema, "--watermark", str(watermark_ts))
    subprocess.run([thinrow, "compact", events, *options], check=True, timeout=300)
    pointers = Pointers(user_ids=[1, 2, 3], end_ts=[watermark_ts] * 3)
    with connect(str(store)) as client:
        batch = client.materialize(pointers, Projection(2, traits=("item_id", "rating")))
    items, ratings = batch.to_lists("item_id"), batch.to_lists("rating")
    if (items, ratings) != ([[11, 13], [12], []], [[4.5, 2.5], [3.0], []]):
        raise SystemExit(f"The store has other events: {items}, {ratings}.")
    print("The store has the events that were written to it.")


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        main(Path(name))
