"""No file of the tier holds bytes of events that were erased or forgotten."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from support.erasures import SCHEMA, append, config, found, marks, publish, wait_until
from support.store_contents import contents
from support.worlds import START_TS, World, new_world
from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.jobs.export import export_events
from thinrow.online.database import TierDatabase
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

ERASED, OTHER = 7, 8


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path, SCHEMA)


def stored(store: Path, text: str) -> bool:
    """Returns whether the one generation of a store has a text; its files are compressed."""
    assert len(list(store.glob("generation-*"))) == 1
    part = text[20:60].encode()
    return any(part in value for *_, items in contents(store)[3:] for _, value in items)


def test_erased_events_leave_the_files_of_the_tier(world: World) -> None:
    """Erased bytes leave tables and the log long before retention is over; others' events stay."""
    now, gone, kept, again = [START_TS], [marks() for _ in range(20)], marks(), marks()
    tier = world.folder / "tier"
    with OnlineServer(config(world, now)) as server, connect_online(server.address) as client:
        for number, text in enumerate(gone[:10]):
            append(client, ERASED, text, number)
        append(client, OTHER, kept, 100)
        now[0] += 10_000
        publish(world, client, now[0])
        server.published.refresh()
        for number, text in enumerate(gone[10:], 10):
            append(client, ERASED, text, number)
        assert found(tier, *gone)
        assert all(stored(world.store, text) for text in (*gone[:10], kept))
        now[0] += 10_000
        erased_ts = now[0]
        publish(world, client, erased_ts, f"{ERASED}\n")
        now[0] += 10_000
        append(client, ERASED, again, 200)
        wait_until(lambda: client.describe().watermark_ts == erased_ts)
        server.published.refresh()
        wait_until(lambda: not found(tier, *gone))
        assert not any(stored(world.store, text) for text in gone)
        assert stored(world.store, kept)
        assert found(tier, kept) and found(tier, again)
        # A new history of the user begins; the old one is erased, not short.
        now[0] += 1000
        seen = client.snapshot(ERASED, Projection())
        assert seen.batch.statuses.tolist() == [wire.STATUS_OK]
        assert seen.batch.to_lists("t") == [[again]]
        past = client.snapshot(ERASED, Projection(), request_ts=erased_ts - 1)
        assert past.batch.statuses.tolist() == [wire.STATUS_ERASED]
        assert client.snapshot(OTHER, Projection()).batch.to_lists("t") == [[kept]]
    assert not found(tier, *gone)
    with OnlineServer(config(world, now)) as server, connect_online(server.address) as client:
        assert client.snapshot(ERASED, Projection()).batch.to_lists("t") == [[again]]
        assert not found(tier, *gone)


def test_an_erasure_while_the_service_was_down(world: World) -> None:
    """The generation that erased is gone, too, when the tier starts: a later one says so."""
    now, gone, tier = [START_TS], marks(), world.folder / "tier"
    with OnlineServer(config(world, now)) as server, connect_online(server.address) as client:
        append(client, ERASED, gone, 1)
        now[0] += 10_000
        publish(world, client, now[0])
        server.published.refresh()
        now[0] += 10_000
        first = world.folder / "first.parquet"
        export_events(client, now[0], first)
        erased_ts = now[0]
        now[0] += 10_000
        second = world.folder / "second.parquet"
        export_events(client, now[0], second, erased_ts)
    users = world.folder / "users.txt"
    users.write_text(f"{ERASED}\n", encoding="utf-8")
    for events, watermark_ts, erase in ((first, erased_ts, users), (second, now[0], None)):
        compact(
            CompactionConfig(
                store=world.store,
                events=[events],
                schema=world.schema,
                watermark_ts=watermark_ts,
                erase_users=erase,
                keep=1,
            )
        )
    assert found(tier, gone)
    with OnlineServer(config(world, now)):
        wait_until(lambda: not found(tier, gone))


def test_forgotten_events_leave_the_files_of_the_tier(world: World) -> None:
    now, texts, tier = [START_TS], [marks() for _ in range(12)], world.folder / "tier"
    options = {"retention_ms": 30_000}
    with (
        OnlineServer(config(world, now, **options)) as server,
        connect_online(server.address) as client,
    ):
        for number, text in enumerate(texts):
            append(client, OTHER, text, number)
            now[0] += 10_000
            watermark_ts = now[0]
            publish(world, client, watermark_ts)
            wait_until(lambda ts=watermark_ts: client.describe().watermark_ts == ts)  # type: ignore[misc]
            server.published.refresh()
        now[0] += 60_000
        server.published.refresh()
        wait_until(lambda: not found(tier, *texts[:-2]))


def test_a_purge_that_was_killed_is_done_at_the_next_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, gone, tier = [START_TS], marks(), world.folder / "tier"
    killed = world.folder / "killed"
    with OnlineServer(config(world, now)) as server, connect_online(server.address) as client:
        append(client, ERASED, gone, 1)
        now[0] += 10_000
        with monkeypatch.context() as patch:
            patch.setattr(TierDatabase, "rewrite", lambda *_: copy_once(tier, killed))
            publish(world, client, now[0], f"{ERASED}\n")
            wait_until(killed.exists)
            server.published.refresh()
    assert found(killed, gone)
    shutil.rmtree(tier)
    killed.rename(tier)
    with OnlineServer(config(world, now)):
        wait_until(lambda: not found(tier, gone))


def copy_once(tier: Path, killed: Path) -> None:
    if not killed.exists():
        shutil.copytree(tier, killed)
