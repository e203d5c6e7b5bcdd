"""Jobs on the engine that their configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.compaction.config import CompactionConfig
    from thinrow.compaction.report import CompactionReport
    from thinrow.core.engine_config import EngineConfig
    from thinrow.events.split import Progress
    from thinrow.schema.proposal import ProposedSchema

__all__ = ["run_compact"]


def run_compact(
    config: CompactionConfig,
    engine: EngineConfig,
    progress: Progress = lambda *_: None,
    proposed: Callable[[ProposedSchema], None] = lambda _: None,
) -> CompactionReport:
    """Builds and publishes the next generation of a store; see `compact` of each engine."""
    if engine.engine == "spark":
        from thinrow.engines.spark.compact import compact as compact_on_spark

        return compact_on_spark(config, engine.spark_properties, progress, proposed)
    from thinrow.compaction.compact import compact

    return compact(config, progress, proposed)
