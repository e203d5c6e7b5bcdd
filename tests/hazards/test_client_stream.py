"""Streams when things go wrong: servers that die, refuse, dawdle or lie, callers that leave."""

from __future__ import annotations

import gc
import itertools
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from support.fake_server import (
    PROJECTION,
    Fake,
    assert_no_thread_left,
    inputs,
    own_threads,
    serving,
    users,
)
from thinrow.client import Batch, ClientConfig, Pointers, Projection, connect
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    RequestError,
    StoreCorruptError,
    ThinRowError,
    TooManyCallsError,
    UnavailableError,
    UnknownTenantError,
    UsageError,
)
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client import Client

CONFIG = ClientConfig(
    examples_per_request=4,
    requests_in_flight=3,
    request_deadline_s=5,
    retry_deadline_s=5,
    backoff_max_s=0.2,
)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with serving(fake) as (_, target), connect(target, CONFIG) as client:
        yield client


def test_one_batch_for_each_in_order_exactly_once(client: Client) -> None:
    batches = list(client.stream(inputs(20), PROJECTION))
    assert [len(batch) for batch in batches] == [3] * 20
    assert users(batches) == list(range(60))
    assert list(client.stream([], PROJECTION)) == []
    assert_no_thread_left()


def test_large_batches_are_requested_in_pieces(fake: Fake, client: Client) -> None:
    batches = list(client.stream(inputs(3, examples=10), PROJECTION))
    assert users(batches) == list(range(30))
    assert [len(received) for received in fake.received] == [4, 4, 2] * 3
    fake.received.clear()
    (batch,) = (client.materialize(rows, PROJECTION) for rows in inputs(1, examples=10))
    assert users([batch]) == list(range(10))
    assert [len(received) for received in fake.received] == [4, 4, 2]
    assert len(client.materialize(Pointers(user_ids=[], end_ts=[]), PROJECTION)) == 0


def test_the_input_is_pulled_no_further_than_the_pipeline_is_deep(client: Client) -> None:
    pulled = 0

    def counting() -> Iterator[Pointers]:
        nonlocal pulled
        for rows in inputs(50):
            pulled += 1
            yield rows

    stream = client.stream(counting(), PROJECTION)
    assert pulled == 0
    for delivered in range(1, 11):
        next(stream)
        assert pulled < delivered + CONFIG.requests_in_flight
    stream.close()


def test_answers_that_are_there_do_not_wait_for_a_slow_input(fake: Fake) -> None:
    pulled = 0

    def slow() -> Iterator[Pointers]:
        nonlocal pulled
        for rows in inputs(30):
            pulled += 1
            time.sleep(0.05)
            yield rows

    with serving(fake) as (_, target), connect(target, ClientConfig()) as client:
        stream = client.stream(slow(), PROJECTION)
        for delivered in range(1, 11):
            next(stream)
            assert pulled < delivered + ClientConfig().requests_in_flight / 4
        stream.close()


@pytest.mark.parametrize("answers", [0, 1, 5])
def test_a_stream_survives_a_server_that_fails(fake: Fake, client: Client, answers: int) -> None:
    fake.die_after = answers
    assert users(list(client.stream(inputs(20), PROJECTION))) == list(range(60))
    assert fake.die_after is None


def test_a_stream_survives_a_server_that_is_killed_and_started_again(fake: Fake) -> None:
    fake.pause_s = 0.01
    with serving(fake) as (server, target), connect(target, CONFIG) as client:
        stream = client.stream(inputs(20), PROJECTION)
        batches = list(itertools.islice(stream, 5))
        server.stop(None).wait()
        with serving(fake, target):
            batches += stream
    assert users(batches) == list(range(60))
    assert_no_thread_left()


def test_a_stream_goes_on_at_the_next_replica() -> None:
    first, second = Fake(), Fake()
    with (
        serving(first) as (server, target),
        serving(second) as (_, other),
        connect([target, other], CONFIG) as client,
    ):
        stream = client.stream(inputs(20), PROJECTION)
        batches = list(itertools.islice(stream, 5))
        assert not second.received
        server.stop(None).wait()
        batches += stream
        assert users(batches) == list(range(60))
        assert second.received
        assert client.describe_store().generation == 7


def test_a_replica_that_is_not_there_is_passed_over(fake: Fake) -> None:
    with serving(fake) as (_, target), connect(["localhost:1", target], CONFIG) as client:
        assert users([client.materialize(next(inputs(1)), PROJECTION)]) == [0, 1, 2]


def test_retries_end() -> None:
    config = ClientConfig(retry_deadline_s=0.3, backoff_max_s=0.1)
    with connect("localhost:1", config) as client:
        assert "localhost:1" in repr(client)
        for call in (
            client.describe_store,
            lambda: client.materialize(next(inputs(1)), PROJECTION),
            lambda: list(client.stream(inputs(1), PROJECTION)),
        ):
            with pytest.raises(UnavailableError, match="localhost:1"):
                call()
    assert_no_thread_left()


@pytest.mark.parametrize("examples_max", [1, 2, 3])
def test_a_request_too_large_is_halved(fake: Fake, client: Client, examples_max: int) -> None:
    fake.examples_max = examples_max
    assert users(list(client.stream(inputs(6, examples=7), PROJECTION))) == list(range(42))
    (batch,) = (client.materialize(rows, PROJECTION) for rows in inputs(1, examples=7))
    assert users([batch]) == list(range(7))


def test_one_example_too_large_is_an_error(fake: Fake, client: Client) -> None:
    fake.examples_max = 0
    with pytest.raises(AnswerTooLargeError, match="fewer"):
        client.materialize(next(inputs(1)), PROJECTION)
    with pytest.raises(AnswerTooLargeError, match="fewer"):
        list(client.stream(inputs(2), PROJECTION))
    assert_no_thread_left()


def test_an_answer_that_does_not_come_is_a_deadline_error(fake: Fake, client: Client) -> None:
    fake.pause_s = 0.5
    with pytest.raises(DeadlineError, match="deadline"):
        client.materialize(next(inputs(1)), PROJECTION, deadline_s=0.1)
    with pytest.raises(DeadlineError, match="No answer"):
        list(client.stream(inputs(2), PROJECTION, deadline_s=0.1))
    assert_no_thread_left()


def test_the_deadline_is_for_each_answer_and_not_for_the_caller(fake: Fake, client: Client) -> None:
    fake.pause_s = 0.1
    stream = client.stream(inputs(5), PROJECTION, deadline_s=2)
    batches = [next(stream)]
    time.sleep(2.1)
    batches += stream
    assert users(batches) == list(range(15))


@pytest.mark.parametrize(
    ("code", "name", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", RequestError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", TooManyCallsError),
        (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TENANT", UnknownTenantError),
        (grpc.StatusCode.DATA_LOSS, "STORE_CORRUPT", StoreCorruptError),
        (grpc.StatusCode.INTERNAL, "INTERNAL", ThinRowError),
    ],
)
def test_what_a_server_refuses_is_not_retried(
    fake: Fake, client: Client, code: grpc.StatusCode, name: str, error: type[ThinRowError]
) -> None:
    for call in (
        lambda: client.materialize(next(inputs(1)), "tenant"),
        lambda: list(client.stream(inputs(9), "tenant")),
    ):
        fake.received.clear()
        fake.failures = [(code, name)]
        with pytest.raises(error, match=f"because of {name}") as caught:
            call()
        assert type(caught.value) is error
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        assert len(fake.received) == 1
    assert_no_thread_left()


def test_an_answer_to_another_request_is_refused(fake: Fake, client: Client) -> None:
    fake.skew = 1
    with pytest.raises(ThinRowError, match="cursor"):
        list(client.stream(inputs(2), PROJECTION))


def test_leaving_early_leaves_no_thread(client: Client) -> None:
    for leave in ("close", "forget", "raise"):
        stream = client.stream(inputs(50), PROJECTION)
        next(stream)
        assert own_threads()
        if leave == "close":
            stream.close()
        elif leave == "raise":
            with pytest.raises(KeyboardInterrupt):
                stream.throw(KeyboardInterrupt)
        del stream
        gc.collect()
        assert_no_thread_left()


def test_what_the_input_raises_ends_the_stream(client: Client) -> None:
    def failing() -> Iterator[Pointers]:
        yield from inputs(2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.stream(failing(), PROJECTION))
    assert_no_thread_left()


def test_inspect_and_the_raw_stub(client: Client) -> None:
    assert client.inspect(4, 5, PROJECTION).event_count == 9
    assert client.stub.DescribeStore(wire.DescribeStoreRequest(), timeout=60).generation == 7


def test_the_token_goes_along_and_is_not_shown(fake: Fake) -> None:
    tokens = iter(["for the map", "first", "second"])
    config = ClientConfig(token=lambda: next(tokens))
    with serving(fake) as (_, target), connect(target, config) as client:
        for token in ("first", "second"):
            client.materialize(next(inputs(1)), PROJECTION)
            assert fake.metadata["authorization"] == f"Bearer {token}"
    assert "lambda" not in repr(config)
    assert "secret" not in repr(ClientConfig(token="secret"))  # noqa: S106


def test_bounds_are_checked() -> None:
    with pytest.raises(UsageError, match="requests_in_flight"):
        ClientConfig(requests_in_flight=0)
    with pytest.raises(UsageError, match="HOST:PORT"):
        connect([])


@pytest.mark.parametrize("die_after", [None, 0, 1, 2, 3])
def test_an_empty_batch_brings_out_what_came_before(
    fake: Fake, client: Client, die_after: int | None
) -> None:
    """A source that waits for events must not keep what it gave before from being delivered."""
    fake.die_after = die_after
    pulled = 0

    def batches() -> Iterator[Pointers]:
        nonlocal pulled
        for mine in ([1], [], [2], [], [3]):
            pulled += 1
            yield Pointers(user_ids=mine, end_ts=[9] * len(mine))

    delivered: list[Batch] = []
    for batch in client.stream(batches(), PROJECTION):
        assert pulled == (2, 2, 4, 4, 5)[len(delivered)]
        delivered.append(batch)
    assert [users([batch]) for batch in delivered] == [[1], [], [2], [], [3]]
    assert fake.die_after is None


@pytest.mark.parametrize("target", ["", "localhost", "http://localhost:7878", "a:b"])
def test_what_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        connect(target)


def test_names_are_not_spelled_into_letters() -> None:
    with pytest.raises(UsageError, match=r"\('item_id',\)"):
        Projection(traits="item_id")  # type: ignore[arg-type]
