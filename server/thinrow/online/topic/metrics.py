"""Metrics of a replica of a topic."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.online.topic.tier import TopicTier

__all__ = ["TopicMetrics"]


class TopicMetrics:
    """Series that only servers of a topic have.

    Args:
        metrics: Gets the series.
        tier: Its places are shown.
        retention_ms: How long the topic keeps messages; 0 for ever.
    """

    def __init__(self, metrics: OnlineMetrics, tier: TopicTier, retention_ms: int) -> None:
        self.applied = metrics.counter(
            "thinrow_online_events_applied", "Events of the topic that were new to this server."
        )
        self.duplicates = metrics.duplicates
        self.messages_refused = metrics.counter(
            "thinrow_online_messages_refused", "Messages of the topic that were refused."
        )
        self.reader_failures = metrics.counter(
            "thinrow_online_reader_failures", "Failures that ended the topic's reader."
        )
        metrics.gauge(
            "thinrow_online_lag_seconds",
            "Seconds from the moment for which requests of every user are exact until now.",
        ).set_function(lambda: max(0.0, time.time() - tier.now_ts / 1000))
        metrics.gauge(
            "thinrow_online_topic_retention_used_ratio",
            "Age of the oldest message that a new replica needs, by the topic's retention.ms: "
            "beyond 1 the topic may have deleted it. 0 if the topic deletes none.",
        ).set_function(
            lambda: (
                max(0.0, time.time() * 1000 - tier.needed_from_ts) / retention_ms
                if retention_ms
                else 0.0
            )
        )
