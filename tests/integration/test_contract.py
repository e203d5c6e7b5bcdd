"""The contract as clients in other languages meet it: options, descriptions, absent messages."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from support.worlds import START_TS, World, new_world, some_events
from thinrow.client import Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.descriptor import FileDescriptor

SCHEMA = """
[item]
item_id = { type = "int64", key = true }
brand = { type = "string", sparse = true, default = "none" }

[feedback]
rating = { type = "int8", sparse = true }
price = { type = "float64", default = 0.5 }
kind = { type = "categorical", sparse = true, default = -3 }
embedding = { type = "float32", size = 2, default = 1.5 }
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = new_world(tmp_path_factory.mktemp("world"), SCHEMA)
    world.compact(some_events().select(["user_id", "event_ts", "item_id"]), 3)
    return world


@contextmanager
def serving(world: World, **options: object) -> Iterator[MaterializationServiceStub]:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, **options)  # type: ignore[arg-type]
    with Server(config) as server, grpc.insecure_channel(server.address) as channel:
        yield MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]


@contextmanager
def online(world: World, folder: Path) -> Iterator[OnlineClient]:
    config = OnlineConfig(store=world.store, data=folder, listen="127.0.0.1:0", metrics=None)
    with OnlineServer(config) as server, connect_online(server.address) as client:
        yield client


@pytest.mark.parametrize("file", [wire.DESCRIPTOR, online_pb2.DESCRIPTOR], ids=lambda f: f.name)
def test_generators_of_go_and_java_take_the_files(file: FileDescriptor) -> None:
    options = file.GetOptions()
    path, package = options.go_package.split(";")
    # protoc-gen-go refuses a path without a dot or slash.
    assert "/" in path and package.isidentifier()
    assert options.java_package == file.package
    assert options.java_multiple_files


def check_schema(groups: object) -> None:
    traits = {trait.name: trait for group in groups for trait in group.traits}  # type: ignore[attr-defined]
    result = {
        name: (trait.sparse, trait.nullable, trait.key, trait.vector_size)
        for name, trait in traits.items()
    }
    assert result == {
        "item_id": (False, False, True, 1),
        "brand": (True, False, False, 1),
        "rating": (True, True, False, 1),
        "price": (False, False, False, 1),
        "kind": (True, False, False, 1),
        "embedding": (False, False, False, 2),
    }
    assert {name for name, trait in traits.items() if trait.HasField("default_word")} == {
        *("price", "kind", "embedding")
    }
    assert traits["brand"].default_string == "none"
    assert not traits["item_id"].HasField("default_string")
    assert traits["kind"].default_word == -3
    assert traits["price"].default_word == 0x3FE0000000000000
    assert traits["embedding"].default_word == 0x3FC00000


def test_descriptions_suffice_to_read_and_to_append(world: World, tmp_path: Path) -> None:
    with serving(world) as stub:
        check_schema(stub.DescribeStore(wire.DescribeStoreRequest()).feature_groups)
    with online(world, tmp_path) as client:
        check_schema(client.describe().feature_groups)
        seen = client.append([1], [START_TS], {"item_id": [5]})
        row = client.snapshot(1, Projection(), request_ts=seen.arrival_ts + 1).thin_row
        assert [event["embedding"] for event in row.mutable] == [[1.5, 1.5]]
        assert [event["kind"] for event in row.mutable] == [-3]


def test_limits_are_complete(world: World, tmp_path: Path) -> None:
    with serving(world, request_bytes_max=12345, calls_max=7, inspect_events_max=9) as stub:
        limits = stub.DescribeStore(wire.DescribeStoreRequest()).limits
        assert (limits.request_bytes_max, limits.calls_max, limits.inspect_events_max) == (
            *(12345, 7, 9),
        )
    with serving(world, inspect=False) as stub:
        assert stub.DescribeStore(wire.DescribeStoreRequest()).limits.inspect_events_max == 0
    with online(world, tmp_path) as client:
        limits, config = client.describe().limits, OnlineConfig(store=world.store)
        assert limits.request_bytes_max == config.request_bytes_max
        assert limits.response_bytes_max == config.response_bytes_max
        assert limits.calls_max == config.calls_max
        assert limits.streams_max == config.streams_max


def test_a_batch_without_a_request_is_refused(world: World) -> None:
    batch = wire.MaterializeRequest(user_ids=[1], end_ts=[START_TS])
    with serving(world) as stub:
        call = stub.MaterializeStream(
            iter(
                [
                    wire.MaterializeStreamRequest(cursor=4, request=batch),
                    wire.MaterializeStreamRequest(cursor=5, request=wire.MaterializeRequest()),
                    wire.MaterializeStreamRequest(cursor=6),
                ]
            )
        )
        assert [len(next(call).response.statuses) for _ in range(2)] == [1, 0]
        with pytest.raises(grpc.RpcError, match="cursor 6 has no request"):
            next(call)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(call.trailing_metadata())["thinrow-error"] == "INVALID_REQUEST"


def test_a_snapshot_without_a_request_is_refused(world: World, tmp_path: Path) -> None:
    """It would be answered as user 0."""
    message = online_pb2.SnapshotStreamRequest(
        requests=[
            online_pb2.StreamedRequest(cursor=1),
            online_pb2.StreamedRequest(cursor=2, request=online_pb2.SnapshotRequest()),
        ]
    )
    with online(world, tmp_path) as client:
        (result,) = client.stub.SnapshotStream(iter([message]))
        absent, empty = result.answers
        assert (absent.cursor, absent.error.name) == (1, "INVALID_REQUEST")
        assert absent.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert empty.cursor == 2 and empty.HasField("response")


def test_an_append_without_events_is_refused(world: World, tmp_path: Path) -> None:
    with online(world, tmp_path) as client:
        absent, empty = client.stub.AppendEvents(
            iter(
                [
                    online_pb2.AppendEventsRequest(cursor=1),
                    online_pb2.AppendEventsRequest(cursor=2, events=online_pb2.EventBatch()),
                ]
            )
        )
        assert "no events" in absent.refused
        assert not empty.refused and empty.appended == 0


def test_refusals_name_what_the_protos_name(world: World, tmp_path: Path) -> None:
    """Callers in other languages know neither Python's dtypes nor the numbers of types."""
    with online(world, tmp_path) as client:
        good = client.events([1], [START_TS], {"item_id": [5]}, [1])
        other_type, without_time = online_pb2.EventBatch(), online_pb2.EventBatch()
        other_type.CopyFrom(good)
        for column in other_type.columns:
            column.type = wire.TRAIT_TYPE_FLOAT16
        without_time.user_ids[:] = good.user_ids
        without_time.columns.extend(c for c in good.columns if c.trait != "event_ts")
        messages = [online_pb2.AppendEventsRequest(events=b) for b in (other_type, without_time)]
        first, second = (each.refused for each in client.stub.AppendEvents(iter(messages)))
        assert "TRAIT_TYPE_FLOAT16" in first and "TRAIT_TYPE_INT64" in first
        assert "lack event_ts" in second and "sparse" not in second
        many = online_pb2.SnapshotStreamRequest(requests=[online_pb2.StreamedRequest()] * 65)
        with pytest.raises(grpc.RpcError, match="65 requests"):
            next(client.stub.SnapshotStream(iter([many])))


def test_a_refused_append_is_not_called_the_servers_answer(world: World, tmp_path: Path) -> None:
    with online(world, tmp_path) as client:
        good = client.events([1], [START_TS], {"item_id": [5], "rating": [1]}, [1])
        batches = [online_pb2.EventBatch() for _ in range(4)]
        for batch in batches:
            batch.CopyFrom(good)
        batches[0].user_ids.append(2)
        batches[1].columns[0].type = 99  # type: ignore[assignment]
        batches[2].columns[0].data += b"more"
        batches[3].columns.append(good.columns[0])
        requests = (online_pb2.AppendEventsRequest(events=batch) for batch in batches)
        refused = [answer.refused for answer in client.stub.AppendEvents(requests)]
        assert all(refused)
        assert not [text for text in refused if "server's answer" in text], refused


def test_the_order_of_appended_columns_does_not_matter(world: World, tmp_path: Path) -> None:
    with online(world, tmp_path) as client:
        events = client.events([1, 1], [START_TS] * 2, {"item_id": [5, 6], "rating": [1, None]})
        turned = online_pb2.EventBatch(user_ids=[2, 2], columns=reversed(events.columns))
        requests = (online_pb2.AppendEventsRequest(events=batch) for batch in (events, turned))
        result = list(client.stub.AppendEvents(requests))
        assert [answer.appended for answer in result] == [2, 2]
        seen = [
            client.snapshot(
                user, Projection(), request_ts=result[-1].arrival_ts + 1
            ).thin_row.mutable
            for user in (1, 2)
        ]
        plain = [[{**event, "arrival_ts": 0} for event in events] for events in seen]
        assert plain[0] == plain[1] and len(plain[0]) == 2
