"""From requests to thin rows."""

from thinrow.online.backfill import BackfillConfig, BackfillReport, backfill

__all__ = ["BackfillConfig", "BackfillReport", "backfill"]
