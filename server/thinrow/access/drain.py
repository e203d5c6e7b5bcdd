"""Drain of streams: idle ones end at once, the others after the answers that they owe."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.access.wire_errors import set_error_status
from thinrow.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Handler = grpc.RpcMethodHandler[Any, Any]
    Send = Callable[[Any], None]


def stopping() -> UnavailableError:
    """The error of every call that reaches a draining server."""
    return UnavailableError(
        "This server is stopping; call another replica, or this one once it is back."
    )


class StreamDrain(grpc.ServerInterceptor):
    """Ends every bidirectional stream with UNAVAILABLE once `drain` is called.

    Each message on such a stream has one answer. A stream that owes none and waits for a message is
    idle.
    """

    def __init__(self) -> None:
        self._open: set[OpenStream] = set()
        self._lock = threading.Lock()
        self.draining = False

    def drain(self) -> None:
        """Ends idle streams now, and each other one when its last answer is sent."""
        with self._lock:
            self.draining = True
            streams = list(self._open)
        for stream in streams:
            stream.end_if_idle()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Implements grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or handler.stream_stream is None:
            return handler
        return grpc.stream_stream_rpc_method_handler(
            self._drained(handler.stream_stream),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _drained(self, answers: Callable[..., Any]) -> Callable[..., Any]:
        def behave(messages: Iterator[Any], context: grpc.ServicerContext, send: Send) -> None:
            stream = OpenStream(self, messages, context, send)
            with self._lock:
                self._open.add(stream)
            try:
                if getattr(answers, "experimental_non_blocking", False):
                    answers(stream, context, stream.send)
                    return
                with closing(answers(stream, context)) as each:
                    for answer in each:
                        stream.send(answer)
                        if not context.is_active():
                            return
                stream.send(None)
            except Exception:
                # A status that was sent already is the only one a call can have.
                if stream.end():
                    raise
            finally:
                with self._lock:
                    self._open.discard(stream)

        # The library then hands over `send`, with which another thread can end the call.
        behave.experimental_non_blocking = True  # type: ignore[attr-defined]
        return behave


class OpenStream:
    """The messages of one stream, and its answers."""

    def __init__(
        self,
        drain: StreamDrain,
        messages: Iterator[Any],
        context: grpc.ServicerContext,
        send: Send,
    ) -> None:
        self._drain = drain
        self._messages = messages
        self._context = context
        self._send = send
        self._is_waiting = False
        self._unanswered = 0
        self._has_ended = False
        self._lock = threading.Lock()

    def __iter__(self) -> OpenStream:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - the service's messages
        """Waits for the next message.

        Raises:
            UnavailableError: The server drains.
        """
        with self._lock:
            if self._drain.draining:
                raise stopping()
            self._is_waiting = True
        # If the drain began in between, it found this stream at work.
        self.end_if_idle()
        try:
            message = next(self._messages, None)
        finally:
            with self._lock:
                self._is_waiting = False
                self._unanswered += 1
        if self._has_ended:
            raise stopping()
        if message is None:
            raise StopIteration
        return message

    def send(self, answer: Any) -> None:  # noqa: ANN401 - the service's answers
        """Sends an answer, or the status for None."""
        if answer is None:
            if self.end():
                self._send(None)
            return
        self._send(answer)
        with self._lock:
            self._unanswered -= 1
        self.end_if_idle()

    def end(self) -> bool:
        """Claims the right to send the status; False if another thread has it."""
        with self._lock:
            ended, self._has_ended = self._has_ended, True
            return not ended

    def end_if_idle(self) -> None:
        """Ends the call if the server drains, and the call waits for a message and owes none."""
        if not self._drain.draining:
            return
        with self._lock:
            if self._has_ended or not self._is_waiting or self._unanswered:
                return
            self._has_ended = True
        set_error_status(self._context, stopping())
        self._send(None)
