"""Workloads of measured figures, assumed sizes of a platform, and what people give instead."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.wall.curve import Curve
from thinrow.wall.figures import BATCH, STREAMING
from thinrow.wall.model import Workload, increment_events

if TYPE_CHECKING:
    from thinrow.wall.config import GivenFigures
    from thinrow.wall.figures import Figures

__all__ = ["assumed_workload", "platform_workloads", "with_given"]

HISTORY_EVENTS = 65_536.0
EVENTS_PER_DAY = 180.0
LINES = {"fat_row": "fat_row_event", "answer": "answer_event", "stored": "store_event"}
"""Curves, and the option that replaces each by one cost for every event."""


def assumed_workload(figures: Figures, order: str) -> Workload:
    """A large platform, with the measured costs of examples in one order."""
    layer_event, read_per_written, cpu_s_per_mb = figures.increments()
    histories = np.array([HISTORY_EVENTS])
    return Workload(
        order=order,
        sharing=figures.sharing(order),
        users=1e6,
        requests_per_day=20,
        histories=histories,
        stored_events=HISTORY_EVENTS,
        events_per_day=EVENTS_PER_DAY,
        increment_events=increment_events(histories, EVENTS_PER_DAY),
        rows_kept_days=30,
        fat_row=figures.curve(order, "fat_event_bytes"),
        fat_read_cpu_s=figures.cpu_curve(order, "fat_read_cpu_s_per_million"),
        fat_write_cpu_s=figures.cpu_curve(order, "fat_write_cpu_s_per_million"),
        thin_row=figures.thin_row(order),
        stored=figures.stored(),
        layer_event=layer_event,
        compaction_read_per_written=read_per_written,
        compaction_cpu_s_per_mb=cpu_s_per_mb,
        store_read=figures.curve(order, "store_read_event_bytes"),
        answer=figures.curve(order, "sent_event_bytes"),
        thin_read_cpu_s=figures.cpu_curve(
            order, "server_cpu_s_per_million", "client_cpu_s_per_million"
        ),
    )


def platform_workloads(figures: Figures, given: GivenFigures) -> list[Workload]:
    """Streaming, which trains on each example once, and batch, on the default platform."""
    streaming, batch = (
        with_given(assumed_workload(figures, order), given) for order in (STREAMING, BATCH)
    )
    return [replace(streaming, epochs=1.0), batch]


def with_given(workload: Workload, given: GivenFigures) -> Workload:
    """Replaces measured or assumed figures with given ones."""
    changes: dict[str, Any] = {k: v for k, v in asdict(given).items() if v is not None}
    for name, option in (
        ("fat_row", "fat_row_event"),
        ("answer", "answer_event"),
        ("stored", "store_event"),
    ):
        if option in changes:
            changes[name] = Curve.line(0, changes.pop(option))
    if "stored" in changes:  # what is read of the store shrinks or grows as what is stored
        events = workload.longest
        scale = changes["stored"].at(events) / workload.stored.at(events)
        changes["store_read"] = workload.store_read.times(scale)
        changes["layer_event"] = workload.layer_event * scale
    if "retention_days" in changes or "events_per_day" in changes:
        days = changes.pop("retention_days", workload.stored_events / workload.events_per_day)
        stored = changes.get("events_per_day", workload.events_per_day) * days
        histories = workload.histories * stored / workload.stored_events
        changes |= {
            "stored_events": stored,
            "histories": histories,
            "increment_events": increment_events(histories, stored / days),
        }
    return replace(workload, **changes)
