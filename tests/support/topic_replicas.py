"""Replicas of a topic in this process, held to the oracle over its log and to each other."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.event_topics import TopicOnline, encoded, partition
from support.kafka_topics import wait_for
from support.online_worlds import some_events
from support.oracle import Event, Schema, Trait, Wanted
from support.scenarios import CROWD
from support.worlds import START_TS
from thinrow.client.online import OnlineClient, connect_online
from thinrow.online.server import OnlineServer
from thinrow.v1 import event_topic_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = Schema(
    {
        "item": [Trait("item_id", "int64", key=True), Trait("brand", "string")],
        "feedback": [
            Trait("rating", "int8", sparse=True),
            Trait("weight", "float32", sparse=True, default=1.5),
            Trait("taste", "float16", size=2),
            Trait("tags", "string", length_max=3, sparse=True),
        ],
    }
)
WANTED = Wanted(0, False, (), ())
USERS = sorted(set(CROWD))
EVENT = Event(1, START_TS, 0, 1, {"item_id": 5, "brand": "z", "taste": (1.0, 2.0)})
PARTITIONS = 5


@dataclass
class Replica:
    server: OnlineServer
    client: OnlineClient

    def response(self, user_id: int, request_ts: int = 0) -> bytes:
        """The bytes of a snapshot, but for how far this replica had come, and how long it took."""
        request = online_pb2.SnapshotRequest(user_id=user_id, request_ts=request_ts)
        request.projection.SetInParent()
        answer: Any = self.client.stub.Snapshot(request)
        assert answer.as_of_ts >= answer.request_ts and answer.lag_ms >= 0
        answer.ClearField("as_of_ts")
        answer.ClearField("lag_ms")
        if answer.immutable.server_us:
            answer.immutable.server_us = 1
        data: bytes = answer.SerializeToString()
        return data

    def as_of(self, user_id: int) -> int:
        return online_pb2.SnapshotResponse.FromString(self.response(user_id)).request_ts


@contextmanager
def replica(online: TopicOnline, name: str, **options: Any) -> Iterator[Replica]:  # noqa: ANN401
    data = online.world.folder / name
    config = replace(online.config, data=data, **options)
    with OnlineServer(config) as server, connect_online(server.address) as client:
        yield Replica(server, client)


def refuses(
    online: TopicOnline,
    name: str,
    error: type[Exception],
    match: str,
    **options: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(error, match=match), replica(online, name, **options):
        pass


def use(online: TopicOnline, one: Replica) -> None:
    online.server, online.client = one.server, one.client


def act(online: TopicOnline, rng: random.Random, acts: int) -> None:
    """Appends through a server, and messages of other producers: skewed, repeated and bad ones."""
    now_ts = START_TS
    for _ in range(acts):
        now_ts += rng.choice((0, 1, 1, 20))
        events = some_events(rng, SCHEMA, now_ts)
        kind = rng.random()
        if kind < 0.4:
            online.append(events)
        elif kind < 0.8:
            skew = rng.choice((0, 0, -5000, 3000))
            for _ in range(rng.choice((1, 1, 2))):  # a producer that retried
                online.produce(events, now_ts + skew)
        else:
            bad(online, rng, now_ts)
    assert online.producer.flush(60) == 0


def bad(online: TopicOnline, rng: random.Random, now_ts: int) -> None:
    """Sends a message that every replica refuses; its timestamp counts all the same."""
    event = Event(1, now_ts, 0, None, {"item_id": 1, "brand": "a", "taste": (1.0, 2.0)})
    right = partition(1, SCHEMA.user_ids, PARTITIONS)
    message = event_topic_pb2.UserEvents.FromString(encoded(1, [event], SCHEMA))
    place = right
    match rng.randrange(6):
        case 0:
            place = (right + 1) % PARTITIONS
        case 1:
            message.events[0].traits["colour"].text = "red"
        case 2:
            message.events[0].traits["rating"].integer = 128
        case 3:
            message.events[0].traits["item_id"].text = "1"
        case 4:
            message.events[0].ClearField("event_ts")
        case _:
            message.ClearField("user")
    value = message.SerializeToString()
    online.log.refused.add((place, value))
    online.produce_raw(place, value, now_ts)


def settled(online: TopicOnline, *replicas: Replica) -> dict[int, int]:
    """A moment of each user after all that was produced, once every replica has come to it."""
    moments = online.mark()
    for one in replicas:
        for user, moment_ts in moments.items():
            wait_for(partial(lambda one, user, ts: one.as_of(user) >= ts, one, user, moment_ts))
    return moments


def compared(online: TopicOnline, *replicas: Replica) -> dict[tuple[int, int], bytes]:
    """Holds one replica to the oracle, and the others to its bytes, at many moments."""
    rng = random.Random(0)
    seen = {}
    for user, end_ts in settled(online, *replicas).items():
        arrivals = [event.arrival_ts for event in online.arrived if event.user_id == user]
        for moment_ts in {end_ts, *(ts + rng.choice((0, 1)) for ts in arrivals[-20:])}:
            for one in replicas:
                use(online, one)
                assert online.check(user, moment_ts, 0, 0, WANTED) is not None
            answers = {one.response(user, moment_ts) for one in replicas}
            assert len(answers) == 1
            seen[user, moment_ts] = answers.pop()
    assert online.arrived
    return seen
