"""One client of several servers of a topic: routes, answers, moments, refusals, lag, access."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.event_topics import partition, user_key
from support.id_kinds import KINDS, known_id
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import wait_for
from support.online_replicas import ALL, QUICK, connected, contents, new_online
from support.scenarios import CROWD, STRANGER
from support.topic_replicas import PARTITIONS, SCHEMA, USERS, act, replica, settled, use
from thinrow.core.shards import xxh3_of
from thinrow.core.user_keys import key_of
from thinrow.errors import (
    LaggingError,
    RequestError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.event_topics import TopicOnline
    from thinrow.client.online import Snapshot

pytestmark = [needs_broker, pytest.mark.usefixtures("no_pause_before_goaway")]
DEAD = "127.0.0.1:1"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker(in_memory=True) as broker:
        yield broker


@pytest.fixture
def online(broker: Broker, tmp_path: Path) -> Iterator[TopicOnline]:
    made = new_online(broker, tmp_path, SCHEMA, PARTITIONS)
    yield made
    made.close()


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_the_client_finds_partitions_by_the_documented_function(kind: str) -> None:
    for user in (*CROWD, STRANGER, 0, 1, 2**63 - 1):
        known = known_id(user, kind)
        key = known if isinstance(known, str) else (known ^ 1 << 63) - (1 << 63)
        assert key_of(key) % (1 << 64) == user_key(user, kind)
        for count in (1, 3, 16, 4096):
            assert xxh3_of(key_of(key)) % count == partition(user, kind, count)


def test_routed_answers_equal_those_of_one_server(online: TopicOnline) -> None:
    """Partitions lie on different servers, some on two; a batch is joined in its order."""
    rng = random.Random(1)
    with ExitStack() as stack:
        whole = stack.enter_context(replica(online, "whole"))
        parts = [
            stack.enter_context(replica(online, name, partitions=name))
            for name in ("0-1", "1-3", "4")
        ]
        addresses = [part.server.address for part in parts]
        client = stack.enter_context(connected(*addresses, DEAD, config=QUICK))
        use(online, whole)
        act(online, rng, 30)
        online.client = client  # appends through the routed client, whatever the partition
        act(online, rng, 30)
        assert client.describe().topic == online.topic
        moments = settled(online, whole)
        for part in parts:
            read = {each.number for each in part.client.describe().partitions}
            for user, moment_ts in moments.items():
                if partition(user, SCHEMA.user_ids, PARTITIONS) in read:
                    wait_for(
                        partial(lambda one, user, ts: one.as_of(user) >= ts, part, user, moment_ts)
                    )
        assert client.routing.servers == 4
        moment_ts = min(moments.values())
        alone = {
            user: contents(whole.client.snapshot(user, ALL, request_ts=moment_ts)) for user in USERS
        }
        for user in USERS:
            seen = client.snapshot(user, ALL, request_ts=moment_ts)
            assert contents(seen) == alone[user]
            assert seen.as_of_ts >= moment_ts and seen.lag_ms >= 0
            seen = client.snapshot(user, ALL)  # of the newest moment, exact for it
            assert seen.as_of_ts == seen.thin_row.request_ts
            again = whole_at(whole.client.snapshot, user, seen.thin_row.request_ts)
            assert contents(again) == contents(seen)
        for users in (USERS, USERS[::-1], [*USERS, *USERS], [USERS[0]] * 3, []):
            mixed = rng.sample(users, len(users))
            together = client.snapshot_batch(mixed, ALL, request_ts=moment_ts)
            expected = whole.client.snapshot_batch(mixed, ALL, request_ts=moment_ts)
            assert repr(together.thin_rows) == repr(expected.thin_rows)
            assert len(together.as_of_ts) == len(together.lag_ms) == len(mixed)
            assert together.batch.statuses.tolist() == expected.batch.statuses.tolist()
            for name in expected.batch.values:
                lists = expected.batch.to_lists(name)
                assert repr(together.batch.to_lists(name)) == repr(lists)
        together = client.snapshot_batch(USERS, ALL)
        rows = together.thin_rows
        assert [row.request_ts for row in rows] == together.as_of_ts.tolist()
        for user, row in zip(USERS, rows, strict=True):  # each exact for its own moment
            again = whole_at(whole.client.snapshot, user, row.request_ts)
            assert repr(again.thin_row) == repr(row)
        with pytest.raises(RequestError, match="There is no trait"):
            client.snapshot(USERS[0], replace(ALL, traits=("missing",)))
        with pytest.raises(RequestError, match="has applied the topic"):
            client.snapshot(USERS[0], ALL, request_ts=int(time.time() * 1000) + 3_600_000)


def whole_at(snapshot: Callable[..., Snapshot], user: int, request_ts: int) -> Snapshot:
    """A snapshot at a moment, once the server has come to it."""
    end_s = time.monotonic() + 60
    while True:
        try:
            return snapshot(user, ALL, request_ts=request_ts)
        except LaggingError:
            assert time.monotonic() < end_s
            time.sleep(0.01)
