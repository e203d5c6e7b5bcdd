"""The gRPC methods: take a request in, keep the limits, and answer through store and assembler."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from thinrow.access.limits import FairScheduler
from thinrow.access.projection import resolve, wire_groups
from thinrow.core.status import Status
from thinrow.core.tracing import UNTRACED, span_attributes, tracing
from thinrow.core.wire.response import Response
from thinrow.errors import DeadlineError, PermissionDeniedError, RequestError
from thinrow.materialization.inspect import Question
from thinrow.store.budgeted_read import read_within_budget
from thinrow.store.history import HistoryPlan, PointerBatch
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from contextlib import AbstractContextManager

    from google.protobuf.message import Message
    from numpy.typing import NDArray
    from thinrow.access.gate import Caller, Gate
    from thinrow.access.projection import ResolvedProjection
    from thinrow.materialization.config import ServerConfig
    from thinrow.materialization.metrics import Metrics
    from thinrow.store.follower import GenerationFollower
    from thinrow.store.generation import Generation
    from thinrow.store.history import Selection

M = TypeVar("M", bound="Message")

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name


class MaterializationService:
    """Pure reads of the serving generation."""

    def __init__(
        self,
        config: ServerConfig,
        current: GenerationFollower,
        gate: Gate,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._current = current
        self._gate = gate
        self._tenants = gate.tenants
        self._metrics = metrics
        self._tracing = tracing("thinrow-server")
        self._work = FairScheduler(config.work_max, spare=1)
        self._budget = FairScheduler(config.work_bytes_max)
        # By these a client spreads its connections, which the kernel deals out to processes at
        # random.
        self._process = (
            ("thinrow-process", secrets.token_hex(8)),
            ("thinrow-processes", str(config.processes)),
        )

    def add_to(self, server: grpc.Server) -> None:
        """Registers the methods: bytes in, decoded once it is known who asks, and bytes out."""
        methods = {
            "Materialize": self.materialize,
            "MaterializeStream": self.materialize_stream,
            "Inspect": self.inspect,
            "DescribeStore": self.describe_store,
        }
        server.add_registered_method_handlers(
            SERVICE,
            # On the wire a single call is a stream of one message.
            {
                name: grpc.stream_stream_rpc_method_handler(answers)
                for name, answers in methods.items()
            },
        )
        self._metrics.mark_ready()

    def materialize(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Generator[bytes, None, None]:
        """One batch."""
        gate, tenants = self._gate, self._tenants
        with gate.answering(context) as caller:
            request = only(wire.MaterializeRequest, messages)
            caller.tenant = tenants.asking(caller.holder, request.tenant)
            with gate.named_place(caller, is_stream=False), ExitStack() as sending:
                yield self._materialize(request, context, caller.tenant, sending)

    def materialize_stream(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Generator[bytes, None, None]:
        """Batch after batch, answers in order."""
        gate, tenants = self._gate, self._tenants
        if self._config.processes > 1:
            context.send_initial_metadata(self._process)
        with (
            gate.answering(context) as caller,
            ExitStack() as place,
        ):
            holder: str | None = None
            for message in messages:
                gate.check_serving()
                # Again, for a token may have been withdrawn since.
                caller.ask(context)
                request = decoded(wire.MaterializeStreamRequest, message)
                if not request.HasField("request"):
                    raise RequestError(
                        f"The message with cursor {request.cursor} has no request; set it, also "
                        f"for a batch without examples."
                    )
                tenant = tenants.asking(caller.holder, request.request.tenant)
                if tenant != holder:
                    place.close()
                    caller.tenant = tenant
                    place.enter_context(gate.named_place(caller, is_stream=True))
                    holder = tenant
                with ExitStack() as sending:
                    yield self._materialize(
                        *(request.request, context, tenant, sending),
                        *(request.cursor, request.traceparent),
                    )

    def inspect(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Generator[bytes, None, None]:
        """One history, readable."""
        with self._asked(context, "Inspect") as caller, self._current.use() as generation:
            request = only(wire.InspectRequest, messages)
            if not self._config.inspect:
                raise PermissionDeniedError("Inspect is switched off at this server.")
            self._tenants.require_any(caller.holder)
            question = Question(generation, request, self._config.inspect_events_max)
            with self._selected(
                generation,
                question.pointers,
                question.projection,
                context,
                caller.tenant,
                record_digests=True,
                event_bytes=question.event_bytes,
            ) as (plan, selection):
                bytes_max = self._config.response_bytes_max
                answer, _ = plan.answer(question.projection.traits, bytes_max)
                shown = question.readable(selection, Response.read(answer), bytes_max)
                message = shown.SerializeToString()
            yield message

    def describe_store(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Generator[bytes, None, None]:
        """Schema, watermarks, limits."""
        with self._asked(context, "DescribeStore") as caller, self._current.use() as generation:
            only(wire.DescribeStoreRequest, messages)
            yield self._description(generation, caller.holder).SerializeToString()

    @contextmanager
    def _asked(self, context: grpc.ServicerContext, method: str) -> Iterator[Caller]:
        """A single call that asks for no batch."""
        gate = self._gate
        with (
            gate.answering(context) as caller,
            gate.named_place(caller, is_stream=False),
            self._metrics.request(method, self._metrics.tenant(caller.tenant)),
        ):
            yield caller

    def _materialize(
        self,
        request: wire.MaterializeRequest,
        context: grpc.ServicerContext,
        tenant: str,
        sending: ExitStack,
        cursor: int | None = None,
        traceparent: str = "",
    ) -> bytes:
        """One answer; `sending` is to be closed once it is sent."""
        metrics = self._metrics
        label = metrics.tenant(tenant)
        method = "Materialize" if cursor is None else "MaterializeStream"
        started_s = time.perf_counter()
        with (
            UNTRACED
            if self._tracing is None
            else self._tracing.serving(
                f"{SERVICE}/{method}",
                {
                    **span_attributes(request.tenant, len(request.user_ids)),
                    "thinrow.cursor": cursor or 0,
                },
                (("traceparent", traceparent),) if traceparent else context.invocation_metadata(),
            ) as span,
            metrics.request(method, label),
            metrics.in_flight.track_inprogress(),
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
                sending.enter_context(self._work.sending(1, tenant))
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
        pointers: PointerBatch,
        projection: ResolvedProjection,
        context: grpc.ServicerContext,
        tenant: str,
        *,
        record_digests: bool = False,
        event_bytes: int | None = None,
    ) -> Iterator[tuple[HistoryPlan, Selection]]:
        """Waits for its turn, and works within the budget of memory until the block ends.

        event_bytes: What one event takes; None for its traits, decoded.
        """
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
            if event_bytes is None:
                event_bytes = projection.event_bytes
            beside_bytes = max(plan.events_at_most * event_bytes, plan.portion_bytes)
            bytes_max = self._tenants.work_bytes_max(tenant)

            def hold(amount: int) -> AbstractContextManager[Callable[[int], bool]]:
                return self._budget.hold(amount, _remaining_s(context), tenant, bytes_max)

            room = turn.enter_context(ExitStack())
            with self._stage("room"):
                extend = room.enter_context(hold(plan.stripe_bytes_at_most + beside_bytes))
            _check_wanted(context)
            with self._stage("read"):
                metrics.read_bytes.inc(
                    read_within_budget(plan, beside_bytes, bytes_max, hold, room, extend)
                )
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
        )


def only(kind: type[M], messages: Iterator[bytes]) -> M:
    """A single call's request. Raises RequestError for bytes that are none, or no message."""
    message = next(messages, None)
    if message is None:
        raise RequestError(f"The call ended without its {kind.DESCRIPTOR.name}.")
    return decoded(kind, message)


def decoded(kind: type[M], message: bytes) -> M:
    """A request. Raises RequestError for bytes that are none."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise RequestError(f"The bytes sent are no {kind.DESCRIPTOR.name}.") from error


def read_pointers(request: wire.MaterializeRequest, examples_max: int) -> PointerBatch:
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
    return PointerBatch(
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
