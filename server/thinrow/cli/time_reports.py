"""Times that a command read, and advice where they make it store or write less than it could."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.jobs.console import out, warn
from thinrow.store.times import DAY_MS, readable_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from thinrow.compaction.report import CompactionReport
    from thinrow.events.time_columns import TimeSpan
    from thinrow.jobs.backfill import BackfillReport

__all__ = [
    "print_far_rows",
    "print_outliers",
    "print_tied_rows",
    "print_ties",
    "print_uncut",
    "time_facts",
]

UNCUT_MS = DAY_MS + DAY_MS // 2
"""Arrivals of a run that span more than this without a watermark inside are reported."""


def time_facts(times: Mapping[str, TimeSpan]) -> dict[str, object]:
    """Returns the range of each time column, as people read it."""
    return {f"{name}, from and to": span for name, span in times.items()}


def print_outliers(times: Mapping[str, TimeSpan]) -> None:
    """Reports times before 1990 or after 2100, which are probably wrong."""
    for name, span in times.items():
        if span.outliers and span.outliers < span.count:
            warn(
                f"{span.outliers:,} of {span.count:,} {name} lie before "
                f"1990 ({span.before:,}) or after 2100 ({span.after:,}), and are probably wrong; "
                f"they were taken as they are. Fix the job that wrote them."
            )


def print_uncut(report: CompactionReport) -> None:
    """Warns where one watermark stands for days of arrivals."""
    if report.uncut_ms > UNCUT_MS:
        warn(
            f"without --cadence this run cut one watermark for "
            f"{report.uncut_ms / DAY_MS:,.1f} days of arrivals. Thin rows that backfill writes for "
            f"requests within these days cannot point at it: they carry the events inside, without "
            f"a digest before the first watermark, and take as much room as fat rows. To backfill "
            f"them, build the store again with --cadence 1d."
        )


def print_ties(report: CompactionReport) -> None:
    """Reports events whose order the input does not say."""
    if report.tied_events:
        out.print(
            f"{report.tied_events:,} events share user and time with another, and no event_id "
            f"orders them, so their traits do: if the order of the log matters, give events an "
            f"event_id that grows with it, or times in microseconds.",
            soft_wrap=True,
        )


def print_tied_rows(report: BackfillReport) -> None:
    """Warns about rows that leave out history of their own millisecond."""
    if report.crowded_rows:
        warn(
            f"{report.crowded_rows:,} of {report.rows:,} rows "
            f"({report.crowded_rows / report.rows:.1%}) have the millisecond of several events of "
            f"their user. They leave out all of these, not the label's own alone, because only "
            f"what arrived before the request is history. If the log says which came first, give "
            f"the events of a user times of their own, one millisecond apart in the log's order, "
            f"and each request the time of its label; then compact and backfill again."
        )
    elif report.tied_rows:
        out.print(
            f"{report.tied_rows:,} of {report.rows:,} rows ({report.tied_rows / report.rows:.1%}) "
            f"have the millisecond of one event of their user, and leave it out: right where it is "
            f"the label's own; otherwise give these requests a later request_ts.",
            soft_wrap=True,
        )


def print_far_rows(report: BackfillReport) -> None:
    """Warns about rows that carry days of events, as no watermark is near."""
    if report.far_rows:
        warn(
            f"for {report.far_rows:,} of {report.rows:,} rows the store "
            f"has no watermark in the two days before the request (its watermarks begin at "
            f"{readable_time(report.first_watermark_ts)}). They carry all events since the last "
            f"one inside; those before the first watermark have no digest and are as large as fat "
            f"rows. Build the store again with compact --cadence 1d, up to the last request."
        )
