"""The gRPC methods of the online half: limits and metrics around the tier."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.access.projection import wire_groups
from thinrow.access.wire_errors import wire_message
from thinrow.core.wire.sizes import COLUMNS_MAX
from thinrow.errors import (
    DeadlineError,
    RequestError,
    ThinRowError,
)
from thinrow.online.append_stream import AppendStreams
from thinrow.online.decoding import request_decoder
from thinrow.online.exports import Exports
from thinrow.online.streamed import REQUESTS_MAX, StreamedSnapshots
from thinrow.store.directory import NEVER_TS
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.access.identity import CallContext
    from thinrow.access.tenants import Right
    from thinrow.online.appends import Appends
    from thinrow.online.config import OnlineConfig
    from thinrow.online.follower import TierFollower
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.online.snapshots import Snapshots
    from thinrow.online.tier import MutableTier

__all__ = ["APPENDED_COLUMNS", "RIGHTS", "SERVICE", "STREAMED_REQUESTS", "OnlineService"]

SERVICE = online_pb2.DESCRIPTOR.services_by_name["OnlineService"].full_name
RIGHTS: dict[str, Right | None] = {
    "AppendEvents": "append",
    "ExportEvents": "export",
    "DescribeTier": None,
}
"""Rights that methods need whose requests name no tenant."""
APPENDED_COLUMNS = (
    online_pb2.AppendEventsRequest.EVENTS_FIELD_NUMBER,
    online_pb2.EventBatch.COLUMNS_FIELD_NUMBER,
)
STREAMED_REQUESTS = (online_pb2.SnapshotStreamRequest.REQUESTS_FIELD_NUMBER,)


class OnlineService:
    """The methods that append, snapshot and export events."""

    def __init__(
        self,
        config: OnlineConfig,
        tier: MutableTier,
        appends: Appends,
        published: TierFollower,
        snapshots: Snapshots,
        metrics: OnlineMetrics,
    ) -> None:
        self._config = config
        self._tier = tier
        self._append_streams = AppendStreams(config, tier, appends)
        self._exports = Exports(tier, published)
        self._published = published
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
                request_decoder(wire.AppendEventsRequest, APPENDED_COLUMNS, COLUMNS_MAX),
                wire.AppendEventsResponse.SerializeToString,
            ),
            "Snapshot": grpc.unary_unary_rpc_method_handler(
                self.snapshot, wire.SnapshotRequest.FromString
            ),
            "SnapshotBatch": grpc.unary_unary_rpc_method_handler(
                self.snapshot_batch, wire.SnapshotBatchRequest.FromString
            ),
            "SnapshotStream": grpc.stream_stream_rpc_method_handler(
                self.snapshot_stream,
                request_decoder(wire.SnapshotStreamRequest, STREAMED_REQUESTS, REQUESTS_MAX),
            ),
            "ExportEvents": grpc.unary_stream_rpc_method_handler(
                self.export_events,
                wire.ExportEventsRequest.FromString,
            ),
            "DescribeTier": grpc.unary_unary_rpc_method_handler(
                self.describe_tier,
                wire.DescribeTierRequest.FromString,
                wire.DescribeTierResponse.SerializeToString,
            ),
        }
        server.add_registered_method_handlers(SERVICE, handlers)

    def append_events(
        self,
        requests: Iterator[online_pb2.AppendEventsRequest],
        context: CallContext,  # noqa: ARG002 - every method has one
    ) -> Iterator[online_pb2.AppendEventsResponse]:
        """Answers each batch, in order, once it is durable."""
        for batch in self._append_streams.submitted(requests):
            outcome = batch.outcome
            if isinstance(outcome, RequestError):
                self._metrics.refused.inc()
                refused = " ".join(wire_message(outcome).split())
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

    def snapshot(self, request: online_pb2.SnapshotRequest, context: CallContext) -> bytes:
        """Answers the snapshot of one user."""
        started_s = time.perf_counter()
        # One user's snapshot takes less time than a turn of threads.
        answer = self._snapshots.take([request.user_id], request, context.remaining_s())
        self._metrics.snapshots.inc()
        self._snapshot_seconds.observe(time.perf_counter() - started_s)
        return answer

    def snapshot_batch(
        self, request: online_pb2.SnapshotBatchRequest, context: CallContext
    ) -> bytes:
        """Answers the snapshot of several users at one moment."""
        users, most = len(request.user_ids), self._config.batch_users_max
        if users > most:
            raise RequestError(
                f"{users} users in one request; this server accepts {most}, so send several."
            )
        with self._working(context):
            answer = self._snapshots.take(request.user_ids, request, context.remaining_s())
        self._metrics.snapshots.inc(users)
        return answer

    def snapshot_stream(
        self,
        messages: Iterator[online_pb2.SnapshotStreamRequest],
        context: CallContext,  # noqa: ARG002 - every method has one
    ) -> Iterator[bytes]:
        """Answers each message of requests with one message."""
        for message in messages:
            yield self._streamed.answer(message)

    def export_events(
        self, request: online_pb2.ExportEventsRequest, context: CallContext
    ) -> Iterator[bytes]:
        """Seals a watermark, and sends the events that arrived before it."""
        for part in self._exports.parts(request):
            context.check_serving()
            with self._working(context):
                self._metrics.exported.inc(part.events)
                message = part.encode()
            yield message

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
