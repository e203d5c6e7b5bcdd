"""Settings of a source that reads a Kafka topic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from thinrow.client.torch.rows.files import ranks
from thinrow.core.settings import require_bounds
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KafkaConfig", "librdkafka_settings"]

FETCH_BYTES_MAX = 16 << 20
"""Limit on the excess of the last fetch over `queued_bytes_max`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Settings of a topic of thin rows.

    Raises:
        UsageError: A value is out of its range.
    """

    topic: str
    """The topic, whose messages thinrow.core.files.message.encode_thin_rows makes."""

    bootstrap_servers: str
    """HOST:PORT of some brokers, separated by commas."""

    group: str
    """Group of the committed offsets, for one training run; no other consumer may use it."""

    rank: int = field(default_factory=lambda: ranks()[0])
    """Rank of this trainer. Default: torch.distributed's if it is initialized by now, otherwise
    the environment's RANK, as torchrun sets it, otherwise 0."""

    world_size: int = field(default_factory=lambda: ranks()[1])
    """Trainers that share the topic: partition p belongs to rank p % world_size. Default: as for
    `rank`, with WORLD_SIZE, otherwise 1."""

    linger_ms: int = 100
    """Longest time that rows wait for more to come."""

    idle_timeout_s: float = 0.0
    """Ends the iteration after this time without rows. 0: never."""

    on_bad_message: Literal["fail", "skip"] = "fail"
    """Treatment of a message that holds no thin rows: "fail" raises InputError, "skip" logs it and
    counts it in KafkaSource.bad_messages."""

    commit_interval_s: float = 1.0
    """Least seconds between two commits of offsets. 0: one after each batch."""

    connect_timeout_s: float = 10.0
    """Seconds to wait for the brokers when connecting, before UnavailableError, and for the answer
    to a commit. close() waits twice as long at most."""

    queued_bytes_max: int = 64 << 20
    """Bytes of messages to fetch ahead, exceeded by one fetch of 16 MiB at most."""

    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Other settings of librdkafka, such as security.protocol and sasl.password."""

    def __post_init__(self) -> None:
        require_bounds(
            self,
            world_size=1,
            linger_ms=0,
            idle_timeout_s=0,
            commit_interval_s=0,
            connect_timeout_s=0.001,
            queued_bytes_max=1 << 20,
        )
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank is {self.rank}, but must be from 0 to {self.world_size - 1}.")
        if self.on_bad_message not in ("fail", "skip"):
            raise UsageError(
                f"on_bad_message is {self.on_bad_message!r}, but must be 'fail' or 'skip'."
            )
        if taken := self.settings.keys() & librdkafka_settings(self).keys():
            raise UsageError(
                f"settings must leave out {', '.join(sorted(taken))}, which KafkaSource sets."
            )


def librdkafka_settings(config: KafkaConfig) -> dict[str, Any]:
    """Returns the settings that the source relies on, independent of librdkafka's defaults."""
    return {
        "bootstrap.servers": config.bootstrap_servers,
        "group.id": config.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": False,
        "allow.auto.create.topics": False,
        # Otherwise librdkafka would skip rows without a report.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "queued.max.messages.kbytes": config.queued_bytes_max >> 10,
        "fetch.max.bytes": min(config.queued_bytes_max, FETCH_BYTES_MAX),
    }
