"""`thinrow compact`: raw events to the next generation of a store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer
from thinrow.cli.command import command
from thinrow.cli.schema import reasons
from thinrow.cli.time_reports import print_outliers, print_ties, print_uncut, time_facts
from thinrow.cli.vocabulary_reports import print_vocabularies
from thinrow.compaction.config import CompactionConfig
from thinrow.core.engine_config import EngineConfig
from thinrow.jobs.console import err, facts, out, progress_bar, readable_bytes, warn
from thinrow.jobs.topic.config import BrokersConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.schema.proposal import ProposedSchema

__all__ = ["app", "print_refusals"]

app = typer.Typer()

YEAR_2000_TS = 946_684_800_000


@command(app, "compact")
def compact_command(config: CompactionConfig, brokers: BrokersConfig, engine: EngineConfig) -> None:
    """Build and publish the next generation of a store from raw events."""
    from thinrow.engines.choice import run_compact
    from thinrow.store.place import is_url
    from thinrow.store.times import readable_time

    with progress_bar() as progress:
        report = run_compact(config, engine, progress, print_proposed, brokers)
    if report.already_published:
        out.print(f"Generation {report.generation} was already built by this very run.")
        return
    shown: dict[str, object] = {
        "watermark": readable_time(report.watermark_ts),
        "rows read": report.rows_read,
        **time_facts(report.times),
        "events added": report.events_added,
        "duplicates dropped": report.duplicates,
        "events tied: ordered by their traits": report.tied_events,
        "skipped: before the last watermark": report.late,
        "left for later: at or after this watermark": report.left_for_later,
        "events dropped by retention and erasure": report.events_dropped,
        "users erased": report.erased_users,
        "events in the store": report.event_count,
        "users in the store": report.user_count,
        "stored": readable_bytes(report.stored_bytes),
    }
    out.print(facts(f"Generation {report.generation} of {config.store}", shown))
    print_refusals(report.messages_refused, report.refusals)
    print_vocabularies(report.vocabularies)
    print_outliers(report.times)
    print_uncut(report)
    print_ties(report)
    if config.watermark_ts < YEAR_2000_TS:
        out.print("The watermark lies before 2000: times are in milliseconds, not seconds.")
    elif config.watermark_ts > time.time() * 1000:
        out.print("The watermark lies in the future: events that arrive before it will be late.")
    if config.erase_users is not None and config.keep != 1:
        how = f"thinrow store gc --store {config.store} --keep 1 --withdrawn"
        out.print(
            f"Older generations still hold the users erased: "
            f"{how if is_url(config.store) else '--keep 1'} removes those.",
            soft_wrap=True,
        )
    if report.ignored_columns:
        out.print(f"Not in the schema, so not stored: {', '.join(report.ignored_columns)}")


def print_refusals(count: int, shown: Sequence[str]) -> None:
    """Warns of messages of a topic that were refused, and names the first ones."""
    if count:
        warn(
            f"{count:,} messages of the topic hold no events of this schema, and every server of "
            f"the topic refuses them as well."
        )
        for line in shown:
            out.print(line, soft_wrap=True)
        if count > len(shown):
            out.print(f"and {count - len(shown):,} more")


def print_proposed(proposed: ProposedSchema) -> None:
    """Says which schema a new store gets without --schema."""
    err.print(
        "No --schema is given, so the new store has this one. A stored trait cannot change: to "
        "choose otherwise stop, and start with thinrow schema EVENTS --out FILE."
    )
    err.print(reasons(proposed))
    err.print(proposed.toml, soft_wrap=True)
