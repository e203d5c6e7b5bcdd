"""Settings of a replica of a topic, and limits of its Kafka clients."""

from __future__ import annotations

import logging
import re
import time
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thinrow.core.files.io_errors import failure_reason
from thinrow.core.kafka import TOPIC, load_kafka
from thinrow.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from thinrow.online.clock import Wall
    from thinrow.online.config import OnlineConfig

__all__ = [
    "FETCH_BYTES_MAX",
    "TOPIC",
    "TOPIC_MEMORY_BYTES",
    "TopicAddress",
    "TopicSettings",
    "client_settings",
    "connect_end_s",
    "connect_topic",
    "consumer_settings",
    "find_topic",
    "make_client",
    "parse_partitions",
    "producer_settings",
    "read_connection",
    "was_passed_over",
]

log = logging.getLogger("thinrow.online")

PARTITIONS_MAX = 4096
"""Most partitions of a topic of events."""
CONNECT_TIMEOUT_S = 30.0
"""Longest wait for the brokers at the start."""
CONNECT_STEP_S = 1.0
"""Longest step of that wait, after which a signal is handled."""
FETCH_BYTES_MAX = 16 << 20
"""Limit on the bytes of one fetch."""
FETCHED_BYTES_MAX = 64 << 20
"""Limit on the bytes of fetched messages that wait to be applied, exceeded by one fetch."""
FETCHED_MESSAGES_MIN = 100_000
"""Messages below which a partition is fetched ahead."""
FETCH_WAIT_MS = 20
"""Longest time that brokers hold a fetch without messages: 50 fetches a second where none come. Not
every broker answers at once when one comes: with 100 ms that of the tests took 30 to 50 ms more."""
PRODUCED_BYTES_MAX = 64 << 20
PRODUCED_MESSAGES_MAX = 100_000
"""Limits on the messages that wait for the brokers' acknowledgement."""
RECONNECT_MS = 500
"""Time between two attempts to connect to a broker. While all are away librdkafka would try, and
log it, twenty times a second."""
DELIVERY_TIMEOUT_MS = 30_000
"""Longest wait for the acknowledgement of a message."""
PRODUCE_LINGER_MS = 2
"""Time that a message waits for others to be sent with."""
MESSAGE_HEAD_BYTES = 100_000
"""Room for the key, the headers and the batch of a message beside its value."""
DECODED_BYTES_MAX = 160 << 20
"""Memory of the messages that are applied together: eight times their bytes, and the records of
some of them, of which there are seven copies for a moment, those before and a write included."""
TOPIC_MEMORY_BYTES = (
    FETCHED_BYTES_MAX + 2 * FETCH_BYTES_MAX + DECODED_BYTES_MAX + PRODUCED_BYTES_MAX
)
"""Memory of messages on their way to and from the brokers."""

CONNECTION_SETTINGS = (
    *("security.", "sasl.", "enable.sasl.", "ssl.", "enable.ssl."),
    *("https.", "socket.", "client."),
)
"""Starts of the names of librdkafka's settings that say how to reach brokers. Others could change
which messages a replica sees."""
_RANGE = re.compile("([0-9]{1,6})(?:-([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicAddress:
    """A topic, and the way to it."""

    topic: str
    """Name of the topic."""
    bootstrap_servers: str
    """HOST:PORT of some brokers, separated by commas."""
    partition_count: int
    """Number of partitions of the topic."""
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Other settings of librdkafka's connections."""

    def unavailable(self, reason: str) -> UnavailableError:
        """Returns the error of brokers that do not serve the topic."""
        return _unavailable(self.bootstrap_servers, self.topic, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings(TopicAddress):
    """One replica's part of a topic."""

    folder: Path
    """Folder of the tier."""
    dedup_window_ms: int
    """Shortest span of arrivals for which ids are kept."""
    retention_ms: int
    """Shortest time from arrival for which requests can be answered."""
    wall: Wall
    """The clock on the wall."""
    partitions: tuple[int, ...]
    """The partitions that this replica reads, ascending."""


def parse_partitions(text: str) -> tuple[int, int]:
    """Returns the first and the last partition of ``FIRST-LAST``, or of one number.

    Raises:
        UsageError: The text is no range.
    """
    match = _RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise UsageError(f"partitions is {text!r}; give FIRST-LAST, such as 0-3, or one number.")
    return first, last


def read_connection(path: Path | None) -> dict[str, Any]:
    """Reads a TOML file of librdkafka's settings of connections.

    Raises:
        UsageError: The file is unusable, or has another setting.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"Cannot read the settings of Kafka {path}: {failure_reason(error)}."
        ) from error
    found = dict(_flat(tables))
    for name, value in found.items():
        if not name.startswith(CONNECTION_SETTINGS) or not isinstance(value, str | int | bool):
            raise UsageError(
                f"{path} has {name}; give settings of librdkafka's connections only, such as "
                f'security.protocol = "SASL_SSL".'
            )
    return found


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings by their dotted names, which TOML reads as tables within tables."""
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def find_topic(
    topic: str, bootstrap_servers: str, settings: Path | None, logger: logging.Logger = log
) -> TopicAddress:
    """Returns the address of a topic, once the brokers have described it.

    Args:
        topic: Name of the topic.
        bootstrap_servers: HOST:PORT of some brokers, separated by commas.
        settings: File of other settings of connections.
        logger: Gets librdkafka's own lines.

    Raises:
        UsageError: There is no such topic, or the settings are wrong.
        UnavailableError: No broker answers.
    """
    connection = read_connection(settings)
    trouble: list[Any] = []
    consumer = make_client(
        load_kafka().Consumer,
        consumer_settings(bootstrap_servers, connection),
        trouble.append,
        logger,
    )
    try:
        described = _described(consumer, bootstrap_servers, topic, trouble)
    finally:
        consumer.close()
    if described.error is not None:
        raise UsageError(
            f"Topic {topic} cannot be read: {described.error.str()}; make it first, with as many "
            f"partitions as it will ever have, and check who may read it."
        )
    count = len(described.partitions)
    if not count <= PARTITIONS_MAX:
        raise UsageError(
            f"Topic {topic} has {count} partitions; give a topic of at most {PARTITIONS_MAX}."
        )
    return TopicAddress(
        topic=topic,
        bootstrap_servers=bootstrap_servers,
        partition_count=count,
        connection=connection,
    )


def connect_topic(config: OnlineConfig) -> TopicSettings:
    """Returns the settings of a replica, once the brokers have described its topic.

    Raises:
        UsageError: There is no such topic, it lacks a partition, or the settings are wrong.
        UnavailableError: No broker answers.
    """
    assert config.events is not None and config.bootstrap_servers is not None
    topic = config.events.partition(":")[2]
    found = find_topic(topic, config.bootstrap_servers, config.kafka_settings)
    count = found.partition_count
    first, last = (
        (0, count - 1) if config.partitions is None else parse_partitions(config.partitions)
    )
    if last >= count:
        raise UsageError(
            f"Topic {topic} has {count} partitions, and this server would read {first}-{last}; "
            f"give --partitions that it has."
        )
    return TopicSettings(
        folder=config.folder,
        dedup_window_ms=config.dedup_window_ms,
        retention_ms=config.retention_ms,
        wall=config.wall,
        topic=topic,
        bootstrap_servers=found.bootstrap_servers,
        partition_count=count,
        partitions=tuple(range(first, last + 1)),
        connection=found.connection,
    )


def connect_end_s() -> float:
    """Returns when a wait that begins now for the brokers ends, `time.monotonic`."""
    return time.monotonic() + CONNECT_TIMEOUT_S


def _described(consumer: Any, servers: str, topic: str, trouble: list[Any]) -> Any:  # noqa: ANN401
    """Returns the metadata of a topic; raises UnavailableError."""
    kafka = load_kafka()
    end_s = connect_end_s()
    while True:
        step_s = min(CONNECT_STEP_S, max(0.0, end_s - time.monotonic()))
        try:
            return consumer.list_topics(topic, timeout=step_s).topics[topic]
        except kafka.KafkaException as error:
            consumer.poll(0)  # only a poll reports the cause of the timeout
            if time.monotonic() >= end_s:
                reason = trouble[-1] if trouble else error.args[0]
                raise _unavailable(servers, topic, reason.str()) from error


def client_settings(bootstrap_servers: str, connection: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that say how each client reaches the brokers."""
    return {
        **connection,
        "bootstrap.servers": bootstrap_servers,
        "reconnect.backoff.ms": RECONNECT_MS,
        "reconnect.backoff.max.ms": RECONNECT_MS,
    }


def consumer_settings(bootstrap_servers: str, connection: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a reader relies on, independent of librdkafka's defaults."""
    return {
        **client_settings(bootstrap_servers, connection),
        # No group is joined, and nothing is committed for it: the tier has the places.
        "group.id": "thinrow-online",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": False,
        "allow.auto.create.topics": False,
        # Otherwise librdkafka would skip messages without a report.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "fetch.max.bytes": FETCH_BYTES_MAX,
        "queued.max.messages.kbytes": FETCHED_BYTES_MAX >> 10,
        "queued.min.messages": FETCHED_MESSAGES_MIN,
    }


def producer_settings(
    bootstrap_servers: str, connection: Mapping[str, Any], message_bytes_max: int
) -> dict[str, Any]:
    """Returns the settings that a producer relies on."""
    return {
        **client_settings(bootstrap_servers, connection),
        "acks": "all",
        "enable.idempotence": True,
        "allow.auto.create.topics": False,
        "message.max.bytes": message_bytes_max + MESSAGE_HEAD_BYTES,
        "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
        "linger.ms": PRODUCE_LINGER_MS,
        "queue.buffering.max.messages": PRODUCED_MESSAGES_MAX,
        "queue.buffering.max.kbytes": PRODUCED_BYTES_MAX >> 10,
    }


def make_client(
    kind: Callable[..., Any],
    settings: dict[str, Any],
    on_error: Callable[[Any], None],
    logger: logging.Logger = log,
) -> Any:  # noqa: ANN401 - a client of any kind
    """Returns a client of librdkafka, such as a ``Consumer``.

    Args:
        kind: The class.
        settings: Its settings.
        on_error: Called with errors that librdkafka retries, or that are fatal.
        logger: Gets librdkafka's own lines.

    Raises:
        UsageError: librdkafka refuses the settings.
    """
    kafka = load_kafka()
    try:
        return kind({**settings, "error_cb": on_error}, logger=logger)
    except kafka.KafkaException as error:
        raise UsageError(
            f"Kafka refuses the settings: {error.args[0].str()}; check --bootstrap-servers "
            f"and --kafka-settings."
        ) from error


def was_passed_over(error: Any) -> bool:  # noqa: ANN401 - an error of librdkafka
    """Returns True if librdkafka goes on behind messages that it could not deliver."""
    errors: Any = load_kafka().KafkaError
    return error.code() in {
        errors._BAD_MSG,
        errors._BAD_COMPRESSION,
        errors._NOT_IMPLEMENTED,
        errors._UNDERFLOW,
        errors._LOG_TRUNCATION,
    }


def _unavailable(servers: str, topic: str, reason: str) -> UnavailableError:
    return UnavailableError(
        f"Kafka at {servers} cannot serve topic {topic}: {reason}; check the brokers."
    )
