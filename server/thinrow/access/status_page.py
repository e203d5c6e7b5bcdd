"""The metrics as a page for people: what serves, for whom, how well, and what takes long."""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import UTC, datetime
from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from thinrow.access.http_server import respond
from thinrow.access.page_html import (
    STYLE,
    Html,
    bar,
    bytes_text,
    duration,
    integer,
    mark,
    number,
    percent,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

__all__ = [
    "FILES_IN_USE",
    "LOOKS_MAX",
    "LOOKS_PAUSE_S",
    "NOTHING",
    "REFRESH_S",
    "STYLE_ONLY",
    "WINDOW_S",
    "Look",
    "StatusPage",
    "cluster_note",
    "counts",
    "mirror_note",
    "rendered",
    "statuses",
    "tenants",
    "tiles",
    "times",
]

REFRESH_S = 5
WINDOW_S = 60.0
"""Rates are those since the first look in this time; else since the start."""
LOOKS_MAX = 64
"""Looks remembered."""
LOOKS_PAUSE_S = 1.0
"""Between two looks that are remembered."""
NOTHING = "—"
STYLE_ONLY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content security policy of a page without scripts, whose style stands in it."""
FILES_IN_USE = {
    "tenants file": "thinrow_tenants_usable",
    "certificates": "thinrow_certificates_usable",
}


class Look(NamedTuple):
    """All series at one moment."""

    at_s: float
    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, families: Iterable[Metric]) -> Look:
        """Takes the families as a registry reports them."""
        return cls(
            time.time(),
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in families
                for sample in family.samples
            },
        )

    def since(self, earlier: Look | None) -> Look:
        """Growth of each series; what an ended process took along counts as nothing."""
        if earlier is None:
            return self
        return Look(
            self.at_s,
            {
                key: max(0.0, value - earlier.values.get(key, 0.0))
                for key, value in self.values.items()
            },
        )

    def sum(self, name: str, /, **labels: str) -> float | None:
        """The sum of a metric's series with these labels; None where there is none."""
        found = [
            value
            for (each, its_labels), value in self.values.items()
            if each == name and labels.items() <= dict(its_labels).items()
        ]
        return sum(found) if found else None

    def labels(self, name: str, label: str) -> list[str]:
        """The values that a label of a metric has."""
        found = {dict(labels).get(label) for each, labels in self.values if each == name}
        return sorted(value for value in found if value is not None)

    def at_most(self, share: float, name: str, /, **labels: str) -> str:
        """The bound of a histogram that a number of its observations do not exceed."""
        bounds = sorted(self.labels(f"{name}_bucket", "le"), key=float)
        counts = [self.sum(f"{name}_bucket", le=bound, **labels) or 0.0 for bound in bounds]
        if not counts or not counts[-1]:
            return NOTHING
        place = next(n for n, count in enumerate(counts) if count >= share * counts[-1])
        if bounds[place] == "+Inf":
            return f"> {duration(float(bounds[place - 1]))}"
        return f"≤ {duration(float(bounds[place]))}"


class StatusPage:
    """The page, as WSGI wants it: new with each look, and refreshed by the browser."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect
        self._looks: deque[Look] = deque(maxlen=LOOKS_MAX)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
        """Collects the families, for the library."""
        now = Look.of(self._collect())
        page = rendered(now, self._earlier(now)).encode()
        return respond(environ, start_response, "text/html", page, STYLE_ONLY)

    def _earlier(self, now: Look) -> Look | None:
        """Returns the look to compare with; remembers this one."""
        with self._lock:
            looks = self._looks
            while looks and now.at_s - looks[0].at_s > WINDOW_S:
                looks.popleft()
            earlier = next((look for look in looks if now.at_s - look.at_s > LOOKS_PAUSE_S), None)
            if not looks or now.at_s - looks[-1].at_s > LOOKS_PAUSE_S:
                looks.append(now)
            return earlier


def rendered(now: Look, earlier: Look | None) -> str:
    """The page of this moment; rates are those since `earlier`, or since the start."""
    grown = now.since(earlier)
    started_s = now.sum("process_start_time_seconds")
    begin_s = started_s if earlier is None else earlier.at_s
    elapsed_s = None if begin_s is None else max(now.at_s - begin_s, 1e-3)
    period = (
        "since the start" if earlier is None else f"in the last {now.at_s - earlier.at_s:.0f} s"
    )
    ready = now.sum("thinrow_ready")
    state = {None: "", 1.0: "<span class=good>serving</span>"}.get(
        ready, "<span class=bad>not serving</span>"
    )
    version = "".join(now.labels("thinrow_build_info", "version"))
    up = "" if started_s is None else f"up {duration(now.at_s - started_s)}"
    clock = datetime.fromtimestamp(now.at_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=refresh content={REFRESH_S}><meta name=viewport content="width='
        f'device-width, initial-scale=1"><title>ThinRow</title><style>{STYLE}</style></head><body>'
        f"<header><h1>ThinRow {escape(version)}</h1>{state}<span class=faint>{up}</span></header>"
        f"{tiles(now, grown, elapsed_s)}"
        f"{tenants(now, grown, elapsed_s, period)}"
        f"{statuses(now, grown, period)}"
        f"{times(grown, 'thinrow_stage_seconds', 'stage', f'Stages, slowest first, {period}')}"
        f"{times(grown, 'thinrow_online_seconds', 'call', f'Calls, slowest first, {period}')}"
        f"{counts(now, grown, period)}"
        f"<p class=faint>{clock} · numbers for machines: /metrics</p></body></html>"
    )


def tiles(now: Look, grown: Look, elapsed_s: float | None) -> str:
    """The few numbers that come first."""
    shown: list[tuple[str, str, str]] = []

    def tile(title: str, value: float | None, text: Callable[[float], str], note: str = "") -> None:
        if value is not None:
            shown.append((title, text(value), note))

    opened_s = now.sum("thinrow_generation_opened_timestamp_seconds")
    age_s = now.sum("thinrow_watermark_age_seconds")
    failures = now.sum("thinrow_generation_open_failures_total") or 0
    opened = "" if opened_s is None else f"opened {duration(now.at_s - opened_s)} ago"
    tile(
        "generation",
        now.sum("thinrow_generation"),
        integer,
        f"{failures:.0f} failed tries to open another" if failures else opened,
    )
    watermark = ""
    if age_s is not None:
        # A store may have the watermark of any time that int64 can say.
        try:
            # The age was reported a moment later than the time.
            minute = 60 * round((now.at_s - age_s) / 60)
            moment = datetime.fromtimestamp(minute, tz=UTC)
            watermark = moment.strftime("%Y-%m-%d %H:%M UTC")
        except (OverflowError, ValueError, OSError):
            watermark = "beyond the calendar"
    tile("watermark age", age_s, duration, watermark)
    tile("mirror", now.sum("thinrow_mirror_generation"), integer, mirror_note(now))
    for name in now.labels("thinrow_cluster_group", "group"):
        shown.append(("cluster group", name, cluster_note(now)))
        opened, wanted = (
            integer(now.sum(f"thinrow_cluster_shards_{which}") or 0) for which in ("open", "wanted")
        )
        shown.append(("shards open", f"{opened} of {wanted}", ""))
    deaths = now.sum("thinrow_process_deaths_total")
    tile(
        "processes",
        now.sum("thinrow_processes"),
        integer,
        "" if deaths is None else f"{deaths:.0f} died",
    )
    tile("requests in flight", now.sum("thinrow_in_flight_requests"), integer)
    tile("streams", now.sum("thinrow_streams"), integer)
    examples = grown.sum("thinrow_examples_total")
    if elapsed_s is not None:
        tile("examples a second", None if examples is None else examples / elapsed_s, number)
        sent = grown.sum("thinrow_sent_bytes_total")
        tile("answered a second", None if sent is None else sent / elapsed_s, bytes_text)
    memory = grown.sum("thinrow_store_values_total", source="memory")
    files = grown.sum("thinrow_store_values_total", source="files")
    if memory is not None and files is not None and memory + files:
        tile("read from memory", memory / (memory + files), percent, "of the store's values")
    bound = now.sum("thinrow_memory_bound_bytes")
    tile(
        "resident memory",
        now.sum("process_resident_memory_bytes"),
        bytes_text,
        f"its limits allow {bytes_text(bound)}" if bound else "",
    )
    for title, name in FILES_IN_USE.items():
        if now.sum(name) == 0:
            shown.append((title, "not usable", "what it was before goes on"))
    ends_s = now.sum("thinrow_certificate_expiry_timestamp_seconds")
    if ends_s is not None and isfinite(ends_s):
        tile("certificate ends in", ends_s - now.at_s, duration)
    cells = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for title, value, note in shown
    )
    return f"<dl>{cells}</dl>"


def mirror_note(now: Look) -> str:
    """The state of a mirror: what it copies, why it stands still, or when it was last compared."""
    # A retry copies as well, and must not hide that the last try failed.
    if now.sum("thinrow_mirror_failing"):
        return "cannot follow the store: the log says why"
    copying = now.sum("thinrow_mirror_pulling_generation")
    if copying:
        missing = now.sum("thinrow_mirror_pull_bytes") or 0
        received = now.sum("thinrow_mirror_pull_received_bytes") or 0
        share = percent(received / missing) if missing else percent(1)
        return f"copying generation {copying:.0f}: {share} of {bytes_text(missing)}"
    checked_s = now.sum("thinrow_mirror_checked_timestamp_seconds")
    return f"compared {duration(now.at_s - checked_s)} ago" if checked_s else ""


def cluster_note(now: Look) -> str:
    """The state of the cluster's map at a server that follows it."""
    if now.sum("thinrow_cluster_map_failing"):
        return "cannot follow the cluster's map: the log says why"
    version = now.sum("thinrow_cluster_map_version") or 0
    if not version:
        return "waits for the cluster's map"
    if not now.sum("thinrow_cluster_group"):
        return f"not in the cluster's map, version {version:.0f}: what is open serves on"
    return f"map version {version:.0f}"


def tenants(now: Look, grown: Look, elapsed_s: float | None, period: str) -> str:
    """A line for each tenant, the busiest first."""
    names = now.labels("thinrow_examples_total", "tenant")
    names.sort(key=lambda name: -(grown.sum("thinrow_examples_total", tenant=name) or 0))
    rows = []
    for name in names:
        examples = grown.sum("thinrow_examples_total", tenant=name) or 0
        fine = grown.sum("thinrow_examples_total", tenant=name, status="OK") or 0
        requests = grown.sum("thinrow_request_seconds_count", tenant=name) or 0
        took_s = grown.sum("thinrow_request_seconds_sum", tenant=name) or 0
        sent = grown.sum("thinrow_tenant_sent_bytes_total", tenant=name) or 0
        share = fine / examples if examples else None
        rows.append(
            (
                name or Html("<span class=faint>all others</span>"),
                NOTHING if elapsed_s is None else number(examples / elapsed_s),
                NOTHING if share is None else mark(percent(share), good=share == 1),
                NOTHING if not requests else duration(took_s / requests),
                grown.at_most(0.99, "thinrow_request_seconds", tenant=name),
                NOTHING if elapsed_s is None else f"{bytes_text(sent / elapsed_s)}/s",
                number(now.sum("thinrow_tenant_in_flight_requests", tenant=name) or 0),
            )
        )
    headings = ("tenant", "examples/s", "OK", "mean", "p99", "answered", "in flight")
    return table(f"Tenants, {period}", headings, rows)


def statuses(now: Look, grown: Look, period: str) -> str:
    """Table of the statuses of examples."""
    name = "thinrow_examples_total"
    whole = grown.sum(name) or 0
    rows = []
    for status in sorted(now.labels(name, "status"), key=lambda it: (it != "OK", it)):
        count = grown.sum(name, status=status) or 0
        rows.append(
            (
                mark(status, good=status == "OK") if count else status,
                bar(count / whole if whole else 0),
                number(count),
                number(now.sum(name, status=status) or 0),
            )
        )
    return table("Examples by status", ("status", "", period, "in all"), rows)


def times(grown: Look, name: str, label: str, title: str) -> str:
    """Table of durations by stage, the slowest first."""
    spent = {
        each: grown.sum(f"{name}_sum", **{label: each}) or 0.0
        for each in grown.labels(f"{name}_count", label)
    }
    longest = max(spent.values(), default=0)
    rows = []
    for each, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        count = grown.sum(f"{name}_count", **{label: each}) or 0
        rows.append(
            (
                each,
                bar(seconds / longest if longest else 0),
                duration(seconds),
                NOTHING if not count else duration(seconds / count),
                grown.at_most(0.99, name, **{label: each}),
            )
        )
    return table(title, (label, "", "in all", "mean", "p99"), rows)


def counts(now: Look, grown: Look, period: str) -> str:
    """Errors by name, and what the online service counts."""
    rows: list[tuple[str, str, str]] = []
    for name in now.labels("thinrow_errors_total", "name"):
        count, all_of_it = (
            look.sum("thinrow_errors_total", name=name) or 0 for look in (grown, now)
        )
        rows.append((mark(name, good=False) if count else name, number(count), number(all_of_it)))
    errors = table("Calls that failed", ("error", period, "in all"), rows)
    online = sorted({name for name, _ in now.values if name.startswith("thinrow_online_")})
    rows = [
        (
            name.removeprefix("thinrow_online_").removesuffix("_total").replace("_", " "),
            number(grown.sum(name) or 0),
            number(now.sum(name) or 0),
        )
        for name in online
        if name.endswith("_total")
    ]
    return errors + table("Taken and given", ("", period, "in all"), rows)
