"""Connections to the replicas of one store: options, credentials, errors and retries."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
from thinrow.client.closable import CLOSED, ClosableChannel
from thinrow.client.counting_channel import CountingChannel
from thinrow.client.credentials import bearer_metadata
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    PermissionDeniedError,
    RequestError,
    StoreCorruptError,
    StoreError,
    TenantLimitError,
    ThinRowError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
    UnknownTenantError,
    UsageError,
)
from thinrow.v1 import materialization_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message
    from thinrow.client.config import ClientConfig

__all__ = ["Channels", "Patience", "Retries", "open_channel", "translate"]

T = TypeVar("T")

# A default server takes pings closer than 5 minutes for abuse and hangs up.
KEEPALIVE_INTERVAL_MS = 360_000
KEEPALIVE_TIMEOUT_MS = 20_000
# Pause before a failed channel reconnects. Our own retries set the pace, so it is short.
RECONNECT_BACKOFF_MS_INITIAL = 100
RECONNECT_BACKOFF_MS_MAX = 1_000
# Upper bound on a server's retry hint.
RETRY_AFTER_MS_MAX = 60_000

# Addresses that gRPC accepts, except URLs meant for a browser.
TARGET = re.compile(r"(?!https?:)(unix(-abstract)?:.+|(dns|ipv4|ipv6):.+|[^/]+:\d{1,5})")

# Details of calls that this side cancelled.
CANCELLED_HERE = ("Locally cancelled", "Channel closed")

log = logging.getLogger("thinrow.client")

ERRORS_BY_NAME: dict[str, type[ThinRowError]] = {
    error.name: error
    for error in (
        AnswerTooLargeError,
        PermissionDeniedError,
        TenantLimitError,
        TooManyCallsError,
        UnauthenticatedError,
        UnknownTenantError,
        StoreError,
        StoreCorruptError,
    )
}
ERRORS_BY_CODE: dict[grpc.StatusCode, type[ThinRowError]] = {
    grpc.StatusCode.DATA_LOSS: StoreCorruptError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.FAILED_PRECONDITION: RequestError,
    grpc.StatusCode.INVALID_ARGUMENT: RequestError,
    grpc.StatusCode.NOT_FOUND: RequestError,
    grpc.StatusCode.OUT_OF_RANGE: RequestError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RequestError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: RequestError,
}
ERRORS_OF_GRPC: dict[str, type[ThinRowError]] = {
    "Concurrent RPC limit exceeded": TooManyCallsError,
    "CLIENT: Received message larger than max": AnswerTooLargeError,
}
"""Errors of gRPC itself, by text. All have the code RESOURCE_EXHAUSTED and no name."""


class Channels:
    """One channel per replica; calls go to the current one until it is unavailable."""

    def __init__(self, targets: tuple[str, ...], config: ClientConfig) -> None:
        if not targets:
            raise UsageError("Name at least one server to connect to, as HOST:PORT.")
        self.targets = targets
        self.config = config
        self.current = 0
        for target in targets:
            if not TARGET.fullmatch(target):
                raise UsageError(
                    f"{target!r} is no address of a server; give HOST:PORT, such as localhost:7878."
                )
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

    def fail_over(self, failed: int) -> None:
        """Switches to the replica after `failed`, unless another caller already has."""
        if self.current == failed:
            self.current = (failed + 1) % len(self.targets)

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
                failure = translate(error, self.targets)
                if isinstance(failure, DeadlineError):
                    # Also on the last attempt, so that the next call starts at another replica.
                    self.fail_over(replica)
                    if patience.is_silent(replica, time.monotonic() - started_s):
                        continue
                if not retries.pause(failure):
                    raise failure from error
                self.fail_over(replica)

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""
        if self._closed:
            raise UnavailableError(CLOSED)

    def close(self) -> None:
        """Closes every channel; calls in flight are cancelled."""
        with self._lock:
            self._closed = True
            extra, self._extra_channels = self._extra_channels, []
        for channel in (*self._channels, *extra):
            channel.close()


class Patience:
    """Divides the deadline of one request among the replicas."""

    def __init__(self, channels: Channels, deadline_s: float) -> None:
        self._channels = channels
        self._deadline_s = deadline_s
        self.reset()

    def reset(self) -> None:
        """Starts over after a response."""
        self._silent: set[int] = set()
        self._waited_s = 0.0

    def timeout_s(self, replica: int) -> float:
        """Returns the time to wait for this replica's response."""
        left_s = max(self._deadline_s - self._waited_s, 0.0)
        others = set(range(len(self._channels.targets))) - self._silent - {replica}
        if not others:
            return left_s
        return min(self._channels.config.silence_timeout_s, left_s / (len(others) + 1))

    def is_silent(self, replica: int, waited_s: float) -> bool:
        """Records that a replica exceeded its time; returns True if another one may try."""
        self._silent.add(replica)
        self._waited_s += waited_s
        targets = self._channels.targets
        more = len(self._silent) < len(targets) and self._waited_s < self._deadline_s
        if more:
            log.warning(
                "No answer came from %s in %.3g s; trying the next replica.",
                targets[replica],
                waited_s,
            )
        return more


class Retries:
    """Paces and bounds the retries since the last response: exponential backoff, full jitter."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Starts over after a response."""
        self._pause_s_max = self._config.backoff_initial_s
        self._give_up_s: float | None = None

    def pause(self, failure: ThinRowError) -> bool:
        """Waits before the next attempt.

        A request may be repeated if no server answered, or if one at a limit rejected it with a
        hint; the pause is then at least as long as the hint.

        Returns:
            False, without waiting, if no time is left or a retry cannot help.
        """
        at_least_s = 0.0
        if isinstance(failure, TooManyCallsError) and failure.retry_after_ms is not None:
            at_least_s = failure.retry_after_ms / 1000
        elif not isinstance(failure, UnavailableError):
            return False
        now_s = time.monotonic()
        if self._give_up_s is None:
            self._give_up_s = now_s + self._config.retry_deadline_s
            log.warning("%s Retrying for %g s.", failure, self._config.retry_deadline_s)
        pause_s = at_least_s + random.uniform(0, self._pause_s_max)
        if now_s + pause_s >= self._give_up_s:
            return False
        self._pause_s_max = min(2 * self._pause_s_max, self._config.backoff_max_s)
        time.sleep(pause_s)
        return True


def open_channel(target: str, config: ClientConfig) -> ClosableChannel:
    """Returns a channel, which connects when it is first used.

    Raises:
        UsageError: A token would travel unencrypted to another machine.
    """
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
    options = [
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


def translate(error: grpc.RpcError, targets: tuple[str, ...]) -> ThinRowError:
    """Converts a gRPC error to one of `thinrow.errors`."""
    call = cast("grpc.Call", error)  # every RpcError of a call is that call
    code = call.code()
    details = call.details() or "no details given"
    where = ", ".join(targets)
    if code is grpc.StatusCode.CANCELLED and not details.startswith(CANCELLED_HERE):
        # The call crossed a GOAWAY of a stopping server, which then never saw it.
        code = grpc.StatusCode.UNAVAILABLE
    metadata = dict(call.trailing_metadata() or ())
    kind = ERRORS_BY_NAME.get(
        str(metadata.get("thinrow-error")), ERRORS_BY_CODE.get(code, ThinRowError)
    )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "thinrow-error" not in metadata:
        kind = next((ERRORS_OF_GRPC[text] for text in ERRORS_OF_GRPC if text in details), kind)
    if kind is UnavailableError:
        return UnavailableError(
            f"No server answered at {where} ({details}); check the address, and that "
            f"`thinrow serve` runs there."
        )
    if kind is DeadlineError:
        return DeadlineError(
            f"No answer came from {where} before the deadline; allow more time, or request less."
        )
    if kind is ThinRowError:
        return ThinRowError(f"The call to {where} failed with {code.name}: {details}")
    failure = kind(details)
    if isinstance(failure, TooManyCallsError):
        # Without a name the rejection is gRPC's own, which has no hint.
        hint = str(metadata.get("retry-after-ms", "" if "thinrow-error" in metadata else "0"))
        failure.retry_after_ms = min(int(hint), RETRY_AFTER_MS_MAX) if hint.isdecimal() else None
    return failure
