"""What every call passes: is there a place, who asks, and errors as gRPC tells them."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from thinrow.errors import StoreError, ThinRowError, TooManyCallsError
from thinrow.serving.drain import stopping
from thinrow.serving.limits import Places
from thinrow.serving.wire_errors import ERROR_METADATA, set_error_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from thinrow.serving.config import ServiceConfig
    from thinrow.serving.metrics import ServiceMetrics
    from thinrow.serving.tenants import Tenants

log = logging.getLogger("thinrow.serving")


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

    def __init__(self, config: ServiceConfig, tenants: Tenants, metrics: ServiceMetrics) -> None:
        self.tenants = tenants
        self.calls = Places(config.calls_max, "calls_max")
        self.streams = Places(config.streams_max, "streams_max")
        self._metrics = metrics
        self._draining = threading.Event()

    @contextmanager
    def answering(
        self, context: grpc.ServicerContext, places: Places, *, late: bool = True
    ) -> Iterator[Caller]:
        """Takes a place, asks who calls, and turns errors into their gRPC codes.

        late: raises TooManyCallsError where there is no place, now or later in the block.
        """
        caller = Caller(self.tenants)
        try:
            with places.one():
                self.check_serving()
                caller.ask(context)
                yield caller
        except TooManyCallsError as error:
            if not late:
                self.abort(context, error, caller.tenant)
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

    def check_serving(self) -> None:
        """Raises UnavailableError while draining."""
        if self._draining.is_set():
            raise stopping()

    def drain(self) -> None:
        """Refuses new requests with UNAVAILABLE from now on."""
        self._draining.set()
        self._metrics.ready.set(0)
