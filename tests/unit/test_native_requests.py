"""Requests decoded by native code: read and refused as protobuf reads and refuses them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from support.mutation import altered_bytes, altered_message
from thinrow import _native
from thinrow.access.projection import ProjectionCache
from thinrow.errors import RequestError
from thinrow.materialization.request import check_examples
from thinrow.schema import parse_schema
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from thinrow.access.tenants_file import Tenant

SEED, TRIES = 20261128, 4000
EXAMPLES_MAX = 64
WATERMARKS = np.array([1000], np.int64)


def some_request(rng: random.Random) -> wire.MaterializeRequest:
    count = rng.choice((0, 1, 3))
    some = [rng.choice((0, 1, -1, 999, rng.getrandbits(62))) for _ in range(count)]
    request = wire.MaterializeRequest(end_ts=some)
    if rng.random() < 0.8:
        request.user_ids.extend(some)
    else:
        request.user_texts.extend(rng.choice(("", "a", "é")) for _ in some)
        request.user_id_kind = rng.choice([wire.ID_KIND_INT64, wire.ID_KIND_STRING])
    if rng.random() < 0.5:
        request.start_ts.extend(some)
        request.digests.extend(map(abs, some))
        request.request_ts.extend(some)
    if rng.random() < 0.3:
        request.tenant = rng.choice(("a", "é"))
    if rng.random() < 0.5:
        request.projection.traits.append("brand")
    return request


def read_by_protobuf(data: bytes) -> wire.MaterializeStreamRequest | None:
    try:
        return wire.MaterializeStreamRequest.FromString(data)
    except DecodeError:
        return None


def read_natively(data: bytes) -> _native.MaterializeStreamRequest | None:
    """Returns a request whose projection is a message as well, or None."""
    try:
        request = _native.MaterializeStreamRequest(data, EXAMPLES_MAX)
        wire.Projection.FromString(request.request.projection or b"")
    except (ValueError, DecodeError):
        return None
    return request


def rows_of(request: wire.MaterializeRequest) -> _native.Plan:
    count = len(request.user_ids)
    zeros = np.zeros(count, np.int64)

    def column(values: object, default: np.ndarray) -> np.ndarray:
        given = np.array(values, default.dtype)
        return given if len(given) else default

    end_ts = np.array(request.end_ts, np.int64)
    return _native.Plan(
        np.array(request.user_ids, np.int64),
        column(request.start_ts, zeros),
        end_ts,
        column(request.max_lengths, zeros),
        column(request.digests, zeros.astype(np.uint64)),
        column(request.request_ts, end_ts),
        column(request.mutable_lengths, zeros),
        WATERMARKS,
        0,
        False,
        True,
    )


def test_altered_requests_are_read_as_protobuf_reads_them() -> None:
    rng, read, refused, planned = random.Random(SEED), 0, 0, 0
    for _ in range(TRIES):
        message = wire.MaterializeStreamRequest(cursor=rng.getrandbits(64))
        if rng.random() < 0.9:
            message.request.CopyFrom(some_request(rng))
        altered_message(message, rng, rng.choice((0, 1)))
        data = message.SerializeToString()
        if rng.random() < 0.3:
            data += wire.MaterializeStreamRequest(request=some_request(rng)).SerializeToString()
        if rng.random() < 0.5:
            data = altered_bytes(data, rng)
        expected, found = read_by_protobuf(data), read_natively(data)
        assert (expected is None) == (found is None), data
        if expected is None or found is None:
            refused += 1
            continue
        read += 1
        request = expected.request
        assert found.cursor == expected.cursor
        assert found.has_request == expected.HasField("request")
        assert found.traceparent == expected.traceparent
        assert found.request.tenant == request.tenant
        shown = found.request.projection
        assert (shown is not None) == request.HasField("projection")
        assert wire.Projection.FromString(shown or b"") == request.projection
        assert list(found.request.counts) == [
            len(request.user_ids),
            len(request.start_ts),
            len(request.end_ts),
            len(request.max_lengths),
            len(request.digests),
            len(request.request_ts),
            len(request.mutable_lengths),
            len(request.user_texts),
        ]
        assert found.request.user_texts == request.user_texts[:EXAMPLES_MAX]
        assert found.request.user_ids.tolist() == request.user_ids[:EXAMPLES_MAX]
        assert found.request.user_id_kind == request.user_id_kind % (1 << 64)
        if request.user_texts:  # the store's keys take their place before a plan
            if not request.user_ids and len(request.user_texts) <= EXAMPLES_MAX:
                keys = np.arange(len(request.user_texts))
                found.request.set_user_ids(keys)
                assert found.request.user_ids.tolist() == keys.tolist()
            continue
        try:
            check_examples(found.request, EXAMPLES_MAX)
        except RequestError:
            with pytest.raises(ValueError, match=r"differ in length|too many"):
                _native.Plan(found.request, WATERMARKS, 0, False, True)
            continue
        plan = _native.Plan(found.request, WATERMARKS, 0, False, True)
        by_columns = rows_of(request)
        assert plan.directory_keys() == by_columns.directory_keys()
        nothing: list[bytes | None] = [None] * (len(plan.directory_keys()) // 13)
        for each in (plan, by_columns):
            each.choose_stripes(nothing, [(1, True, True, 8)])
        statuses, *_ = plan.selection()
        assert statuses.tolist() == by_columns.selection()[0].tolist()
        planned += 1
    assert min(read, refused, planned) > TRIES // 20, (read, refused, planned)


@pytest.mark.parametrize(
    "unknown",
    [
        b"\x7b\x08\x01\x7c",  # a group of field 15
        b"\x7b\x7b\x7c\x7c" * 10_000,  # groups within groups
        b"\x79" + bytes(8),  # 64 bits
        b"\x7d" + bytes(4),  # 32 bits
        b"\x21" + bytes(8),  # start_ts as 64 bits: another type
    ],
)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    request = wire.MaterializeRequest(user_ids=[1], end_ts=[2])
    data = unknown + request.SerializeToString()
    assert wire.MaterializeRequest.FromString(data).user_ids == [1]
    assert list(_native.MaterializeRequest(data, 1).counts) == [1, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x7b",  # a group without end
        b"\x7b\x74",  # the end of another group
        b"\x7c",  # the end of none
        b"\x7b" * 200 + b"\x7c" * 200,  # nested too deeply
        b"\x00\x01",  # field 0
        b"\x1a\x07" + bytes(7),  # 7 bytes of 8
        b"\x0a\x01\xff",  # a tenant that is no UTF-8
        b"\x22\x01\x80",  # a number cut off
        b"\x0f",  # no wire type
    ],
)
def test_damaged_messages_are_refused(damaged: bytes) -> None:
    with pytest.raises(DecodeError):
        wire.MaterializeRequest.FromString(damaged)
    with pytest.raises(ValueError, match=r"."):
        _native.MaterializeRequest(damaged, 1)


def test_elements_beyond_the_limit_take_no_memory_and_are_counted() -> None:
    data = wire.MaterializeRequest(user_ids=[1], end_ts=[1] * 1000).SerializeToString()
    request = _native.MaterializeRequest(data, 10)
    assert request.counts[2] == 1000
    with pytest.raises(RequestError, match="end_ts has 1000 elements and user_ids has 1"):
        check_examples(request, 10)
    data = wire.MaterializeRequest(user_ids=[1] * 11, end_ts=[1] * 11).SerializeToString()
    with pytest.raises(RequestError, match="11 examples"):
        check_examples(_native.MaterializeRequest(data, 10), 10)


def test_projections_are_cached_within_limits() -> None:
    schema = parse_schema('[a]\nbrand = "int64"\n')
    cache, made = ProjectionCache[int](), 0

    def make(_: object) -> int:
        nonlocal made
        made += 1
        return made

    def get(projection: bytes | None, owner: object = schema) -> int:
        return cache.get("", projection, owner, schema, tenants, make)

    tenants: dict[str, Tenant] = {}
    lengths = [
        wire.Projection(sequence_length=n).SerializeToString() for n in range(1, 2 * 1024 + 10)
    ]
    assert get(None) == get(None) == 1
    assert get(lengths[0]) == get(lengths[0]) == 2
    assert get(lengths[0], owner=object()) == 3, "another generation"
    for each in lengths:
        get(each)
    assert len(cache._cached[2]) <= 1024
    large = wire.Projection(traits=["brand"] * 2000).SerializeToString()
    assert get(large) != get(large), "a large one is not kept"
    with pytest.raises(RequestError, match="no trait"):
        get(wire.Projection(traits=["colour"]).SerializeToString())
    with pytest.raises(RequestError, match="no Projection"):
        get(b"\xff")
