"""One history as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from thinrow.core.status import status_name
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from rich.console import RenderableType
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["history_table"]


def history_table(
    user_id: int | str, answer: wire.InspectResponse, traits: list[str]
) -> list[RenderableType]:
    """Table of an Inspect answer: time, size, and the events, oldest first; ``traits`` in order.

    A time in history is shown where it differs from the event's own, and an id where it has one.
    """
    if not answer.end_ts:
        return [f"User {user_id}: that moment lies before the first generation."]
    heading = (
        f"User {user_id}, served from watermark {readable_time(answer.end_ts)} "
        f"({answer.end_ts}): {status_name(answer.status)}, {answer.event_count:,} events, "
        f"digest {answer.digest:016x}"
    )
    if not answer.events:
        return [heading, "No events to show."]
    moved = any(event.visible_ts != event.event_ts for event in answer.events)
    ids = [_event_id(event) for event in answer.events]
    shown = {trait.name for event in answer.events for trait in event.traits}
    names = [name for name in traits if name in shown]
    table = Table("event time")
    if moved:
        table.add_column("visible since")
    if any(ids):
        table.add_column("event_id", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for event, event_id in zip(answer.events, ids, strict=True):
        cells = [event.event_time]
        if moved:
            cells.append(readable_time(event.visible_ts))
        if any(ids):
            cells.append(event_id or "")
        values = {trait.name: _text(trait) for trait in event.traits}
        table.add_row(*cells, *(values.get(name, "") for name in names))
    filled = {trait.name for event in answer.events for trait in event.traits if trait.filled}
    if not filled:
        return [heading, table]
    listed = ", ".join(name for name in names if name in filled)
    return [heading, table, f"Filled after the events were served: {listed}."]


def _event_id(event: wire.InspectedEvent) -> str | None:
    if event.HasField("event_id_text"):
        return event.event_id_text
    return str(event.event_id) if event.HasField("event_id") else None


def _text(trait: wire.InspectedTrait) -> str:
    kind = trait.WhichOneof("value")
    value = getattr(trait, str(kind))
    if trait.code:
        return f"{_shown(value)} ({trait.code})"
    if kind is not None and kind.endswith("vector_value"):
        return "[" + ", ".join(map(_shown, value.values)) + "]"
    return _shown(value)


def _shown(value: float | bool | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
