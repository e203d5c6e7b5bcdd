"""Jobs on the engine that their configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.jobs.topic.config import BrokersConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.compaction.config import CompactionConfig
    from thinrow.compaction.report import CompactionReport
    from thinrow.core.engine_config import EngineConfig
    from thinrow.events.split import Progress
    from thinrow.jobs.backfill import BackfillReport
    from thinrow.jobs.compared_rows import VerifyReport
    from thinrow.jobs.config import BackfillConfig, FatLayoutConfig, SlimConfig, VerifyConfig
    from thinrow.jobs.connecting import Access
    from thinrow.jobs.slim_plan import SlimReport
    from thinrow.schema.proposal import ProposedSchema

__all__ = ["run_backfill", "run_compact", "run_slim", "run_verify"]


def run_compact(
    config: CompactionConfig,
    engine: EngineConfig,
    progress: Progress = lambda *_: None,
    proposed: Callable[[ProposedSchema], None] = lambda _: None,
    brokers: BrokersConfig | None = None,
) -> CompactionReport:
    """Builds and publishes the next generation of a store; see `compact` of each engine."""
    brokers = brokers or BrokersConfig()
    brokers.check(config.topic)
    if engine.engine == "spark":
        from thinrow.engines.spark.compact import compact as compact_on_spark

        return compact_on_spark(config, engine.spark_properties, progress, proposed, brokers)
    from thinrow.compaction.compact import compact
    from thinrow.jobs.topic.opening import topic_opener

    return compact(config, progress, proposed, topic_opener(config, brokers))


def run_backfill(
    config: BackfillConfig, engine: EngineConfig, progress: Progress = lambda *_: None
) -> BackfillReport:
    """Writes thin rows for past requests; see `backfill` of each engine."""
    if engine.engine == "spark":
        from thinrow.engines.spark.backfill import backfill as backfill_on_spark

        return backfill_on_spark(config, engine.spark_properties, progress)
    from thinrow.jobs.backfill import backfill

    return backfill(config, progress)


def run_verify(
    config: VerifyConfig,
    layout: FatLayoutConfig,
    access: Access,
    engine: EngineConfig,
    progress: Progress = lambda *_: None,
) -> VerifyReport:
    """Compares histories with fat rows; see `verify` of each engine."""
    if engine.engine == "spark":
        from thinrow.engines.spark.verify import verify as verify_on_spark

        return verify_on_spark(config, layout, access, engine.spark_properties, progress)
    from thinrow.jobs.connected_jobs import run_verify as verify_here

    return verify_here(config, layout, access, progress)


def run_slim(
    config: SlimConfig, engine: EngineConfig, progress: Progress = lambda *_: None
) -> SlimReport:
    """Turns fat rows into events and thin rows; see `slim` of each engine."""
    if engine.engine == "spark":
        from thinrow.engines.spark.slim import slim as slim_on_spark

        return slim_on_spark(config, engine.spark_properties, progress)
    from thinrow.jobs.slim import slim

    return slim(config, progress)
