"""Snapshots with spans, for those who configure traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from thinrow.online.snapshots import Snapshots
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from thinrow.core.tracing import Tracing
    from thinrow.online.event_tier import EventTier
    from thinrow.online.snapshots import AnswerRoom, AnySnapshotRequest

__all__ = ["TracedSnapshots", "TracedTier"]


class TracedSnapshots(Snapshots):
    """Spans for each request, for reading its mutable events, and for encoding them.

    What is left of the request's own span is the store's part.
    """

    def __init__(self, spans: Tracing, tier: EventTier, *rest: Any) -> None:  # noqa: ANN401
        super().__init__(cast("EventTier", TracedTier(spans, tier)), *rest)
        self._spans = spans

    def take(
        self,
        request: AnySnapshotRequest,
        timeout_s: float | None,
        room: AnswerRoom,
        caller: str | None = None,
    ) -> bytes:
        """Takes a snapshot as the base class does, in a span."""
        users = 1
        if isinstance(request, online_pb2.SnapshotBatchRequest):
            users = len(request.user_ids) or len(request.user_texts)
        attributes: dict[str, str | int] = {
            "thinrow.tenant": request.tenant,
            "thinrow.users": users,
        }
        with self._spans.span("thinrow.snapshot", attributes) as span:
            answer = super().take(request, timeout_s, room, caller)
            span.set_attribute("thinrow.bytes", len(answer))
            return answer


class TracedTier:
    """A tier whose reading and encoding have spans."""

    def __init__(self, spans: Tracing, tier: EventTier) -> None:
        self._spans = spans
        self._tier = tier

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the tier has
        return getattr(self._tier, name)

    def read(self, *arguments: Any) -> Any:  # noqa: ANN401
        """Reads as the tier does, in a span."""
        with self._spans.span("thinrow.read", {}):
            return self._tier.read(*arguments)

    def to_wire(self, *events: Any) -> Any:  # noqa: ANN401
        """Reads as the tier does, in a span."""
        with self._spans.span("thinrow.encode", {}):
            return self._tier.to_wire(*events)
