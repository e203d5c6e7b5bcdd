"""The Kafka client, an optional dependency."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["TOPIC", "load_kafka"]

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
