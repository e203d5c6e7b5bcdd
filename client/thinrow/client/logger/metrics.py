"""What a logger has done, and how far behind it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry

__all__ = ["LoggerCounts", "register"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggerCounts:
    """A logger's counts since it was started; the last five are as of now."""

    rows: int
    """Rows logged and durable, without those repeated."""

    rows_repeated: int
    """Rows left out, for their request's window was open already."""

    rows_refused: int
    """Rows not taken, for their values do not fit the columns."""

    rows_unlabelled: int
    """Rows whose window ended without a label; emitted with defaults, or dropped."""

    rows_published: dict[str, int]
    """Rows by output, "files" or "kafka"."""

    labels: int
    """Calls of label() that are durable."""

    labels_repeated: int
    """Calls that gave a label again; the first value stayed."""

    labels_unmatched: int
    """Calls whose labels found no row in the window: they came too late, or have a wrong id."""

    labels_refused: int
    """Calls not taken, for their values do not fit the columns."""

    failures: dict[str, int]
    """Failed tries by what failed: "journal" or an output."""

    rows_pending: int
    """Rows not yet in all outputs."""

    labels_pending: int
    """Calls whose labels wait for their row."""

    queued_events: int
    """What waits in memory to become durable."""

    journal_bytes: int
    """Size of the journal."""

    behind_ms: int
    """How long ago the oldest row ended its window that is not in all outputs yet; 0 for none."""


LABELS = {"rows_published": "output", "failures": "what"}
GAUGES = {"rows_pending", "labels_pending", "queued_events", "journal_bytes", "behind_ms"}


def register(registry: CollectorRegistry, counts: Callable[[], LoggerCounts]) -> object:
    """Adds the counts to Prometheus as `thinrow_logger_…`; returns what unregister() takes."""
    try:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError as error:
        raise UsageError(
            "Metrics need prometheus-client: pip install prometheus-client."
        ) from error

    class Collector:
        def collect(self) -> Iterator[Any]:
            now = counts()
            for field in fields(LoggerCounts):
                name, value = f"thinrow_logger_{field.name}", getattr(now, field.name)
                family = GaugeMetricFamily if field.name in GAUGES else CounterMetricFamily
                text = field.name.replace("_", " ")
                if isinstance(value, dict):
                    metric = family(name, text, labels=[LABELS[field.name]])
                    for label, count in value.items():
                        metric.add_metric([label], count)
                    yield metric
                else:
                    yield family(name, text, value=value)

    collector = Collector()
    registry.register(collector)
    return collector
