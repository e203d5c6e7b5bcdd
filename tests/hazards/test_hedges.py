"""Requests repeated at another replica, which may be behind, or well again after a pause."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.mapped_groups import MappedGroups, Replica, mapped_groups
from support.worlds import (
    ALL,
    World,
    days,
    new_world,
    pointers_to,
    read_store,
    shown,
    some_events,
)
from thinrow.client import ClientConfig, connect
from thinrow.client.connections import Connection
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client import Pointers

SHARDS = 4
EVERYONE = tuple(range(1, 41))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two generations."""
    world = new_world(tmp_path_factory.mktemp("hedges"))
    world.compact(some_events(600, users=40), 3, shards=SHARDS)
    world.compact(some_events(100, users=40, days=1, first_day=3, seed=1), 4, shards=None)
    return world


@pytest.fixture
def pair(world: World) -> Iterator[MappedGroups]:
    """One group of two replicas."""
    with mapped_groups(world.store, [0] * SHARDS, copies=2) as cluster:
        yield cluster


def rows(*until: int) -> Pointers:
    return pointers_to(days(*until), EVERYONE)


def used_and_other(cluster: MappedGroups) -> list[Replica]:
    """The replica that has answered, and the other one."""
    return sorted(cluster.all_replicas, key=lambda replica: -replica.examples)


@pytest.mark.timeout(60)
def test_a_hedge_at_a_replica_behind_replaces_no_history(world: World, pair: MappedGroups) -> None:
    """A replica is slow after its switch to a generation that the other one does not have yet."""
    with Generation(world.store / "generation-000001") as older:
        for replica in pair.all_replicas:
            replica.generation = older
        current = Generation(world.store / "generation-000002")
        with current, connect(pair.address) as client:
            for _ in range(3):
                assert shown(client.materialize(rows(3), ALL)) == read_store(world.store, rows(3))
            used, _ = used_and_other(pair)
            used.generation, used.pause_s = current, 1.5
            right = read_store(world.store, rows(3, 4))
            assert shown(client.materialize(rows(3, 4), ALL)) == right
            assert client.routing.hedges >= 1


@pytest.mark.timeout(60)
def test_a_replica_that_returns_from_a_pause_is_requested_at_once(
    world: World, pair: MappedGroups
) -> None:
    """Both hang, and polls find it; the limit on silence is minutes away."""
    pair.lifetime_ms = 900
    right = read_store(world.store, rows(3))
    config = ClientConfig(silence_timeout_s=300, request_deadline_s=600)
    with connect(pair.address, config) as client:
        batches = client.stream((rows(3) for _ in range(60)), ALL)
        assert [shown(batch) for batch in itertools.islice(batches, 30)] == [right] * 30
        _, other = used_and_other(pair)
        for replica in pair.all_replicas:
            replica.may_answer.clear()
        timer = threading.Timer(3, other.may_answer.set)
        timer.start()
        start_s = time.monotonic()
        assert [shown(batch) for batch in batches] == [right] * 30
        assert time.monotonic() - start_s < 20
        timer.join()
        for replica in pair.all_replicas:
            replica.may_answer.set()


def test_a_response_arrives_while_its_hedge_is_over() -> None:
    """The receiver drops the event between two steps of the connection's thread."""

    class Dropped(Connection):
        def __init__(self) -> None:
            self.events = iter([event])

        @property
        def wake(self) -> threading.Event | None:  # type: ignore[override]
            return next(self.events, None)

    event = threading.Event()
    connection = Dropped()
    connection._answers = queue.SimpleQueue()
    connection._put(None)
    assert event.is_set()
