"""The errors of gRPC calls as those of `thinrow.errors`."""

from __future__ import annotations

from typing import cast

import grpc
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    LaggingError,
    PartitionMissingError,
    PermissionDeniedError,
    RequestError,
    ShardMissingError,
    StoreCorruptError,
    StoreError,
    TenantLimitError,
    ThinRowError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
    UnknownTenantError,
)

__all__ = [
    "ERRORS_OF_GRPC",
    "ShardElsewhereError",
    "UnimplementedError",
    "translate",
    "was_not_sent",
]

# Upper bound on a server's retry hint.
RETRY_AFTER_MS_MAX = 60_000

NEVER_CONNECTED = "failed to connect to all addresses"
"""Text of gRPC itself for a call that left no connection."""

# Details of calls that this side cancelled.
CANCELLED_HERE = ("Locally cancelled", "Channel closed")


class ShardElsewhereError(UnavailableError):
    """A server without a map lacks the shard of a user; another replica, or group, may have it."""


class UnimplementedError(RequestError):
    """An older server, which does not have the method."""


ERRORS_BY_NAME: dict[str, type[ThinRowError]] = {
    error.name: error
    for error in (
        AnswerTooLargeError,
        LaggingError,
        PartitionMissingError,
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
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}
ERRORS_OF_GRPC: dict[str, type[ThinRowError]] = {
    "Concurrent RPC limit exceeded": TooManyCallsError,
    "CLIENT: Received message larger than max": AnswerTooLargeError,
}
"""Errors of gRPC itself, by text. All have the code RESOURCE_EXHAUSTED and no name."""


def was_not_sent(error: ThinRowError) -> bool:
    """Returns whether no server has seen the call that ended with an error."""
    return isinstance(error, UnavailableError) and not error.was_sent


def translate(error: grpc.RpcError, target: str, command: str = "thinrow serve") -> ThinRowError:
    """Converts a gRPC error to one of `thinrow.errors`.

    Args:
        error: The error of a call.
        target: The replica that was called.
        command: The command that runs there.
    """
    call = cast("grpc.Call", error)  # every RpcError of a call is that call
    code = call.code()
    details = call.details() or "no details given"
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
        if "thinrow-error" in metadata:  # the server has answered, and its sentence says what to do
            if metadata["thinrow-error"] == ShardMissingError.name:
                kind = ShardElsewhereError
            return kind(f"{target}: {details}")
        unanswered = UnavailableError(
            f"No server answered at {target} ({details}); check the address, and that "
            f"`{command}` runs there."
        )
        unanswered.was_sent = NEVER_CONNECTED not in details
        return unanswered
    if kind is DeadlineError:
        return DeadlineError(
            f"No answer came from {target} before the deadline; allow more time, or request less."
        )
    if kind is ThinRowError:
        return ThinRowError(f"The call to {target} failed with {code.name}: {details}")
    failure = kind(details)
    if isinstance(failure, TooManyCallsError):
        # Without a name the rejection is gRPC's own, which has no hint.
        hint = str(metadata.get("retry-after-ms", "" if "thinrow-error" in metadata else "0"))
        failure.retry_after_ms = min(int(hint), RETRY_AFTER_MS_MAX) if hint.isdecimal() else None
    return failure
