"""A replica of a topic killed while events are produced and requested, with its disk or without.

What the brokers acknowledged is in every snapshot once, and the snapshots are those of the log.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.event_topics import TopicOnline
from support.hand_overs import SCHEMA
from support.kafka_broker import needs_broker, running_broker
from support.kafka_topics import wait_for
from support.online_worlds import some_events
from support.oracle import Wanted
from support.scenarios import CROWD, schema_toml
from support.tried import SEED, Tried, times
from support.worlds import START_TS, THINROW, new_world, running_online
from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.errors import ThinRowError
from thinrow.online.config import OnlineConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_broker, pytest.mark.timeout(3600)]
WANTED = Wanted(0, False, (), ())


def test_replica_killed(tmp_path: Path) -> None:
    kills, rng = times(3, 60), random.Random(SEED)
    world = new_world(tmp_path, schema_toml(SCHEMA))
    acknowledged: set[int | str | None] = set()
    rebuilt = checked = 0
    with running_broker(in_memory=True) as broker:
        online = TopicOnline(
            world, SCHEMA, OnlineConfig(store=world.store), [], broker=broker, partitions=4
        )
        options = ["--events", f"kafka:{online.topic}", "--bootstrap-servers", broker.address]
        numbers = iter(range(1 << 40))

        def batch() -> None:
            events = [
                replace(event, event_id=next(numbers))
                for event in some_events(rng, SCHEMA, START_TS)
            ]
            if rng.random() < 0.3:
                online.produce(events, START_TS + rng.randrange(10**9))
            else:
                online.append(events)
            acknowledged.update(event.event_id for event in events)

        for number in range(kills + 1):
            if rng.random() < 0.3:
                shutil.rmtree(tmp_path / "store-online", ignore_errors=True)
                rebuilt += 1
            # Another kill comes while the server starts, and perhaps rebuilds.
            command = [*THINROW, "online", "--store", world.store, "--schema", world.schema]
            command += ["--listen", "127.0.0.1:0", "--metrics", "off", *options]
            with subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL) as process:
                time.sleep(rng.uniform(0.3, 2))
                process.kill()
            with (
                running_online(world, *options) as server,
                connect_online(server.address) as client,
            ):
                online.client = client
                moments = online.mark()
                for user in sorted(set(CROWD)):
                    wait_for(partial(has_come, online, user, moments[user]))
                    assert online.check(user, moments[user], 0, 0, WANTED) is not None
                    checked += 1
                assert acknowledged <= {event.event_id for event in online.arrived}
                ids = [event.event_id for event in online.arrived]
                assert len(ids) == len(set(ids))
                if number == kills:
                    break
                kill = threading.Timer(rng.uniform(0, 0.4), server.process.kill)
                kill.start()
                with pytest.raises(ThinRowError):
                    while True:
                        batch()
                        online.client.describe()
                kill.join()
        online.close()
    Tried(
        fault="`thinrow online` on a Kafka topic, under producers and requests: SIGKILL",
        times=2 * kills,
        promised="Snapshots are those of the log; what brokers acknowledged is there once",
        seen=f"{len(acknowledged):,} events, each there once; {checked:,} snapshots right; "
        f"{rebuilt} rebuilds of a lost disk",
    ).keep()


def has_come(online: TopicOnline, user_id: int, moment_ts: int) -> bool:
    """Returns whether the server has applied a user's partition up to a moment."""
    return online.client.snapshot(user_id, Projection()).thin_row.request_ts >= moment_ts
