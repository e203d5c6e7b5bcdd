"""A server whose log is a topic: what it opens, and in which order."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING

from thinrow.errors import UsageError
from thinrow.online.source import EventSource
from thinrow.online.topic.cleanup import check_cleanup
from thinrow.online.topic.metrics import TopicMetrics
from thinrow.online.topic.producer import TopicProducer
from thinrow.online.topic.reader import TopicReader
from thinrow.online.topic.settings import connect_topic
from thinrow.online.topic.tier import TopicTier
from thinrow.schema import read_schema
from thinrow.store.current import current_folder
from thinrow.store.directory import NEVER_TS

if TYPE_CHECKING:
    from contextlib import AbstractContextManager, ExitStack
    from pathlib import Path

    from thinrow.online.config import OnlineConfig
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.store.generation import Generation

__all__ = ["open_topic"]

log = logging.getLogger("thinrow.online")


def open_topic(config: OnlineConfig, metrics: OnlineMetrics, stack: ExitStack) -> EventSource:
    """Opens a replica of a topic, until the stack is closed.

    Raises:
        StoreError: The tier cannot be opened.
        UnavailableError: The brokers do not answer.
        UsageError: There is no schema or no such topic, or the store holds a generation.
    """
    published = NoGenerations(config.store)
    if config.schema is None:
        raise UsageError("A topic's events have no schema of their own; give --schema FILE.")
    schema = read_schema(config.schema)
    settings = connect_topic(config)
    check_cleanup(settings)
    tier = TopicTier(settings)
    stack.callback(tier.close)
    tier.use_schema(schema)
    reader = stack.enter_context(TopicReader(settings, tier, TopicMetrics(metrics, tier)))
    producer = stack.enter_context(TopicProducer(settings, tier))

    def wait_ready() -> None:
        log.info("reading the topic", extra={"topic": settings.topic})
        reader.wait_applied(producer.first_heartbeats())
        producer.start_heartbeats()

    return EventSource(tier, producer, published, None, wait_ready)


class NoGenerations:
    """The generations of a store that holds none, for a log that is not handed over to stores yet.

    Raises:
        UsageError: The store holds a generation, whose events the topic may hold as well.
    """

    number = 0
    watermark_ts = 0

    def __init__(self, store: Path) -> None:
        self._store = store
        self.refresh()

    def refresh(self) -> None:
        """Checks that the store holds no generation."""
        if current_folder(self._store) is not None:
            raise UsageError(
                f"{self._store} holds a generation, which servers of a Kafka topic do not serve "
                f"yet; give a store without one, or leave --events out."
            )

    def newest_ts(self) -> int:
        """The watermark of the newest generation: NEVER_TS."""
        return NEVER_TS

    def use(self) -> AbstractContextManager[Generation | None]:
        """No generation."""
        return nullcontext(None)
