"""The gRPC methods: take a request in, keep the limits, and answer through store and assembler."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from thinrow.client.response import Response
from thinrow.client.tracing import UNTRACED, told_of, tracing
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    PermissionDeniedError,
    RequestError,
    StoreCorruptError,
    StoreError,
    ThinRowError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
    UnknownTenantError,
)
from thinrow.serving.inspect import Question
from thinrow.serving.limits import Places, Turns
from thinrow.serving.projection import resolve, wire_type
from thinrow.store.history import HistoryPlan, Pointers, Status
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.serving.config import ServerConfig
    from thinrow.serving.current import CurrentGeneration
    from thinrow.serving.metrics import Metrics
    from thinrow.serving.projection import ResolvedProjection
    from thinrow.serving.tenants import Tenants
    from thinrow.store.generation import Generation
    from thinrow.store.history import Selection

M = TypeVar("M", wire.MaterializeRequest, wire.MaterializeStreamRequest)

log = logging.getLogger("thinrow.serving")

# The one table of errors; docs/operations.md tells what to do about each.
CODES: dict[type[ThinRowError], grpc.StatusCode] = {
    AnswerTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownTenantError: grpc.StatusCode.NOT_FOUND,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    StoreCorruptError: grpc.StatusCode.DATA_LOSS,
    StoreError: grpc.StatusCode.INTERNAL,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ThinRowError: grpc.StatusCode.INTERNAL,
}
SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
ERROR_METADATA = "thinrow-error"
RETRY_METADATA = "retry-after-ms"
MESSAGE_LETTERS_MAX = 1000


class MaterializationService(wire_grpc.MaterializationServiceServicer):
    """Pure reads of the serving generation."""

    def __init__(
        self,
        config: ServerConfig,
        current: CurrentGeneration,
        tenants: Tenants,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._current = current
        self._tenants = tenants
        self._metrics = metrics
        metrics.serve(current, lambda: tenants.by_name)
        self._tracing = tracing("thinrow-server")
        self._calls = Places(config.calls_max, "calls_max")
        self._streams = Places(config.streams_max, "streams_max")
        self._work = Turns(config.work_max, spare=1)
        self._budget = Turns(config.work_bytes_max)
        self._draining = threading.Event()
        self._under_way = 0
        self._one_ended = threading.Condition()

    def add_to(self, server: grpc.Server) -> None:
        """Registers the methods.

        Those for batches take bytes, which are decoded once it is known who asks, and give bytes.
        """
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Materialize": grpc.unary_unary_rpc_method_handler(self.Materialize),
            "MaterializeStream": grpc.stream_stream_rpc_method_handler(self.MaterializeStream),
            "Inspect": grpc.unary_unary_rpc_method_handler(
                self.Inspect,
                wire.InspectRequest.FromString,
                wire.InspectResponse.SerializeToString,
            ),
            "DescribeStore": grpc.unary_unary_rpc_method_handler(
                self.DescribeStore,
                wire.DescribeStoreRequest.FromString,
                wire.DescribeStoreResponse.SerializeToString,
            ),
        }
        server.add_registered_method_handlers(SERVICE, handlers)
        self._metrics.serves()

    def drain(self, timeout_s: float) -> None:
        """Refuses, UNAVAILABLE, what comes from now on, and waits for what is under way."""
        self._draining.set()
        self._metrics.ready.set(0)
        with self._one_ended:
            self._one_ended.wait_for(lambda: not self._under_way, timeout_s)

    def Materialize(  # noqa: N802 - named by the protocol
        self, message: bytes, context: grpc.ServicerContext
    ) -> bytes:
        """One batch."""
        with self._answering(context, self._calls) as caller:
            request = decoded(wire.MaterializeRequest, message)
            tenant = self._tenants.asking(caller, request.tenant)
            with self._calls.one_of(tenant, self._tenants.calls_max(tenant)):
                return self._materialize(request, context, tenant)

    def MaterializeStream(  # noqa: N802 - named by the protocol
        self,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> Iterator[bytes]:
        """Batch after batch, answers in order."""
        with (
            self._answering(context, self._streams),
            self._metrics.streams.track_inprogress(),
            ExitStack() as place,
        ):
            holder: str | None = None
            for message in messages:
                self._check_serving()
                # Again, for a token may have been withdrawn since.
                caller = self._tenants.caller(context.invocation_metadata())
                request = decoded(wire.MaterializeStreamRequest, message)
                tenant = self._tenants.asking(caller, request.request.tenant)
                if tenant != holder:
                    place.close()
                    most = self._tenants.streams_max(tenant)
                    place.enter_context(self._streams.one_of(tenant, most))
                    holder = tenant
                yield self._materialize(request.request, context, tenant, request.cursor)

    def Inspect(  # noqa: N802 - named by the protocol
        self, request: wire.InspectRequest, context: grpc.ServicerContext
    ) -> wire.InspectResponse:
        """One history, readable."""
        with (
            self._answering(context, self._calls) as caller,
            self._calls.one_of(caller or "", self._tenants.calls_max(caller or "")),
            self._metrics.request("Inspect", self._metrics.tenant(caller or "")),
            self._current.use() as generation,
        ):
            if not self._config.inspect:
                raise PermissionDeniedError("Inspect is switched off at this server.")
            self._tenants.require_any(caller)
            question = Question(generation, request, self._config.inspect_events_max)
            with self._selected(
                generation,
                question.pointers,
                question.projection,
                context,
                caller or "",
                record_digests=True,
            ) as (plan, selection):
                answer, _ = plan.answer(question.projection.traits, self._config.response_bytes_max)
            return question.readable(selection, Response.read(answer))

    def DescribeStore(  # noqa: N802 - named by the protocol
        self,
        request: wire.DescribeStoreRequest,  # noqa: ARG002 - it has no fields
        context: grpc.ServicerContext,
    ) -> wire.DescribeStoreResponse:
        """Schema, watermarks, limits."""
        with (
            self._answering(context, self._calls) as caller,
            self._calls.one_of(caller or "", self._tenants.calls_max(caller or "")),
            self._metrics.request("DescribeStore", self._metrics.tenant(caller or "")),
            self._current.use() as generation,
        ):
            return self._description(generation, caller)

    @contextmanager
    def _answering(self, context: grpc.ServicerContext, places: Places) -> Iterator[str | None]:
        """Keeps a limit of calls, asks who calls, and turns errors into their gRPC codes."""
        try:
            with places.one():
                self._check_serving()
                yield self._tenants.caller(context.invocation_metadata())
        except ThinRowError as error:
            self._abort(context, error)
        except Exception as error:
            if not context.is_active():  # cancelled: nobody waits for the answer
                raise
            log.exception("call failed")
            self._abort(context, ThinRowError(f"The server failed ({type(error).__name__})."))

    def _check_serving(self) -> None:
        if self._draining.is_set():
            raise UnavailableError("This server is stopping; ask another replica.")

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Counts a request as under way."""
        with self._one_ended:
            self._under_way += 1
        try:
            with self._metrics.in_flight.track_inprogress():
                yield
        finally:
            with self._one_ended:
                self._under_way -= 1
                self._one_ended.notify_all()

    def _abort(self, context: grpc.ServicerContext, error: ThinRowError) -> NoReturn:
        self._metrics.errors.labels(error.name).inc()
        code = next(code for kind, code in CODES.items() if isinstance(error, kind))
        if isinstance(error, StoreError):
            log.error("store failed", extra={"reason": str(error)})
        metadata = [(ERROR_METADATA, error.name)]
        if isinstance(error, TooManyCallsError) and error.retry_after_ms is not None:
            metadata.append((RETRY_METADATA, str(error.retry_after_ms)))
        context.set_trailing_metadata(tuple(metadata))
        # gRPC carries it in a header: one that is too long would take the error's place.
        message = str(error)
        if len(message) > MESSAGE_LETTERS_MAX:
            message = message[:MESSAGE_LETTERS_MAX] + "…"
        context.abort(code, message)

    def _materialize(
        self,
        request: wire.MaterializeRequest,
        context: grpc.ServicerContext,
        tenant: str,
        cursor: int | None = None,
    ) -> bytes:
        metrics = self._metrics
        label = metrics.tenant(tenant)
        method = "Materialize" if cursor is None else "MaterializeStream"
        started_s = time.perf_counter()
        with (
            UNTRACED
            if self._tracing is None
            else self._tracing.serving(
                f"{SERVICE}/{method}",
                {**told_of(request), "thinrow.cursor": cursor or 0},
                context.invocation_metadata(),
            ) as span,
            metrics.request(method, label),
            self._working(),
            self._current.use() as generation,
        ):
            projection = resolve(request, generation.schema, self._tenants.by_name)
            pointers = read_pointers(request, self._config.examples_max)
            with self._selected(generation, pointers, projection, context, tenant) as (
                plan,
                selection,
            ):
                message, events = plan.answer(
                    projection.traits,
                    self._config.response_bytes_max,
                    cursor=cursor,
                    elapsed_us=int(1e6 * (time.perf_counter() - started_s)),
                )
            if span is not None:
                span.set_attributes(
                    {
                        "thinrow.events": events,
                        "thinrow.bytes": len(message),
                        "thinrow.generation": generation.number,
                    }
                )
        counts = np.bincount(selection.statuses, minlength=len(Status) + 1)
        for status in Status:
            if counts[status]:
                metrics.examples.labels(label, status.name).inc(int(counts[status]))
        metrics.events.inc(events)
        metrics.sent_bytes.inc(len(message))
        metrics.tenant_sent_bytes.labels(label).inc(len(message))
        return message

    @contextmanager
    def _selected(
        self,
        generation: Generation,
        pointers: Pointers,
        projection: ResolvedProjection,
        context: grpc.ServicerContext,
        tenant: str,
        *,
        record_digests: bool = False,
    ) -> Iterator[tuple[HistoryPlan, Selection]]:
        """Waits for its turn, and works within the budget of memory until the block ends."""
        metrics = self._metrics
        with ExitStack() as turn:
            with self._stage("wait"):
                turn.enter_context(self._work.hold(1, _remaining_s(context), tenant))
            _check_wanted(context)
            with self._stage("plan"):
                plan = HistoryPlan(
                    generation,
                    pointers,
                    projection.truncation,
                    projection.groups,
                    record_digests=record_digests,
                )
            amount = plan.stripe_bytes_at_most + plan.events_at_most * projection.event_bytes
            bytes_max = self._tenants.work_bytes_max(tenant)
            with self._stage("room"):
                turn.enter_context(
                    self._budget.hold(amount, _remaining_s(context), tenant, bytes_max)
                )
            _check_wanted(context)
            with self._stage("read"):
                metrics.read_bytes.inc(plan.read())
            _check_wanted(context)
            with self._stage("assemble"):
                yield plan, plan.resolve()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with UNTRACED if self._tracing is None else self._tracing.span(f"thinrow.{name}", {}):
                yield
        finally:
            self._metrics.stage_seconds.labels(name).observe(time.perf_counter() - start)

    def _description(
        self, generation: Generation, caller: str | None
    ) -> wire.DescribeStoreResponse:
        manifest, config = generation.manifest, self._config
        return wire.DescribeStoreResponse(
            generation=generation.number,
            watermark_ts=generation.watermark_ts,
            watermarks=manifest.watermarks,
            shards=len(generation.shards),
            event_count=manifest.event_count,
            user_count=manifest.user_count,
            stored_bytes=manifest.stored_bytes,
            feature_groups=[
                wire.FeatureGroup(
                    name=group.name,
                    traits=[
                        wire.Trait(
                            name=trait.name,
                            type=wire_type(trait),
                            vector_size=trait.size,
                            nullable=trait.nullable,
                        )
                        for trait in group.traits
                    ],
                )
                for group in generation.schema.groups
            ],
            tenants=sorted(self._tenants.by_name) if caller is None else [caller],
            limits=wire.Limits(
                examples_max=config.examples_max,
                response_bytes_max=config.response_bytes_max,
                streams_max=config.streams_max,
            ),
            server_version=version("thinrow"),
        )


def decoded(kind: type[M], message: bytes) -> M:
    """A request. Raises RequestError for bytes that are none."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise RequestError(f"The bytes sent are no {kind.DESCRIPTOR.name}.") from error


def read_pointers(request: wire.MaterializeRequest, examples_max: int) -> Pointers:
    """A request's arrays, those left out filled in.

    Raises:
        RequestError: lengths differ, or there are more than ``examples_max`` examples.
    """
    examples = len(request.user_ids)
    if examples > examples_max:
        raise RequestError(
            f"{examples} examples in one request; this server takes {examples_max}, so ask in "
            f"several."
        )

    def array(name: str, values: Sequence[int], default: NDArray[np.int64]) -> NDArray[np.int64]:
        if not values and examples:
            return default
        if len(values) != examples:
            raise RequestError(
                f"{name} has {len(values)} elements and user_ids has {examples}; give each "
                f"example one."
            )
        return np.array(values, dtype=default.dtype)

    if len(request.end_ts) != examples:
        raise RequestError(
            f"end_ts has {len(request.end_ts)} elements and user_ids has {examples}; give each "
            f"example one."
        )
    zeros = np.zeros(examples, dtype=np.int64)
    end_ts = np.array(request.end_ts, dtype=np.int64)
    return Pointers(
        user_ids=np.array(request.user_ids, dtype=np.int64),
        start_ts=array("start_ts", request.start_ts, zeros),
        end_ts=end_ts,
        max_lengths=array("max_lengths", request.max_lengths, zeros),
        digests=array("digests", request.digests, zeros.view(np.uint64)),  # type: ignore[arg-type]
        request_ts=array("request_ts", request.request_ts, end_ts),
        mutable_lengths=array("mutable_lengths", request.mutable_lengths, zeros),
    )


def _remaining_s(context: grpc.ServicerContext) -> float | None:
    remaining: float | None = context.time_remaining()
    return None if remaining is None else min(max(remaining, 0.0), threading.TIMEOUT_MAX)


def _check_wanted(context: grpc.ServicerContext) -> None:
    """Ends work that nobody waits for any more."""
    if not context.is_active():
        raise DeadlineError("The caller stopped waiting.")
