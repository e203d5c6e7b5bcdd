"""`thinrow online` killed under appends, snapshots and exports; and `thinrow export` beside it.

Nothing acknowledged is lost, and whatever thin row a request was given, training later puts back
exactly what that request saw. property/test_handover.py has the acts; here they are killed often.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.hand_overs import SCHEMA, Follower, Killed, serving
from support.online_events import batch, ids_seen
from support.scenarios import schema_toml
from support.tried import SEED, Tried, times
from support.worlds import THINROW, new_world, running_online
from thinrow.client import connect
from thinrow.client.online import connect_online
from thinrow.errors import ThinRowError
from thinrow.jobs.export import export_events
from thinrow.online.config import OnlineConfig

if TYPE_CHECKING:
    from pathlib import Path

KILLS_OF_ONE_TIER = 10


@pytest.mark.timeout(3600)
def test_online_killed(tmp_path: Path) -> None:
    kills = times(1, 60)
    events = rows = snapshots = 0
    for number in range(0, kills, KILLS_OF_ONE_TIER):
        result = killed_again_and_again(
            tmp_path / f"world-{number}", SEED + number, min(kills - number, KILLS_OF_ONE_TIER)
        )
        events += len(result.arrived)
        snapshots += result.counts["snapshots"]
        rows += len(result.rows)
    Tried(
        fault="`thinrow online` under appends, snapshots, exports and hand-overs: SIGKILL",
        times=kills,
        promised="Nothing acknowledged is lost; every thin row gives what its request saw",
        seen=f"{events:,} events, each there once; {snapshots:,} snapshots right, "
        f"{rows:,} thin rows put back exactly; 0 lost, doubled or wrong",
    ).keep()


def killed_again_and_again(folder: Path, seed: int, kills: int) -> Killed:
    world = new_world(folder, schema_toml(SCHEMA))
    online = Killed(world, SCHEMA, OnlineConfig(store=world.store), [], seed=seed)
    online.server = Follower(online)  # type: ignore[assignment]
    for number in range(kills + 1):
        with ExitStack() as stack:
            server = stack.enter_context(running_online(world, "--retention", "4s"))
            online.client = stack.enter_context(connect_online(server.address))
            online.resolve()
            if number % 2:  # published while no one was there to see it
                online.accept_generation()
            for _ in range(20):
                act = online.rng.random()
                if act < 0.3:
                    online.append(online.some())
                elif act < 0.4:
                    online.export()
                elif act < 0.5:
                    online.publish()
                elif act < 0.55:
                    online.accept_generation()
                else:
                    online.look_about()
            if number < kills:
                until_killed = online.rng.choice(
                    (
                        online.append_until_killed,
                        online.export_until_killed,
                        online.look_until_killed,
                    )
                )
                kill = threading.Timer(online.rng.uniform(0, 0.06), server.process.kill)
                kill.start()
                with pytest.raises(ThinRowError):
                    until_killed()
                kill.join()
            else:
                online.export()
                online.publish()
        if number % 2 == 0:
            online.publish()
    assert online.generations[1:], "nothing was handed over"
    with serving(world) as address, connect(address) as client:
        online.put_all_back(client)
    return online


@pytest.mark.timeout(3600)
def test_export_killed(tmp_path: Path) -> None:
    """While the service takes events; the file is whole or not there, and the same run again."""
    rng, world, kills = random.Random(SEED), new_world(tmp_path), times(1, 50)
    finished = 0
    with running_online(world) as server, connect_online(server.address) as client:
        [*_, result] = client.append_all(batch(client, at, 5000) for at in range(0, 60_000, 5000))
        expected, out = tmp_path / "expected.parquet", tmp_path / "out.parquet"
        watermark_ts = result.arrival_ts + 1
        end_s = time.monotonic() + 60
        while client.describe().now_ts < watermark_ts:
            assert time.monotonic() < end_s
        report = export_events(client, watermark_ts, expected)
        assert report.events == 60_000
        command = [*THINROW, "export", "--online", server.address, "--out", out]
        command += ["--watermark", watermark_ts]
        for number in range(kills):
            list(client.append_all([batch(client, 60_000 + number, 1)]))
            out.unlink(missing_ok=True)
            with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as process:
                while not list(tmp_path.glob("out.*")) and process.poll() is None:
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0, 0.15))
                process.kill()
            with suppress(FileNotFoundError):
                assert out.read_bytes() == expected.read_bytes()
                finished += 1
            export_events(client, watermark_ts, out)
            assert out.read_bytes() == expected.read_bytes()
            assert [path.name for path in tmp_path.glob("out.*")] == [out.name]
        assert len(ids_seen(client)) == 60_000 + kills
    Tried(
        fault="`thinrow export` while events are appended: SIGKILL",
        times=kills,
        promised="A whole file or none; run again, the same bytes",
        seen=f"{finished} files whole, {kills - finished} not there; each the same when run again",
    ).keep()
