"""The Kafka client, an optional dependency."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["TOPIC", "TOPIC_PREFIX", "load_kafka", "topic_among"]

TOPIC_PREFIX = "kafka:"
TOPIC = re.compile(r"kafka:([A-Za-z0-9._-]{1,249})")
"""Name of a topic among the logs of events."""


def load_kafka() -> ModuleType:
    """Imports the Kafka client, which files do not need.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import confluent_kafka
    except ImportError as error:
        raise UsageError("Kafka needs confluent-kafka: pip install 'thinrow[kafka]'.") from error
    module: ModuleType = confluent_kafka
    return module


def topic_among(named: object) -> str | None:
    """Returns the topic that the input of a job names as kafka:TOPIC; None if it names files.

    Raises:
        UsageError: It names a topic wrongly, or something else as well.
    """
    names = list(named) if isinstance(named, Sequence) and not isinstance(named, str) else [named]
    topics = [name for name in names if isinstance(name, str) and name.startswith(TOPIC_PREFIX)]
    if not topics:
        return None
    if len(names) > 1:
        raise UsageError(f"Events come from one topic, or from files; give {topics[0]} alone.")
    match = TOPIC.fullmatch(topics[0])
    if match is None:
        raise UsageError(f"events is {topics[0]!r}; give kafka:TOPIC.")
    return match[1]
