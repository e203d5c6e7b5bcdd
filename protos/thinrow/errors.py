"""The tree of exceptions, shared by both sides of the wire, with the gRPC status of each.

::

    ThinRowError
    ├── UsageError                      an argument or a file of the user; says what to do
    │   ├── SchemaError                 the schema file
    │   ├── InputError                  events, requests, rows or users files
    │   └── RequestError                a request that the server refused
    │       ├── AnswerTooLargeError     the response would be too large: request fewer examples
    │       ├── PermissionDeniedError   the token does not allow the request
    │       ├── UnauthenticatedError    the token is missing or unknown
    │       └── UnknownTenantError      the server has no such tenant
    ├── TooManyCallsError               the server is at its limit: retry later
    │   └── TenantLimitError            the tenant is at its quota
    ├── StoreError                      the store cannot be read or written
    │   ├── StoreMissingError           no generation is published
    │   ├── StoreLockedError            another compaction is running
    │   ├── StoreFullError              the disk is full
    │   ├── ShardMissingError           this process has not opened the user's shard
    │   ├── StoreUnavailableError       files, memory or a mount are missing for now
    │   └── StoreCorruptError           a file is missing or failed its checksum
    ├── EngineError                     the cluster did not finish a job
    ├── StatusError                     an example has a status that the loader's policy fails on
    ├── LoggerFullError                 a bound of the thin-row logger is reached
    ├── JournalError                    the logger's journal cannot be used
    ├── UnavailableError                no replica answered within the retries allowed
    │   ├── LaggingError                the server has not applied its topic as far as required
    │   └── PartitionMissingError       the server does not read the user's partition
    └── DeadlineError                   the deadline passed first

Every message is one sentence for the person who sees it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AnswerTooLargeError",
    "DeadlineError",
    "EngineError",
    "InputError",
    "JournalError",
    "LaggingError",
    "LoggerFullError",
    "PartitionMissingError",
    "PermissionDeniedError",
    "RequestError",
    "SchemaError",
    "ShardMissingError",
    "StatusError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreMissingError",
    "StoreUnavailableError",
    "TenantLimitError",
    "ThinRowError",
    "TooManyCallsError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownTenantError",
    "UsageError",
]


class ThinRowError(Exception):
    """Base of every error that ThinRow raises on purpose.

    A subclass that sets none of the class attributes has those of its base. docs/operations has the
    table of names and codes.
    """

    name: ClassVar[str] = "INTERNAL"
    """Identifies the kind of error on the wire, in the trailing metadata `thinrow-error`."""
    grpc_code: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code with which a call ends."""
    is_retryable: ClassVar[bool] = False
    """True if the same call may succeed later, or at another replica."""


class UsageError(ThinRowError):
    """An argument, a setting or a file of the user cannot work."""

    name = "INVALID_REQUEST"
    grpc_code = "INVALID_ARGUMENT"


class SchemaError(UsageError):
    """The schema file is wrong, or does not fit the store's schema."""


class InputError(UsageError):
    """A file of events, requests, rows or users is missing, unreadable or of the wrong shape."""


class RequestError(UsageError):
    """The server refused the request; the same request fails again."""


class AnswerTooLargeError(RequestError):
    """The response would be larger than the server sends; request fewer examples at once."""

    name = "ANSWER_TOO_LARGE"
    grpc_code = "RESOURCE_EXHAUSTED"


class PermissionDeniedError(RequestError):
    """The token, or the server's configuration, does not allow the request."""

    name = "PERMISSION_DENIED"
    grpc_code = "PERMISSION_DENIED"


class UnauthenticatedError(RequestError):
    """The server requires a token, and the call carries none that it knows."""

    name = "UNAUTHENTICATED"
    grpc_code = "UNAUTHENTICATED"


class UnknownTenantError(RequestError):
    """The server has no tenant of that name."""

    name = "UNKNOWN_TENANT"
    grpc_code = "NOT_FOUND"


class TooManyCallsError(ThinRowError):
    """The server is at one of its limits of calls or streams; retry later, or elsewhere."""

    name = "TOO_MANY_CALLS"
    grpc_code = "RESOURCE_EXHAUSTED"
    is_retryable = True
    retry_after_ms: int | None = None
    """The delay that the server requests before a retry; None if it requests none."""


class TenantLimitError(TooManyCallsError):
    """The tenant is at its quota of calls or streams; other tenants are served."""

    name = "TENANT_LIMIT"


class StoreError(ThinRowError):
    """The store cannot be read or written."""

    name = "STORE_FAILED"


class StoreMissingError(StoreError):
    """No generation is published at that path."""


class StoreLockedError(StoreError):
    """Another compaction holds the store."""


class StoreFullError(StoreError):
    """The disk is full; the published generation still serves."""


class ShardMissingError(StoreError):
    """This process has not opened the shard of a user; a replica that holds it may answer."""

    name = "SHARD_MISSING"
    grpc_code = "UNAVAILABLE"
    is_retryable = True


class StoreUnavailableError(StoreError):
    """The store cannot be read for now; another replica may read it.

    The process lacks open files or memory, or the mount is gone.
    """

    name = "STORE_UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    is_retryable = True


class StoreCorruptError(StoreError):
    """A file of the store is missing, altered or unreadable; the message names it."""

    name = "STORE_CORRUPT"
    grpc_code = "DATA_LOSS"


class EngineError(ThinRowError):
    """The engine of a job, such as a cluster of Spark, did not finish it; nothing was published."""

    name = "ENGINE_FAILED"


class StatusError(ThinRowError):
    """An example could not be answered, and the loader's policy for its status is to fail."""


class UnavailableError(ThinRowError):
    """No server answered within the retries allowed."""

    name = "UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    is_retryable = True
    was_sent = True
    """False if no connection could be made, so that no server has seen the call."""


class LaggingError(UnavailableError):
    """The online server has not applied its topic as far as the request or its tenant requires.

    Another replica, or the same one later, may have.
    """

    name = "LAGGING"


class PartitionMissingError(UnavailableError):
    """The online server does not read the partition of a user; another one may."""

    name = "PARTITION_MISSING"


class DeadlineError(ThinRowError):
    """The deadline passed before the response arrived."""

    name = "DEADLINE_EXCEEDED"
    grpc_code = "DEADLINE_EXCEEDED"


class LoggerFullError(ThinRowError):
    """One of the logger's bounds is reached; the row or label was not accepted."""

    name = "LOGGER_FULL"


class JournalError(ThinRowError):
    """The journal is damaged, in use by another logger, of another version, or not accessible."""

    name = "JOURNAL_UNUSABLE"
