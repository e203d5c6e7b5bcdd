"""The log behind an online server: its own, or a Kafka topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thinrow.errors import UsageError
from thinrow.online.appends import Appends
from thinrow.online.exports import Exports
from thinrow.online.follower import TierFollower
from thinrow.online.tier import MutableTier, TierConfig
from thinrow.schema import read_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from contextlib import ExitStack

    from thinrow.online.config import OnlineConfig
    from thinrow.online.event_tier import EventTier
    from thinrow.online.follower import Generations
    from thinrow.online.metrics import OnlineMetrics
    from thinrow.online.records import Batch
    from thinrow.online.tier import CommittedBatch

__all__ = ["BatchLog", "EventSource", "open_own_log"]


class BatchLog(Protocol):
    """Takes batches of events."""

    def submit(self, batch: Batch) -> Future[CommittedBatch]:
        """Takes a batch, waiting for room; the future ends once it is durable.

        Raises:
            RequestError: The log cannot hold an event.
            UnavailableError: The server is stopping.
        """


@dataclass(frozen=True, slots=True)
class EventSource:
    """Everything by which servers of one log differ from those of another."""

    tier: EventTier
    """The events, which requests read."""
    log: BatchLog
    """Takes the events that callers append."""
    published: Generations
    """The generations that requests are served from."""
    exports: Exports | None
    """Exports of the events; None for a topic, which is exported without this server."""
    wait_ready: Callable[[], None]
    """Waits until the tier has every event that was in the log before."""


def open_own_log(config: OnlineConfig, metrics: OnlineMetrics, stack: ExitStack) -> EventSource:
    """Opens a tier that is its own log, until the stack is closed.

    Raises:
        StoreError: The store or the tier cannot be opened.
        UsageError: There is no schema.
    """
    tier = MutableTier(
        TierConfig(
            folder=config.folder,
            retention_ms=config.retention_ms,
            dedup_window_ms=config.dedup_window_ms,
            commit_lead_ms=config.commit_lead_ms,
            wall=config.wall,
        )
    )
    stack.callback(tier.close)
    published = stack.enter_context(
        TierFollower(
            config.store, tier, config.poll_s, metrics.open_failures.inc, config.cache_bytes_max
        )
    )
    if tier.format is None:
        if config.schema is None:
            raise UsageError(
                f"{config.store} holds no generation yet, which would have the schema; give "
                f"--schema FILE."
            )
        tier.use_schema(read_schema(config.schema))
    appends = stack.enter_context(Appends(tier))
    return EventSource(tier, appends, published, Exports(tier, published), lambda: None)
