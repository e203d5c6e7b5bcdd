"""Channels whose calls report that the client was closed, even through a stub kept elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinrow.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

__all__ = ["CLOSED", "ClosableChannel"]

CLOSED = "This client was closed; make a new one."


class ClosableChannel:
    """A gRPC channel; once closed, each new call raises UnavailableError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._closed = False

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        """Returns the channel's factory for calls of one kind, such as unary_unary."""
        make = getattr(self._channel, kind)
        return lambda *arguments, **options: _Calls(self, make(*arguments, **options))

    def check_open(self) -> None:
        """Raises UnavailableError if the channel was closed."""
        if self._closed:
            raise UnavailableError(CLOSED)

    def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        self._closed = True
        self._channel.close()


class _Calls:
    """The calls of one method."""

    def __init__(self, channel: ClosableChannel, calls: Any) -> None:  # noqa: ANN401 - one of four
        self._channel = channel
        self._calls = calls

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return self._guarded(self._calls, *arguments, **options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Makes a call with one response, and returns the call with it."""
        return self._guarded(self._calls.with_call, *arguments, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Makes a call with one response, without waiting for it."""
        return self._guarded(self._calls.future, *arguments, **options)

    def _guarded(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        self._channel.check_open()
        try:
            return make(*arguments, **options)
        except ValueError:  # gRPC's, of a channel that was closed meanwhile
            self._channel.check_open()
            raise
