"""What every call passes: is there a place, who asks, and errors as gRPC tells them."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from thinrow.access.drain import stopping
from thinrow.access.limits import ConcurrencyLimit
from thinrow.access.wire_errors import ERROR_METADATA, set_error_status
from thinrow.errors import StoreError, ThinRowError, TooManyCallsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import grpc
    from thinrow.access.metrics import ServiceMetrics
    from thinrow.access.tenants import Tenants

log = logging.getLogger("thinrow.materialization")


class Caller:
    """Who makes a call."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self.holder: str | None = None
        """The tenant whose token the call carries; None where none is wanted."""
        self.tenant = ""
        """As whom it asks."""

    def ask(self, context: grpc.ServicerContext) -> None:
        """Looks at the token. Raises UnauthenticatedError."""
        self.holder = self._tenants.caller(context.invocation_metadata())
        self.tenant = self.holder or self.tenant


class Gate:
    """Keeps the limits of a service, and lets it drain."""

    def __init__(self, tenants: Tenants, metrics: ServiceMetrics) -> None:
        self.tenants = tenants
        self._calls = ConcurrencyLimit("calls_max")
        self._streams = ConcurrencyLimit("streams_max")
        self._metrics = metrics
        self._draining = threading.Event()

    @contextmanager
    def answering(self, context: grpc.ServicerContext) -> Iterator[Caller]:
        """Authenticates the caller, and turns errors into their gRPC codes.

        Raises:
            TooManyCallsError: The block raised it; the call's admission rejects the call.
        """
        caller = Caller(self.tenants)
        try:
            self.check_serving()
            caller.ask(context)
            yield caller
        except TooManyCallsError as error:
            self._metrics.failed(error.name, caller.tenant)
            raise
        except ThinRowError as error:
            self.abort(context, error, caller.tenant)
        except Exception as error:
            name = dict(context.trailing_metadata() or ()).get(ERROR_METADATA)
            if name is not None:  # ended by the service itself
                self._metrics.tenant_failed(str(name), caller.tenant)
                raise
            if not context.is_active():  # cancelled: nobody waits for the answer
                raise
            log.exception("call failed")
            failure = ThinRowError(f"The server failed ({type(error).__name__}).")
            self.abort(context, failure, caller.tenant)

    def abort(
        self, context: grpc.ServicerContext, error: ThinRowError, tenant: str = ""
    ) -> NoReturn:
        """Ends the call with an error."""
        self._metrics.failed(error.name, tenant)
        if isinstance(error, StoreError):
            log.error("store failed", extra={"reason": str(error)})
        context.abort(*set_error_status(context, error))

    @contextmanager
    def tenant_place(self, tenant: str, *, is_stream: bool) -> Iterator[None]:
        """Counts a call as its tenant's until the block ends. Raises TenantLimitError."""
        if not is_stream:
            with self._calls.acquire_tenant(tenant, self.tenants.calls_max(tenant)):
                yield
            return
        with (
            self._streams.acquire_tenant(tenant, self.tenants.streams_max(tenant)),
            self._metrics.streams.track_inprogress(),
            self._metrics.streaming(tenant),
        ):
            yield

    def named_place(self, caller: Caller, *, is_stream: bool) -> AbstractContextManager[None]:
        """Holds a `tenant_place`, if no token named the tenant when the call started."""
        if caller.holder is not None:
            return nullcontext()
        return self.tenant_place(caller.tenant, is_stream=is_stream)

    def check_serving(self) -> None:
        """Raises UnavailableError while draining."""
        if self._draining.is_set():
            raise stopping()

    def drain(self) -> None:
        """Refuses new requests with UNAVAILABLE from now on."""
        self._draining.set()
        self._metrics.ready.set(0)
