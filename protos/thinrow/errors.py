"""The one tree of exceptions, shared by both sides of the wire.

    ThinRowError
    ├── UsageError                  what the user gave cannot work; the message says what to do
    │   ├── SchemaError             the schema file
    │   ├── InputError              events, requests, rows or users files
    │   └── RequestError            a call that the server refused (``name`` tells why)
    │       ├── AnswerTooLargeError ask for fewer examples at once
    │       ├── PermissionDeniedError the caller may not ask for this
    │       ├── TooManyCallsError   the server is at its limit; ask again later
    │       │   └── TenantLimitError the tenant is at its own limit
    │       ├── UnauthenticatedError the call carries no token that the server knows
    │       └── UnknownTenantError  no such tenant at this server
    ├── StoreError                  the store cannot be read or written
    │   ├── StoreMissingError       no published generation there
    │   ├── StoreLockedError        another compaction is running
    │   ├── StoreFullError          the disk is full
    │   ├── StoreUnavailableError   not readable for now: files, memory or a mount are missing
    │   └── StoreCorruptError       a file is missing or failed its checksum; names the file
    ├── StatusError                 an example has a status that the loader's policy fails on
    ├── LoggerFullError             a bound of the thin-row logger is reached; nothing was taken
    ├── JournalError                the logger's journal cannot be used; says why
    ├── UnavailableError            no replica answered in the retries allowed
    └── DeadlineError               the deadline passed first

Every message is one sentence for the person who sees it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AnswerTooLargeError",
    "DeadlineError",
    "InputError",
    "JournalError",
    "LoggerFullError",
    "PermissionDeniedError",
    "RequestError",
    "SchemaError",
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

    ``name`` identifies the kind on the wire (trailing metadata ``thinrow-error``);
    docs/operations/operations.md has the table of names and gRPC codes.
    """

    name: ClassVar[str] = "INTERNAL"


class UsageError(ThinRowError):
    """What the user gave cannot work."""

    name = "INVALID_REQUEST"


class SchemaError(UsageError):
    """The schema file is wrong, or does not fit the store's schema."""


class InputError(UsageError):
    """A file of events, requests, rows or users is missing, unreadable or of the wrong shape."""


class RequestError(UsageError):
    """The server refused the call as asked; asking again changes nothing."""


class AnswerTooLargeError(RequestError):
    """The answer would be larger than the server sends; ask for fewer examples at once."""

    name = "ANSWER_TOO_LARGE"


class TooManyCallsError(RequestError):
    """The server is at one of its limits of calls or streams; ask again later, or elsewhere."""

    name = "TOO_MANY_CALLS"
    retry_after_ms: int | None = None
    """How long the server asks to be left alone; None where asking again is the caller's matter."""


class TenantLimitError(TooManyCallsError):
    """The tenant has all the calls or streams at once that it may have; others are served."""

    name = "TENANT_LIMIT"


class UnauthenticatedError(RequestError):
    """The server wants a token, and the call carries none that it knows."""

    name = "UNAUTHENTICATED"


class PermissionDeniedError(RequestError):
    """The token, or this server, does not allow what was asked for."""

    name = "PERMISSION_DENIED"


class UnknownTenantError(RequestError):
    """The server has no tenant of that name."""

    name = "UNKNOWN_TENANT"


class StoreError(ThinRowError):
    """The store cannot be read or written."""

    name = "STORE_FAILED"


class StoreMissingError(StoreError):
    """There is no published generation at that path."""


class StoreLockedError(StoreError):
    """Another compaction holds the store."""


class StoreFullError(StoreError):
    """The disk filled up; what was published before still serves."""


class StoreUnavailableError(StoreError):
    """The store cannot be read for now: this process lacks open files or memory, or the mount went
    away; another replica may read it."""

    name = "STORE_UNAVAILABLE"


class StoreCorruptError(StoreError):
    """A file of the store is missing, altered or unreadable; the message names it."""

    name = "STORE_CORRUPT"


class StatusError(ThinRowError):
    """An example could not be answered, and the loader's policy for its status is to fail."""


class UnavailableError(ThinRowError):
    """No server answered within the retries allowed."""

    name = "UNAVAILABLE"


class DeadlineError(ThinRowError):
    """The deadline passed before the answer came."""

    name = "DEADLINE_EXCEEDED"


class LoggerFullError(ThinRowError):
    """One of the logger's bounds is reached; the row or label was not taken."""

    name = "LOGGER_FULL"


class JournalError(ThinRowError):
    """The journal is damaged, in use by another logger, of another version, or not accessible."""

    name = "JOURNAL_UNUSABLE"
