"""The jobs that commands run, as functions for notebooks and orchestrators.

The package `thinrow` has them: `thinrow.compact("events/", store="store", watermark="2026-01-31")`.
Arguments and options are those of the command of the same name, and the report is what the command
prints. Inputs are paths, URLs, globs, lists of them, or a table in memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from thinrow.api.options import job
from thinrow.cluster.cluster_map import ClusterMap
from thinrow.cluster.cluster_state import ClusterState
from thinrow.cluster.desired import read_desired
from thinrow.compaction.config import CompactionConfig
from thinrow.compaction.report import CompactionReport
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_backfill, run_compact, run_slim, run_verify
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import FillReport
from thinrow.filling.fill import fill as run_fill
from thinrow.jobs.backfill import BackfillReport
from thinrow.jobs.cluster import GroupPlan, apply_cluster, cluster_state, drained, plan_cluster
from thinrow.jobs.cluster_config import (
    ApplyConfig,
    DrainConfig,
    PlanConfig,
    StatusConfig,
    store_objects,
)
from thinrow.jobs.cluster_page import write_page
from thinrow.jobs.compared_rows import VerifyReport
from thinrow.jobs.config import (
    BackfillConfig,
    ExportConfig,
    FatLayoutConfig,
    MaterializeConfig,
    SlimConfig,
    VerifyConfig,
)
from thinrow.jobs.connected_jobs import run_export, run_materialize
from thinrow.jobs.connecting import Access
from thinrow.jobs.export import ExportReport
from thinrow.jobs.materialize import MaterializeReport
from thinrow.jobs.research import ResearchReport
from thinrow.jobs.research import research as run_research
from thinrow.jobs.research_config import ResearchConfig
from thinrow.jobs.slim_plan import SlimReport
from thinrow.jobs.topic.config import BrokersConfig
from thinrow.remote.current import now_ts

__all__ = [
    "backfill",
    "cluster_apply",
    "cluster_drain",
    "cluster_plan",
    "cluster_status",
    "compact",
    "export",
    "fill",
    "materialize",
    "research",
    "slim",
    "verify",
]


@job("store")
def compact(
    config: CompactionConfig, brokers: BrokersConfig, engine: EngineConfig
) -> CompactionReport:
    """Builds and publishes the next generation of a store from raw events."""
    return run_compact(config, engine, brokers=brokers)


@job("store")
def fill(config: FillConfig) -> FillReport:
    """Gives stored events values that came later: a new group, or corrections of one."""
    return run_fill(config)


@job("out")
def backfill(config: BackfillConfig, engine: EngineConfig) -> BackfillReport:
    """Writes thin rows for past requests, as if they had been logged then."""
    return run_backfill(config, engine)


@job("out_rows")
def slim(config: SlimConfig, layout: FatLayoutConfig, engine: EngineConfig) -> SlimReport:
    """Turns fat rows into events and thin rows that show the very same histories."""
    return run_slim(replace(config, layout=layout), engine)


@job("out")
def materialize(config: MaterializeConfig, access: Access) -> MaterializeReport:
    """Writes fat rows again, for export and audit; each row has its status."""
    return run_materialize(config, access)


@job()
def verify(
    config: VerifyConfig, layout: FatLayoutConfig, access: Access, engine: EngineConfig
) -> VerifyReport:
    """Compares what training would see with fat rows, event by event."""
    return run_verify(config, layout, access, engine)


@job("out")
def export(config: ExportConfig, brokers: BrokersConfig, access: Access) -> ExportReport:
    """Writes the mutable tier's events, or a topic's, to a file, for compact; safe to run again."""
    return run_export(config, access, brokers)


@job("out")
def research(config: ResearchConfig) -> ResearchReport:
    """Turns a raw interaction log into a store and thin rows to train on, validate and test."""
    return run_research(config)


@job()
def cluster_plan(config: PlanConfig) -> list[GroupPlan]:
    """Returns which shards and bytes of each group would move; changes nothing."""
    return plan_cluster(store_objects(config.store), read_desired(Path(config.file)))


@job()
def cluster_apply(config: ApplyConfig, access: Access) -> ClusterMap:
    """Moves shards until the groups are as the file says; safe to run again."""
    objects, desired = store_objects(config.store), read_desired(Path(config.file))
    return apply_cluster(objects, desired, access, wait_s=config.wait_ms / 1000)


@job()
def cluster_drain(config: DrainConfig, access: Access) -> ClusterMap:
    """Moves all shards off a group and removes it from the map, or removes a replica."""
    objects = store_objects(config.store)
    desired = drained(objects, config.what)
    return apply_cluster(objects, desired, access, wait_s=config.wait_ms / 1000)


@job()
def cluster_status(config: StatusConfig, access: Access) -> ClusterState:
    """Returns the map, the report of every replica, and what is wrong."""
    state = cluster_state(store_objects(config.store), access)
    if config.html is not None:
        write_page(config.html, str(config.store), state, now_ts())
    return state
