"""Backfill where the raw files say more than the store: erasure, late events, equal events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.remote_stores import remote_world
from support.row_answers import answers
from support.worlds import DAY_MS, World, as_of, days, new_world
from thinrow.client import Projection, connect
from thinrow.errors import InputError, UsageError
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.materialize import materialize
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = '[item]\nitem_id = "int64"\n'


def events_of(*rows: tuple[int, int, int]) -> pa.Table:
    """Events (user, arrival_ts, item)."""
    user_ids, times, items = zip(*rows, strict=True)
    return pa.table({"user_id": user_ids, "event_ts": times, "item_id": items})


def thin_rows(world: World, events: Sequence[Path], requests: Sequence[tuple[int, int]]) -> Path:
    """Rows for requests (user, request_ts)."""
    user_ids, times = zip(*requests, strict=True)
    requested = world.write(
        "requests.parquet", pa.table({"user_id": user_ids, "request_ts": times})
    )
    rows = world.folder / "rows.parquet"
    backfill(BackfillConfig(requests=requested, store=world.store, events=list(events), rows=rows))
    return rows


def test_an_erased_user_is_erased_from_rows_without_history_too(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    raw = events_of((1, as_of(0), 10), (1, as_of(0) + 5, 11), (2, as_of(0), 20))
    world.compact(raw, 1, cadence_ms=DAY_MS)
    files = [world.folder / "events-1.parquet"]
    # Before the first generation, and with a lookback that does not reach into it.
    early = thin_rows(world, files, [(1, as_of(0) + 9), (2, as_of(0) + 9)])
    assert answers(world, early) == [("STATUS_OK", [10, 11]), ("STATUS_OK", [20])]
    erase = world.folder / "erase.txt"
    erase.write_text("1\n")
    world.compact(events_of((1, as_of(2) + 1, 12)), 2, erase_users=erase, cadence_ms=DAY_MS)
    assert answers(world, early) == [("STATUS_ERASED", None), ("STATUS_OK", [20])]

    again = thin_rows(world, files, [(1, as_of(0) + 9), (2, as_of(0) + 9)])
    carried = [len(row) for row in pq.read_table(again)["mutable"].to_pylist()]
    assert carried == [0, 1]


def test_events_that_compaction_skipped_as_late(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    world.compact(events_of((1, as_of(10), 1)), 12, cadence_ms=DAY_MS)
    later = events_of((1, as_of(5), 0), (1, as_of(12), 2))
    assert world.compact(later, 13, cadence_ms=DAY_MS).late == 1
    files = [world.folder / f"events-{day}.parquet" for day in (12, 13)]
    rows = thin_rows(world, files, [(1, as_of(13))])
    assert answers(world, rows) == [("STATUS_OK", [1, 2])]


def test_events_that_differ_in_arrival_only_stand_in_its_order(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    pair = pa.table(
        {
            "user_id": [1, 1],
            "event_ts": [as_of(1)] * 2,
            "arrival_ts": [as_of(1) + 10, as_of(1) + 20],
            "item_id": [7, 7],
        }
    )
    world.compact(pair, 1, cadence_ms=DAY_MS)
    arrivals = []
    for order in ([0, 1], [1, 0]):
        file = world.write("pair.parquet", pair.take(order))
        rows = thin_rows(world, [file], [(1, as_of(1) + 30)])
        [snapshot] = pq.read_table(rows)["mutable"].to_pylist()
        arrivals.append([event["arrival_ts"] for event in snapshot])
    assert arrivals == [[as_of(1) + 10, as_of(1) + 20]] * 2


def test_an_output_that_is_also_an_input_is_refused(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    world.compact(events_of((1, as_of(0), 10)), 1, cadence_ms=DAY_MS)
    rows = thin_rows(world, [world.folder / "events-1.parquet"], [(1, as_of(1))])
    before = rows.read_bytes()
    for events in ([rows], [world.folder / "events-1.parquet"]):
        config = BackfillConfig(requests=rows, store=world.store, events=events, rows=rows)
        with pytest.raises(InputError, match="is also an input"):
            backfill(config)
    with connect("127.0.0.1:9") as client, pytest.raises(InputError, match="is also an input"):
        materialize(client, rows, Projection(), rows)
    assert rows.read_bytes() == before


def test_late_events_do_not_undo_an_erasure(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    raw = events_of((1, as_of(0), 10), (2, as_of(0), 20))
    world.compact(raw, 1, cadence_ms=DAY_MS)
    erase = world.folder / "erase.txt"
    erase.write_text("1\n")
    world.compact(events_of((2, as_of(1), 21)), 2, erase_users=erase)
    report = world.compact(raw, 3, accept_late=True)
    assert (report.late, report.events_added) == (1, 1)
    assert report.user_count == 1


def test_a_store_at_a_url_is_copied_for_a_backfill(tmp_path: Path) -> None:
    """The rows are the same bytes as of a local store, and a mirror is copied to once."""
    (tmp_path / "bucket").mkdir()
    world = remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")
    world.compact_both(3)
    requests = world.local.write(
        "requests.parquet",
        pa.table({"user_id": [1, 2, 3], "request_ts": [int(days(3)[0]) + 5] * 3}),
    )
    config = BackfillConfig(
        requests=requests,
        store=world.local.store,
        events=[world.events(3)],
        rows=tmp_path / "rows.parquet",
    )
    backfill(config)
    rows = Path(config.rows).read_bytes()
    mirror = tmp_path / "mirror"
    backfill(replace(config, store=world.url))
    assert Path(config.rows).read_bytes() == rows
    backfill(replace(config, store=world.url, mirror=mirror))
    with mock.patch.object(ObjectStore, "download", side_effect=AssertionError("copied")):
        backfill(replace(config, store=world.url, mirror=mirror))
    assert Path(config.rows).read_bytes() == rows
    with pytest.raises(UsageError, match="leave it out with the folder"):
        replace(config, mirror=mirror)
