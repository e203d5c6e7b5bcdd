"""The gRPC methods: decode a request, keep the limits, and answer from the serving generation."""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.access.code_lookup import looked_up
from thinrow.access.fair_scheduler import FairScheduler
from thinrow.access.projection import ProjectionCache, wire_groups
from thinrow.core.ids import to_wire_kind
from thinrow.core.tracing import span_attributes, tracing
from thinrow.core.wire.response import Response
from thinrow.errors import PermissionDeniedError, RequestError
from thinrow.materialization.inspect import Question
from thinrow.materialization.request import (
    LocalRequest,
    MaterializeRequest,
    MaterializeStreamRequest,
    check_examples,
    request_decoder,
)
from thinrow.materialization.users import mark_elsewhere, with_keys
from thinrow.store.budgeted_read import read_within_budget
from thinrow.store.history import HistoryPlan, PointerBatch
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span
    from thinrow.access.identity import CallContext
    from thinrow.access.projection import ResolvedProjection
    from thinrow.access.tenants import Right, Tenants
    from thinrow.cluster.member import ClusterMember
    from thinrow.materialization.config import ServerConfig
    from thinrow.materialization.metrics import Metrics
    from thinrow.store.follower import GenerationFollower
    from thinrow.store.generation import Generation
    from thinrow.store.history import Selection

__all__ = ["RIGHTS", "SERVICE", "MaterializationService"]

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
RIGHTS: dict[str, Right | None] = {
    "Inspect": "inspect",
    "DescribeStore": None,
    "DescribeCluster": None,
}
"""Rights that methods need whose requests name no tenant."""


class MaterializationService:
    """Pure reads of the serving generation."""

    def __init__(
        self,
        config: ServerConfig,
        current: GenerationFollower,
        tenants: Tenants,
        metrics: Metrics,
        member: ClusterMember | None = None,
    ) -> None:
        self._config = config
        self._member = member
        self._current = current
        self._tenants = tenants
        self._metrics = metrics
        self._tracing = tracing("thinrow-server")
        self._projections: ProjectionCache[ResolvedProjection] = ProjectionCache()
        self._work = FairScheduler(config.work_max, reserve=1)
        self._budget = FairScheduler(config.work_bytes_max)
        # By these a client spreads its connections, which the kernel deals out to processes at
        # random.
        self._process = (
            ("thinrow-process", secrets.token_hex(8)),
            ("thinrow-processes", str(config.processes)),
        )

    def add_to(self, server: grpc.Server) -> None:
        """Registers the methods, which make the bytes of their responses themselves."""
        config = self._config
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            # A generator, because its quota of work is held until the response is sent.
            "Materialize": grpc.unary_stream_rpc_method_handler(
                self.materialize,
                request_decoder(MaterializeRequest, config.examples_max),
            ),
            "MaterializeStream": grpc.stream_stream_rpc_method_handler(
                self.materialize_stream,
                request_decoder(MaterializeStreamRequest, config.examples_max),
            ),
            "Inspect": grpc.unary_unary_rpc_method_handler(
                self.inspect,
                wire.InspectRequest.FromString,
                wire.InspectResponse.SerializeToString,
            ),
            "DescribeStore": grpc.unary_unary_rpc_method_handler(
                self.describe_store,
                wire.DescribeStoreRequest.FromString,
                wire.DescribeStoreResponse.SerializeToString,
            ),
            "LookUpCodes": grpc.unary_unary_rpc_method_handler(
                self.look_up_codes,
                wire.LookUpCodesRequest.FromString,
                wire.LookUpCodesResponse.SerializeToString,
            ),
            "DescribeCluster": grpc.unary_unary_rpc_method_handler(
                self.describe_cluster,
                wire.DescribeClusterRequest.FromString,
            ),
        }
        server.add_registered_method_handlers(SERVICE, handlers)

    def materialize(
        self, request: MaterializeRequest | LocalRequest, context: CallContext
    ) -> Generator[bytes, None, None]:
        """Materializes one batch; yields its response."""
        with ExitStack() as sending:
            yield self._materialize(request, context, sending)

    def materialize_stream(
        self, messages: Iterator[MaterializeStreamRequest], context: CallContext
    ) -> Generator[bytes, None, None]:
        """Materializes batch after batch; yields responses in order."""
        if self._config.processes > 1:
            context.send_initial_metadata(self._process)
        for message in messages:
            if not message.has_request:
                raise RequestError(
                    f"The message with cursor {message.cursor} has no request; set it, also "
                    f"for a batch without examples."
                )
            with ExitStack() as sending:
                yield self._materialize(
                    message.request, context, sending, message.cursor, message.traceparent
                )

    def inspect(self, request: wire.InspectRequest, context: CallContext) -> wire.InspectResponse:
        """Shows one history as rows that a person can read."""
        with self._measured(context, "Inspect"), self._current.use() as generation:
            if not self._config.inspect:
                raise PermissionDeniedError("Inspect is switched off at this server.")
            question = Question(generation, request, self._config.inspect_events_max)
            generation.check_open(question.pointers.user_ids)
            with self._selected(
                generation,
                question.pointers,
                question.projection,
                context,
                record_digests=True,
                event_bytes=question.event_bytes,
            ) as (plan, selection):
                bytes_max = self._config.response_bytes_max
                answer, _ = plan.answer(question.projection.traits, bytes_max)
                return question.readable(selection, Response.read(answer), bytes_max)

    def describe_store(
        self,
        request: wire.DescribeStoreRequest,  # noqa: ARG002 - it has no fields
        context: CallContext,
    ) -> wire.DescribeStoreResponse:
        """Describes schema, watermarks and limits."""
        with self._measured(context, "DescribeStore"), self._current.use() as generation:
            return self._description(generation, context.identity.authenticated)

    def look_up_codes(
        self, request: wire.LookUpCodesRequest, context: CallContext
    ) -> wire.LookUpCodesResponse:
        """Returns the codes of values in a vocabulary."""
        with self._measured(context, "LookUpCodes"), self._current.use() as generation:
            if request.tenant:
                wanted = self._resolved(request.tenant, None, generation).traits
            else:
                wanted = generation.schema.traits
            return looked_up(generation, wanted, request)

    def describe_cluster(
        self,
        request: wire.DescribeClusterRequest,  # noqa: ARG002 - it has no fields
        context: CallContext,
    ) -> bytes:
        """Describes the cluster's map, and what is open here; returns the encoded response."""
        with self._measured(context, "DescribeCluster"), self._current.use() as generation:
            if self._member is not None:
                return self._member.description(generation)
            return wire.DescribeClusterResponse(
                generation=generation.number,
                watermark_ts=generation.watermark_ts,
                open_shards=generation.shards,
                user_id_kind=to_wire_kind(generation.schema.user_ids),
            ).SerializeToString()

    def _measured(self, context: CallContext, method: str) -> AbstractContextManager[None]:
        label = self._metrics.tenant(context.identity.effective)
        return self._metrics.request(method, label)

    @contextmanager
    def _message_span(
        self, context: CallContext, cursor: int | None, traceparent: str
    ) -> Iterator[Span | None]:
        """Yields the span of one batch: that of the call, or a new one on a stream."""
        if self._tracing is None or cursor is None:
            yield context.span
            return
        metadata = (("traceparent", traceparent),) if traceparent else context.metadata
        with self._tracing.serving(f"{SERVICE}/MaterializeStream", {}, metadata) as span:
            yield span

    def _materialize(
        self,
        request: MaterializeRequest | LocalRequest,
        context: CallContext,
        sending: ExitStack,
        cursor: int | None = None,
        traceparent: str = "",
    ) -> bytes:
        """Returns one response; the caller closes `sending` once it is sent."""
        metrics, tenant = self._metrics, context.identity.effective
        label = metrics.tenant(tenant)
        method = "Materialize" if cursor is None else "MaterializeStream"
        started_s = time.perf_counter()
        with (
            self._message_span(context, cursor, traceparent) as span,
            metrics.request(method, label),
            metrics.in_flight.track_inprogress(),
            self._current.use() as generation,
        ):
            if span is not None:
                span.set_attributes(
                    {
                        **span_attributes(
                            request.tenant, max(request.counts[0], request.counts[-1])
                        ),
                        "thinrow.cursor": cursor or 0,
                    }
                )
            projection = self._projection(request, generation)
            check_examples(request, self._config.examples_max)
            request = with_keys(generation, request)
            mark_elsewhere(generation, request)
            with self._selected(generation, request, projection, context) as (plan, selection):
                message, events = plan.answer(
                    projection.traits,
                    self._config.response_bytes_max,
                    cursor=cursor,
                    elapsed_us=int(1e6 * (time.perf_counter() - started_s)),
                    # Read after the generation: a shard leaves by a map that is known here.
                    map_version=0 if self._member is None else self._member.version,
                )
                sending.enter_context(self._work.sending(1, tenant))
            if span is not None:
                span.set_attributes(
                    {
                        "thinrow.events": events,
                        "thinrow.bytes": len(message),
                        "thinrow.generation": generation.number,
                    }
                )
        metrics.answered(label, selection.statuses, events, len(message))
        return message

    def _projection(
        self, request: MaterializeRequest | LocalRequest, generation: Generation
    ) -> ResolvedProjection:
        return self._resolved(request.tenant, request.projection, generation)

    def _resolved(
        self, tenant: str, projection: bytes | None, generation: Generation
    ) -> ResolvedProjection:
        schema = generation.schema
        return self._projections.get(
            tenant,
            projection,
            schema,
            schema,
            self._tenants.by_name,
            lambda resolved: resolved,
        )

    @contextmanager
    def _selected(
        self,
        generation: Generation,
        pointers: PointerBatch | MaterializeRequest,
        projection: ResolvedProjection,
        context: CallContext,
        *,
        record_digests: bool = False,
        event_bytes: int | None = None,
    ) -> Iterator[tuple[HistoryPlan, Selection]]:
        """Waits for its turn, and works within the budget of memory until the block ends.

        event_bytes: What one event takes; None for its traits, decoded.
        """
        metrics, tenant = self._metrics, context.identity.effective
        with ExitStack() as turn:
            with self._stage("wait"):
                turn.enter_context(self._work.hold(1, context.remaining_s(), tenant))
            context.check_active()
            with self._stage("plan"):
                plan = HistoryPlan(
                    generation,
                    pointers,
                    projection.truncation,
                    projection.groups,
                    record_digests=record_digests,
                )
            if event_bytes is None:
                event_bytes = projection.event_bytes
            beside_bytes = max(plan.events_at_most * event_bytes, plan.portion_bytes)
            bytes_max = self._tenants.work_bytes_max(tenant)

            def hold(amount: int) -> AbstractContextManager[Callable[[int], bool]]:
                return self._budget.hold(amount, context.remaining_s(), tenant, bytes_max)

            room = turn.enter_context(ExitStack())
            with self._stage("room"):
                extend = room.enter_context(hold(plan.stripe_bytes_at_most + beside_bytes))
            context.check_active()
            with self._stage("read"):
                metrics.read_bytes.inc(
                    read_within_budget(plan, beside_bytes, bytes_max, hold, room, extend)
                )
            context.check_active()
            with self._stage("assemble"):
                yield plan, plan.resolve()

    def _stage(self, name: str) -> AbstractContextManager[object]:
        measured = self._metrics.stage(name)
        return measured if self._tracing is None else self._traced(name, measured)

    @contextmanager
    def _traced(self, name: str, measured: AbstractContextManager[object]) -> Iterator[None]:
        assert self._tracing is not None
        with measured, self._tracing.span(f"thinrow.{name}", {}):
            yield

    def _description(
        self, generation: Generation, caller: str | None
    ) -> wire.DescribeStoreResponse:
        manifest, config = generation.manifest, self._config
        return wire.DescribeStoreResponse(
            generation=generation.number,
            watermark_ts=generation.watermark_ts,
            watermarks=manifest.watermarks,
            shards=generation.shard_count,
            event_count=manifest.event_count,
            user_count=manifest.user_count,
            stored_bytes=manifest.stored_bytes,
            feature_groups=wire_groups(generation.schema),
            tenants=sorted(self._tenants.by_name) if caller is None else [caller],
            limits=wire.Limits(
                examples_max=config.examples_max,
                response_bytes_max=config.response_bytes_max,
                streams_max=config.streams_max,
                request_bytes_max=config.request_bytes_max,
                calls_max=config.calls_max,
                inspect_events_max=config.inspect_events_max if config.inspect else 0,
            ),
            server_version=version("thinrow"),
            user_id_kind=to_wire_kind(generation.schema.user_ids),
            event_id_kind=to_wire_kind(generation.schema.event_ids),
        )
