"""The gRPC methods: take a request in, keep the limits, and answer through store and assembler."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import numpy as np
from thinrow.client.response import Response
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    RequestError,
    StoreCorruptError,
    StoreError,
    ThinRowError,
    TooManyCallsError,
    UnavailableError,
    UnknownTenantError,
)
from thinrow.serving.inspect import Question
from thinrow.serving.projection import resolve, wire_type
from thinrow.store.history import HistoryPlan, Pointers, Status
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.serving.config import ServerConfig, Tenant
    from thinrow.serving.current import CurrentGeneration
    from thinrow.serving.metrics import Metrics
    from thinrow.serving.projection import ResolvedProjection
    from thinrow.store.generation import Generation
    from thinrow.store.history import Selection

log = logging.getLogger("thinrow.serving")

# The one table of errors; docs/operations.md tells what to do about each.
CODES: dict[type[ThinRowError], grpc.StatusCode] = {
    AnswerTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownTenantError: grpc.StatusCode.NOT_FOUND,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    StoreCorruptError: grpc.StatusCode.DATA_LOSS,
    StoreError: grpc.StatusCode.INTERNAL,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ThinRowError: grpc.StatusCode.INTERNAL,
}
SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
ERROR_METADATA = "thinrow-error"
MESSAGE_LETTERS_MAX = 1000


class Budget:
    """Bytes that requests in work may hold together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, amount: int, timeout_s: float | None) -> Iterator[None]:
        """Waits for room, first come, first served: a large request is not starved.

        Raises:
            AnswerTooLargeError: there never will be room.
            DeadlineError: there was none in time.
        """
        if amount > self._limit:
            raise AnswerTooLargeError(
                "The batch's histories are larger than this server decodes at once "
                "(work_bytes_max); ask for fewer examples at once, shorter sequences or fewer "
                "traits."
            )
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                if not self._changed.wait_for(
                    lambda: self._waiting[0] is turn and self._free >= amount, timeout_s
                ):
                    raise DeadlineError("The deadline passed while the request waited for room.")
                self._free -= amount
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


class MaterializationService(wire_grpc.MaterializationServiceServicer):
    """Pure reads of the serving generation."""

    def __init__(
        self,
        config: ServerConfig,
        current: CurrentGeneration,
        tenants: Mapping[str, Tenant],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._current = current
        self._tenants = tenants
        self._metrics = metrics
        self._calls = threading.BoundedSemaphore(config.calls_max)
        self._streams = threading.BoundedSemaphore(config.streams_max)
        self._work = threading.BoundedSemaphore(config.work_max)
        self._budget = Budget(config.work_bytes_max)
        self._draining = threading.Event()
        self._under_way = 0
        self._one_ended = threading.Condition()

    def add_to(self, server: grpc.Server) -> None:
        """Registers the methods; what answers in bytes already needs no serializer."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Materialize": grpc.unary_unary_rpc_method_handler(
                self.Materialize, wire.MaterializeRequest.FromString
            ),
            "MaterializeStream": grpc.stream_stream_rpc_method_handler(
                self.MaterializeStream, wire.MaterializeStreamRequest.FromString
            ),
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

    def drain(self, timeout_s: float) -> None:
        """Refuses, UNAVAILABLE, what comes from now on, and waits for what is under way."""
        self._draining.set()
        with self._one_ended:
            self._one_ended.wait_for(lambda: not self._under_way, timeout_s)

    def Materialize(  # noqa: N802 - named by the protocol
        self, request: wire.MaterializeRequest, context: grpc.ServicerContext
    ) -> bytes:
        """One batch."""
        with self._answering(context, self._calls, "calls_max"):
            return self._materialize(request, context)

    def MaterializeStream(  # noqa: N802 - named by the protocol
        self,
        request_iterator: Iterator[wire.MaterializeStreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[bytes]:
        """Batch after batch, answers in order."""
        with (
            self._answering(context, self._streams, "streams_max"),
            self._metrics.streams.track_inprogress(),
        ):
            for request in request_iterator:
                self._check_serving()
                yield self._materialize(request.request, context, request.cursor)

    def Inspect(  # noqa: N802 - named by the protocol
        self, request: wire.InspectRequest, context: grpc.ServicerContext
    ) -> wire.InspectResponse:
        """One history, readable."""
        with (
            self._answering(context, self._calls, "calls_max"),
            self._current.use() as generation,
        ):
            question = Question(generation, request, self._config.inspect_events_max)
            with self._selected(
                generation, question.pointers, question.projection, context, record_digests=True
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
            self._answering(context, self._calls, "calls_max"),
            self._current.use() as generation,
        ):
            return self._description(generation)

    @contextmanager
    def _answering(
        self, context: grpc.ServicerContext, slots: threading.BoundedSemaphore, limit: str
    ) -> Iterator[None]:
        """Keeps a limit of calls, and turns errors into their gRPC codes."""
        if not slots.acquire(blocking=False):
            full = TooManyCallsError(
                f"This server is at its limit ({limit}); ask again later, or another replica."
            )
            self._abort(context, full)
        try:
            self._check_serving()
            yield
        except ThinRowError as error:
            self._abort(context, error)
        except Exception as error:
            if not context.is_active():  # cancelled: nobody waits for the answer
                raise
            log.exception("call failed")
            self._abort(context, ThinRowError(f"The server failed ({type(error).__name__})."))
        finally:
            slots.release()

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
        context.set_trailing_metadata(((ERROR_METADATA, error.name),))
        # gRPC carries it in a header: one that is too long would take the error's place.
        message = str(error)
        if len(message) > MESSAGE_LETTERS_MAX:
            message = message[:MESSAGE_LETTERS_MAX] + "…"
        context.abort(code, message)

    def _materialize(
        self,
        request: wire.MaterializeRequest,
        context: grpc.ServicerContext,
        cursor: int | None = None,
    ) -> bytes:
        metrics = self._metrics
        started_s = time.perf_counter()
        with self._working(), self._current.use() as generation:
            projection = resolve(request, generation.schema, self._tenants)
            pointers = read_pointers(request, self._config.examples_max)
            with self._selected(generation, pointers, projection, context) as (plan, selection):
                message, events = plan.answer(
                    projection.traits,
                    self._config.response_bytes_max,
                    cursor=cursor,
                    elapsed_us=int(1e6 * (time.perf_counter() - started_s)),
                )
        counts = np.bincount(selection.statuses, minlength=len(Status) + 1)
        for status in Status:
            if counts[status]:
                metrics.examples.labels(request.tenant, status.name).inc(int(counts[status]))
        metrics.events.inc(events)
        metrics.sent_bytes.inc(len(message))
        return message

    @contextmanager
    def _selected(
        self,
        generation: Generation,
        pointers: Pointers,
        projection: ResolvedProjection,
        context: grpc.ServicerContext,
        *,
        record_digests: bool = False,
    ) -> Iterator[tuple[HistoryPlan, Selection]]:
        """Waits for its turn, and works within the budget of memory until the block ends."""
        metrics = self._metrics
        with self._stage("wait"):
            if not self._work.acquire(timeout=_remaining_s(context)):
                raise DeadlineError("The deadline passed while the request waited for its turn.")
        try:
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
            with self._budget.hold(amount, _remaining_s(context)):
                _check_wanted(context)
                with self._stage("read"):
                    metrics.read_bytes.inc(plan.read())
                _check_wanted(context)
                with self._stage("assemble"):
                    yield plan, plan.resolve()
        finally:
            self._work.release()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._metrics.stage_seconds.labels(name).observe(time.perf_counter() - start)

    def _description(self, generation: Generation) -> wire.DescribeStoreResponse:
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
            tenants=sorted(self._tenants),
            limits=wire.Limits(
                examples_max=config.examples_max,
                response_bytes_max=config.response_bytes_max,
                streams_max=config.streams_max,
            ),
            server_version=version("thinrow"),
        )


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
