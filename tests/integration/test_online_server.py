"""`thinrow online` as people run it: killed, full, requested by grpcurl, sent the same twice."""

from __future__ import annotations

import gc
import itertools
import json
import random
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from support.grpcurl import GRPCURL
from support.online_events import ALL, batch, ids_seen, item
from support.worlds import (
    START_TS,
    new_world,
    running_online,
    some_events,
    thinrow,
)
from thinrow.client import Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.errors import InputError, RequestError, StoreLockedError, ThinRowError, UsageError
from thinrow.online.config import OnlineConfig
from thinrow.online.database import WriteAheadLog
from thinrow.online.exports import Exports
from thinrow.online.records import Batch
from thinrow.online.server import OnlineServer
from thinrow.online.state import TierState
from thinrow.online.tier import MutableTier, TierConfig
from thinrow.store.directory import NEVER_TS
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator


def batches_from(client: OnlineClient, first: int, size: int) -> Iterator[online_pb2.EventBatch]:
    for start in itertools.count(first, size):
        yield batch(client, start, size)


def test_what_was_acknowledged_survives_kills(tmp_path: Path) -> None:
    world, size, acknowledged, next_id = new_world(tmp_path), 50, set[int](), 0
    rng = random.Random(5)
    for _ in range(3):
        with running_online(world) as server, connect_online(server.address) as client:
            known = ids_seen(client)
            assert acknowledged <= known
            last_ts = client.describe().now_ts
            first, kill_id = next_id, next_id + size * rng.randrange(1, 100)
            with pytest.raises(ThinRowError):
                # Begins with what was sent before: no one can know what became of it.
                for answer in client.append_all(batches_from(client, next_id, size)):
                    assert answer.appended + answer.duplicates == size
                    assert answer.arrival_ts >= last_ts
                    acknowledged |= set(range(first, first + size))
                    first += size
                    if first == kill_id:  # while later batches are under way
                        server.process.kill()
            assert first >= kill_id
            next_id = first
    with running_online(world) as server, connect_online(server.address) as client:
        assert acknowledged <= ids_seen(client)
        assert server.stop() == 0
    # A clean stop leaves no promise behind that the next start has to wait for.
    with running_online(world) as server, connect_online(server.address) as client:
        assert acknowledged <= ids_seen(client)


def test_events_sent_again_count_once(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    with running_online(world) as server, connect_online(server.address) as client:
        result = [
            *client.append_all([batch(client, 0, 9), batch(client, 0, 9), batch(client, 5, 9)])
        ]
        assert [(each.appended, each.duplicates) for each in result] == [(9, 0), (0, 9), (5, 4)]
        assert ids_seen(client) == set(range(14))
        scraped = server.scrape()
        assert scraped["thinrow_online_events_appended_total"] == 14
        assert scraped["thinrow_online_events_duplicate_total"] == 13


def test_a_bad_batch_is_refused_alone(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    with running_online(world) as server, connect_online(server.address) as client:
        good, other = batch(client, 0, 3), batch(client, 3, 3)
        stranger, short, lacking, huge = (online_pb2.EventBatch() for _ in range(4))
        for bad in (stranger, short, lacking):
            bad.CopyFrom(good)
        stranger.columns[3].trait = "colour"
        short.user_ids.append(7)
        del lacking.columns[2]  # after event_ts and event_id
        huge.user_ids.extend([1] * 20_000)
        batches = [good, stranger, short, lacking, huge, other]
        requests = [
            online_pb2.AppendEventsRequest(cursor=number, events=events)
            for number, events in enumerate(batches)
        ]
        result = list(client.stub.AppendEvents(iter(requests)))
        assert [answer.cursor for answer in result] == [0, 1, 2, 3, 4, 5]
        assert [bool(answer.refused) for answer in result] == [False, True, True, True, True, False]
        for answer, word in zip(
            result[1:5], ("colour", "do not fit 4 events", "item_id", "20000"), strict=True
        ):
            assert word in answer.refused and answer.refused.endswith(".")
            assert "\n" not in answer.refused
        assert ids_seen(client) == set(range(6))
        with pytest.raises(InputError, match="colour"):
            client.append([1], [START_TS], {"colour": [1]})
        with pytest.raises(InputError, match="item_id"):
            client.append([1], [START_TS], {"item_id": [1, 2]})


def test_a_refused_batch_is_freed_at_once(tmp_path: Path) -> None:
    """Without the garbage collector: until it ran, refused batches would add up."""
    world = new_world(tmp_path)
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        data=tmp_path / "data",
        listen="127.0.0.1:0",
        metrics=None,
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        short = batch(client, 0, 3)
        short.user_ids.append(7)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            [result] = client.stub.AppendEvents(
                iter([online_pb2.AppendEventsRequest(events=short)]), timeout=60
            )
            for thread in threading.enumerate():
                if thread.name == "thinrow-append":
                    thread.join(60)
            gc.collect()
            freed_late = [one for one in gc.garbage if isinstance(one, ThinRowError)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert "do not fit 4 events" in result.refused
    assert not freed_late


def test_limits(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    with running_online(world) as server, connect_online(server.address) as client:
        for wrong, word in (
            ({"lookback_ms": -1}, "lookback_ms"),
            ({"max_length": -1}, "max_length"),
            ({"request_ts": 1 << 60}, "ahead"),
        ):
            with pytest.raises(RequestError, match=word):
                client.snapshot(1, ALL, **wrong)
        with pytest.raises(RequestError, match="1025 users"):
            client.snapshot_batch([1] * 1025, ALL)
        with pytest.raises(RequestError, match="no trait 'colour'"):
            client.snapshot(1, Projection(traits=("colour",)))
        with pytest.raises(RequestError, match="no tenant"):
            client.snapshot(1, "nobody")
        export = thinrow(
            "export",
            "--online",
            server.address,
            "--watermark",
            "2100-01-01",
            "--out",
            tmp_path / "e",
        )
        assert export.returncode == 2
        assert "ahead of this server's clock" in export.stderr.replace("\n", " ")
        assert not list(tmp_path.glob("e*"))
    for wrong in ({"retention_ms": 0}, {"dedup_window_ms": -1}):
        with pytest.raises(UsageError):
            OnlineConfig(store=tmp_path, **wrong)  # type: ignore[arg-type]


def test_requests_wait_for_a_slow_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events arrive later where commits take long, so that requests need not wait for them."""
    committing, synced = threading.Event(), threading.Event()
    sync = WriteAheadLog.sync

    def slow(log: WriteAheadLog) -> None:
        committing.set()
        synced.wait()
        sync(log)

    now = [START_TS]
    config = TierConfig(folder=tmp_path, commit_lead_ms=1, wall=lambda: now[0])
    with closing(MutableTier(config)) as tier:
        tier.begin(0)  # takes the lease
        monkeypatch.setattr(WriteAheadLog, "sync", slow)
        for waits in (True, False):
            committing.clear()
            synced.clear()
            commit = threading.Thread(target=tier.commit, args=([Batch([], [], [])],))
            commit.start()
            committing.wait()
            now[0] += 100
            begin = threading.Thread(target=tier.begin, args=(0,))
            begin.start()
            begin.join(0.1 if waits else None)
            assert begin.is_alive() == waits
            synced.set()
            begin.join()
            commit.join()
        monkeypatch.undo()


def test_one_writer(tmp_path: Path) -> None:
    config = TierConfig(folder=tmp_path / "tier")
    tier = MutableTier(config)
    with pytest.raises(StoreLockedError, match="one writer"):
        MutableTier(config)
    tier.close()
    MutableTier(config).close()


def test_without_schema_or_store(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="--schema"),
        OnlineServer(OnlineConfig(store=tmp_path / "store", listen="127.0.0.1:0", metrics=None)),
    ):
        pass


def test_the_way_of_an_event_by_command_line(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    exported = tmp_path / "exported.parquet"
    with running_online(world) as server, connect_online(server.address) as client:
        [result] = client.append_all([batch(client, 0, 10)])
        watermark_ts = result.arrival_ts + 1
        for _ in range(2):
            ran = thinrow(
                *("export", "--online", server.address),
                *("--watermark", watermark_ts, "--out", exported),
            )
            assert ran.returncode == 0, ran.stderr
        assert sorted(pq.read_table(exported).column("event_id").to_pylist()) == list(range(10))
        before = client.snapshot(1, ALL)
        compact(
            CompactionConfig(
                store=world.store, events=[exported], schema=world.schema, watermark_ts=watermark_ts
            )
        )
        while client.describe().generation != 1:
            pass
        after = client.snapshot(1, ALL)
        assert before.thin_row.end_ts == 0 and after.thin_row.end_ts == watermark_ts
        assert len(before.thin_row.mutable) == 2 and not after.thin_row.mutable
        assert before.batch.to_lists("event_id") == after.batch.to_lists("event_id")
        answer = grpcurl(
            server.address, "Snapshot", {"user_id": 1, "projection": {"traits": ["item_id"]}}
        )
        assert int(answer["end_ts"]) == watermark_ts, answer
        assert answer["immutable"]["view_lengths"] == [2]
        listed = subprocess.run(
            [*GRPCURL, server.address, "list"], capture_output=True, text=True, check=True
        )
        assert "thinrow.v1.OnlineService" in listed.stdout


def test_a_generation_that_was_not_sealed_here_is_not_served(tmp_path: Path) -> None:
    """It lacks events that this tier holds: pointing at it would lose them from answers."""
    world = new_world(tmp_path)
    now = [START_TS]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=0.02,
        wall=lambda: now[0],
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        client.append([1], [START_TS], item(5), [1])
        now[0] += 1000
        world.write(
            "none.parquet", pq.read_table(world.write("e.parquet", some_events(1))).slice(0, 0)
        )
        compact(
            CompactionConfig(
                store=world.store,
                events=[tmp_path / "none.parquet"],
                schema=world.schema,
                watermark_ts=START_TS + 500,
            )
        )
        while client.describe().generation != 1:
            pass
        server.published.refresh()
        seen = client.snapshot(1, ALL)
        assert seen.thin_row.end_ts == 0 and len(seen.thin_row.mutable) == 1
        with pytest.raises(RequestError, match="never sealed"):
            list(client.export(online_pb2.ExportEventsRequest(watermark_ts=START_TS + 400)))


def grpcurl(address: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    ran = subprocess.run(
        [*GRPCURL, "-d", json.dumps(request), address, f"thinrow.v1.OnlineService/{method}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_an_export_beside_a_publication_starts_from_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation that is taken up while an export begins does not refuse the export."""
    world = new_world(tmp_path)
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        assert [each.appended for each in client.append_all([batch(client, 0, 4)])] == [4]
        newest_ts = client.describe().now_ts
        seen = iter([NEVER_TS, newest_ts])  # the publication falls between both
        monkeypatch.setattr(Exports, "published_before", lambda *_: next(seen, newest_ts))
        kept = TierState.check_kept

        def kept_since_newest(state: TierState, from_ts: int) -> None:
            if from_ts < newest_ts:
                raise RequestError("The tier has kept events since then only.")
            kept(state, from_ts)

        monkeypatch.setattr(TierState, "check_kept", kept_since_newest)
        request = online_pb2.ExportEventsRequest(watermark_ts=newest_ts + 1)
        assert next(client.export(request)).from_ts == newest_ts
        seen = iter([NEVER_TS, NEVER_TS])  # nothing was published
        with pytest.raises(ThinRowError, match="kept events"):
            next(client.export(request))
