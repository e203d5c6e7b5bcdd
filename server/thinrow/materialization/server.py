"""The materialization server: opens the store, serves, drains, closes."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from thinrow.access.endpoints import start_endpoints
from thinrow.access.grpc_server import grpc_server
from thinrow.access.metrics_endpoint import MetricsEndpoint
from thinrow.access.readiness import Readiness
from thinrow.access.tenants import Tenants
from thinrow.cluster.map_metrics import MemberSeries
from thinrow.cluster.member import ClusterMember
from thinrow.core.tracing import tracing
from thinrow.materialization.metrics import Metrics
from thinrow.materialization.mirroring import mirror_follower
from thinrow.materialization.service import RIGHTS, SERVICE, MaterializationService
from thinrow.store.follower import GenerationFollower
from thinrow.store.shard_source import FixedShards

if TYPE_CHECKING:
    from thinrow.materialization.config import ServerConfig
    from thinrow.store.generation import Generation
    from thinrow.store.shard_source import ShardSource

__all__ = ["Server"]

log = logging.getLogger("thinrow.serving")


class Server:
    """Serves a store until it is closed; a context manager.

    Raises, when entered:
        StoreError: the store cannot be opened.
        UsageError: a port cannot be had, or the tenants file is wrong.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self.address = config.listen
        """HOST:PORT where gRPC is served, once entered."""
        self.metrics_address: str | None = config.metrics
        """HOST:PORT of the metrics, once entered."""
        self.metrics = Metrics()
        self._member: ClusterMember | None = None
        self._readiness = Readiness()
        self.is_copying = False
        """True while a store at a URL is copied before it can be served."""

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
        config = self._config
        metrics = self.metrics
        current = self._stack.enter_context(self._follower())
        tenants = self._stack.enter_context(Tenants(config, current.schema))
        metrics.bind_generation(lambda: current.number, lambda: current.watermark_ts)
        metrics.serve(current)
        metrics.memory_bound.set(config.memory_bound_bytes)
        service = MaterializationService(config, current, tenants, metrics, self._member)
        certificates, self.metrics_address = start_endpoints(config, tenants, metrics, self._stack)
        self.address = self._stack.enter_context(
            grpc_server(
                config,
                {SERVICE: service.add_to},
                RIGHTS,
                tenants,
                metrics,
                readiness=self._readiness,
                tracing=tracing("thinrow-server"),
                certificates=certificates,
                reuse_port=config.processes > 1,
            )
        )
        log.info(
            "serving" if config.processes == 1 else "worker serving",
            extra={
                "address": self.address,
                "metrics": self.metrics_address,
                "pid": os.getpid(),
                "generation": current.number,
                "watermark_ts": current.watermark_ts,
                "memory_bound_bytes": config.memory_bound_bytes,
            },
        )

    def _follower(self) -> GenerationFollower:
        """Opens the store; one at a URL is copied first."""
        config = self._config
        if config.copies_store:
            self._start_mirror()
        shards: ShardSource
        if config.group_name is None:
            shards = FixedShards(config.shard_choice)
        else:
            shards = self._member = ClusterMember(config.store_folder, config.group_name)
        current = GenerationFollower(
            config.store_folder,
            config.poll_s,
            self.metrics.open_failures.inc,
            config.cache_bytes_max,
            shards,
            self._check_ready,
        )
        if self._member is not None:
            self.metrics.registry.register(MemberSeries(self._member, lambda: current.shards_open))
        with current.use() as generation:
            self._check_ready(generation)
        return current

    def _check_ready(self, generation: Generation) -> None:
        """Reports whether every shard that clients may request here is open."""
        if self._member is not None:
            self._readiness.set(self._member.is_ready(generation))

    def _start_mirror(self) -> None:
        """Copies the store, while the status page shows how far, and follows it from then on."""
        config = self._config
        with ExitStack() as copying:
            if config.metrics is not None:
                endpoint = MetricsEndpoint(self.metrics.registry, config.metrics)
                copying.callback(endpoint.close)
                self.metrics_address = endpoint.address
                log.info("copying the store", extra={"metrics": endpoint.address})
            self.is_copying = True
            self._stack.enter_context(mirror_follower(config, self.metrics.registry))
            self.is_copying = False
