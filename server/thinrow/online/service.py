"""The gRPC methods of the online half: keep the limits, and hand over to the tier."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.access.projection import wire_groups
from thinrow.access.wire_errors import wire_message
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.malformed import MalformedError
from thinrow.core.wire.sizes import COLUMNS_MAX
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    RequestError,
    ThinRowError,
)
from thinrow.events.times import check_milliseconds
from thinrow.online.config import DECODING_MAX
from thinrow.online.decoding import request_decoder
from thinrow.online.records import batch_of
from thinrow.online.streamed import REQUESTS_MAX, StreamedSnapshots
from thinrow.store.directory import NEVER_TS
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from thinrow.access.identity import CallContext
    from thinrow.access.tenants import Right
    from thinrow.online.appends import Appends
    from thinrow.online.config import OnlineConfig
    from thinrow.online.follower import TierFollower
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.online.records import Batch
    from thinrow.online.snapshots import Snapshots
    from thinrow.online.tier import CommittedBatch, MutableTier

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
BATCHES_AHEAD_MAX = 16
"""Batches of one stream that wait to be durable."""


@dataclass(frozen=True, slots=True)
class _ReadingEnded:
    """The end of a stream of batches, as its reading thread saw it."""

    received: int
    """Batches read."""
    failure: BaseException | None
    """The exception that ended the thread; None at the stream's regular end."""


class OnlineService:
    """Events in; snapshots and exports out."""

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
        self._appends = appends
        self._published = published
        self._snapshots = snapshots
        self._metrics = metrics
        self._streamed = StreamedSnapshots(snapshots, metrics, config.response_bytes_max)
        self._snapshot_seconds = metrics.seconds.labels("snapshot")
        self._append_seconds = metrics.seconds.labels("append")
        self._work = threading.BoundedSemaphore(config.work_max)
        self._decoders = ThreadPoolExecutor(DECODING_MAX, "thinrow-decode")

    def add_to(self, server: grpc.Server) -> None:
        """Registers the methods; snapshots are bytes already."""
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
                wire.ExportEventsResponse.SerializeToString,
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
        context: CallContext,  # noqa: ARG002 - as every method
    ) -> Iterator[online_pb2.AppendEventsResponse]:
        """Batch after batch, answered in order once durable."""
        for request, started_s, batch in self._submitted(requests):
            if isinstance(batch, RequestError):
                self._metrics.refused.inc()
                yield online_pb2.AppendEventsResponse(cursor=request, refused=_one_line(batch))
                continue
            if isinstance(batch, ThinRowError):
                raise batch
            committed = batch.result()
            self._append_seconds.observe(time.perf_counter() - started_s)
            self._metrics.appended.inc(committed.appended)
            self._metrics.duplicates.inc(committed.duplicates)
            yield online_pb2.AppendEventsResponse(
                cursor=request,
                appended=committed.appended,
                duplicates=committed.duplicates,
                arrival_ts=committed.arrival_ts,
            )

    def _submitted(
        self, requests: Iterator[online_pb2.AppendEventsRequest]
    ) -> Iterator[tuple[int, float, Future[CommittedBatch] | ThinRowError]]:
        """Reads ahead: the next batch is decoded while those before it go to the disk.

        Raises what ended the reading thread, and ThinRowError where a request was read and not
        handed on: a stream never ends well with answers missing.
        """
        ready: queue.Queue[tuple[int, float, Future[CommittedBatch] | ThinRowError] | _ReadingEnded]
        ready = queue.Queue(BATCHES_AHEAD_MAX)
        ended = threading.Event()

        def put(
            item: tuple[int, float, Future[CommittedBatch] | ThinRowError] | _ReadingEnded,
        ) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=1)
                    return

        def read() -> None:
            received, failure = 0, None
            try:
                for request in requests:
                    if ended.is_set():
                        return
                    received += 1
                    started_s = time.perf_counter()
                    outcome: Future[CommittedBatch] | ThinRowError
                    try:
                        if not request.HasField("events"):
                            raise RequestError("The message has no events; set them, also if none.")
                        outcome = self._decoders.submit(self._submit, request.events).result()
                    except ThinRowError as error:
                        # Its traceback would hold this frame, which holds it: a cycle with the
                        # whole batch, which only the garbage collector ends.
                        outcome = error.with_traceback(None)
                    put((request.cursor, started_s, outcome))
            except BaseException as error:
                failure = error
            finally:
                put(_ReadingEnded(received, failure))

        reader = threading.Thread(target=read, name="thinrow-append", daemon=True)
        reader.start()
        answered = 0
        try:
            while not isinstance(item := ready.get(), _ReadingEnded):
                yield item
                answered += 1
        finally:
            ended.set()
        if item.failure is not None:
            raise item.failure
        if answered != item.received:
            raise ThinRowError(
                f"The server answered {answered} of {item.received} batches; append the others "
                f"again."
            )

    def _submit(self, events: online_pb2.EventBatch) -> Future[CommittedBatch]:
        return self._appends.submit(self._batch(events))

    def _batch(self, events: online_pb2.EventBatch) -> Batch:
        count = len(events.user_ids)
        if count > self._config.batch_events_max:
            raise RequestError(
                f"{count} events in one batch; this server takes {self._config.batch_events_max}, "
                f"so send several."
            )
        record_format = self._tier.format
        if record_format is None:
            raise RequestError("This server has no schema yet; publish a generation first.")
        record_format.check_types(events.columns)
        try:
            given = from_wire(events.columns, count, self._config.batch_bytes_max)
        except AnswerTooLargeError as error:
            raise RequestError(
                f"The columns of {count} events would take more memory than this server allows "
                f"for one batch; send fewer events at once."
            ) from error
        except MalformedError as error:
            raise RequestError(
                f"The columns do not fit {count} events or contradict themselves: {error.reason}."
            ) from error
        record_format.check_size(given, count, self._config.batch_bytes_max)
        columns = record_format.checked(given, count)
        check_milliseconds(columns["event_ts"].values)
        return batch_of(events.user_ids, columns, record_format)

    def snapshot(self, request: online_pb2.SnapshotRequest, context: CallContext) -> bytes:
        """One user."""
        started_s = time.perf_counter()
        # One user's is done sooner than threads take turns.
        answer = self._snapshots.take([request.user_id], request, context.remaining_s())
        self._metrics.snapshots.inc()
        self._snapshot_seconds.observe(time.perf_counter() - started_s)
        return answer

    def snapshot_batch(
        self, request: online_pb2.SnapshotBatchRequest, context: CallContext
    ) -> bytes:
        """Several users."""
        users, most = len(request.user_ids), self._config.batch_users_max
        if users > most:
            raise RequestError(
                f"{users} users in one request; this server takes {most}, so ask in several."
            )
        with self._working(context):
            answer = self._snapshots.take(request.user_ids, request, context.remaining_s())
        self._metrics.snapshots.inc(users)
        return answer

    def snapshot_stream(
        self,
        messages: Iterator[online_pb2.SnapshotStreamRequest],
        context: CallContext,  # noqa: ARG002 - as every method
    ) -> Iterator[bytes]:
        """Message after message, each answered whole."""
        for message in messages:
            yield self._streamed.answer(message)

    def export_events(
        self, request: online_pb2.ExportEventsRequest, context: CallContext
    ) -> Iterator[online_pb2.ExportEventsResponse]:
        """Seals, and sends what is to be compacted."""
        until_ts = request.watermark_ts
        if until_ts <= 0:
            raise RequestError(f"watermark_ts is {until_ts}; it must lie after 1970.")
        if request.HasField("from_ts"):
            from_ts = request.from_ts
            self._tier.state.now.check_whole(from_ts)
        else:
            from_ts = self._not_yet_compacted(until_ts)
        self._tier.seal(until_ts, self._published.newest_ts())
        yield online_pb2.ExportEventsResponse(from_ts=from_ts)
        for users, arrivals, records in self._tier.scan(from_ts, until_ts):
            context.check_serving()
            self._metrics.exported.inc(len(users))
            with self._working(context):
                events = self._tier.to_wire(arrivals, records)
                shown = online_pb2.MutableEvents.FromString(events)
            yield online_pb2.ExportEventsResponse(
                from_ts=from_ts,
                arrival_ts=shown.arrival_ts,
                events=online_pb2.EventBatch(user_ids=users, columns=shown.columns),
            )

    def _not_yet_compacted(self, until_ts: int) -> int:
        """Returns the published watermark from which an export up to `until_ts` starts.

        Raises:
            RequestError: The tier no longer has all events since then.
        """
        while True:
            from_ts = self._published_before(until_ts)
            try:
                self._tier.state.now.check_whole(from_ts)
            except RequestError:
                # A generation that was taken up in between lets the tier forget what it holds.
                if self._published_before(until_ts) == from_ts:
                    raise
            else:
                return from_ts

    def _published_before(self, until_ts: int) -> int:
        with self._published.use() as generation:
            if generation is None:
                return self._tier.kept_from_ts
            before = [ts for ts in generation.manifest.watermarks if ts < until_ts]
            return before[-1] if before else NEVER_TS

    def describe_tier(
        self,
        request: online_pb2.DescribeTierRequest,  # noqa: ARG002 - it has no fields
        context: CallContext,  # noqa: ARG002 - as every method
    ) -> online_pb2.DescribeTierResponse:
        """Clock, schema, limits."""
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
        """Waits for its turn: many at once would only keep each other from ending."""
        if not self._work.acquire(timeout=context.remaining_s()):
            raise DeadlineError("The deadline passed while the request waited for its turn.")
        try:
            yield
        finally:
            self._work.release()


def _one_line(error: ThinRowError) -> str:
    return " ".join(wire_message(error).split())
