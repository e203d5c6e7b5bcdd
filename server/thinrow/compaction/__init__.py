"""From raw events to the next generation of the store."""

from thinrow.compaction.compact import CompactionConfig, CompactionReport, compact
from thinrow.events.split import Progress

__all__ = ["CompactionConfig", "CompactionReport", "Progress", "compact"]
