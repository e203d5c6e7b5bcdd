"""Each kind of failure of one of several online servers, and what its client makes of it."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from thinrow.client import ClientConfig, Projection
from thinrow.client.online import connect_online
from thinrow.client.online_topology import Topology
from thinrow.client.server_addresses import ServerAddress, is_name, parse_addresses
from thinrow.errors import (
    DeadlineError,
    LaggingError,
    PartitionMissingError,
    RequestError,
    StoreCorruptError,
    StoreError,
    ThinRowError,
    TooManyCallsError,
    UnavailableError,
)
from thinrow.v1 import materialization_pb2 as store
from thinrow.v1 import online_pb2 as wire
from thinrow.v1 import online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client.online import OnlineClient

ALL = Projection()
QUICK = ClientConfig(retry_deadline_s=0, silence_timeout_s=0.5, hedged_share=0)
"""Requests each replica once, and the second one only if the first fails or is silent."""
PARTITIONS = 4
DEAD = "127.0.0.1:1"
CODES = {
    StoreCorruptError: grpc.StatusCode.DATA_LOSS,
    StoreError: grpc.StatusCode.INTERNAL,
    TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
}


class Fake(online_pb2_grpc.OnlineServiceServicer):
    """Knows no events; fails, waits or stays silent as it is set to."""

    def __init__(self) -> None:
        self.partitions = range(PARTITIONS)
        self.lag_ms = 0
        self.failure: type[ThinRowError] | None = None
        self.pause_s = 0.0
        self.is_silent = False
        self.over = threading.Event()
        self.requests = 0
        self.batches: list[wire.EventBatch] = []

    def _act(self) -> wire.CallError | None:
        self.requests += 1
        time.sleep(self.pause_s)
        if self.is_silent:
            self.over.wait()
        if self.failure is None:
            return None
        code = CODES.get(self.failure, grpc.StatusCode.UNAVAILABLE)
        return wire.CallError(code=code.value[0], name=self.failure.name, message="It fails.")

    def DescribeTier(  # noqa: N802
        self,
        request: wire.DescribeTierRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> wire.DescribeTierResponse:
        if self.is_silent:
            self.over.wait()
        return wire.DescribeTierResponse(
            topic="t",
            partition_count=PARTITIONS,
            partitions=[
                wire.TierPartition(number=number, lag_ms=self.lag_ms) for number in self.partitions
            ],
        )

    def SnapshotStream(  # noqa: N802
        self,
        requests: Iterator[wire.SnapshotStreamRequest],
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> Iterator[wire.SnapshotStreamResponse]:
        for message in requests:
            answers = []
            for one in message.requests:
                error = self._act()
                response = wire.SnapshotResponse(
                    request_ts=1, as_of_ts=1, immutable=nothing(1), lag_ms=self.lag_ms
                )
                answer = wire.StreamedAnswer(cursor=one.cursor, response=response)
                if error is not None:
                    answer = wire.StreamedAnswer(cursor=one.cursor, error=error)
                answers.append(answer)
            yield wire.SnapshotStreamResponse(answers=answers)

    def SnapshotBatch(  # noqa: N802
        self, request: wire.SnapshotBatchRequest, context: grpc.ServicerContext
    ) -> wire.SnapshotBatchResponse:
        error = self._act()
        if error is not None:
            context.set_trailing_metadata((("thinrow-error", error.name),))
            context.abort(CODES.get(self.failure or ThinRowError, grpc.StatusCode.UNAVAILABLE), "x")
        users = len(request.user_ids)
        return wire.SnapshotBatchResponse(
            request_ts=1,
            digests=[0] * users,
            mutable_lengths=[0] * users,
            immutable=nothing(users),
        )

    def AppendEvents(  # noqa: N802
        self, requests: Iterator[wire.AppendEventsRequest], context: grpc.ServicerContext
    ) -> Iterator[wire.AppendEventsResponse]:
        for request in requests:
            self.batches.append(request.events)
            if self._act() is not None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "x")
            yield wire.AppendEventsResponse(cursor=request.cursor, appended=1)


def nothing(users: int) -> store.MaterializeResponse:
    return store.MaterializeResponse(
        statuses=[store.STATUS_OK] * users,
        view_starts=[0] * users,
        view_lengths=[0] * users,
        truncation=store.TRUNCATION_NEWEST,
    )


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    online_pb2_grpc.add_OnlineServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        fake.over.set()
        server.stop(None).wait()


@contextmanager
def pair(config: ClientConfig = QUICK) -> Iterator[tuple[OnlineClient, Fake, Fake]]:
    """A client, the server that has its partition first, and the other one."""
    fakes = [Fake(), Fake()]
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(fake)) for fake in fakes]
        client = stack.enter_context(connect_online(addresses, config))
        for _ in range(40):  # whose times are then known
            client.snapshot(1, ALL)
        first, second = sorted(fakes, key=lambda fake: -fake.requests)
        first.requests = second.requests = 0
        yield client, first, second


@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError,
        StoreError,
        StoreCorruptError,
        TooManyCallsError,
        LaggingError,
        PartitionMissingError,
    ],
)
def test_what_another_replica_may_answer_goes_there(failure: type[ThinRowError]) -> None:
    with pair() as (client, first, second):
        first.failure = failure
        assert client.snapshot(1, ALL).batch.statuses.tolist() == [1]
        assert client.snapshot_batch([1, 1], ALL).batch.statuses.tolist() == [1, 1]
        assert second.requests >= 2 and client.routing.failovers >= 1
        # Once both have failed, the error is that of the last one, or of the lag.
        second.failure = failure
        with pytest.raises(failure):
            client.snapshot(1, ALL)
        with pytest.raises(failure):
            client.snapshot_batch([1], ALL)
        first.failure = None
        assert client.snapshot(1, ALL).batch.statuses.tolist() == [1]


def test_what_fails_everywhere_is_requested_once() -> None:
    with pair() as (client, first, second):
        first.failure = second.failure = RequestError
        with pytest.raises(RequestError, match="It fails"):
            client.snapshot(1, ALL)
        assert first.requests + second.requests == 1


def test_a_bound_on_the_lag_is_reported_at_once_and_a_moment_is_waited_for() -> None:
    with pair(ClientConfig(retry_deadline_s=60, hedged_share=0)) as (client, first, second):
        first.failure = second.failure = LaggingError
        with pytest.raises(LaggingError, match="has come far enough"):
            client.snapshot(1, ALL)
        assert (first.requests, second.requests) == (1, 1)
        later = threading.Timer(0.5, lambda: setattr(first, "failure", None))
        later.start()
        assert client.snapshot(1, ALL, request_ts=1).batch.statuses.tolist() == [1]
        later.join()


def test_slow_answers_are_hedged_within_the_budget() -> None:
    with pair(ClientConfig()) as (client, first, second):
        first.pause_s = 0.3
        client.snapshot(1, ALL)
        assert client.routing.hedges >= 1 and second.requests >= 1
    with pair() as (client, first, second):
        first.pause_s = 0.3
        client.snapshot(1, ALL)
        assert client.routing.hedges == second.requests == 0


def test_a_silent_server_is_left_by_all_that_wait_on_its_stream() -> None:
    with pair() as (client, first, second), futures.ThreadPoolExecutor(8) as pool:
        first.is_silent = True
        seen = list(pool.map(lambda _: client.snapshot(1, ALL), range(8)))
        assert len(seen) == 8 and second.requests >= 8
        assert client.snapshot_batch([1], ALL).batch.statuses.tolist() == [1]
        second.is_silent = True
        with pytest.raises((DeadlineError, UnavailableError)):
            client.snapshot(1, ALL, deadline_s=0.3)


def test_a_replica_that_lags_more_than_another_is_requested_last() -> None:
    with pair() as (client, first, second):
        first.lag_ms = 60_000
        client.snapshot(1, ALL)  # whose answer says so
        first.requests = 0
        client.snapshot(1, ALL)
        assert (first.requests, second.requests) == (0, 1)


def batch(*ids: int | None) -> wire.EventBatch:
    """Events of one user, whose ids may be absent."""
    present = sum((one is not None) << place for place, one in enumerate(ids))
    column = store.Column(
        trait="event_id",
        type=store.TRAIT_TYPE_INT64,
        vector_size=1,
        nullable=True,
        present=bytes([present]),
        bases=[7],
        widths=b"\0",
    )
    return wire.EventBatch(user_ids=[1] * len(ids), columns=[column])


@pytest.mark.parametrize("fails", ["refuses", "is silent"])
def test_batches_go_elsewhere_only_where_they_count_once(fails: str) -> None:
    with pair() as (client, first, second):
        first.failure = UnavailableError if fails == "refuses" else None
        first.is_silent = fails != "refuses"
        second.failure, second.is_silent = first.failure, first.is_silent
        for events in (batch(1, None), wire.EventBatch(user_ids=[1])):
            with pytest.raises((DeadlineError, UnavailableError)):
                list(client.append_all([events]))
            assert len(first.batches) + len(second.batches) == 1
            first.batches.clear()
            second.batches.clear()
        # Each of the batches without an answer, in order, wherever it is sent.
        used = []

        def feed() -> Iterator[wire.EventBatch]:
            for number in range(1, 4):
                yield batch(*[7] * number)
                used.append(number)

        threading.Timer(0.3, lambda: heal(second)).start()
        heal(first)
        assert [each.appended for each in client.append_all(feed())] == [1, 1, 1]


def heal(fake: Fake) -> None:
    fake.failure, fake.is_silent = None, False
    fake.over.set()


def test_a_failure_between_batches_resends_what_has_no_answer() -> None:
    with pair() as (client, first, second):
        sent = [batch(*[7] * number) for number in range(1, 6)]

        def feed() -> Iterator[wire.EventBatch]:
            yield from sent[:2]
            while len(first.batches) + len(second.batches) < 2:
                time.sleep(0.01)
            used = first if first.batches else second
            used.failure = UnavailableError
            yield from sent[2:]

        assert [each.appended for each in client.append_all(feed())] == [1] * 5
        other = second if first.failure else first
        assert [len(each.user_ids) for each in other.batches][-3:] == [3, 4, 5]


def test_events_without_ids_go_past_a_server_that_is_not_there() -> None:
    fake = Fake()
    with serving(fake) as address:
        for _ in range(4):  # whichever comes first
            with connect_online([DEAD, address], QUICK) as client:
                [appended] = client.append_all([wire.EventBatch(user_ids=[1])])
                assert appended.appended == 1
        assert len(fake.batches) == 4


def test_batches_go_to_as_few_servers_as_read_their_partitions() -> None:
    addresses = [ServerAddress(f"127.0.0.1:{port}") for port in (1, 2, 3)]
    topology = Topology([], addresses, ClientConfig())
    for server, read in zip(topology.servers, ((0, 1), (1, 2, 3), (3,)), strict=True):
        server.lags_ms = dict.fromkeys(read, 0)
    assert topology.assign([1]) == [(1,)]
    assert sorted(topology.assign([0, 1, 2, 3])) == [(0,), (1, 2, 3)]
    assert sorted(topology.assign([0, 9])) == [(0,), (9,)]
    topology.servers[1].health.failed()
    assert sorted(topology.assign([0, 1, 2, 3])) == [(0, 1), (2,), (3,)]
    topology.close()


def test_partitions_of_one_that_fails_are_divided_among_several() -> None:
    whole, *halves = fakes = [Fake(), Fake(), Fake()]
    halves[0].partitions, halves[1].partitions = range(2), range(2, PARTITIONS)
    users = list(range(1, 41))
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(fake)) for fake in fakes]
        client = stack.enter_context(connect_online(addresses, QUICK))
        assert len(client.snapshot_batch(users, ALL).thin_rows) == len(users)
        assert [fake.requests for fake in fakes] == [1, 0, 0]
        whole.failure = UnavailableError
        rows = client.snapshot_batch(users, ALL).thin_rows
        assert [row.user_id for row in rows] == users
        assert all(fake.requests == 1 for fake in halves)
        halves[1].failure = UnavailableError
        with pytest.raises(UnavailableError):
            client.snapshot_batch(users, ALL)


def test_addresses() -> None:
    assert parse_addresses("a:1, b:2,a:1") == ("a:1", "b:2")
    assert parse_addresses(["[::1]:1", "unix:/x"]) == ("[::1]:1", "unix:/x")
    names = {"a:1": True, "dns:///a.b:1": True, "localhost:1": True, "127.0.0.1:1": False}
    names |= {"[::1]:1": False, "unix:/a:1": False, "ipv4:127.0.0.1:1": False}
    assert {name: is_name(name) for name in names} == names
