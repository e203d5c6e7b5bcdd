"""The gRPC methods of the online half: limits and metrics around the tier."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.access.projection import wire_groups
from thinrow.access.wire_errors import wire_message
from thinrow.core.ids import to_wire_kind
from thinrow.errors import (
    DeadlineError,
    RequestError,
    ThinRowError,
    UnavailableError,
)
from thinrow.online.append_stream import AppendStreams
from thinrow.online.config import SMALL_REQUEST_BYTES_MAX
from thinrow.online.decoding import request_decoder
from thinrow.online.snapshots import AnswerRoom
from thinrow.online.streamed import REQUESTS_MAX, StreamedSnapshots
from thinrow.store.directory import NEVER_TS
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from thinrow.access.identity import CallContext
    from thinrow.access.tenants import Right
    from thinrow.online.config import OnlineConfig
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.online.snapshots import Snapshots
    from thinrow.online.source import EventSource
    from thinrow.online.tier import CommittedBatch

__all__ = ["RIGHTS", "SERVICE", "STREAMED_REQUESTS", "OnlineService"]

SERVICE = online_pb2.DESCRIPTOR.services_by_name["OnlineService"].full_name
RIGHTS: dict[str, Right | None] = {
    "AppendEvents": "append",
    "ExportEvents": "export",
    "DescribeTier": None,
}
"""Rights that methods need whose requests name no tenant."""
STREAMED_REQUESTS = (online_pb2.SnapshotStreamRequest.REQUESTS_FIELD_NUMBER,)
CALL_POLL_S = 1.0
"""Interval at which a call that waits for a commit checks that it still goes on."""
small_request = partial(request_decoder, bytes_max=SMALL_REQUEST_BYTES_MAX)


class OnlineService:
    """The methods that append, snapshot and export events."""

    def __init__(
        self,
        config: OnlineConfig,
        source: EventSource,
        snapshots: Snapshots,
        metrics: OnlineMetrics,
    ) -> None:
        self._config = config
        self._tier = source.tier
        self._append_streams = AppendStreams(config, source.tier, source.log, source.published)
        self._exports = source.exports
        self._published = source.published
        self._snapshots = snapshots
        self._metrics = metrics
        self._streamed = StreamedSnapshots(snapshots, metrics, config.response_bytes_max)
        self._snapshot_seconds = metrics.seconds.labels("snapshot")
        self._append_seconds = metrics.seconds.labels("append")
        self._work = threading.BoundedSemaphore(config.work_max)

    def add_to(self, server: grpc.Server) -> None:
        """Registers the methods; snapshots and exports are encoded already."""
        wire = online_pb2
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "AppendEvents": grpc.stream_stream_rpc_method_handler(
                self.append_events,
                response_serializer=wire.AppendEventsResponse.SerializeToString,
            ),
            # Generators, because an answer's memory is held until it is sent.
            "Snapshot": grpc.unary_stream_rpc_method_handler(
                self.snapshot, small_request(wire.SnapshotRequest)
            ),
            "SnapshotBatch": grpc.unary_stream_rpc_method_handler(
                self.snapshot_batch, small_request(wire.SnapshotBatchRequest)
            ),
            "SnapshotStream": grpc.stream_stream_rpc_method_handler(
                self.snapshot_stream,
                small_request(wire.SnapshotStreamRequest, STREAMED_REQUESTS, REQUESTS_MAX),
            ),
            "ExportEvents": grpc.unary_stream_rpc_method_handler(
                self.export_events,
                small_request(wire.ExportEventsRequest),
            ),
            "LookUpEventCodes": grpc.unary_unary_rpc_method_handler(
                self.look_up_event_codes,
                small_request(wire.LookUpEventCodesRequest),
                wire.LookUpEventCodesResponse.SerializeToString,
            ),
            "DescribeTier": grpc.unary_unary_rpc_method_handler(
                self.describe_tier,
                small_request(wire.DescribeTierRequest),
                wire.DescribeTierResponse.SerializeToString,
            ),
        }
        server.add_registered_method_handlers(SERVICE, handlers)

    def append_events(
        self,
        messages: Iterator[bytes],
        context: CallContext,
    ) -> Iterator[online_pb2.AppendEventsResponse]:
        """Answers each batch, in order, once it is durable."""
        for batch in self._append_streams.submitted(messages):
            outcome = batch.outcome
            # Never raised here: a traceback would keep the whole batch.
            error = outcome if isinstance(outcome, ThinRowError) else _failure(outcome, context)
            if isinstance(error, RequestError):
                self._metrics.refused.inc()
                refused = " ".join(wire_message(error).split())
                yield online_pb2.AppendEventsResponse(cursor=batch.cursor, refused=refused)
                continue
            if isinstance(outcome, ThinRowError):
                raise outcome
            committed = outcome.result()
            self._append_seconds.observe(time.perf_counter() - batch.started_s)
            self._metrics.appended.inc(committed.appended)
            self._metrics.duplicates.inc(committed.duplicates)
            yield online_pb2.AppendEventsResponse(
                cursor=batch.cursor,
                appended=committed.appended,
                duplicates=committed.duplicates,
                arrival_ts=committed.arrival_ts,
            )

    def snapshot(
        self, request: online_pb2.SnapshotRequest, context: CallContext
    ) -> Iterator[bytes]:
        """Answers the snapshot of one user."""
        started_s = time.perf_counter()
        with AnswerRoom() as room:
            # One user's snapshot takes less time than a turn of threads.
            answer = self._snapshots.take(
                request, context.remaining_s(), room, context.identity.authenticated
            )
            self._metrics.snapshots.inc()
            self._snapshot_seconds.observe(time.perf_counter() - started_s)
            yield answer

    def snapshot_batch(
        self, request: online_pb2.SnapshotBatchRequest, context: CallContext
    ) -> Iterator[bytes]:
        """Answers the snapshot of several users at one moment."""
        users = len(request.user_ids) or len(request.user_texts)
        most = self._config.batch_users_max
        if users > most:
            raise RequestError(
                f"{users} users in one request; this server accepts {most}, so send several."
            )
        with AnswerRoom() as room:
            with self._working(context):
                remaining_s = context.remaining_s()
                caller = context.identity.authenticated
                answer = self._snapshots.take(request, remaining_s, room, caller)
            self._metrics.snapshots.inc(users)
            yield answer

    def snapshot_stream(
        self,
        messages: Iterator[online_pb2.SnapshotStreamRequest],
        context: CallContext,
    ) -> Iterator[bytes]:
        """Answers each message of requests with one message."""
        for message in messages:
            with AnswerRoom() as room:
                yield self._streamed.answer(message, room, context.identity.authenticated)

    def export_events(
        self, request: online_pb2.ExportEventsRequest, context: CallContext
    ) -> Iterator[bytes]:
        """Seals a watermark, and sends the events that arrived before it."""
        if self._exports is None:
            raise RequestError(
                "This server's events come from a Kafka topic, which is exported without it: run "
                f"thinrow export --events {self._config.events} --bootstrap-servers …, or let "
                f"thinrow compact read the topic itself."
            )
        for part in self._exports.parts(request):
            context.check_serving()
            with self._snapshots.hold(part.memory_bytes, context.remaining_s(), ""):
                with self._working(context):
                    self._metrics.exported.inc(part.events)
                    message = part.encode()
                yield message

    def look_up_event_codes(
        self, request: online_pb2.LookUpEventCodesRequest, context: CallContext
    ) -> online_pb2.LookUpEventCodesResponse:
        """Returns the codes of values of mutable events."""
        with self._working(context):
            codes = self._snapshots.look_up_codes(request.values)
        return online_pb2.LookUpEventCodesResponse(codes=codes)

    def describe_tier(
        self,
        request: online_pb2.DescribeTierRequest,  # noqa: ARG002 - it has no fields
        context: CallContext,  # noqa: ARG002 - every method has one
    ) -> online_pb2.DescribeTierResponse:
        """Describes the clock, the schema and the limits."""
        tier, record_format = self._tier, self._tier.format
        kept_from_ts = tier.kept_from_ts
        return online_pb2.DescribeTierResponse(
            now_ts=tier.now_ts,
            sealed_ts=max(0, tier.sealed_ts),
            generation=self._published.number,
            watermark_ts=self._published.watermark_ts,
            kept_from_ts=None if kept_from_ts == NEVER_TS else kept_from_ts,
            feature_groups=wire_groups(record_format.schema) if record_format else (),
            batch_events_max=self._config.batch_events_max,
            batch_users_max=self._config.batch_users_max,
            server_version=version("thinrow"),
            user_id_kind=to_wire_kind(record_format.schema.user_ids if record_format else "int64"),
            event_id_kind=to_wire_kind(
                record_format.schema.event_ids if record_format else "int64"
            ),
            topic=tier.topic,
            partition_count=tier.partition_count,
            partitions=[
                online_pb2.TierPartition(
                    number=number, as_of_ts=moment.as_of_ts, lag_ms=moment.lag_ms
                )
                for number, moment in tier.partitions()
            ],
            limits=materialization_pb2.Limits(
                examples_max=self._config.batch_users_max,
                response_bytes_max=self._config.response_bytes_max,
                streams_max=self._config.streams_max,
                request_bytes_max=self._config.request_bytes_max,
                calls_max=self._config.calls_max,
            ),
        )

    @contextmanager
    def _working(self, context: CallContext) -> Iterator[None]:
        """Limits concurrent work, because many requests at once only delay each other."""
        if not self._work.acquire(timeout=context.remaining_s()):
            raise DeadlineError("The deadline passed while the request waited for its turn.")
        try:
            yield
        finally:
            self._work.release()


def _failure(outcome: Future[CommittedBatch], context: CallContext) -> BaseException | None:
    """Waits for the end of a commit, and returns its exception; None if it has none.

    Raises:
        UnavailableError: The call has ended before, so that its thread need not wait.
    """
    while not outcome.done():
        with suppress(TimeoutError):
            return outcome.exception(CALL_POLL_S)
        if not context.is_active():
            raise UnavailableError("The call ended before its events were durable.")
    return outcome.exception()
