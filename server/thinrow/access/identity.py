"""The identity of a call, and the context that interceptors hand to its method."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from thinrow.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.trace import Span
    from thinrow.access.tenants import Tenants

__all__ = ["CallContext", "CallIdentity", "Metadata"]

Metadata = tuple[tuple[str, str | bytes], ...]


class Rpc(Protocol):
    """The part of grpc.ServicerContext that a call needs."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """Returns the metadata that the caller sent."""

    def send_initial_metadata(self, metadata: Metadata, /) -> None:
        """Sends metadata before the first response."""

    def is_active(self) -> bool:
        """Returns False once the call was cancelled or its deadline passed."""

    def time_remaining(self) -> float | None:
        """Returns the time until the deadline; None without one."""


class CallIdentity:
    """The tenant that makes a call, and the tenant whose quotas and labels apply."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self.authenticated: str | None = None
        """The tenant whose token the call carries; None if the server requires no token."""
        self.effective = ""
        """The authenticated tenant; without one, the tenant that the latest request names."""

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Checks the token in a call's metadata.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
        """
        self.authenticated = self._tenants.authenticate(metadata)
        self.effective = self.authenticated or self.effective


class CallContext:
    """A call as its method sees it: identity, deadline, trace and drain.

    Methods end a call with an error by raising a ThinRowError.

    Args:
        rpc: The call's gRPC context, or what stands in for it.
        identity: The caller.
        check_serving: Raises UnavailableError once the server drains.
    """

    def __init__(
        self,
        rpc: Rpc,
        identity: CallIdentity,
        check_serving: Callable[[], None],
    ) -> None:
        self._rpc = rpc
        self.identity = identity
        self.check_serving = check_serving
        self.span: Span | None = None
        """The span of a call with one request; None for a stream, or if nothing is traced."""

    @property
    def metadata(self) -> Metadata:
        """The metadata that the caller sent."""
        return tuple(self._rpc.invocation_metadata())

    def authenticate(self) -> None:
        """Checks the call's token again, because it may have been withdrawn since.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
        """
        self.identity.authenticate(self._rpc.invocation_metadata())

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Sends metadata before the first response."""
        self._rpc.send_initial_metadata(metadata)

    def is_active(self) -> bool:
        """Returns False once the call was cancelled or its deadline passed."""
        return bool(self._rpc.is_active())

    def check_active(self) -> None:
        """Ends work whose result no one waits for.

        Raises:
            DeadlineError: The call was cancelled, or its deadline passed.
        """
        if not self.is_active():
            raise DeadlineError("The caller stopped waiting.")

    def remaining_s(self) -> float | None:
        """Returns the time until the call's deadline; None without one."""
        remaining_s: float | None = self._rpc.time_remaining()
        if remaining_s is None:
            return None
        return min(max(remaining_s, 0.0), threading.TIMEOUT_MAX)
