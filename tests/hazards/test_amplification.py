"""Small requests and answers that become large in another process: each stays within a limit."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pyarrow as pa
import pytest
from support.declared_sizes import REFUSED_BYTES_MAX, UNLIMITED, VECTOR, batch, column, world
from support.peak import MIB, peak_of
from support.worlds import START_TS, World, new_world, running_online, running_server
from thinrow.access.tenants import new_token
from thinrow.core.wire.sizes import CONSTANT_BYTES_MAX
from thinrow.materialization.inspect import SHOWN_ELEMENT_BYTES, SHOWN_VALUE_BYTES
from thinrow.online.event_log import SCAN_BYTES_MAX
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc, online_pb2, online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.worlds import Running

__all__ = ["world"]

LARGE = ("--request-bytes-max", 16 * MIB)
"""Messages of 16 MB, and batches that become 64 MiB."""


@pytest.fixture(scope="module")
def online(world: World) -> Iterator[Running]:
    with running_online(world, "--data", world.folder / "data", *LARGE) as server:
        yield server


def append(
    address: str, messages: list[online_pb2.AppendEventsRequest]
) -> list[online_pb2.AppendEventsResponse]:
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        stub = online_pb2_grpc.OnlineServiceStub(channel)  # type: ignore[no-untyped-call]
        return list(stub.AppendEvents(iter(messages), timeout=300))


def test_batches_that_wait_to_be_durable(online: Running) -> None:
    """Each is 16 kB in its message and 48 MiB in records; they waited by the number of events."""
    before = online.most_bytes()
    messages = [
        online_pb2.AppendEventsRequest(cursor=n, events=batch(1500, VECTOR)) for n in (0, 1)
    ]
    answers: list[online_pb2.AppendEventsResponse] = []
    streams = [
        threading.Thread(target=lambda: answers.extend(append(online.address, messages)))
        for _ in range(12)
    ]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    assert [answer.appended for answer in answers] == [1500] * 24
    assert online.most_bytes() - before < 768 * MIB  # of 1,152 MiB


def test_short_texts_of_an_append(online: Running) -> None:
    def refused(trait: str, strings: list[str]) -> str:
        texts = column(trait, wire.TRAIT_TYPE_STRING, bases=[0], strings=strings)
        [answer] = append(online.address, [online_pb2.AppendEventsRequest(events=batch(2, texts))])
        return answer.refused

    assert "colour" in refused("colour", ["a" * 16_000_000])  # any message of as many bytes
    before = online.most_bytes()
    assert "more memory than this server allows" in refused("brand", ["ab"] * 4_000_000)
    assert online.most_bytes() - before < 192 * MIB  # twelve times its 16 MB


TEXTS = """
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.response import Response
from thinrow.v1 import materialization_pb2 as wire
column = wire.Column(trait="x", type=14, vector_size=1, bases=[0], widths=bytes(1))
column.strings.extend(["ab"] * 10_000_000)
message = wire.MaterializeResponse(columns=[column]).SerializeToString()
"""


@pytest.mark.parametrize("call", ["len(Response.read(message).columns)", "from_wire([column], 1)"])
def test_short_texts_of_an_answer(call: str) -> None:
    peak = peak_of(call, TEXTS)
    assert peak.outcome.startswith("AnswerTooLargeError"), peak
    assert peak.grown_bytes < CONSTANT_BYTES_MAX + 8 * 40_000_000 + REFUSED_BYTES_MAX, peak


def test_parts_of_an_export_are_bounded_in_bytes(world: World) -> None:
    with running_online(world, "--data", world.folder / "exported", *LARGE) as server:
        append(server.address, [online_pb2.AppendEventsRequest(events=batch(1500, VECTOR))])
        with grpc.insecure_channel(server.address, UNLIMITED) as channel:
            stub = online_pb2_grpc.OnlineServiceStub(channel)  # type: ignore[no-untyped-call]
            until_ts = stub.DescribeTier(online_pb2.DescribeTierRequest()).now_ts + 1
            parts = list(stub.ExportEvents(online_pb2.ExportEventsRequest(watermark_ts=until_ts)))
    assert sum(len(part.arrival_ts) for part in parts) == 1500
    assert max(part.ByteSize() for part in parts) < SCAN_BYTES_MAX + 2 * MIB


def test_with_tokens_a_message_of_too_many_requests_is_refused_by_name(world: World) -> None:
    token, token_sha256 = new_token()
    tenants = world.folder / "tenants.toml"
    tenants.write_text(f'[a]\nprojections = "any"\ntoken_sha256 = ["{token_sha256}"]\n')
    options = ("--data", world.folder / "guarded", "--tenants", tenants)
    with (
        running_online(world, *options) as server,
        grpc.insecure_channel(server.address, UNLIMITED) as channel,
    ):
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/thinrow.v1.OnlineService/SnapshotStream"
        )
        with pytest.raises(grpc.RpcError) as refused:
            metadata = (("authorization", f"Bearer {token}"),)
            list(call(iter([b"\x0a\x00" * 65]), timeout=60, metadata=metadata))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "takes 64" in str(refused.value.details())


WIDE = """
[item]
item_id = { type = "int64", key = true }
title = "string"
[wide]
embedding = { type = "float32", size = 1024 }
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One user with 4,000 events that take few bytes."""
    world = new_world(tmp_path_factory.mktemp("wide"), WIDE)
    events = 4000
    vectors = pa.array(np.zeros(events * 1024, np.float32))
    table = pa.table(
        {
            "user_id": np.ones(events, np.int64),
            "event_ts": START_TS + np.arange(events),
            "item_id": np.zeros(events, np.int64),
            "title": pa.array(["x" * 20_000] * events),
            "embedding": pa.FixedSizeListArray.from_arrays(vectors, 1024),
        }
    )
    world.compact(table, 1)
    return world


def test_inspect_counts_what_it_shows(wide: World) -> None:
    """Decoded these events take 16 MiB, as Python's numbers and lists twenty times as much."""
    shown = 4000 * (4 * SHOWN_VALUE_BYTES + (1024 + 3) * SHOWN_ELEMENT_BYTES)
    with (
        running_server(wide.store, "--work-bytes-max", shown // 2) as server,
        grpc.insecure_channel(server.address, UNLIMITED) as channel,
    ):
        stub = materialization_pb2_grpc.MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        before = server.most_bytes()

        def inspect(events: int, trait: str) -> wire.InspectResponse:
            projection = wire.Projection(sequence_length=events, traits=[trait])
            request = wire.InspectRequest(user_id=1, projection=projection)
            answer: wire.InspectResponse = stub.Inspect(request, timeout=60)
            return answer

        for trait in ("embedding", "title"):
            with pytest.raises(grpc.RpcError) as refused:
                inspect(4000, trait)
            metadata: dict[str, object] = {
                item.key: item.value for item in refused.value.trailing_metadata()
            }
            assert metadata["thinrow-error"] == "ANSWER_TOO_LARGE"
        assert server.most_bytes() - before < REFUSED_BYTES_MAX
        assert len(inspect(100, "embedding").events) == 100
        assert len(inspect(1000, "title").events) == 1000
