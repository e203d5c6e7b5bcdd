"""Endpoints that a server opens beside gRPC: its certificates and its metrics port."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from thinrow.access.address import split_address
from thinrow.access.metrics_endpoint import MetricsEndpoint
from thinrow.access.tls import Certificates

if TYPE_CHECKING:
    from contextlib import ExitStack

    from thinrow.access.config import ServiceConfig
    from thinrow.access.metrics import ServiceMetrics
    from thinrow.access.tenants import Tenants

__all__ = ["EVERY_INTERFACE", "start_endpoints"]

log = logging.getLogger("thinrow.serving")

EVERY_INTERFACE = ("", "0.0.0.0", "::", "*")  # noqa: S104 - to warn of them


def start_endpoints(
    config: ServiceConfig, tenants: Tenants, metrics: ServiceMetrics, stack: ExitStack
) -> tuple[Certificates | None, str | None]:
    """Opens the certificates and the metrics port, until the stack is closed.

    Returns:
        The certificates, None without TLS; and HOST:PORT of the metrics, None without them.

    Raises:
        UsageError: The files of TLS are unusable, or the port is not available.
    """
    certificates = None
    if config.tls_cert is not None and config.tls_key is not None:
        certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
    elif tenants.guarded:
        log.warning("tokens travel in the clear: serve with TLS, or behind what ends it")
    if (
        split_address(config.listen)[0].strip("[]") in EVERY_INTERFACE
        and not tenants.guarded
        and config.tls_client_ca is None
    ):
        log.warning(
            "everyone who reaches this machine is served: make tokens (thinrow token), require "
            "client certificates, or listen on one address",
            extra={"listen": config.listen},
        )
    metrics.bind_tenants(tenants, certificates)
    if config.metrics is None:
        return certificates, None
    endpoint = MetricsEndpoint(metrics.registry, config.metrics)
    stack.callback(endpoint.close)
    return certificates, endpoint.address
