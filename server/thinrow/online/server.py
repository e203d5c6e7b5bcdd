"""An online server's life: open the tier, follow the store, listen, drain, close."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

from thinrow.access.endpoints import start_endpoints
from thinrow.access.grpc_server import grpc_server
from thinrow.access.tenants import Tenants
from thinrow.core.tracing import tracing
from thinrow.online.metrics import OnlineMetrics
from thinrow.online.service import RIGHTS, SERVICE, OnlineService
from thinrow.online.snapshots import Snapshots
from thinrow.online.source import open_own_log
from thinrow.online.thread_switches import OWN_LOG_SWITCH_S, TOPIC_SWITCH_S, thread_switches
from thinrow.online.traced import TracedSnapshots

if TYPE_CHECKING:
    from thinrow.online.config import OnlineConfig
    from thinrow.online.follower import Generations
    from thinrow.schema import Schema

__all__ = ["OnlineServer"]

log = logging.getLogger("thinrow.online")


class OnlineServer:
    """Takes events and answers snapshots until it is closed; a context manager.

    Raises, when entered:
        StoreError: the store or the tier cannot be opened.
        UsageError: a port cannot be had, a file is wrong, or there is no schema or no such topic.
        UnavailableError: the brokers of a topic do not answer.
    """

    def __init__(self, config: OnlineConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self.metrics = OnlineMetrics()
        self.address = config.listen
        """HOST:PORT where gRPC is served, once entered."""
        self.metrics_address: str | None = config.metrics
        """HOST:PORT of the metrics, once entered."""
        self.is_rebuilding = False
        """True while entering waits for brokers or their events, and may be interrupted."""
        self.published: Generations
        """The generations in use, once entered; `refresh` accepts a new one at once."""

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
        switch_s = OWN_LOG_SWITCH_S if config.events is None else TOPIC_SWITCH_S
        stack.enter_context(thread_switches(switch_s))
        if config.events is None:
            source = open_own_log(config, metrics, stack)
        else:
            # Only servers of a topic need the Kafka client.
            from thinrow.online.topic.source import open_topic

            self.is_rebuilding = True
            source = open_topic(config, metrics, stack)
        tier, self.published = source.tier, source.published
        metrics.bind_generation(lambda: self.published.number, lambda: self.published.watermark_ts)
        metrics.of_tier(tier)
        metrics.memory_bound.set(config.memory_bound_bytes)

        def schema() -> Schema:
            assert tier.format is not None
            return tier.format.schema

        tenants = stack.enter_context(Tenants(config, schema))
        spans = tracing("thinrow-online")
        made = Snapshots if spans is None else partial(TracedSnapshots, spans)
        snapshots = made(
            tier,
            self.published,
            lambda: tenants.by_name,
            config.work_bytes_max,
            # A message of a stream may hold as much beside the answer that is made.
            config.calls_max + 2 * config.streams_max,
            config.response_bytes_max,
            config.lag_max_ms,
        )
        service = OnlineService(config, source, snapshots, metrics)
        certificates, self.metrics_address = start_endpoints(config, tenants, metrics, stack)
        source.wait_ready()
        self.is_rebuilding = False

        self.address = stack.enter_context(
            grpc_server(
                config,
                {SERVICE: service.add_to},
                RIGHTS,
                tenants,
                metrics,
                is_room_short=lambda: snapshots.is_room_short,
                tracing=spans,
                certificates=certificates,
            )
        )
        log.info(
            "serving",
            extra={
                "address": self.address,
                "metrics": self.metrics_address,
                "generation": self.published.number,
                "watermark_ts": self.published.watermark_ts,
                "memory_bound_bytes": config.memory_bound_bytes,
            },
        )
