"""Options of commands that read a topic."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.errors import UsageError
from thinrow.online.topic.options import BOOTSTRAP_SERVERS, KAFKA_SETTINGS

if TYPE_CHECKING:
    from thinrow.online.topic.settings import TopicAddress

__all__ = ["BrokersConfig"]

log = logging.getLogger("thinrow.topic")
# A command ends with one sentence; without a handler each attempt to connect would be printed.
log.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokersConfig:
    """The brokers of a topic."""

    bootstrap_servers: str | None = field(default=None, metadata=BOOTSTRAP_SERVERS)
    kafka_settings: Path | None = field(default=None, metadata=KAFKA_SETTINGS)

    def check(self, topic: str | None) -> None:
        """Checks that brokers are given exactly if a topic is.

        Raises:
            UsageError: They are not.
        """
        if topic is not None and not self.bootstrap_servers:
            raise UsageError("--events is a topic; give --bootstrap-servers HOST:PORT, too.")
        if topic is None and (self.bootstrap_servers or self.kafka_settings):
            raise UsageError(
                "--bootstrap-servers and --kafka-settings are for a topic; give --events "
                "kafka:TOPIC, too."
            )

    def find(self, topic: str) -> TopicAddress:
        """Returns the address of a topic whose messages the brokers keep.

        Raises:
            UsageError: There is no such topic, the brokers compact it, or the settings are wrong.
            UnavailableError: No broker answers.
        """
        from thinrow.online.topic.cleanup import refuse_compacted
        from thinrow.online.topic.settings import find_topic

        self.check(topic)
        assert self.bootstrap_servers is not None
        address = find_topic(topic, self.bootstrap_servers, self.kafka_settings, log)
        refuse_compacted(address)
        return address
