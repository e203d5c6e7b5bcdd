"""Declared sizes are checked against the bytes that are there and against limits."""

# ruff: noqa: ANN401 - messages of any kind

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from support.declared_sizes import (
    REFUSED_BYTES_MAX,
    UNLIMITED,
    VECTOR,
    batch,
    column,
    constant_answer,
    world,
)
from support.peak import MIB, peak_of
from support.worlds import World, running_online
from thinrow import _native
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.sizes import COLUMNS_MAX, CONSTANT_BYTES_MAX, require_affordable
from thinrow.errors import AnswerTooLargeError
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2, online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.worlds import Running


__all__ = ["world"]

ANSWERS = """
import numpy as np
from thinrow.client import Batch, Pointers
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.wire.response import Response
from thinrow.v1 import materialization_pb2 as wire

def message(examples, events, blocks=1, views=None, **column):
    return wire.MaterializeResponse(
        generation=1, watermark_ts=9, statuses=[1] * examples, view_starts=[0] * examples,
        view_lengths=[events if views is None else views] * examples,
        block_lengths=[events // blocks] * blocks, truncation=1,
        columns=[wire.Column(**{"trait": "x", "vector_size": 1, "bases": [0] * blocks,
                                "widths": bytes(blocks), **column})] if column else [],
    ).SerializeToString()

def read(data, examples=1, users=None):
    pointers = Pointers(user_ids=users or list(range(examples)), end_ts=[9] * examples)
    lookup = BatchLookup(pointers, "tenant")
    lookup.add(np.arange(examples), Response.read(data))
    return len(Batch.from_answers([lookup.answer()]).values["x"])
"""
HOSTILE = {
    "a text of 200 million events": "read(message(1, 200_000_000, type=14, strings=['a']))",
    "integers": "read(message(1, 200_000_000, type=4))",
    "bools": "read(message(1, 2_000_000_000, type=12))",
    "categories of a dictionary": "read(message(1, 200_000_000, type=13, dictionary=[7]))",
    "vectors": "read(message(1, 100_000, type=11, vector_size=4096))",
    "absent vectors": "read(message(1, 8_000_000, type=11, vector_size=4096, nullable=True, "
    "present=bytes(1_000_000)))",
    "one run for every user": "read(message(2048, 1_000_000, type=4), 2048)",
    "a million columns": r"read(message(1, 0) + b'\x3a\x00' * 1_000_000)",
}


@pytest.mark.parametrize("call", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_that_would_take_gigabytes(call: str) -> None:
    peak = peak_of(call, ANSWERS)
    assert peak.outcome.startswith(("AnswerTooLargeError: ", "ThinRowError: ")), peak
    assert peak.grown_bytes < REFUSED_BYTES_MAX, peak


def test_constant_columns_within_the_limit() -> None:
    """A million equal values in a thousand blocks: eleven bytes a block, eight MiB widened."""
    peak = peak_of("read(message(1, 1_024_000, 1000, type=4))", ANSWERS)
    assert peak.outcome == "1024000"
    # Examples of one user may share a run.
    peak = peak_of("read(message(40, 1_024_000, 1000, type=4), 40, [7] * 40)", ANSWERS)
    assert peak.outcome == "40960000"
    require_affordable(CONSTANT_BYTES_MAX + 8000, 1000)
    with pytest.raises(AnswerTooLargeError, match="fewer examples"):
        require_affordable(CONSTANT_BYTES_MAX + 8001, 1000)


def test_present_counts_equal_numpy() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 90, 50)
    present = rng.random(int(lengths.sum())) < 0.4
    bits = np.packbits(present, bitorder="little")
    ends = np.cumsum(lengths)
    expected = [int(present[end - n : end].sum()) for n, end in zip(lengths, ends, strict=True)]
    assert _native.present_counts(bits, lengths).tolist() == expected
    for wrong in ([len(present) + 8], [-1], [1, 2**63 - 1]):
        with pytest.raises((IndexError, ValueError)):
            _native.present_counts(bits, np.array(wrong, np.int64))


@contextmanager
def answering(answer: Callable[[wire.MaterializeRequest], bytes]) -> Iterator[str]:
    """A server of Materialize and MaterializeStream, on a port of this machine."""

    def one(request: bytes, _: Any) -> bytes:
        return answer(wire.MaterializeRequest.FromString(request))

    def stream(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        for data in requests:
            request = wire.MaterializeStreamRequest.FromString(data)
            response = wire.MaterializeResponse.FromString(answer(request.request))
            yield wire.MaterializeStreamResponse(
                cursor=request.cursor, response=response
            ).SerializeToString()

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_registered_method_handlers(
        "thinrow.v1.MaterializationService",
        {
            "Materialize": grpc.unary_unary_rpc_method_handler(one),
            "MaterializeStream": grpc.stream_stream_rpc_method_handler(stream),
        },
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def test_answers_that_widen_too_far_are_requested_in_smaller_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = functools.partial(require_affordable, constant_bytes_max=24_000)
    monkeypatch.setattr("thinrow.core.lookup.checked_response.require_affordable", limited)
    pointers = Pointers(user_ids=range(10), end_ts=[9] * 10)
    seen: list[int] = []

    def answer(request: wire.MaterializeRequest) -> bytes:
        seen.append(len(request.user_ids))
        return constant_answer(request)

    with answering(answer) as address, connect(address, ClientConfig()) as client:
        batch = client.materialize(pointers, Projection(traits=("x",)))
        assert seen[:3] == [10, 5, 3]
        [streamed] = client.stream([pointers], Projection(traits=("x",)))
    for found in (batch, streamed):
        assert found.offsets.tolist() == list(range(0, 10_001, 1000))
        assert (found.statuses == wire.STATUS_OK).all() and found.values["x"].min() >= 5


def test_one_example_that_widens_too_far_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = functools.partial(require_affordable, constant_bytes_max=1000)
    monkeypatch.setattr("thinrow.core.lookup.checked_response.require_affordable", limited)
    pointers = Pointers(user_ids=range(3), end_ts=[9] * 3)
    with answering(constant_answer) as address, connect(address) as client:
        with pytest.raises(AnswerTooLargeError, match="shorter sequences"):
            client.materialize(pointers, Projection(traits=("x",)))
        with pytest.raises(AnswerTooLargeError, match="shorter sequences"):
            list(client.stream([pointers], Projection(traits=("x",))))


ONLINE = """
from thinrow.core.wire.columns import from_wire
from thinrow.v1 import materialization_pb2 as wire
def columns(count, **column):
    return [wire.Column(trait=f"x{n}", bases=[0], widths=bytes(1), **column) for n in range(count)]
"""


def test_mutable_events_of_a_snapshot() -> None:
    peak = peak_of(
        "from_wire(columns(100, type=11, vector_size=4096), 1000)",
        ONLINE,
    )
    assert peak.outcome.startswith("AnswerTooLargeError"), peak
    # What fits the limit is read before what does not.
    assert peak.grown_bytes < CONSTANT_BYTES_MAX + REFUSED_BYTES_MAX, peak
    int64 = wire.TRAIT_TYPE_INT64
    zeros = wire.Column(trait="x", type=int64, vector_size=1, bases=[3], widths=bytes(1))
    assert from_wire([zeros], 5)["x"].values.tolist() == [3] * 5


@pytest.fixture(scope="module")
def online(world: World) -> Iterator[Running]:
    options = ("--data", world.folder / "data", "--request-bytes-max", 16 * MIB)
    with running_online(world, *options) as server:
        yield server


def appended(online: Running, message: Any) -> str:
    """Reason of a refused batch; "" for an accepted one."""
    with grpc.insecure_channel(online.address, UNLIMITED) as channel:
        stub = online_pb2_grpc.OnlineServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            [answer] = stub.AppendEvents(iter([message]), timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return str(answer.refused)


BOMBS = {
    "an unknown trait": (batch(2048, column("x", wire.TRAIT_TYPE_INT64, 4096)), "no trait"),
    "another size": (
        batch(2048, column("item_id", wire.TRAIT_TYPE_INT64, 4096)),
        "says TRAIT_TYPE_INT64",
    ),
    "another type": (
        batch(2048, column("item_id", wire.TRAIT_TYPE_FLOAT64)),
        "says TRAIT_TYPE_INT64",
    ),
    "equal vectors": (batch(16_384, VECTOR), "fewer"),
    "absent vectors": (
        batch(
            16_384,
            column(
                "embedding",
                wire.TRAIT_TYPE_FLOAT64,
                4096,
                nullable=True,
                present=bytes(2048),
            ),
        ),
        "fewer",
    ),
    "vectors that are left out": (batch(16_384), "fewer"),
    "one text for all": (
        batch(2000, column("brand", wire.TRAIT_TYPE_STRING, bases=[0], strings=["x" * MIB])),
        "fewer",
    ),
}


@pytest.mark.parametrize(("events", "why"), BOMBS.values(), ids=BOMBS)
def test_an_append_that_would_take_gigabytes(
    online: Running, events: online_pb2.EventBatch, why: str
) -> None:
    before = online.most_bytes()
    message = online_pb2.AppendEventsRequest(cursor=1, events=events)
    refused = appended(online, message)
    assert why in refused, refused
    assert online.most_bytes() - before < REFUSED_BYTES_MAX


def test_a_request_of_a_million_empty_messages(online: Running) -> None:
    before = online.most_bytes()
    parts = b"\x12\x00" * 4_000_000
    length = bytearray()
    rest = len(parts)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    events = b"\x12" + bytes(length) + parts
    with grpc.insecure_channel(online.address, UNLIMITED) as channel:
        for method, data, most in (
            ("AppendEvents", events, COLUMNS_MAX),
            ("SnapshotStream", b"\x0a\x00" * 200_000, 64),
        ):
            call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
                f"/thinrow.v1.OnlineService/{method}"
            )
            with pytest.raises(grpc.RpcError) as refused:
                list(call(iter([data]), timeout=60))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert f"takes {most}" in str(refused.value.details())
            with pytest.raises(grpc.RpcError, match="are no"):
                list(call(iter([b"\xff"]), timeout=60))
    assert online.most_bytes() - before < 3 * REFUSED_BYTES_MAX


def test_batches_within_the_limit_are_taken(online: Running) -> None:
    events = batch(64, VECTOR)
    assert appended(online, online_pb2.AppendEventsRequest(events=events)) == ""
    assert appended(online, online_pb2.AppendEventsRequest(events=batch(64))) == ""


def test_fields_are_counted_along_a_path() -> None:
    message = online_pb2.AppendEventsRequest(cursor=3, events=batch(2)).SerializeToString()
    assert _native.count_fields(message, [2, 2]) == 3
    assert _native.count_fields(message + message, [2, 2]) == 6
    assert _native.count_fields(message, [1]) == 1
    assert _native.count_fields(b"", [2, 2]) == 0
    for wrong in (b"\x12\x05\x12", b"\x10"):
        with pytest.raises(ValueError, match="cut off"):
            _native.count_fields(wrong, [2, 2])
    with pytest.raises(ValueError, match="path"):
        _native.count_fields(message, [])


FAKE_ONLINE = """
import grpc, logging
from concurrent.futures import ThreadPoolExecutor
from thinrow.client import Projection
from thinrow.client.online import connect_online
logging.disable()

def varint(number):
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])

def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content

response = field(7, field(7, b"") * 2_000_000)
def batch(request, _):
    return response
def stream(requests, _):
    for _ in requests:
        yield field(1, b"\\x08\\x01" + field(2, response))
server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
server.add_registered_method_handlers("thinrow.v1.OnlineService", {
    "SnapshotBatch": grpc.unary_unary_rpc_method_handler(batch),
    "SnapshotStream": grpc.stream_stream_rpc_method_handler(stream),
})
port = server.add_insecure_port("127.0.0.1:0")
server.start()
client = connect_online(f"127.0.0.1:{port}")
wanted = Projection(traits=("x",))
"""


@pytest.mark.parametrize("call", ["snapshot_batch([1], wanted)", "snapshot(1, wanted)"])
def test_an_online_answer_of_a_million_columns(call: str) -> None:
    peak = peak_of(f"client.{call}", FAKE_ONLINE)
    assert "Error: " in peak.outcome, peak
    assert peak.grown_bytes < REFUSED_BYTES_MAX, peak
