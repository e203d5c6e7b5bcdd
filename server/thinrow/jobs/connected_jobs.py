"""Jobs that need a server: each connects, runs, and closes its connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.errors import UsageError
from thinrow.jobs.connecting import Access, connected
from thinrow.jobs.export import export_events
from thinrow.jobs.layout import FatLayout
from thinrow.jobs.materialize import materialize
from thinrow.jobs.option_values import names_of
from thinrow.jobs.verify import verify

if TYPE_CHECKING:
    from thinrow.events.split import Progress
    from thinrow.jobs.compared_rows import VerifyReport
    from thinrow.jobs.config import (
        ExportConfig,
        FatLayoutConfig,
        MaterializeConfig,
        Servers,
        VerifyConfig,
    )
    from thinrow.jobs.export import ExportReport
    from thinrow.jobs.materialize import MaterializeReport
    from thinrow.jobs.topic.config import BrokersConfig

__all__ = ["run_export", "run_materialize", "run_verify", "targets_of"]


def run_materialize(
    config: MaterializeConfig, access: Access, progress: Progress = lambda *_: None
) -> MaterializeReport:
    """Writes fat rows; errors as of `connected` and `materialize`."""
    projection: Projection | str = config.tenant
    if not config.tenant:
        given = config.traits or ()
        traits = names_of(given) if isinstance(given, str) else tuple(given)
        wanted = [name for name in traits if name != "event_ts"]
        projection = Projection(
            config.sequence_length,
            traits=("event_ts", *wanted) if traits else (),
            truncation=config.truncation,
            as_served=config.as_served,
        )
    with connected(targets_of(config.server), access) as client:
        return materialize(client, config.rows, projection, config.fat, progress)


def run_verify(
    config: VerifyConfig,
    layout: FatLayoutConfig,
    access: Access,
    progress: Progress = lambda *_: None,
) -> VerifyReport:
    """Compares histories with fat rows; errors as of `connected` and `verify`."""
    with connected(targets_of(config.server), access) as client:
        return verify(
            client,
            config.rows,
            config.against,
            config.sequence_length,
            progress,
            FatLayout.of(layout),
            config.time_unit,
        )


def run_export(
    config: ExportConfig,
    access: Access,
    brokers: BrokersConfig,
    progress: Progress = lambda *_: None,
) -> ExportReport:
    """Writes the mutable tier's events, or a topic's.

    Errors as of `connect_online` and `export_events`, or of `export_topic`.

    Raises:
        UsageError: Options contradict each other.
    """
    brokers.check(config.topic)
    if config.topic is not None:
        from thinrow.jobs.topic.export import export_topic

        if access != Access():
            raise UsageError(
                "Credentials of servers are for --online; brokers have theirs in --kafka-settings."
            )
        return export_topic(config, brokers, progress)
    assert config.online is not None

    def show(events: int) -> None:
        progress("Reading events", events, events)

    with connect_online(config.online, access.config()) as client:
        return export_events(client, config.watermark_ts, config.events, config.since_ts, show)


def targets_of(server: Servers) -> list[str | Path]:
    """Returns the servers, or the store, that a job names."""
    return [server] if isinstance(server, str | Path) else list(server)
