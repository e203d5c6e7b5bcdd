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
    """

    def __init__(self, metrics: OnlineMetrics, tier: TopicTier) -> None:
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
