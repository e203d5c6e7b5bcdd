"""Snapshots on a stream: messages of requests in, each answered whole."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from thinrow.access.wire_errors import wire_error, wire_message
from thinrow.core.wire.request import field_head
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    RequestError,
    StoreError,
    ThinRowError,
)
from thinrow.online.snapshots import BESIDE_OTHERS
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.online.snapshots import AnswerRoom, Snapshots

__all__ = ["REQUESTS_MAX", "TOO_LARGE", "StreamedSnapshots"]

log = logging.getLogger("thinrow.online")

REQUESTS_MAX = 64
"""Most requests in one message: the later ones wait for all of its answers."""
TOO_LARGE = (
    "The answers of one message would take more bytes than this server sends "
    "(response_bytes_max); send the request again, with fewer beside it."
)
_RESPONSE = online_pb2.StreamedAnswer.RESPONSE_FIELD_NUMBER
_ANSWERS = online_pb2.SnapshotStreamResponse.ANSWERS_FIELD_NUMBER


class StreamedSnapshots:
    """Answers messages of many streams."""

    def __init__(
        self, snapshots: Snapshots, metrics: OnlineMetrics, response_bytes_max: int
    ) -> None:
        self._snapshots = snapshots
        self._response_bytes_max = response_bytes_max
        self._metrics = metrics
        self._seconds = metrics.seconds.labels("snapshot")

    def answer(
        self, message: online_pb2.SnapshotStreamRequest, room: AnswerRoom, caller: str | None = None
    ) -> bytes:
        """The bytes of a SnapshotStreamResponse, for which `room` holds memory.

        `caller` is the tenant whose token the stream carries, if tokens are required.

        Raises:
            RequestError: The message has too many requests.
        """
        if len(message.requests) > REQUESTS_MAX:
            raise RequestError(
                f"{len(message.requests)} requests in one message; this server takes "
                f"{REQUESTS_MAX}, so send several."
            )
        parts: list[bytes] = []
        left = self._response_bytes_max
        for streamed in message.requests:
            started_s = time.perf_counter()
            outcome = self._outcome(streamed, room, caller)
            if len(outcome) > left:
                outcome = self._refused(streamed, AnswerTooLargeError(TOO_LARGE))
            left -= len(outcome)
            parts += (field_head(_ANSWERS, len(outcome)), outcome)
            self._seconds.observe(time.perf_counter() - started_s)
        return b"".join(parts)

    def _outcome(
        self, streamed: online_pb2.StreamedRequest, room: AnswerRoom, caller: str | None
    ) -> bytes:
        """The bytes of a StreamedAnswer."""
        request = streamed.request
        timeout_s = streamed.deadline_ms / 1000 if streamed.deadline_ms else None
        if room.is_held:
            # Messages that held memory while they waited for more would wait for each other.
            timeout_s = 0.0
        try:
            if not streamed.HasField("request"):
                raise RequestError(
                    f"The StreamedRequest with cursor {streamed.cursor} has no request; set it."
                )
            response = self._snapshots.take(request, timeout_s, room, caller)
        except DeadlineError as error:
            reason = AnswerTooLargeError(BESIDE_OTHERS) if room.is_held else error
            return self._refused(streamed, reason)
        except ThinRowError as error:
            return self._refused(streamed, error)
        except Exception as error:
            log.exception("request failed")
            failure = ThinRowError(f"The server failed ({type(error).__name__}).")
            return self._refused(streamed, failure)
        self._metrics.snapshots.inc()
        cursor = online_pb2.StreamedAnswer(cursor=streamed.cursor).SerializeToString()
        return b"".join((cursor, field_head(_RESPONSE, len(response)), response))

    def _refused(self, streamed: online_pb2.StreamedRequest, error: ThinRowError) -> bytes:
        self._metrics.failed(error.name, streamed.request.tenant)
        if isinstance(error, StoreError):
            log.error("store failed", extra={"reason": str(error)})
        return online_pb2.StreamedAnswer(
            cursor=streamed.cursor,
            error=online_pb2.CallError(
                code=wire_error(error).code.value[0], name=error.name, message=wire_message(error)
            ),
        ).SerializeToString()
