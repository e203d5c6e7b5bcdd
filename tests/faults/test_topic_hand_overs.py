"""Replicas of a topic and compactions of it, killed while events come in and requests are answered.

A seeded schedule drives brokers, producers with wrong clocks, replicas and compactions; the oracle
reads the log itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.hand_overs import SCHEMA, serving
from support.kafka_broker import needs_broker, running_broker
from support.scenarios import schema_toml
from support.topic_hand_overs import TopicHandOvers
from support.tried import SEED, Tried, times
from support.worlds import new_world
from thinrow.client import connect
from thinrow.online.config import OnlineConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_broker, pytest.mark.timeout(7200)]
HAND_OVERS_OF_ONE_WORLD = 10


def test_hand_overs_from_a_topic(tmp_path: Path) -> None:
    hand_overs = times(2, 100)
    totals: dict[str, int] = {}
    for number in range(0, hand_overs, HAND_OVERS_OF_ONE_WORLD):
        goal = min(hand_overs - number, HAND_OVERS_OF_ONE_WORLD)
        folder = tmp_path / f"world-{number}"
        for name, count in one_world(
            folder, SEED + number // HAND_OVERS_OF_ONE_WORLD, goal
        ).items():
            totals[name] = totals.get(name, 0) + count
    troubles = ("kills", "broker hung", "kills of compactions")
    Tried(
        fault="Replicas of a Kafka topic and `thinrow compact` of it: SIGKILL, lost disks, "
        "partitions reassigned, a broker that hangs, producers with wrong clocks",
        times=sum(totals.get(name, 0) for name in troubles),
        promised="Replicas and generations are functions of the log; thin rows give what was seen",
        seen=f"{totals['hand-overs']} hand-overs, {totals.get('rebuilds', 0)} rebuilds; "
        f"{totals['events']:,} events, each there once; {totals['snapshots']:,} snapshots right, "
        f"{totals['equal answers']:,} of other replicas equal; {totals['put back']:,} thin rows "
        f"put back exactly; 0 lost, doubled or wrong",
    ).keep()


def one_world(folder: Path, seed: int, hand_overs: int) -> dict[str, int]:
    world = new_world(folder, schema_toml(SCHEMA))
    with running_broker(in_memory=True) as broker:
        online = TopicHandOvers(
            world,
            SCHEMA,
            OnlineConfig(store=world.store),
            [],
            seed=seed,
            broker=broker,
            partitions=4,
        )
        try:
            while online.counts["hand-overs"] < hand_overs:
                online.act()
            online.settle()
            for _ in range(20):
                online.look_somewhere()
            online.mark()
            ids = [event.event_id for event in online.arrived]
            assert online.acknowledged <= set(ids)
            assert len(ids) == len(set(ids))
            with serving(world) as address, connect(address) as client:
                online.put_all_back(client)
        finally:
            online.close()
    return {**online.counts, "events": len(online.arrived)}
