"""Counts of a logger, and its lag."""

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
    """A logger's counts since its start; the last five describe the present."""

    rows: int
    """Rows logged and durable, without those repeated."""

    rows_repeated: int
    """Rows left out because their request's window was open already."""

    rows_refused: int
    """Rows rejected because their values do not fit the columns."""

    rows_unlabelled: int
    """Rows whose window ended without a label; emitted with defaults, or dropped."""

    rows_published: dict[str, int]
    """Rows by output, "files" or "kafka"."""

    labels: int
    """Calls of label() that are durable."""

    labels_repeated: int
    """Calls that repeated a label; the first value stayed."""

    labels_unmatched: int
    """Calls whose labels found no row in the window: they came too late, or have a wrong id."""

    labels_refused: int
    """Calls rejected because their values do not fit the columns."""

    failures: dict[str, int]
    """Failed attempts by component: "journal" or an output."""

    rows_pending: int
    """Rows that some output lacks."""

    labels_pending: int
    """Calls whose labels wait for their row."""

    queued_events: int
    """Events that wait in memory to become durable."""

    journal_bytes: int
    """Size of the journal."""

    behind_ms: int
    """Time since the end of the window of the oldest row that some output lacks; 0 for none."""


LABELS = {"rows_published": "output", "failures": "what"}
GAUGES = {"rows_pending", "labels_pending", "queued_events", "journal_bytes", "behind_ms"}


def register(registry: CollectorRegistry, counts: Callable[[], LoggerCounts]) -> object:
    """Adds the counts to Prometheus as `thinrow_logger_…`; returns the argument of unregister()."""
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
