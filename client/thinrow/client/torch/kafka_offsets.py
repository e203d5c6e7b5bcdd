"""Places in a topic: committed offsets of a consumer group, and those in saved states."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from concurrent.futures import Future
    from types import ModuleType

    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from thinrow.client.torch.kafka_config import KafkaConfig

__all__ = [
    "STATE_VERSION",
    "OffsetCommitter",
    "Place",
    "joint_places",
    "rows_taken",
    "to_offset",
]

log = logging.getLogger("thinrow.kafka")

STATE_VERSION = 1

ROWS_TAKEN = "thinrow rows taken: "
"""Begins the metadata of a committed offset whose message is taken in part."""

REQUEST_TIMEOUT_S_MAX = 3600.0
"""The longest timeout that librdkafka accepts for one request."""

OPEN: set[OffsetCommitter] = set()
"""Committers until they are closed.

The last reference to a committer must not be dropped by its own callback: librdkafka would wait
there for the thread that runs the callback.
"""


class Place(NamedTuple):
    """A place in a partition: a row of the message at an offset."""

    offset: int
    row: int


class OffsetCommitter:
    """Commits offsets of a group without members, one request at a time, each with a timeout.

    Consumer.commit() is not used. librdkafka retries an offset commit that it could not send for
    as long as the brokers are away, and Consumer.close() waits for that. The admin client sends the
    same request, which always ends within its timeout.

    Args:
        kafka: The module confluent_kafka.
        settings: Settings of librdkafka that lead to the brokers.
        group: The group's id.
        topic: The topic's name.
        committed: The places that the group has, by partition.
        timeout_s: How long a request may take.
    """

    def __init__(
        self,
        kafka: ModuleType,
        settings: Mapping[str, str],
        group: str,
        topic: str,
        committed: Mapping[int, Place],
        timeout_s: float,
    ) -> None:
        from confluent_kafka.admin import AdminClient

        self._kafka = kafka
        # The consumer has the same settings and brokers, and logs what is wrong with them.
        self._admin: Any = AdminClient({**settings, "log_level": "0"})
        self._group = group
        self._topic = topic
        self._timeout_s = min(timeout_s, REQUEST_TIMEOUT_S_MAX)
        self._wanted = dict(committed)
        self._committed = dict(committed)
        self._closed = False
        self._in_flight = False
        # Reentrant, because a callback runs at once if its request has already ended.
        self._changed = threading.Condition(threading.RLock())
        OPEN.add(self)

    def commit(self, places: Mapping[int, Place]) -> None:
        """Commits places, now or when the request in flight has succeeded; does not wait."""
        with self._changed:
            if not self._closed:
                self._wanted.update(places)
                self._send()

    def close(self) -> None:
        """Waits until the last places are committed or refused, for two timeouts at most."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._in_flight)
            if self._admin is not None:
                self._send()
            self._changed.wait_for(lambda: not self._in_flight)
            # Here librdkafka ends the client's threads.
            self._admin = None
        OPEN.discard(self)

    def _send(self) -> None:
        """Sends a request unless one is in flight, so that no older offset follows a newer one."""
        due = [
            to_offset(self._kafka, self._topic, partition, place)
            for partition, place in self._wanted.items()
            if place != self._committed.get(partition)
        ]
        if self._in_flight or not due:
            return
        # Serves librdkafka's callbacks, such as those that refresh credentials.
        self._admin.poll(0)
        self._committed = self._wanted.copy()
        self._in_flight = True
        try:
            request = self._kafka.ConsumerGroupTopicPartitions(self._group, due)
            answers = self._admin.alter_consumer_group_offsets(
                [request], request_timeout=self._timeout_s
            )
        except self._kafka.KafkaException as error:
            self._end([(offset, error.args[0].str()) for offset in due])
        else:
            answers[self._group].add_done_callback(lambda answer: self._answered(answer, due))

    def _answered(
        self, answer: Future[ConsumerGroupTopicPartitions], due: list[TopicPartition]
    ) -> None:
        """Handles the end of a request, in a thread of librdkafka."""
        error = answer.exception()
        if isinstance(error, self._kafka.KafkaException):
            self._end([(offset, error.args[0].str()) for offset in due])
        elif error is not None:
            self._end([(offset, str(error)) for offset in due])
        else:
            offsets = answer.result().topic_partitions or []
            self._end(
                [(offset, offset.error.str()) for offset in offsets if offset.error is not None]
            )

    def _end(self, failed: list[tuple[TopicPartition, str]]) -> None:
        """Ends the request in flight; a failed offset is in the next one again."""
        with self._changed:
            self._in_flight = False
            for offset, reason in failed:
                self._committed.pop(offset.partition, None)
                log.warning(
                    "could not commit offset %d of topic %s, partition %d: %s",
                    *(offset.offset, offset.topic, offset.partition, reason),
                )
            if not failed and not self._closed:
                self._send()
            self._changed.notify_all()


def joint_places(
    states: Sequence[Any], config: KafkaConfig, partitions: Collection[int]
) -> dict[int, Place]:
    """Returns the places of a rank's partitions in states saved together.

    Args:
        states: The states of all ranks of a run; or of one rank, for the same rank.
        config: The rank, and its topic.
        partitions: The rank's partitions.

    Raises:
        UsageError: A state belongs to another topic, or some are missing.
    """
    first = states[0] if states else {}
    wanted = {
        "version": STATE_VERSION,
        "topic": config.topic,
        "world_size": first.get("world_size"),
    }
    for state in states or [first]:
        for name, value in wanted.items():
            if state.get(name) != value:
                raise UsageError(
                    f"The state has {name} {state.get(name)!r}, but must have {value!r}; load the "
                    f"states that one run saved of this topic, or go on from the group's committed "
                    f"offsets without them."
                )
    ranks = sorted({state["rank"] for state in states})
    is_own = ranks == [config.rank] and first["world_size"] == config.world_size
    if not is_own and ranks != list(range(first["world_size"])):
        raise UsageError(
            f"These are the states of ranks {ranks} of {first['world_size']}, and this is rank "
            f"{config.rank} of {config.world_size}; give load_state_dict the states of all ranks, "
            f"as a list, or go on from the group's committed offsets without them."
        )
    places: dict[int, Place] = {}
    for state in states:
        for name, place in state["places"].items():
            if places.setdefault(int(name), Place(*place)) != Place(*place):
                raise UsageError(
                    f"Two states differ in partition {name}; give load_state_dict one of each rank."
                )
    mine = {number for number in places if number % config.world_size == config.rank}
    if gone := mine - set(partitions):
        raise UsageError(
            f"The state has partitions {sorted(gone)}, which topic {config.topic} lacks; load it "
            f"where the topic is the one it was taken from."
        )
    return {number: places[number] for number in mine}


def to_offset(kafka: ModuleType, topic: str, partition: int, place: Place) -> TopicPartition:
    """Returns the place for Kafka; its row is the offset's metadata."""
    metadata = f"{ROWS_TAKEN}{place.row}" if place.row else ""
    offset: TopicPartition = kafka.TopicPartition(topic, partition, place.offset, metadata)
    return offset


def rows_taken(committed: TopicPartition) -> int:
    """Returns how many rows of the message at a committed offset are taken."""
    metadata = committed.metadata or ""
    return int(metadata.removeprefix(ROWS_TAKEN)) if metadata.startswith(ROWS_TAKEN) else 0
