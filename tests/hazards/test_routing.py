"""Clients of a cluster: maps that lie or change, servers that hang, lag, die or send users away."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_server import PROJECTION, Fake, assert_no_thread_left, inputs, serving, users
from support.mapped_groups import MappedGroups, mapped_groups
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
from thinrow.client import Client, ClientConfig, Pointers, Projection, connect
from thinrow.client.channel import Channels
from thinrow.client.connections import Connection
from thinrow.core.cluster_map import GROUPS_MAX, STATE_BYTES_MAX, TARGETS_MAX, ServerState
from thinrow.core.shards import shard_of
from thinrow.core.status import Status
from thinrow.core.user_keys import user_keys
from thinrow.errors import ShardMissingError, ThinRowError, UnavailableError, UsageError
from thinrow.store.generation import Generation
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc

SHARDS = 8
OWNERS = [0, 1, 2, 3, 0, 1, 2, 3]
EVERYONE = (*range(1, 41), 99)
SHORT = ClientConfig(retry_deadline_s=0.3, backoff_max_s=0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two generations of eight shards."""
    world = new_world(tmp_path_factory.mktemp("routing"))
    world.compact(some_events(600, users=40), 3, shards=SHARDS)
    world.compact(some_events(100, users=40, days=1, first_day=3, seed=1), 4, shards=None)
    return world


@pytest.fixture
def cluster(world: World) -> Iterator[MappedGroups]:
    with mapped_groups(world.store, OWNERS) as cluster:
        yield cluster


def everyone() -> Pointers:
    return pointers_to(days(3, 4), EVERYONE)


# Maps


def described(**changes: object) -> wire.DescribeClusterResponse:
    """A map of two groups, of which a test changes something."""
    groups = [
        wire.ClusterGroup(name="0", targets=["a:1", "b:1"], serving=[0, 1], leaving=[1]),
        wire.ClusterGroup(name="1", targets=["[::1]:2"], serving=[1, 2, 3], loading=[0]),
    ]
    fields = {"map_version": 3, "shards": 4, "map_lifetime_ms": 9_000, "groups": groups}
    return wire.DescribeClusterResponse(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_map_names_the_group_of_each_shard() -> None:
    cluster = ServerState.read(described().SerializeToString()).map()
    assert (cluster.version, cluster.lifetime_s, cluster.user_ids) == (3, 9.0, "int64")
    # Shard 1 is about to leave group 0, and serves there as long as the new one may fail.
    assert cluster.owners.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    again = described(groups=list(reversed(described().groups)))
    owners = ServerState.read(again.SerializeToString()).map().owners
    assert owners.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def group(name: str = "0", **fields: object) -> wire.ClusterGroup:
    whole = {"targets": ["a:1"], "serving": [0, 1, 2, 3], **fields}
    return wire.ClusterGroup(name=name, **whole)  # type: ignore[arg-type]


LIES: dict[str, tuple[dict[str, object], str]] = {
    "no shards": ({"shards": 0}, "0 shards"),
    "shards that are no power of two": ({"shards": 6}, "6 shards"),
    "too many shards": ({"shards": 1 << 20}, "shards"),
    "no lifetime": ({"map_lifetime_ms": 0}, "used for 0 ms"),
    "an endless lifetime": ({"map_lifetime_ms": 1 << 60}, "used for"),
    "a shard of no group": ({"groups": [group(serving=[0, 1, 3])]}, "serves 1 of its shards"),
    "a shard that is only loading": (
        {"groups": [group(serving=[0, 1, 3], loading=[2])]},
        "serves 1 of its shards",
    ),
    "no groups": ({"groups": []}, "serves 4 of its shards"),
    "two groups of one name": ({"groups": [group(), group()]}, "two groups of one name"),
    "a shard beyond the last": ({"groups": [group(serving=[0, 1, 2, 3, 4])]}, "ascend below 4"),
    "shards that descend": ({"groups": [group(serving=[3, 2, 1, 0])]}, "ascend below 4"),
    "a shard beyond, leaving": ({"groups": [group(leaving=[7])]}, "ascend below 4"),
    "no replicas": ({"groups": [group(targets=[])]}, "lists 0 replicas"),
    "one replica twice": ({"groups": [group(targets=["a:1", "a:1"])]}, "or one twice"),
    "too many replicas": (
        {"groups": [group(targets=[f"a:{n}" for n in range(TARGETS_MAX + 1)])]},
        "lists 17 replicas",
    ),
    "a replica that is a file": ({"groups": [group(targets=["unix:/x"])]}, "not HOST:PORT"),
    "a replica that is a URL": ({"groups": [group(targets=["http://a:1"])]}, "not HOST:PORT"),
    "a long address": ({"groups": [group(targets=["a" * 999 + ":1"])]}, "not HOST:PORT"),
    "a group without a name": ({"groups": [group("")]}, "name has 0"),
    "a kind of ids to come": ({"user_id_kind": 99}, "unknown kind"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_map_that_lies_is_refused(lie: str) -> None:
    changes, reason = LIES[lie]
    state = ServerState.read(described(**changes).SerializeToString())
    with pytest.raises(ThinRowError, match=reason):
        state.map()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff\xff", "cannot be decoded"),
        (bytes(STATE_BYTES_MAX + 1), "bytes"),
        (b"\x1a\x00" * (GROUPS_MAX + 1), "groups or replicas"),
        (b"\x1a\x04\x12\x00\x12\x00" * GROUPS_MAX, "serves"),
    ],
)
def test_a_description_too_large_is_not_decoded(message: bytes, reason: str) -> None:
    if reason == "serves":  # within the limits, and still no map
        assert len(ServerState.read(message).message.groups) == GROUPS_MAX
        return
    with pytest.raises(ThinRowError, match=reason):
        ServerState.read(message)


# Routing


def test_each_user_is_requested_from_its_group_alone(world: World, cluster: MappedGroups) -> None:
    right = read_store(world.store, everyone())
    with connect(cluster.address) as client:
        assert shown(client.materialize(everyone(), ALL)) == right
        [answer] = client.answers([everyone()], ALL)
        assert answer.groups == answer[3:5].groups == 4
        [answer] = client.answers([pointers_to(days(3), [1])], ALL)
        assert answer.groups == 1
        assert len(client.materialize(Pointers(user_ids=[], end_ts=[]), ALL)) == 0
        assert client.inspect(7).event_count == 7
        assert client.describe_store().generation == 2
        assert client.routing.groups == 4
        assert (client.routing.map_version, client.routing.elsewhere) == (1, 0)
    assert sum(replica.examples for replica in cluster.all_replicas) == 2 * len(right) + 1
    assert_no_thread_left()


@pytest.mark.parametrize("use", ["materialize", "stream"])
def test_a_stale_map_is_read_again(world: World, cluster: MappedGroups, use: str) -> None:
    """The old owner has closed the shards before any client knew."""
    rows, right = everyone(), read_store(world.store, everyone())
    with connect(cluster.address) as client:
        client.materialize(rows, ALL)
        cluster.move([0, 5, 6], "3")
        cluster.move([1], "0")
        calls: dict[str, Callable[[], list[object]]] = {
            "materialize": lambda: [shown(client.materialize(rows, ALL))],
            "stream": lambda: [shown(batch) for batch in client.stream([rows] * 20, ALL)],
        }
        for answers in (calls[use](), calls[use]()):
            assert all(answer == right for answer in answers)
        assert client.routing.map_version == 3
        assert client.routing.elsewhere > 0
    with connect(cluster.address) as client:
        client.materialize(rows, ALL)
        cluster.move([2], "0")
        assert [client.inspect(user).event_count for user in EVERYONE] == list(EVERYONE)


def test_a_move_during_a_stream_goes_unnoticed(world: World, cluster: MappedGroups) -> None:
    rows, right = everyone(), read_store(world.store, everyone())
    with connect(cluster.address) as client:
        batches = client.stream((rows for _ in range(60)), ALL)
        for number, batch in enumerate(batches):
            assert shown(batch) == right
            if number % 7 == 3:
                cluster.move([number % SHARDS], str(number % 3))
        assert number == 59
        assert client.routing.map_reads > 1


@pytest.mark.parametrize("use", ["materialize", "stream"])
def test_a_misrouted_user_is_an_error_and_never_empty(
    world: World, cluster: MappedGroups, use: str
) -> None:
    """A map that gives a shard to a group that never opens it."""
    for replica in cluster.replicas["2"]:
        replica.is_open = set()
    with connect(cluster.address, SHORT) as client:
        calls: dict[str, Callable[[], object]] = {
            "materialize": lambda: client.materialize(everyone(), ALL),
            "stream": lambda: list(client.stream([everyone()], ALL)),
        }
        with pytest.raises(ShardMissingError, match="thinrow cluster status"):
            calls[use]()
        cluster.replicas["2"][0].is_open = None
        assert shown(client.materialize(everyone(), ALL)) == read_store(world.store, everyone())


@pytest.mark.parametrize(
    ("use", "rejects"), [("materialize", False), ("stream", True), ("inspect", True)]
)
def test_servers_whose_map_is_newer_each_time_do_not_hold_a_client_up(
    cluster: MappedGroups, use: str, *, rejects: bool
) -> None:
    """They send users away, or reject their requests, by one map after the other."""
    calls: dict[str, Callable[[Client], object]] = {
        "materialize": lambda client: client.materialize(everyone(), ALL),
        "stream": lambda client: list(client.stream([everyone()], ALL)),
        "inspect": lambda client: [client.inspect(user) for user in EVERYONE],
    }
    lacking, state = cluster.replicas["2"][0], cluster.state
    lacking.is_open = set()
    if rejects:

        def reject(request: object, context: grpc.ServicerContext, cursor: int | None) -> bytes:  # noqa: ARG001
            lacking.refuse(context)
            raise AssertionError("the call was aborted")

        lacking.answer = reject  # type: ignore[method-assign]

    def newer() -> wire.DescribeClusterResponse:
        cluster.version += 1
        return state()

    cluster.state = newer  # type: ignore[method-assign]
    with connect(cluster.address, SHORT) as client, pytest.raises(ThinRowError, match="shard"):
        calls[use](client)


def test_another_replica_may_have_opened_the_shard(world: World) -> None:
    with mapped_groups(world.store, OWNERS, copies=2) as cluster:
        for replicas in cluster.replicas.values():
            replicas[0].is_open = set()
        with connect(cluster.address) as client:
            for batch in client.stream([everyone()] * 5, ALL):
                assert shown(batch) == read_store(world.store, everyone())


def test_a_user_elsewhere_without_a_map_is_refused() -> None:
    class Liar(Fake):
        def Materialize(  # noqa: N802
            self, request: wire.MaterializeRequest, context: grpc.ServicerContext
        ) -> wire.MaterializeResponse:
            answer = super().Materialize(request, context)
            answer.statuses[0], answer.view_lengths[0] = wire.STATUS_ELSEWHERE, 0
            return answer

    with serving(Liar()) as (_, target), connect(target) as client:
        for call in (
            lambda: client.materialize(next(inputs(1)), PROJECTION),
            lambda: list(client.stream(inputs(1), PROJECTION)),
        ):
            with pytest.raises(ThinRowError, match="there is no map"):
                call()


def test_a_server_joins_a_cluster_under_its_clients(world: World, cluster: MappedGroups) -> None:
    """The server has all shards at first, and no map."""
    rows, right = everyone(), read_store(world.store, everyone())
    cluster.version, only = 0, cluster.replicas["0"][0]
    only.is_open = set(range(SHARDS))
    with connect(only.address) as client:
        assert shown(client.materialize(rows, ALL)) == right
        batches = client.stream((rows for _ in range(60)), ALL)
        assert [shown(batch) for batch in itertools.islice(batches, 20)] == [right] * 20
        assert client.routing.map_version == 0
        only.is_open, cluster.version = None, 5
        assert [shown(batch) for batch in batches] == [right] * 40
        assert client.routing.map_version == 5
    cluster.version = 0
    only.is_open = set(range(SHARDS))
    with connect(only.address) as client:
        assert shown(client.materialize(rows, ALL)) == right
        only.is_open, cluster.version = None, 6
        assert shown(client.materialize(rows, ALL)) == right
        assert client.inspect(7).event_count == 7


def test_two_groups_a_generation_apart(world: World, cluster: MappedGroups) -> None:
    rows = everyone()
    with Generation(world.store / "generation-000001") as older, connect(cluster.address) as client:
        for replica in cluster.replicas["1"]:
            replica.generation = older
        old = shown(client.materialize(pointers_to(days(3), EVERYONE), ALL))
        assert old == read_store(world.store, pointers_to(days(3), EVERYONE))
        batch = client.materialize(rows, ALL)
        assert client.describe_store().generation == batch.generation == 1
        assert client.describe_store().watermark_ts == older.watermark_ts
        expected = read_store(world.store, rows)
        for found, right in zip(shown(batch), expected, strict=True):
            assert found == right or found[0] == Status.NOT_READY
        assert {Status.OK, Status.NOT_READY} == set(batch.statuses.tolist())


def test_a_group_that_the_map_drops_is_left(world: World, cluster: MappedGroups) -> None:
    rows, right = everyone(), read_store(world.store, everyone())
    with connect([replica.address for replica in cluster.all_replicas]) as client:
        batches = client.stream((rows for _ in range(30)), ALL)
        assert shown(next(batches)) == right
        cluster.move([0, 4], "1")
        for replica in cluster.replicas["0"]:
            replica.stop()
        assert [shown(batch) for batch in batches] == [right] * 29
        assert shown(client.materialize(rows, ALL)) == right
    assert_no_thread_left()


def test_a_stream_ends_its_use_of_a_group_that_the_map_drops(
    world: World, cluster: MappedGroups
) -> None:
    """Requests to it are in flight when the map changes."""
    rows, right = everyone(), read_store(world.store, everyone())
    ended = threading.Event()
    only = cluster.replicas["0"][0]
    streaming = only.materialize_stream

    def watched(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        return streaming(messages, context)

    only.materialize_stream = watched  # type: ignore[method-assign]
    only.stop()
    only.start()
    with connect(cluster.replicas["3"][0].address) as client:
        batches = client.stream(itertools.repeat(rows), ALL)
        assert [shown(next(batches)) for _ in range(10)] == [right] * 10
        cluster.move([0, 4], "1")
        while client.routing.map_version < cluster.version:
            assert shown(next(batches)) == right
        while not ended.is_set():  # once all requests in flight to the group were answered
            assert shown(next(batches)) == right
        batches.close()


@pytest.fixture
def waited_for(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """Connections whose end a stream has waited for."""
    waited_for: list[Connection] = []
    finish = Connection.finish

    def recorded(connection: Connection) -> None:
        waited_for.append(connection)
        finish(connection)

    monkeypatch.setattr(Connection, "finish", recorded)
    return waited_for


def test_a_dropped_group_that_ends_its_streams_late_holds_nothing_up(
    world: World, cluster: MappedGroups, waited_for: list[Connection]
) -> None:
    rows, right = everyone(), read_store(world.store, everyone())
    with connect(cluster.replicas["3"][0].address) as client:
        batches = client.stream(itertools.repeat(rows), ALL)
        assert shown(next(batches)) == right
        cluster.replicas["0"][0].may_end.clear()
        cluster.move([0, 4], "1")
        while client.routing.map_version < cluster.version:
            assert shown(next(batches)) == right
        # More than are in flight at once, so that the connection has nothing left to answer.
        for _ in range(2 * ClientConfig().requests_in_flight):
            assert shown(next(batches)) == right
        assert waited_for == []
        batches.close()
    cluster.replicas["0"][0].may_end.set()
    assert_no_thread_left()


@pytest.mark.timeout(60)
def test_a_group_that_is_dropped_while_moved_examples_wait_for_another_one(
    world: World, doubled: MappedGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are requested from one group after the other, by the map of the first request."""
    monkeypatch.setattr("thinrow.client.router.DROPPED_S", 0.1)
    doubled.lifetime_ms = 600
    moving = [user for user in EVERYONE if shard_of(np.array([user]), SHARDS) in (3, 7)]
    rows = pointers_to(days(3, 4), moving)
    right = read_store(world.store, rows)

    def slow(name: str) -> None:
        if name == "Materialize":
            doubled.replicas["1"].reverse()
            doubled.version += 1
            time.sleep(2)

    for replica in doubled.replicas["0"]:
        replica._called = slow  # type: ignore[method-assign]
    with connect(doubled.address) as client:
        assert shown(client.materialize(rows, ALL)) == right
        doubled.move([3], "0")
        doubled.move([7], "1")
        assert shown(client.materialize(rows, ALL)) == right


def test_a_replica_that_ends_its_streams_late_is_left_without_a_wait(
    world: World, doubled: MappedGroups, waited_for: list[Connection]
) -> None:
    """It falls a generation behind, so that the others are preferred in the middle of a stream."""
    doubled.lifetime_ms = 1_500
    rows = pointers_to(days(3), EVERYONE)
    right, others = read_store(world.store, rows), []
    with Generation(world.store / "generation-000001") as older, connect(doubled.address) as client:
        batches = client.stream(itertools.repeat(rows), ALL)
        assert shown(next(batches)) == right
        for replicas in doubled.replicas.values():
            behind, other = sorted(replicas, key=lambda replica: -replica.calls["streams"])
            behind.generation = older
            behind.may_end.clear()
            others.append(other)
        end_s = time.monotonic() + 60
        while not all(other.calls["streams"] for other in others):
            assert shown(next(batches)) == right
            assert time.monotonic() < end_s
        # More than are in flight at once, so that the connection has nothing left to answer.
        for _ in range(2 * ClientConfig().requests_in_flight):
            assert shown(next(batches)) == right
        assert waited_for == []
        batches.close()
    for replica in doubled.all_replicas:
        replica.may_end.set()
    assert_no_thread_left()


def test_texts_without_their_hash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    users = Pointers(user_ids=["a", "b"], end_ts=[1, 1])
    assert len(set(user_keys(users, "string").tolist())) == 2
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(UsageError, match=r"pip install 'thinrow\[cluster\]'"):
        user_keys(users, "string")
    assert user_keys(Pointers(user_ids=[5], end_ts=[1]), "int64").tolist() == [5]


# Replicas


@pytest.fixture
def doubled(world: World) -> Iterator[MappedGroups]:
    with mapped_groups(world.store, OWNERS, copies=2) as cluster:
        yield cluster


def test_a_dead_replica_of_each_group_is_left(world: World, doubled: MappedGroups) -> None:
    rows, right = everyone(), read_store(world.store, everyone())
    with connect(doubled.replicas["3"][1].address) as client:
        batches = client.stream((rows for _ in range(40)), ALL)
        assert [shown(batch) for batch in itertools.islice(batches, 5)] == [right] * 5
        for replicas in doubled.replicas.values():
            max(replicas, key=lambda replica: replica.examples).stop()
        assert [shown(batch) for batch in batches] == [right] * 35
        assert client.routing.failovers >= 1


def test_a_failed_replica_that_a_poll_leaves_counts_as_a_failover() -> None:
    """A poll may leave it before the stream that noticed."""
    with closing(Channels(("localhost:1", "localhost:2"), ClientConfig(), 0)) as group:
        assert group.health is not None
        first = group.current
        group.health.failed(first)
        group.prefer_healthy()
        group.fail_over(first)
        assert (group.current != first, group.failovers) == (True, 1)


def test_a_hung_replica_is_hedged_and_left(world: World, doubled: MappedGroups) -> None:
    """It takes requests and never answers; the limit on silence is minutes away."""
    config = ClientConfig(silence_timeout_s=300, request_deadline_s=600)
    rows, right = everyone(), read_store(world.store, everyone())
    with connect(doubled.address, config) as client:
        batches = client.stream((rows for _ in range(40)), ALL)
        assert [shown(batch) for batch in itertools.islice(batches, 10)] == [right] * 10
        for replicas in doubled.replicas.values():
            max(replicas, key=lambda replica: replica.examples).may_answer.clear()
        assert [shown(batch) for batch in batches] == [right] * 30
        assert client.routing.failovers >= 4
        for replica in doubled.all_replicas:
            replica.may_answer.set()
    assert_no_thread_left()


def test_hedges_stay_within_their_share(doubled: MappedGroups) -> None:
    """Slow at random, so that one in ten requests is worth a hedge."""
    rows, right = pointers_to(days(3), [1, 2, 3, 4]), None
    slow = itertools.cycle([0.0] * 9 + [0.03])
    for replica in doubled.all_replicas:
        called = replica._called

        def sometimes(name: str, called: Callable[[str], None] = called) -> None:
            time.sleep(next(slow))
            called(name)

        replica._called = sometimes  # type: ignore[method-assign]
    for share in (0.0, 0.05):
        config = ClientConfig(hedged_share=share)
        before = sum(r.calls["MaterializeStream"] for r in doubled.all_replicas)
        with connect(doubled.address, config) as client:
            for batch in client.stream([rows] * 100, ALL):
                right = right or shown(batch)
                assert shown(batch) == right
            requests = sum(r.calls["MaterializeStream"] for r in doubled.all_replicas) - before
            groups = client.routing.groups
            assert client.routing.hedges <= share * requests + groups * bool(share)


def test_a_replica_a_generation_behind_is_requested_last(
    world: World, doubled: MappedGroups
) -> None:
    doubled.lifetime_ms = 1_500
    with Generation(world.store / "generation-000001") as older, connect(doubled.address) as client:
        for replicas in doubled.replicas.values():
            replicas[0].generation = older
        rows, right = everyone(), read_store(world.store, everyone())
        client.materialize(rows, ALL)
        end_s = time.monotonic() + 60
        while shown(client.materialize(rows, ALL)) != right:
            assert time.monotonic() < end_s
        for replica in doubled.all_replicas:
            replica.examples = 0
        for batch in client.stream([rows] * 3, ALL):
            assert shown(batch) == right
        assert [replicas[0].examples for replicas in doubled.replicas.values()] == [0] * 4


def test_clients_spread_over_the_replicas(doubled: MappedGroups) -> None:
    for _ in range(12):
        with connect(doubled.address) as client:
            client.materialize(everyone(), ALL)
    assert all(replica.examples for replica in doubled.all_replicas)


# Processes


@pytest.mark.parametrize("processes", ["many", "-1", "0", "99999999999999999999", "1e3"])
def test_a_server_that_lies_about_its_processes_is_refused(
    cluster: MappedGroups, processes: str
) -> None:
    metadata = (("thinrow-process", "a"), ("thinrow-processes", processes))
    cluster.all_replicas[0].metadata = metadata
    match = r"malformed.*process"
    with connect(cluster.address) as client, pytest.raises(ThinRowError, match=match):
        list(client.stream([everyone()] * 2, ALL))


def test_processes_that_are_not_there_are_sought_a_limited_number_of_times(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinrow.client.connections.EXTRA_PAUSE_S_MIN", 0.0)
    monkeypatch.setattr("thinrow.client.connections.EXTRA_PAUSE_S_MAX", 0.0)
    monkeypatch.setattr("thinrow.client.connections.EXTRA_TRIES_MAX", 5)
    rows, right = everyone(), read_store(world.store, everyone())
    with mapped_groups(world.store, [0] * SHARDS) as cluster:
        [liar] = cluster.all_replicas
        liar.metadata = (("thinrow-process", "a"), ("thinrow-processes", "4000"))
        with connect(cluster.address) as client:
            for batch in client.stream([rows] * 60, ALL):
                assert shown(batch) == right
        assert liar.calls["streams"] == 1 + 5


def test_a_closed_client_of_a_cluster_says_so(cluster: MappedGroups) -> None:
    client = connect(cluster.address)
    client.materialize(everyone(), ALL)
    assert "localhost" in repr(client)
    client.close()
    client.close()
    for use in (
        lambda: client.materialize(everyone(), ALL),
        lambda: list(client.stream([everyone()], ALL)),
        lambda: client.inspect(1),
        lambda: client.describe_store(),
    ):
        with pytest.raises(UnavailableError, match="was closed"):
            use()
    assert_no_thread_left()


def test_a_plain_server_is_used_as_ever() -> None:
    with serving(Fake()) as (_, target), connect(target) as client:
        assert users(list(client.stream(inputs(3), Projection(sequence_length=5)))) == list(
            range(9)
        )
        assert (client.routing.map_version, client.routing.groups) == (0, 1)
    assert_no_thread_left()
