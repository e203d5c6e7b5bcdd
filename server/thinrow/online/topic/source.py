"""A server whose log is a topic: what it opens, and in which order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from thinrow.errors import UsageError
from thinrow.online.follower import TierFollower
from thinrow.online.source import EventSource
from thinrow.online.topic.cleanup import check_cleanup
from thinrow.online.topic.metrics import TopicMetrics
from thinrow.online.topic.producer import TopicProducer
from thinrow.online.topic.reader import TopicReader
from thinrow.online.topic.settings import connect_topic
from thinrow.online.topic.tier import TopicTier
from thinrow.schema import read_schema

if TYPE_CHECKING:
    from contextlib import ExitStack

    from thinrow.online.config import OnlineConfig
    from thinrow.online.metrics import OnlineMetrics

__all__ = ["open_topic"]

log = logging.getLogger("thinrow.online")


def open_topic(config: OnlineConfig, metrics: OnlineMetrics, stack: ExitStack) -> EventSource:
    """Opens a replica of a topic, until the stack is closed.

    Raises:
        StoreError: The store or the tier cannot be opened.
        UnavailableError: The brokers do not answer.
        UsageError: There is no schema or no such topic, the topic deletes messages too early, or
            the store's events come from another topic.
    """
    settings = connect_topic(config)
    topic_retention_ms = check_cleanup(settings)
    tier = TopicTier(settings)
    stack.callback(tier.close)
    if config.schema is not None:
        tier.use_schema(read_schema(config.schema))
    published = TierFollower(
        config.store, tier, config.poll_s, metrics.open_failures.inc, config.cache_bytes_max
    )
    tier.histories = published.use
    stack.enter_context(published)
    if tier.format is None:
        raise UsageError(
            f"{config.store} holds no generation yet, which would have the schema; give "
            f"--schema FILE."
        )
    with published.use() as generation:
        refusal = "" if generation is None else tier.source_refusal(generation.manifest)
    if refusal:
        raise UsageError(refusal)
    if not tier.has_begun:
        if published.refusal:
            raise UsageError(published.refusal)
        tier.begin_with_first_message()

    def begin_again(partition: int) -> bool:
        published.refresh()
        with published.use() as generation:
            return generation is not None and tier.begin_again(generation.manifest, partition)

    reader = stack.enter_context(
        TopicReader(settings, tier, TopicMetrics(metrics, tier, topic_retention_ms), begin_again)
    )
    producer = stack.enter_context(TopicProducer(settings, tier))

    def wait_ready() -> None:
        log.info("reading the topic", extra={"topic": settings.topic})
        reader.wait_applied(producer.first_heartbeats())
        producer.start_heartbeats()
        published.refresh()

    return EventSource(tier, producer, published, None, wait_ready)
