"""The topic of a compaction, opened once its last generation and its schema are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.compaction.topic import check_same_topic
from thinrow.jobs.topic.tables import TopicEvents, TopicSpan, check_topic_watermark

if TYPE_CHECKING:
    from thinrow.compaction.config import CompactionConfig
    from thinrow.compaction.topic import OpenTopic
    from thinrow.events.split import Progress
    from thinrow.jobs.topic.config import BrokersConfig
    from thinrow.online.topic.settings import TopicAddress
    from thinrow.schema import Schema
    from thinrow.store.manifest import Manifest

__all__ = ["find_span", "topic_opener"]


def topic_opener(config: CompactionConfig, brokers: BrokersConfig) -> OpenTopic | None:
    """Returns what opens the topic of a run; None for a run over files."""
    topic = config.topic
    if topic is None:
        return None

    def opened(schema: Schema, before: Manifest | None, progress: Progress) -> TopicEvents:
        address, span = find_span(topic, before, config.watermark_ts, brokers)
        return TopicEvents(address, schema, span, progress)

    return opened


def find_span(
    topic: str, before: Manifest | None, watermark_ts: int, brokers: BrokersConfig
) -> tuple[TopicAddress, TopicSpan]:
    """Returns a topic, and what a generation lacks of it.

    Raises:
        UsageError: The watermark lies ahead of the clock, the store has the events of another
            topic, or this one cannot be read.
        UnavailableError: No broker answers.
    """
    check_topic_watermark(watermark_ts)
    if before is not None and before.topic is not None:
        check_same_topic(before.topic, topic)
    address = brokers.find(topic)
    return address, TopicSpan.after(before, address, watermark_ts)
