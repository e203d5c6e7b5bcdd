"""Errors as gRPC carries them: status, details and metadata, from the classes of exceptions.

A call that fails carries the same facts twice: as `google.rpc.Status` with `ErrorInfo` and
`RetryInfo`, which libraries of other languages read, and as the plain metadata of ThinRow's client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
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
    StoreUnavailableError,
    TenantLimitError,
    ThinRowError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
    UnknownTenantError,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = [
    "DOMAIN",
    "ERRORS",
    "ERROR_METADATA",
    "MESSAGE_BYTES_MAX",
    "NO_RETRY",
    "PUSHBACK_METADATA",
    "RETRY_METADATA",
    "STATUS_METADATA",
    "WireError",
    "set_error_status",
    "wire_error",
    "wire_message",
]

DOMAIN = "thinrow.v1"
"""The domain of every `ErrorInfo`."""
ERROR_METADATA = "thinrow-error"
RETRY_METADATA = "retry-after-ms"
PUSHBACK_METADATA = "grpc-retry-pushback-ms"
NO_RETRY = "-1"
STATUS_METADATA = "grpc-status-details-bin"
MESSAGE_BYTES_MAX = 1000
"""Longest message sent. The status travels in headers, of which clients take 8 KiB in all, and
carries the message twice: percent-encoded, and in base64."""


@dataclass(frozen=True, slots=True)
class WireError:
    """One row of the table: a class of exceptions as it travels."""

    kind: type[ThinRowError]

    @property
    def reason(self) -> str:
        """The name on the wire."""
        return self.kind.name

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return grpc.StatusCode[self.kind.grpc_code]

    @property
    def retryable(self) -> bool:
        """True if the same call may succeed later, or at another replica."""
        return self.kind.is_retryable


ERRORS = tuple(
    WireError(kind)
    for kind in (
        RequestError,
        UnknownTenantError,
        UnauthenticatedError,
        PermissionDeniedError,
        AnswerTooLargeError,
        TooManyCallsError,
        TenantLimitError,
        StoreCorruptError,
        StoreError,
        StoreUnavailableError,
        ShardMissingError,
        UnavailableError,
        LaggingError,
        PartitionMissingError,
        DeadlineError,
        ThinRowError,
    )
)
"""Every error that a server sends; docs/operations says what to do about each."""
_BY_REASON = {each.reason: each for each in ERRORS}


def wire_error(error: ThinRowError) -> WireError:
    """Returns the table's row for an exception; that of ThinRowError if only clients raise it."""
    return _BY_REASON.get(error.name, _BY_REASON[ThinRowError.name])


def wire_message(error: ThinRowError) -> str:
    """Returns the exception's message, shortened where headers could not carry it."""
    message = str(error)
    encoded = message.encode()
    if len(encoded) <= MESSAGE_BYTES_MAX:
        return message
    return encoded[:MESSAGE_BYTES_MAX].decode(errors="ignore") + "…"


def set_error_status(
    context: grpc.ServicerContext, error: ThinRowError
) -> tuple[grpc.StatusCode, str]:
    """Sets code, message and metadata that the call will end with; returns the first two."""
    row, message = wire_error(error), wire_message(error)
    retry_after_ms = error.retry_after_ms if isinstance(error, TooManyCallsError) else None
    info = ErrorInfo(
        reason=row.reason, domain=DOMAIN, metadata={"retryable": str(row.retryable).lower()}
    )
    details: list[Message] = [info]
    metadata: list[tuple[str, str | bytes]] = [(ERROR_METADATA, row.reason)]
    if retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(retry_after_ms)
        details.append(RetryInfo(retry_delay=delay))
        metadata.append((RETRY_METADATA, str(retry_after_ms)))
        metadata.append((PUSHBACK_METADATA, str(retry_after_ms)))
    elif not row.retryable:
        metadata.append((PUSHBACK_METADATA, NO_RETRY))
    status = Status(code=row.code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    metadata.append((STATUS_METADATA, status.SerializeToString()))
    context.set_trailing_metadata(tuple(metadata))
    context.set_code(row.code)
    context.set_details(message)
    return row.code, message
