"""Groups of small servers in this process, which follow a map that a test changes.

They read a real store, each replica its shards and its generation, and say ELSEWHERE as a server
does. A test makes them slow, silent, dead, or liars.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from thinrow.access.projection import resolve
from thinrow.core.ids import to_wire_kind
from thinrow.core.shards import shard_of
from thinrow.materialization.request import MaterializeRequest, MaterializeStreamRequest
from thinrow.materialization.users import with_keys
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["MappedGroups", "Replica", "mapped_groups"]

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
ABSENT_S = 120


@dataclass(eq=False)
class Replica:
    """One server of a group."""

    cluster: MappedGroups
    group: str
    generation: Generation
    is_open: set[int] | None = None
    """Shards that are open; None for those that the map gives its group."""
    map_version: int | None = None
    """Version that it reports; None for the cluster's."""
    pause_s: float = 0.0
    may_answer: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    """Set, unless streams stay open after the last request."""
    metadata: tuple[tuple[str, str], ...] = ()
    calls: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    address: str = ""
    server: grpc.Server | None = None

    def start(self) -> None:
        self.may_answer.set()
        self.may_end.set()
        server = grpc.server(futures.ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)])
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers: dict[str, Any] = {
            "Materialize": unary(self.materialize),
            "MaterializeStream": stream(self.materialize_stream),
            "DescribeCluster": unary(self.describe_cluster),
            "DescribeStore": unary(self.describe_store),
            "Inspect": unary(self.inspect, wire.InspectRequest.FromString),
        }
        server.add_registered_method_handlers(SERVICE, handlers)
        self.address = f"localhost:{server.add_insecure_port(self.address or 'localhost:0')}"
        server.start()
        self.server = server

    def stop(self) -> None:
        self.may_answer.set()
        self.may_end.set()
        if self.server is not None:
            self.server.stop(None).wait()
            self.server = None

    @property
    def open_shards(self) -> set[int]:
        if self.is_open is not None:
            return self.is_open
        return self.cluster.serving[self.group] | self.cluster.loading[self.group]

    def elsewhere(self, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return ~np.isin(shard_of(keys, self.cluster.shards), sorted(self.open_shards))

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        self.may_answer.wait(ABSENT_S)
        time.sleep(self.pause_s)

    def materialize(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        self._called("Materialize")
        return self.answer(MaterializeRequest(message, 1 << 20), context, None)

    def materialize_stream(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        if self.metadata:
            context.send_initial_metadata(self.metadata)
        self.calls["streams"] += 1
        for message in messages:
            self._called("MaterializeStream")
            streamed = MaterializeStreamRequest(message, 1 << 20)
            yield self.answer(streamed.request, context, streamed.cursor)
        self.may_end.wait(ABSENT_S)

    def answer(
        self, request: MaterializeRequest, context: grpc.ServicerContext, cursor: int | None
    ) -> bytes:
        generation = self.generation
        request = with_keys(generation, request)  # type: ignore[assignment]
        away = self.elsewhere(request.user_ids)
        self.examples += len(away)
        if away.any():
            if not request.map_version:
                self.refuse(context)
            request.set_elsewhere(away)
        projection = resolve(request.tenant, request.projection, generation.schema, {})
        plan = HistoryPlan(generation, request, projection.truncation, projection.groups)
        plan.read()
        plan.resolve()
        version = self.cluster.version if self.map_version is None else self.map_version
        message, _ = plan.answer(projection.traits, 1 << 30, cursor=cursor, map_version=version)
        return message

    def refuse(self, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("thinrow-error", "SHARD_MISSING"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "this server is without shard of the user")

    def inspect(
        self, request: wire.InspectRequest, context: grpc.ServicerContext
    ) -> wire.InspectResponse:
        self._called("Inspect")
        if self.elsewhere(np.array([request.user_id])).any():
            self.refuse(context)
        return wire.InspectResponse(event_count=request.user_id).SerializeToString()  # type: ignore[return-value]

    def describe_store(self, _: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: ARG002
        self._called("DescribeStore")
        generation = self.generation
        return wire.DescribeStoreResponse(
            generation=generation.number,
            watermark_ts=generation.watermark_ts,
            user_id_kind=to_wire_kind(generation.schema.user_ids),
        ).SerializeToString()

    def describe_cluster(self, _: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: ARG002
        self._called("DescribeCluster")
        state = self.cluster.state()
        if self.map_version is not None:
            state.map_version = self.map_version
        if not state.map_version:
            state.Clear()
        state.generation = self.generation.number
        return state.SerializeToString()


@dataclass
class MappedGroups:
    """A cluster; its map counts as soon as `version` grows."""

    shards: int
    lifetime_ms: int = 600_000
    """Long, so that clients read the map only when they have to, unless a test is about that."""
    version: int = 1
    serving: dict[str, set[int]] = field(default_factory=dict)
    loading: dict[str, set[int]] = field(default_factory=dict)
    leaving: dict[str, set[int]] = field(default_factory=dict)
    replicas: dict[str, list[Replica]] = field(default_factory=dict)
    kind: str = "int64"

    def state(self) -> wire.DescribeClusterResponse:
        return wire.DescribeClusterResponse(
            map_version=self.version,
            shards=self.shards,
            map_lifetime_ms=self.lifetime_ms,
            user_id_kind=to_wire_kind(self.kind),  # type: ignore[arg-type]
            groups=[
                wire.ClusterGroup(
                    name=name,
                    targets=[replica.address for replica in replicas],
                    serving=sorted(self.serving[name]),
                    loading=sorted(self.loading[name]),
                    leaving=sorted(self.leaving[name]),
                )
                for name, replicas in self.replicas.items()
                if self.serving[name] or self.loading[name]
            ],
        )

    def move(self, shards: Iterable[int], to: str) -> None:
        """Moves shards at once, as no careful operator would: the old owner has closed them."""
        wanted = set(shards)
        for name in self.serving:
            self.serving[name] -= wanted
        self.serving[to] |= wanted
        self.version += 1

    @property
    def all_replicas(self) -> list[Replica]:
        return [replica for replicas in self.replicas.values() for replica in replicas]

    @property
    def address(self) -> str:
        return self.all_replicas[0].address


@contextmanager
def mapped_groups(
    store: Path,
    owners: list[int],
    copies: int = 1,
    lifetime_ms: int = 600_000,
    number: int | None = None,
) -> Iterator[MappedGroups]:
    """Groups "0", "1", …; shard s belongs to group owners[s]."""
    with ExitStack() as stack:
        generation = stack.enter_context(Generation.open_current(store))
        assert generation.shard_count == len(owners)
        cluster = MappedGroups(len(owners), lifetime_ms, kind=generation.schema.user_ids)
        for group in range(max(owners) + 1 if number is None else number):
            name = str(group)
            cluster.serving[name] = {s for s, owner in enumerate(owners) if owner == group}
            cluster.loading[name], cluster.leaving[name] = set(), set()
            cluster.replicas[name] = []
            for _ in range(copies):
                replica = Replica(cluster, name, generation)
                replica.start()
                stack.callback(replica.stop)
                cluster.replicas[name].append(replica)
        yield cluster
