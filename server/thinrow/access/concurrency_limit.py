"""Limits on the concurrent calls of each tenant, and the errors of calls beyond a limit."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinrow.errors import TenantLimitError, TooManyCallsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RETRY_AFTER_MS", "ConcurrencyLimit", "limit_error", "server_limit_error"]

RETRY_AFTER_MS = 200
"""Delay that a rejected client is requested to wait: many requests long, yet short for a user."""


class ConcurrencyLimit:
    """Counts the concurrent calls of each tenant, and rejects those beyond a limit. Thread-safe.

    Args:
        name: The setting that bounds the calls, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._by_tenant: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def acquire_tenant(self, tenant: str, limit: int) -> Iterator[None]:
        """Counts a call as this tenant's until the block ends.

        Raises:
            TenantLimitError: The tenant has `limit` calls already.
        """
        with self._lock:
            if self._by_tenant[tenant] >= limit:
                raise limit_error(
                    TenantLimitError,
                    f"The tenant {tenant!r} is at its limit of {limit} ({self._name}); retry "
                    f"later, or with fewer callers.",
                )
            self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._by_tenant[tenant] -= 1
                # Clients choose names, so names without calls are dropped.
                self._by_tenant += Counter()


def server_limit_error(limit: str) -> TooManyCallsError:
    """Returns the error of a server that is at a limit, given the limit's name."""
    return limit_error(
        TooManyCallsError,
        f"This server is at its limit ({limit}); retry later, or at another replica.",
    )


def limit_error(kind: type[TooManyCallsError], message: str) -> TooManyCallsError:
    """Returns an error that requests its client to retry after `RETRY_AFTER_MS`."""
    error = kind(message)
    error.retry_after_ms = RETRY_AFTER_MS
    return error
