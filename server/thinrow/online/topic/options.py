"""Options of the brokers of a topic, the same for servers and jobs."""

from __future__ import annotations

from thinrow.core.settings import setting

__all__ = ["BOOTSTRAP_SERVERS", "KAFKA_SETTINGS"]

BOOTSTRAP_SERVERS = setting(
    "HOST:PORT of some brokers of the topic, separated by commas.", metavar="HOST:PORT,…"
)
KAFKA_SETTINGS = setting(
    "TOML file of librdkafka's settings of connections, such as security.protocol and "
    "sasl.password."
)
