"""Servers that claim a map that is none, groups that are dead, and what a client says of both."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.mapped_groups import MappedGroups, Replica, mapped_groups
from support.worlds import (
    ALL,
    OWN_HOST,
    World,
    days,
    new_world,
    pointers_to,
    read_store,
    running_server,
    shown,
    some_events,
)
from thinrow.client import ClientConfig, connect
from thinrow.client.grpc_errors import translate
from thinrow.core.shards import shard_of
from thinrow.errors import ThinRowError, UnavailableError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.worlds import Answers
    from thinrow.client import Pointers

SHARDS = 8
OWNERS = [0, 1, 2, 3, 0, 1, 2, 3]
EVERYONE = tuple(range(1, 41))
HUGE = (1 << 64) - 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = new_world(tmp_path_factory.mktemp("claims"))
    world.compact(some_events(600, users=40), 3, shards=SHARDS)
    return world


@pytest.fixture(scope="module")
def right(world: World) -> Answers:
    return read_store(world.store, everyone())


@pytest.fixture
def cluster(world: World) -> Iterator[MappedGroups]:
    with mapped_groups(world.store, OWNERS) as cluster:
        yield cluster


def everyone() -> Pointers:
    return pointers_to(days(3), EVERYONE)


def describes(replica: Replica, change: Callable[[wire.DescribeClusterResponse], None]) -> None:
    """Lets a replica describe another cluster."""
    honest = replica.describe_cluster

    def describe(message: bytes, context: grpc.ServicerContext) -> bytes:
        state = wire.DescribeClusterResponse.FromString(honest(message, context))
        change(state)
        return state.SerializeToString()

    replica.describe_cluster = describe  # type: ignore[assignment,method-assign]
    replica.stop()
    replica.start()


def everywhere(target: str) -> Callable[[wire.DescribeClusterResponse], None]:
    """Describes a cluster of one server, whose map is newer than any."""

    def change(state: wire.DescribeClusterResponse) -> None:
        del state.groups[:]
        state.map_version = HUGE
        state.groups.add(name="x", targets=[target], serving=range(SHARDS))

    return change


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", ["the liar", "another one"])
@pytest.mark.parametrize("lie", ["version", "map of its own", "map of no one"])
def test_one_server_makes_no_client_follow_its_map(
    cluster: MappedGroups, right: Answers, lie: str, first: str
) -> None:
    """It would ignore every later map of its cluster."""
    cluster.lifetime_ms = 900
    liar = cluster.replicas["1"][0]
    if lie == "version":
        liar.map_version = HUGE
    else:
        describes(liar, everywhere(liar.address if lie == "map of its own" else "localhost:1"))
    given = liar if first == "the liar" else cluster.replicas["0"][0]
    with connect([given.address, cluster.replicas["3"][0].address]) as client:
        assert shown(client.materialize(everyone(), ALL)) == right
        for batch in client.stream([everyone()] * 10, ALL):
            assert shown(batch) == right
        assert client.routing.map_version == 1
        cluster.move([0, 5], "3")
        while client.routing.map_version != 2:
            assert shown(client.materialize(everyone(), ALL)) == right
        cluster.move([0], "2")
        for batch in client.stream([everyone()] * 10, ALL):
            assert shown(batch) == right
        assert client.routing.map_version == 3


@pytest.mark.parametrize("use", ["materialize", "stream"])
def test_a_server_without_a_map_yet_is_passed_over(
    cluster: MappedGroups, right: Answers, use: str
) -> None:
    """It waits for its map, and another server that the caller named has one."""
    waiting = cluster.replicas["1"][0]
    waiting.describe_cluster = lambda _, context: waiting.refuse(context)  # type: ignore[method-assign,assignment,return-value]
    waiting.stop()
    waiting.start()
    with connect([waiting.address, cluster.address]) as client:
        if use == "materialize":
            assert shown(client.materialize(everyone(), ALL)) == right
        else:
            assert [shown(batch) for batch in client.stream([everyone()], ALL)] == [right]


def test_a_map_that_two_replicas_have_is_followed(cluster: MappedGroups, right: Answers) -> None:
    """The other ones are cut off from the object store."""
    with connect(cluster.address) as client:
        assert shown(client.materialize(everyone(), ALL)) == right
        cluster.move([0], "3")
        for name in ("1", "2"):
            cluster.replicas[name][0].map_version = 1
        for batch in client.stream([everyone()] * 5, ALL):
            assert shown(batch) == right
        assert client.routing.map_version == 2


def test_a_map_of_the_only_replica_that_answers_is_followed(
    cluster: MappedGroups, right: Answers
) -> None:
    with connect(cluster.address) as client:
        assert shown(client.materialize(everyone(), ALL)) == right
        cluster.move([1, 2, 3, 5, 6, 7], "0")
        for name in ("1", "2", "3"):
            cluster.replicas[name][0].stop()
        assert shown(client.materialize(everyone(), ALL)) == right
        assert client.routing.map_version == 2


def test_a_version_that_only_responses_claim_is_looked_for_once(
    cluster: MappedGroups, right: Answers
) -> None:
    for replica in cluster.all_replicas:
        replica.map_version = HUGE

        def honest(state: wire.DescribeClusterResponse) -> None:
            state.map_version = cluster.version

        describes(replica, honest)
    with connect(cluster.address) as client:
        for batch in client.stream([everyone()] * 50, ALL):
            assert shown(batch) == right
        assert client.routing.map_version == 1

        def polls() -> int:
            return sum(replica.calls["DescribeCluster"] for replica in cluster.all_replicas)

        while not client._router._unconfirmed:
            client.materialize(everyone(), ALL)
        before = polls()
        for batch in client.stream([everyone()] * 200, ALL):
            assert shown(batch) == right
        assert polls() <= before + len(cluster.all_replicas), "of the one that was going on"


@pytest.mark.timeout(60)
def test_a_description_names_groups_without_a_server(
    cluster: MappedGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for them side by side, and not as long as lookups do."""
    monkeypatch.setattr("thinrow.client.group_calls.RETRY_S_MAX", 0.5)
    monkeypatch.setattr("thinrow.client.client.DESCRIPTION_S_MAX", 1.0)
    with socket.create_server((OWN_HOST, 0)) as silent:
        down, hung = cluster.replicas["1"][0], cluster.replicas["2"][0]
        down.stop()
        hung.stop()
        hung.address = f"{OWN_HOST}:{silent.getsockname()[1]}"
        config = ClientConfig(retry_deadline_s=3600, request_deadline_s=3600)
        with connect(cluster.address, config) as client:
            with pytest.raises(UnavailableError) as raised:
                client.describe_store()
            text = str(raised.value)
            assert f"1 ({down.address})" in text and f"2 ({hung.address})" in text
            assert cluster.address not in text
            assert "thinrow cluster status" in text


# Words


def test_a_server_without_the_shard_is_there(world: World) -> None:
    """It answers, so that no one should look for it."""
    once = ClientConfig(retry_deadline_s=0.01)
    users = list(EVERYONE)
    shards = shard_of(pointers_to(days(3), users).user_ids, SHARDS)
    lacking = [user for user, shard in zip(users, shards, strict=True) if shard > 3]
    with (
        running_server(world.store, "--shards", "0-3") as server,
        connect(server.address, once) as client,
    ):
        calls: tuple[Callable[[], Any], ...] = (
            lambda: client.materialize(pointers_to(days(3), lacking), ALL),
            lambda: list(client.stream([pointers_to(days(3), lacking)], ALL)),
            lambda: client.inspect(lacking[0]),
        )
        for call in calls:
            with pytest.raises(ThinRowError) as raised:
                call()
            text = str(raised.value)
            assert text.startswith(f"{server.address}: ") and "without shard" in text
            assert "use a replica that serves this shard" in text
            assert "No server answered" not in text and "check the address" not in text


def test_a_server_that_stops_is_named_alone(
    world: World, right: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one answers, and is not to be looked for."""
    caplog.set_level(logging.WARNING, "thinrow.client")
    with running_server(world.store) as first, running_server(world.store) as second:
        with connect([first.address, second.address]) as client:
            batches = client.stream((everyone() for _ in range(40)), ALL)
            assert shown(next(batches)) == right
            assert first.stop() == 0
            assert [shown(batch) for batch in batches] == [right] * 39
        texts = [record.getMessage() for record in caplog.records]
        assert texts
        assert all(first.address in text and second.address not in text for text in texts)
        assert any("This server is stopping; call another replica" in text for text in texts)
        assert not any("check the address" in text for text in texts), texts


class Ended(grpc.RpcError):
    """The error of a call."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "It stops; come back."

    def trailing_metadata(self) -> Any:  # noqa: ANN401 - as gRPC has it
        return () if self.name is None else (("thinrow-error", self.name),)


@pytest.mark.parametrize("command", ["thinrow serve", "thinrow online"])
def test_what_a_server_says_is_not_replaced(command: str) -> None:
    for name in ("UNAVAILABLE", "STORE_UNAVAILABLE", "SHARD_MISSING"):
        assert str(translate(Ended(name), "a:1", command)) == "a:1: It stops; come back."
    assert f"check the address, and that `{command}` runs" in str(
        translate(Ended(None), "a:1", command)
    )
