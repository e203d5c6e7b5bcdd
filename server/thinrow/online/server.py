"""An online server's life: open the tier, follow the store, listen, drain, close."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from thinrow.errors import UsageError
from thinrow.online.appends import Appends
from thinrow.online.metrics import OnlineMetrics
from thinrow.online.published import Published
from thinrow.online.service import SERVICE, OnlineService
from thinrow.online.snapshots import Snapshots
from thinrow.online.tier import MutableTier, TierConfig
from thinrow.schema import read_schema
from thinrow.serving.config import read_tenants
from thinrow.serving.metrics import MetricsEndpoint
from thinrow.serving.server import listening

if TYPE_CHECKING:
    from thinrow.online.config import OnlineConfig

log = logging.getLogger("thinrow.online")


class OnlineServer:
    """Takes events and answers snapshots until it is closed; a context manager.

    Raises, when entered:
        StoreError: the store or the tier cannot be opened.
        UsageError: a port cannot be had, a file is wrong, or there is no schema.
    """

    def __init__(self, config: OnlineConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self.metrics = OnlineMetrics()
        self.address = config.listen
        """HOST:PORT where gRPC is served, once entered."""
        self.metrics_address: str | None = config.metrics
        """HOST:PORT of the metrics, once entered."""
        self.published: Published
        """What requests are served from, once entered; `look` takes up what is new at once."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        config, metrics, stack = self._config, self.metrics, self._stack
        tenants = read_tenants(config.tenants)
        tier = MutableTier(
            TierConfig(
                folder=config.folder,
                retention_ms=config.retention_ms,
                dedup_window_ms=config.dedup_window_ms,
                commit_lead_ms=config.commit_lead_ms,
                wall=config.wall,
            )
        )
        stack.callback(tier.close)
        self.published = Published(config.store, tier, config.poll_s, metrics.open_failures.inc)
        stack.enter_context(self.published)
        if tier.format is None:
            if config.schema is None:
                raise UsageError(
                    f"{config.store} holds no generation yet, which would tell the schema; give "
                    f"--schema FILE."
                )
            tier.use_schema(read_schema(config.schema))
        metrics.follow(tier, self.published)
        if config.metrics is not None:
            endpoint = MetricsEndpoint(metrics.registry, config.metrics)
            stack.callback(endpoint.close)
            self.metrics_address = endpoint.address
        appends = stack.enter_context(Appends(tier))
        snapshots = Snapshots(
            tier,
            self.published,
            tenants,
            config.work_bytes_max,
            config.calls_max,
            config.response_bytes_max,
        )
        service = OnlineService(config, tier, appends, self.published, snapshots, metrics)
        self.address = stack.enter_context(
            listening(
                config.listen,
                {SERVICE: service.add_to},
                calls_max=config.calls_max + config.streams_max,
                request_bytes_max=config.request_bytes_max,
                drain=service.drain,
                drain_s=config.drain_s,
            )
        )
        log.info(
            "serving",
            extra={
                "address": self.address,
                "metrics": self.metrics_address,
                "generation": self.published.number,
                "watermark_ts": self.published.watermark_ts,
            },
        )
