"""Servers that follow the cluster's map: shards come and go, and no answer changes."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.remote_stores import RemoteWorld, remote_world
from support.server_processes import TWO, until
from support.unrouted import Unrouted
from support.worlds import days, pointers_to, read_store, running_server
from thinrow.cluster.cluster_map import ClusterMap, Group
from thinrow.cluster.map_objects import MAP, map_key, read_map, write_map
from thinrow.core.shards import shard_of
from thinrow.errors import UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.materialization.service import SERVICE
from thinrow.remote import object_store
from thinrow.remote.reading import local_store
from thinrow.store.layout import shard_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.object_storage import ObjectStorage
    from support.worlds import Answers, Running
    from thinrow.v1 import materialization_pb2 as wire

SHARDS = 8
USERS = (*range(1, 41), 99)


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    (tmp_path / "bucket").mkdir()
    found = remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")
    found.compact(3, shards=SHARDS)
    return found


def put_map(world: RemoteWorld, shards: int = SHARDS, **groups: Group) -> int:
    """Writes a map; `rest` is a group that serves all shards. Returns its version."""
    rest = Group(targets=("127.0.0.1:1",), serving=tuple(range(shards)))
    new = ClusterMap(
        version=1, shards=shards, lifetime_ms=1000, changed_ts=1, groups={"rest": rest, **groups}
    )
    return write_map(world.objects, read_map(world.objects), new).map.version


def group(*serving: int, loading: tuple[int, ...] = (), leaving: tuple[int, ...] = ()) -> Group:
    return Group(targets=("127.0.0.1:2",), serving=serving, loading=loading, leaving=leaving)


@contextmanager
def serving(world: RemoteWorld, **options: Any) -> Iterator[Server]:  # noqa: ANN401
    config = ServerConfig(
        store=world.url,
        mirror=world.local.folder.parent / "mirror",
        group="a",
        listen="127.0.0.1:0",
        **{"metrics": "127.0.0.1:0", "poll_s": 0.05, "mirror_poll_s": 0.1, **options},
    )
    with Server(config) as server:
        yield server


def value(server: Server, name: str, **labels: str) -> float:
    found = server.metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def has_map(server: Server, version: int) -> None:
    until(lambda: value(server, "thinrow_cluster_map_version") == version)


def described(address: str) -> wire.DescribeClusterResponse:
    with Unrouted(address) as server:
        return server.describe_cluster()


def opens(address: str, *shards: int) -> None:
    until(lambda: tuple(described(address).open_shards) == shards)


def health(address: str, service: str = SERVICE) -> bool:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def scrapes(server: Running, name: str, number: int) -> None:
    until(lambda: server.scrape().get(name) == number)


def page(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=60) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def check_users(address: str, shards: set[int], whole: Answers) -> list[int]:
    """Users of these shards have their histories; returns them."""
    users = np.array(USERS)
    is_here = np.isin(shard_of(users, SHARDS), sorted(shards))
    here: list[int] = users[is_here].tolist()
    with Unrouted(address) as server:
        found = server.materialize(pointers_to(days(3), here))
    assert found == [whole[place] for place in np.flatnonzero(is_here)]
    return here


def check_answers(address: str, shards: set[int], whole: Answers) -> None:
    """Users of these shards have their histories, and others fail the request, and Inspect."""
    here = check_users(address, shards, whole)
    users = np.array(USERS)
    is_here = np.isin(users, here)
    with Unrouted(address) as server:
        for user in users[~is_here][:3].tolist():
            with pytest.raises(grpc.RpcError, match="without shard") as refused:
                server.materialize(pointers_to(days(3), [*here, user]))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.RpcError, match="without shard") as refused:
                server.inspect(user, days(3)[0])
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def whole_answers(world: RemoteWorld) -> Answers:
    with local_store(world.url) as folder:
        return read_store(folder, pointers_to(days(3), USERS))


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_come_and_go(world: RemoteWorld, tmp_path: Path, processes: int) -> None:
    """Under a running server, of one process and of two; each has only the shards of its group."""
    whole = whole_answers(world)
    put_map(world, a=group(0, 3))
    options = ("--group", "a", *(TWO if processes == 2 else ()))
    mirror = tmp_path / "mirror"
    with running_server(world.url, "--mirror", mirror, *options, log=tmp_path / "log") as server:
        opens(server.address, 0, 3)
        check_answers(server.address, {0, 3}, whole)
        assert not (mirror / "generation-000001" / shard_name(5)).exists()
        for change, open_now in (
            (group(0, 3, loading=(5,)), (0, 3, 5)),
            (group(0, 3, 5, leaving=(3,)), (0, 3, 5)),
            (group(0, 5), (0, 5)),
        ):
            version = put_map(world, a=change)
            scrapes(server, "thinrow_cluster_map_version", version)
            scrapes(server, "thinrow_cluster_shards_open", len(open_now))
            moving = len({*change.loading, *change.leaving})
            scrapes(server, "thinrow_cluster_shards_moving", moving)
            opens(server.address, *open_now)
            check_answers(server.address, set(open_now), whole)
            assert health(server.address)
        found = described(server.address)
        assert (found.map_version, found.group, found.shards) == (version, "a", SHARDS)
        assert [tuple(one.serving) for one in found.groups if one.name == "a"] == [(0, 5)]
        assert found.map_lifetime_ms == 1000 and found.generation == 1
        assert server.stop() == 0


def test_a_move_keeps_what_is_cached_and_a_new_generation_has_the_groups_shards(
    world: RemoteWorld,
) -> None:
    whole = whole_answers(world)
    put_map(world, a=group(0, 3))
    with serving(world) as server:
        check_answers(server.address, {0, 3}, whole)
        files = value(server, "thinrow_store_values_total", source="files")
        has_map(server, put_map(world, a=group(0, 3, loading=(5,))))
        opens(server.address, 0, 3, 5)
        check_users(server.address, {0, 3}, whole)
        assert value(server, "thinrow_store_values_total", source="files") == files
        world.compact(4, shards=None)
        until(lambda: value(server, "thinrow_generation") == 2)
        opens(server.address, 0, 3, 5)
        check_answers(server.address, {0, 3, 5}, whole)
        # A shard that has left is not served from what is cached of it.
        has_map(server, put_map(world, a=group(5)))
        opens(server.address, 5)
        check_answers(server.address, {5}, whole)


def test_it_is_ready_once_all_shards_that_clients_request_are_open(world: RemoteWorld) -> None:
    """It waits for the map, and a group that the map lacks keeps what it has."""
    whole = whole_answers(world)
    with serving(world) as server:
        assert not health(server.address)
        assert health(server.address, ""), "a server that waits is not restarted"
        assert page(server, "/readyz")[0] == 503
        with pytest.raises(grpc.RpcError, match="waits for the cluster's map"):
            described(server.address)
        put_map(world, a=group(1, 2))
        until(lambda: health(server.address))
        assert page(server, "/readyz") == (200, "ready\n")
        shown_page = page(server, "/")[1]
        assert "2 of 2" in shown_page and "map version 1" in shown_page
        has_map(server, put_map(world))
        until(lambda: not health(server.address))
        assert page(server, "/readyz")[0] == 503
        assert "not in the cluster" in page(server, "/")[1]
        assert described(server.address).group == ""
        check_answers(server.address, {1, 2}, whole)
    with serving(world) as server:  # started again
        assert not health(server.address)
        check_answers(server.address, {1, 2}, whole)
        put_map(world, a=group(1))
        until(lambda: health(server.address))
        opens(server.address, 1)


def test_it_starts_again_without_the_store(tmp_path: Path, object_storage: ObjectStorage) -> None:
    world = remote_world(tmp_path / "world", object_storage.new_url())
    world.compact(3, shards=SHARDS)
    whole = whole_answers(world)
    put_map(world, a=group(0, 3, loading=(6,)))
    with serving(world) as server:
        opens(server.address, 0, 3, 6)
    with (
        mock.patch.dict("os.environ", {"AWS_ENDPOINT": "http://127.0.0.1:1"}),
        mock.patch.object(object_store, "RETRIES_MAX", 0),
        serving(world) as server,
    ):
        assert health(server.address)
        assert tuple(described(server.address).open_shards) == (0, 3, 6)
        check_answers(server.address, {0, 3, 6}, whole)
        failures = "thinrow_cluster_map_failures_total"
        until(lambda: value(server, failures, kind="unreachable") > 0)
        assert health(server.address)


@pytest.mark.parametrize("fault", ["MAP", "version", "lost", "back", "shards"])
def test_a_map_that_cannot_be_followed(
    world: RemoteWorld, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last good one serves on, and the next good one is followed."""
    whole = whole_answers(world)
    put_map(world, a=group(4))
    before = world.objects.read(MAP, 1 << 20)
    put_map(world, a=group(0, 3))
    with serving(world) as server:
        good = world.objects.read(MAP, 1 << 20)
        assert before is not None and good is not None
        if fault == "MAP":
            world.objects.write(MAP, good.data[:-5])
        elif fault == "lost":
            world.objects.delete([MAP])
        elif fault == "back":
            world.objects.write(MAP, before.data)
        elif fault == "version":
            version = put_map(world, a=group(1))
            world.objects.write(map_key(version), b"{}")
        else:
            put_map(world, shards=4, a=group(1))
        kind = "other" if fault == "shards" else "damaged"
        until(lambda: value(server, "thinrow_cluster_map_failures_total", kind=kind) > 1)
        if fault != "version":  # it may have been read before it was damaged
            assert value(server, "thinrow_cluster_map_version") == 2
            check_answers(server.address, {0, 3}, whole)
        assert health(server.address)
        assert value(server, "thinrow_cluster_map_failing") == 1
        reasons = [record for record in caplog.records if "cannot be followed" in record.message]
        assert reasons
        world.objects.write(MAP, good.data)
        if fault != "version":
            until(lambda: value(server, "thinrow_cluster_map_failing") == 0)
    if fault == "back":
        # Also a server that knows the later map from its mirror alone.
        world.objects.write(MAP, before.data)
        with serving(world) as server:
            until(lambda: value(server, "thinrow_cluster_map_failures_total", kind=kind) > 1)
            opens(server.address, 0, 3)


def test_damage_of_the_mirrors_copy_and_of_a_shard(world: RemoteWorld) -> None:
    whole = whole_answers(world)
    put_map(world, a=group(0, 3))
    with serving(world) as server:
        mirror = server._config.store_folder
    (mirror / "cluster-map.json").write_text("{}", encoding="utf-8")
    (mirror / "generation-000001" / shard_name(5)).mkdir()  # of an addition that was interrupted
    with serving(world) as server:
        opens(server.address, 0, 3)
        key = next(key for key in world.tables() if shard_name(5) in key)
        table = world.objects.read(key, 1 << 30)
        assert table is not None
        world.damage(key, "flipped")
        put_map(world, a=group(0, 3, loading=(5,)))
        until(lambda: value(server, "thinrow_mirror_failures_total", kind="damaged") > 0)
        opens(server.address, 0, 3)
        check_answers(server.address, {0, 3}, whole)
        assert health(server.address)
        world.objects.write(key, table.data)
        opens(server.address, 0, 3, 5)
        check_answers(server.address, {0, 3, 5}, whole)


def test_names_of_groups(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give --store URL and --mirror FOLDER"):
        ServerConfig(store=tmp_path, group="a")
    url = f"file://{tmp_path}"
    for name in ("", "a b", "-a"):
        with pytest.raises(UsageError, match="write the name of a group"):
            ServerConfig(store=url, mirror=tmp_path / "mirror", group=name)
    with pytest.raises(UsageError, match="both choose shards"):
        ServerConfig(store=url, mirror=tmp_path / "mirror", group="a", shards="1")
    assert ServerConfig(store=url, mirror=tmp_path / "m", group="0/2").group_name is None
