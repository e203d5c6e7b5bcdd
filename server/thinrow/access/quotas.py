"""Quotas of tenants on concurrent calls and streams."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinrow.access.concurrency_limit import ConcurrencyLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.access.metrics import ServiceMetrics
    from thinrow.access.tenants import Tenants

__all__ = ["TenantQuotas"]


class TenantQuotas:
    """Counts each tenant's calls and streams against its quotas. Thread-safe.

    A server without tenants has no quotas; `CallAdmission` bounds its calls and streams.
    """

    def __init__(self, tenants: Tenants, metrics: ServiceMetrics) -> None:
        self._tenants = tenants
        self._metrics = metrics
        self._calls = ConcurrencyLimit("calls_max")
        self._streams = ConcurrencyLimit("streams_max")

    @contextmanager
    def admit(self, tenant: str, *, is_stream: bool) -> Iterator[None]:
        """Counts one call or stream until the block ends.

        Raises:
            TenantLimitError: The tenant is at its quota.
        """
        tenants, metrics = self._tenants, self._metrics
        if not is_stream:
            if not tenants.by_name:
                yield
                return
            with self._calls.acquire_tenant(tenant, tenants.calls_max(tenant)):
                yield
            return
        with (
            self._streams.acquire_tenant(tenant, tenants.streams_max(tenant)),
            metrics.streams.track_inprogress(),
            metrics.streaming(tenant),
        ):
            yield
