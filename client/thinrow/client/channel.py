"""Channels to the replicas of one group: options, credentials and calls."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from thinrow.client.calls import describe_cluster, materialize
from thinrow.client.closable import CLOSED, ClosableChannel
from thinrow.client.connections import Connections
from thinrow.client.counting_channel import CountingChannel
from thinrow.client.credentials import bearer_metadata
from thinrow.client.grpc_errors import ShardElsewhereError, translate
from thinrow.client.hedging import Hedging
from thinrow.client.replica_health import ReplicaHealth
from thinrow.client.retries import Patience, Retries
from thinrow.core.tracing import traced_call
from thinrow.core.wire.response import Response
from thinrow.errors import DeadlineError, UnavailableError, UsageError
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message
    from thinrow.client.config import ClientConfig
    from thinrow.core.lookup.batch_lookup import RequestSlice
    from thinrow.errors import ThinRowError

__all__ = ["Channels", "check_token", "is_local", "open_channel"]

T = TypeVar("T")

# A default server takes pings closer than 5 minutes for abuse and hangs up.
KEEPALIVE_INTERVAL_MS = 360_000
KEEPALIVE_TIMEOUT_MS = 20_000
# Pause before a failed channel reconnects. Our own retries set the pace, so it is short.
RECONNECT_BACKOFF_MS_INITIAL = 100
RECONNECT_BACKOFF_MS_MAX = 1_000


class Channels:
    """One channel per replica; calls go to the current one until it is unavailable.

    The replicas are those of a store, in the order of preference, or of one group of a cluster.

    Args:
        targets: Addresses of the replicas.
        config: Limits, deadlines and credentials.
        first: Number of the replica to begin with, in a group of a cluster, where the replicas'
            health decides which one is next. None for replicas in the order of preference.
    """

    def __init__(
        self, targets: tuple[str, ...], config: ClientConfig, first: int | None = None
    ) -> None:
        self.targets = targets
        self.config = config
        self.current = first or 0
        self.health = None if first is None else ReplicaHealth(len(targets))
        self.hedging = (
            Hedging(config.hedged_share)
            if first is not None and len(targets) > 1 and config.hedged_share
            else None
        )
        self.find_elsewhere: Callable[[], bool] | None = None
        """Looks for a newer map if a shard is missing; returns True if there is one."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called once a replica of a cluster failed or is silent."""
        self.failovers = self.hedges = 0
        self.streams = 0
        """Streams, and calls, that keep a dropped group open until they end."""
        self._channels = [open_channel(target, config) for target in targets]
        self._stubs = [
            materialization_pb2_grpc.MaterializationServiceStub(CountingChannel(channel))  # type: ignore[no-untyped-call]
            for channel in self._channels
        ]
        self._extra_channels: list[ClosableChannel] = []
        self._closed = False
        self._lock = threading.Lock()

    def open_extra(self, replica: int) -> ClosableChannel:
        """Opens one more connection to a replica, until `release` or `close`."""
        with self._lock:
            self.check_open()
            channel = open_channel(self.targets[replica], self.config)
            self._extra_channels.append(channel)
        return channel

    def release(self, channel: ClosableChannel) -> None:
        """Closes an extra connection, if it is still open."""
        with self._lock:
            if channel in self._extra_channels:
                self._extra_channels.remove(channel)
        channel.close()

    @property
    def stub(self) -> materialization_pb2_grpc.MaterializationServiceStub:
        """The generated stub of the current replica."""
        self.check_open()
        return self._stubs[self.current]

    @property
    def channel(self) -> ClosableChannel:
        """The connection to the current replica."""
        self.check_open()
        return self._channels[self.current]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return bearer_metadata(self.config)

    def materialize(self, piece: RequestSlice, deadline_s: float) -> Response:
        """Returns the response about some examples."""

        def method(channels: Channels) -> Callable[..., bytes]:
            call = materialize(channels.channel)
            return traced_call(call, piece.lookup.tenant, len(piece.examples))

        return Response.read(self.call(method, piece.request(), deadline_s))

    def open_stream(self) -> Connections:
        """Opens a stream to the current replica."""
        return Connections(self)

    def inspect(self, request: wire.InspectRequest, deadline_s: float) -> wire.InspectResponse:
        """Returns one history, readable."""
        answer: wire.InspectResponse
        answer = self.call(lambda channels: channels.stub.Inspect, request, deadline_s)
        return answer

    def describe_store(self, deadline_s: float) -> wire.DescribeStoreResponse:
        """Returns a description of the store."""
        request = wire.DescribeStoreRequest()
        answer: wire.DescribeStoreResponse
        answer = self.call(lambda channels: channels.stub.DescribeStore, request, deadline_s)
        return answer

    def look_up_codes(
        self, request: wire.LookUpCodesRequest, deadline_s: float
    ) -> wire.LookUpCodesResponse:
        """Returns the codes of values in a vocabulary."""
        answer: wire.LookUpCodesResponse
        answer = self.call(lambda channels: channels.stub.LookUpCodes, request, deadline_s)
        return answer

    def fail_over(self, failed: int) -> None:
        """Switches to the replica after `failed`, unless another caller already has."""
        if self.health is not None:
            self.health.failed(failed)
        if self.current == failed:
            self.failovers += 1
            self.current = self.next_replica(failed)
        self.on_failure()

    @property
    def generation(self) -> int:
        """The newest generation known; 0 if none is."""
        return 0 if self.health is None else self.health.generation

    def next_replica(self, replica: int) -> int:
        """Returns the replica to request after another one; the same if there is no other."""
        if self.health is not None:
            return self.health.best(replica)
        return (replica + 1) % len(self.targets)

    def prefer_healthy(self) -> None:
        """Leaves a replica that failed recently or is a generation behind, if another is better."""
        if self.health is not None and self.health.is_last_choice(self.current):
            best = self.health.best(self.current)
            if not self.health.is_last_choice(best):
                self.failovers += self.health.has_failed(self.current)
                self.current = best

    def is_elsewhere(self, failure: ThinRowError) -> bool:
        """Returns True if a newer map says where a missing shard is, so that the caller follows it.

        It is read for that, if the failure is about a shard.
        """
        return (
            isinstance(failure, ShardElsewhereError)
            and self.find_elsewhere is not None
            and self.find_elsewhere()
        )

    def describe(self, replica: int, deadline_s: float) -> grpc.Future[bytes]:
        """Requests the description of the cluster from a replica; returns at once."""
        self.check_open()
        call: grpc.Future[bytes] = describe_cluster(self._channels[replica]).future(
            b"", timeout=deadline_s, metadata=self.metadata, wait_for_ready=False
        )
        return call

    def hedge(self, piece: RequestSlice, replica: int, deadline_s: float) -> grpc.Future[bytes]:
        """Requests some examples from another replica than the current one; returns at once."""
        self.check_open()
        self.hedges += 1
        call: grpc.Future[bytes] = materialize(self._channels[replica]).future(
            piece.request(), timeout=deadline_s, metadata=self.metadata, wait_for_ready=False
        )
        return call

    @contextmanager
    def in_use(self) -> Iterator[Self]:
        """Keeps the channels open until the block ends, also if the map drops the group."""
        with self._lock:
            self.streams += 1
        try:
            yield self
        finally:
            with self._lock:
                self.streams -= 1

    def call(
        self,
        method: Callable[[Channels], Callable[..., T]],
        request: Message | bytes,
        deadline_s: float,
    ) -> T:
        """Makes a unary call, and repeats it while the retries allow.

        Args:
            method: Returns the call to the current replica.
            request: The message.
            deadline_s: Time for a response, over all replicas.
        """
        retries, patience = Retries(self.config), Patience(self, deadline_s)
        while True:
            replica = self.current
            started_s = time.monotonic()
            try:
                return method(self)(
                    request,
                    timeout=patience.timeout_s(replica),
                    metadata=self.metadata,
                    wait_for_ready=False,
                )
            except grpc.RpcError as error:
                self.check_open()
                failure = translate(error, self.targets[replica])
                if self.is_elsewhere(failure):
                    raise failure from error
                if isinstance(failure, DeadlineError):
                    # Also on the last attempt, so that the next call starts at another replica.
                    self.fail_over(replica)
                    if patience.is_silent(replica, time.monotonic() - started_s):
                        continue
                if not retries.pause(failure):
                    raise failure from error
                self.fail_over(replica)

    @property
    def closed(self) -> bool:
        """True once it was closed."""
        return self._closed

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""
        if self._closed:
            raise UnavailableError(CLOSED)

    def interrupt(self) -> None:
        """Closes every channel: only that wakes a thread that waits for a server."""
        self.close()

    def close(self) -> None:
        """Closes every channel; calls in flight are cancelled."""
        with self._lock:
            self._closed = True
            extra, self._extra_channels = self._extra_channels, []
        for channel in (*self._channels, *extra):
            channel.close()


def check_token(target: str, config: ClientConfig) -> None:
    """Raises UsageError if a token would travel unencrypted to another machine."""
    if (
        config.token is not None
        and config.credentials is None
        and not config.allow_clear_token
        and not is_local(target)
    ):
        raise UsageError(
            f"The token would travel in the clear to {target}; give credentials for TLS, or "
            f"allow_clear_token where the network is trusted."
        )


def open_channel(target: str, config: ClientConfig, name: str = "") -> ClosableChannel:
    """Returns a channel, which connects when it is first used.

    Args:
        target: The server.
        config: Limits, deadlines and credentials.
        name: HOST:PORT by which the server's certificate knows it; empty if the target says so.

    Raises:
        UsageError: A token would travel unencrypted to another machine.
    """
    check_token(target, config)
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", config.request_bytes_max),
        ("grpc.max_receive_message_length", config.response_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        # Also the time limit of one attempt to connect.
        ("grpc.min_reconnect_backoff_ms", int(config.connect_timeout_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_INITIAL),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MAX),
        # Otherwise all clients of a process share one connection, and one server's thread.
        ("grpc.use_local_subchannel_pool", 1),
        # Only this client knows which responses were delivered.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
    ]
    if name:
        options += [("grpc.default_authority", name)]
        if config.credentials is not None:
            options += [("grpc.ssl_target_name_override", name.rpartition(":")[0])]
    if config.credentials is None:
        return ClosableChannel(grpc.insecure_channel(target, options=options))
    return ClosableChannel(grpc.secure_channel(target, config.credentials, options=options))


def is_local(target: str) -> bool:
    """Returns True if the target is this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = re.sub(r"^(dns:|ipv4:|ipv6:)/*", "", target).rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, whose address may be anywhere
        return False
