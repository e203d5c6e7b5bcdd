"""Requests to the servers of a topic: each goes to a replica that reads the user's partition.

Every request is a pure read, so it may be repeated anywhere: at once at another replica if one
fails, refuses or is silent; at another one as well if the first takes long, within a budget; and
after a pause once all have failed.
"""

from __future__ import annotations

import math
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc
import numpy as np
from thinrow.client.grpc_errors import was_not_sent
from thinrow.client.hedging import Hedging
from thinrow.client.online_stream import no_answer
from thinrow.client.online_topology import Topology, silent
from thinrow.client.retries import Retries
from thinrow.client.snapshots import BatchPart
from thinrow.core.shards import shard_of, xxh3_of
from thinrow.core.user_keys import key_of
from thinrow.errors import (
    LaggingError,
    PartitionMissingError,
    StoreError,
    ThinRowError,
    TooManyCallsError,
    UnavailableError,
)
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from thinrow.client.online_replica import OnlineReplica
    from thinrow.v1 import online_pb2_grpc

__all__ = ["OnlineReplicas", "OnlineRouting"]

ELSEWHERE = (LaggingError, PartitionMissingError, StoreError, TooManyCallsError, UnavailableError)
"""Errors of a server that another one may not have."""
STREAM_SILENCE_S_MAX = 1.0
"""Longest silence on a stream, on which answers of many requests come, before it is left."""
RECHECK_S = 0.1
"""Pause before a replica that takes long is looked at again."""
PARTS_MAX = 16
"""Most servers that parts of one client's batches are requested from side by side."""


class OnlineRouting(NamedTuple):
    """Numbers of what a client of several servers did so far."""

    servers: int
    """Servers that it is connected to."""
    hedges: int
    """Requests that were sent to another replica, too, because the first one took long."""
    failovers: int
    """Requests that were sent to another replica because one failed, refused or was silent."""


class Operation(Protocol):
    """One request, as it is sent to any server."""

    @property
    def silence_s_max(self) -> float:
        """Longest silence of a server before another one gets the request, whatever the budget."""

    def start(
        self, server: OnlineReplica, deadline_s: float, deliver: Callable[[Any], None]
    ) -> Callable[[], object] | None:
        """Sends it; `deliver` gets what arrives. Returns what cancels it, if anything does."""

    def result(self, server: OnlineReplica, arrived: Any) -> Any:  # noqa: ANN401
        """Returns the response in what has arrived, or raises the error in its place."""


class StreamedSnapshot(NamedTuple):
    """A request on the stream of a server."""

    request: online_pb2.SnapshotRequest
    silence_s_max: float = STREAM_SILENCE_S_MAX

    def start(
        self, server: OnlineReplica, deadline_s: float, deliver: Callable[[Any], None]
    ) -> None:
        """Sends it with the next message of the stream."""
        server.stream.send(self.request, deadline_s, deliver)

    def result(self, server: OnlineReplica, arrived: Any) -> Any:  # noqa: ANN401
        """Returns the response, or raises."""
        return server.stream.response(arrived)


class UnaryCall(NamedTuple):
    """A call of its own."""

    method: str
    request: Any
    silence_s_max: float = math.inf

    def start(
        self, server: OnlineReplica, deadline_s: float, deliver: Callable[[Any], None]
    ) -> Callable[[], object]:
        """Starts the call."""
        call = server.start(self.method, self.request, deadline_s)
        call.add_done_callback(deliver)
        cancel: Callable[[], object] = call.cancel
        return cancel

    def result(self, server: OnlineReplica, arrived: Any) -> Any:  # noqa: ANN401
        """Returns the response, or raises."""
        try:
            return arrived.result()
        except grpc.RpcError as error:
            raise server.failure(error) from error
        except grpc.FutureCancelledError:
            server.check_open()
            raise UnavailableError(f"The call to {server.target} was cancelled.") from None


class OnlineReplicas:
    """Calls the servers of one topic. Thread-safe. Methods are those of `OnlineReplica`."""

    def __init__(self, topology: Topology) -> None:
        self.config = topology.config
        self._topology = topology
        share = self.config.hedged_share
        self._snapshots, self._batches, self._calls = Hedging(share), Hedging(share), Hedging(0)
        self._pool = ThreadPoolExecutor(PARTS_MAX, "thinrow-batches")
        self._hedges = self._failovers = 0

    @property
    def target(self) -> str:
        """The servers, for people."""
        return ", ".join(server.target for server in self._topology.servers)

    @property
    def stub(self) -> online_pb2_grpc.OnlineServiceStub:
        """The generated stub of the server that is best now."""
        return self._topology.replicas()[0].stub

    @property
    def routing(self) -> OnlineRouting:
        """Numbers of what was done so far."""
        return OnlineRouting(len(self._topology.servers), self._hedges, self._failovers)

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""
        self._topology.check_open()

    def close(self) -> None:
        """Closes all connections; calls in flight fail."""
        self._topology.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def call(self, method: str, request: object, deadline_s: float) -> Any:  # noqa: ANN401
        """Makes a unary call of whichever server answers."""
        if method != "DescribeTier":
            self._topology.described()
        return self._retried((), UnaryCall(method, request), deadline_s, self._calls)

    def snapshot(
        self, request: online_pb2.SnapshotRequest, deadline_s: float
    ) -> online_pb2.SnapshotResponse:
        """Requests the snapshot of one user."""
        user = request.user_text if request.HasField("user_text") else request.user_id
        answer: online_pb2.SnapshotResponse
        answer = self._retried(
            (self._partition(user),),
            StreamedSnapshot(request),
            deadline_s,
            self._snapshots,
            is_dated=request.request_ts > 0,
        )
        return answer

    def snapshot_batch(
        self, request: online_pb2.SnapshotBatchRequest, deadline_s: float
    ) -> list[BatchPart]:
        """Requests the snapshots of several users, of as few servers as read their partitions.

        Each answers at a moment of its own, unless the request gives one.
        """
        until_s, retries = time.monotonic() + deadline_s, Retries(self.config)
        self.check_open()
        users: list[Any] = list(request.user_texts or request.user_ids)
        pending: dict[int, list[int]] = {}
        for place, number in enumerate(self._partitions(request)):
            pending.setdefault(number, []).append(place)
        pending = pending or {0: []}  # an empty batch, too, has a response
        parts: list[BatchPart] = []
        divisions = 0

        def answered(partitions: tuple[int, ...]) -> BatchPart | ThinRowError:
            places = sorted(place for number in partitions for place in pending[number])
            part = online_pb2.SnapshotBatchRequest()
            part.CopyFrom(request)
            field = "user_texts" if request.user_texts else "user_ids"
            part.ClearField(field)
            getattr(part, field).extend([users[place] for place in places])
            operation = UnaryCall("SnapshotBatch", part)
            try:
                answer = self._answered(partitions, operation, until_s, self._batches)
            except ELSEWHERE as error:
                return error
            return BatchPart(places, answer)

        while pending:
            assigned = self._topology.assign(pending)
            if len(assigned) == 1:
                outcomes = [answered(assigned[0])]
            else:
                outcomes = list(self._pool.map(answered, assigned))
            failure: ThinRowError | None = None
            for partitions, outcome in zip(assigned, outcomes, strict=True):
                if isinstance(outcome, ThinRowError):
                    failure = outcome
                    continue
                parts.append(outcome)
                for number in partitions:
                    del pending[number]
            if failure is None:
                continue
            divisions += 1
            again = self._topology.assign(pending)
            # Several others may read the partitions of one that failed, each a part of them.
            if divisions > len(self._topology.servers) or set(again) <= set(assigned):
                self._pause(retries, failure, until_s, is_dated=request.request_ts > 0)
        return parts

    def for_appends(self, tried: Collection[OnlineReplica]) -> OnlineReplica | None:
        """Returns the best server to append to that was not tried; any produces every partition."""
        self._topology.described()
        left = (server for server in self._topology.replicas() if server not in tried)
        return next(left, None)

    def _partitions(self, request: online_pb2.SnapshotBatchRequest) -> list[int]:
        """Returns the partition of each user of a batch."""
        if request.user_texts:
            return [self._partition(user) for user in request.user_texts]
        count = self._topology.described().partition_count
        numbers: list[int] = shard_of(np.array(request.user_ids, np.int64), count).tolist()
        return numbers

    def _partition(self, user: int | str) -> int:
        return xxh3_of(key_of(user)) % self._topology.described().partition_count

    def _retried(
        self,
        partitions: Collection[int],
        operation: Operation,
        deadline_s: float,
        hedging: Hedging,
        *,
        is_dated: bool = False,
    ) -> Any:  # noqa: ANN401
        """Sends a request to the replicas of partitions, and again after a pause if all failed."""
        until_s = time.monotonic() + deadline_s
        retries: Retries | None = None
        while True:
            try:
                return self._answered(partitions, operation, until_s, hedging)
            except ELSEWHERE as error:
                retries = retries or Retries(self.config)
                self._pause(retries, error, until_s, is_dated=is_dated)

    def _pause(
        self, retries: Retries, failure: ThinRowError, until_s: float, *, is_dated: bool
    ) -> None:
        """Waits before the next attempt; raises the failure if there is none.

        A bound on the lag is the caller's decision, so it is reported at once; a moment that
        replicas have not come to yet is near.
        """
        self._topology.refresh_soon()
        is_final = isinstance(failure, LaggingError) and not is_dated
        if is_final or time.monotonic() >= until_s or not retries.pause(failure):
            raise failure

    def _answered(
        self,
        partitions: Collection[int],
        operation: Operation,
        until_s: float,
        hedging: Hedging,
    ) -> Any:  # noqa: ANN401
        """Sends a request to each replica of partitions at most once; returns the first response.

        Raises:
            UnavailableError: No server reads the partitions, or none of those that do answered.
            ThinRowError: Another error of the last one.
        """
        left = self._topology.replicas(partitions)
        if not left:
            raise self._unread(partitions)
        attempts = _Attempts(operation, until_s)
        try:
            attempts.start(left.pop(0))
            hedging.sent()
            wait_s = hedging.after_s
            while True:
                arrived = attempts.wait(wait_s if left else until_s - attempts.sent_s)
                if arrived is not None:
                    server, answer, latency_s = arrived
                    if not isinstance(answer, ThinRowError):
                        server.health.answered()
                        hedging.answered(latency_s)
                        if partitions:
                            server.lags(partitions, answer.lag_ms)
                        return answer
                    self._note(server, partitions, answer)
                    if not isinstance(answer, ELSEWHERE):
                        raise answer
                    if attempts.in_flight:
                        continue
                    if not left:
                        raise self._failure(attempts.failures)
                    self._failovers += 1
                elif time.monotonic() >= until_s:
                    raise no_answer(attempts.waited_s)
                elif attempts.latest.health.has_failed or attempts.is_silent(
                    min(hedging.silence_s, operation.silence_s_max)
                ):
                    self._leave(attempts.latest, operation)
                    self._failovers += 1
                elif self.config.hedged_share and hedging.acquire():
                    self._hedges += 1
                else:
                    wait_s = time.monotonic() - attempts.sent_s + RECHECK_S
                    continue
                attempts.start(left.pop(0))
                wait_s = hedging.after_s
        finally:
            attempts.cancel()

    def _leave(self, server: OnlineReplica, operation: Operation) -> None:
        """Leaves a server that is silent: what waits on its stream goes elsewhere at once."""
        if server.health.has_failed:
            return
        if not isinstance(operation, StreamedSnapshot):
            self._topology.refresh_soon()  # it may be at work, or silent
        else:
            failure = silent(server)
            self._topology.failed(server, failure)
            server.stream.abandon(failure)

    def _note(
        self, server: OnlineReplica, partitions: Collection[int], failure: ThinRowError
    ) -> None:
        """Records what an error says about a server."""
        if isinstance(failure, LaggingError):
            server.lags(partitions)
        elif isinstance(failure, PartitionMissingError):
            self._topology.refresh_soon()
        elif isinstance(failure, UnavailableError | StoreError) and not server.health.has_failed:
            self._topology.failed(server, failure)

    def _failure(self, failures: list[tuple[OnlineReplica, ThinRowError]]) -> ThinRowError:
        """Returns one error for those of all replicas."""
        self.check_open()
        names = ", ".join(server.target for server, _ in failures)
        for _, failure in failures:
            if isinstance(failure, LaggingError):
                return LaggingError(f"No replica of {names} has come far enough: {failure}")
        last = failures[-1][1]
        if len(failures) == 1 or not isinstance(last, UnavailableError):
            return last
        if all(was_not_sent(failure) for _, failure in failures):
            return UnavailableError(
                f"No server answers at {names}; check the addresses, and that `thinrow online` "
                f"runs there."
            )
        return type(last)(f"No server of {names} has answered: {last}")

    def _unread(self, partitions: Collection[int]) -> UnavailableError:
        described = self._topology.described()
        shown = ", ".join(map(str, sorted(partitions)))
        return UnavailableError(
            f"None of the servers {self.target} that answer reads partition {shown} of topic "
            f"{described.topic}; start one whose --partitions include it, or name its address."
        )


class _Attempts:
    """The attempts of one request, each at another server."""

    def __init__(self, operation: Operation, until_s: float) -> None:
        self._operation = operation
        self._until_s = until_s
        self._began_s = time.monotonic()
        self._arrived: queue.SimpleQueue[tuple[OnlineReplica, Any]] = queue.SimpleQueue()
        self._cancel: list[Callable[[], object]] = []
        self.in_flight: dict[OnlineReplica, float] = {}
        """Servers that have not answered, and when the request was sent to each."""
        self.failures: list[tuple[OnlineReplica, ThinRowError]] = []
        self.latest: OnlineReplica
        """The server that got the request last."""
        self.sent_s = 0.0
        """Time at which it did."""

    @property
    def waited_s(self) -> float:
        """Time since the first attempt."""
        return time.monotonic() - self._began_s

    def start(self, server: OnlineReplica) -> None:
        """Sends the request to a server."""
        self.latest, self.sent_s = server, time.monotonic()
        self.in_flight[server] = self.sent_s
        deliver = partial(_put, self._arrived, server)
        try:
            cancel = self._operation.start(server, self._until_s - self.sent_s, deliver)
        except ThinRowError as error:
            deliver(error)
        else:
            if cancel is not None:
                self._cancel.append(cancel)

    def wait(self, latest_s: float) -> tuple[OnlineReplica, Any, float] | None:
        """Waits until something arrives, or the latest attempt has taken so long.

        Returns:
            The server, its response or error, and the time that it took.
        """
        end_s = min(self.sent_s + latest_s, self._until_s)
        try:
            server, arrived = self._arrived.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            return None
        latency_s = time.monotonic() - self.in_flight.pop(server)
        try:
            if isinstance(arrived, ThinRowError):
                raise arrived
            return server, self._operation.result(server, arrived), latency_s
        except ThinRowError as error:
            self.failures.append((server, error))
            return server, error, latency_s

    def is_silent(self, silence_s: float) -> bool:
        """Returns True if nothing came from the latest server for so long."""
        heard_s = max(self.sent_s, self.latest.stream.arrived_s)
        return time.monotonic() - heard_s >= silence_s

    def cancel(self) -> None:
        """Cancels what is in flight."""
        for cancel in self._cancel:
            cancel()


def _put(
    arrived: queue.SimpleQueue[tuple[OnlineReplica, Any]], server: OnlineReplica, answer: object
) -> None:
    arrived.put((server, answer))
