"""Slices of a topic: each task reads one partition up to its seal, which every attempt finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from thinrow.compaction.topic import canonical_tables
from thinrow.core.files.paths import DataFile
from thinrow.engines.spark.slices import SAMPLED_FILES, ranges_of
from thinrow.events.user_ids import UserIdReader
from thinrow.jobs.topic.sealed import estimated_messages
from thinrow.jobs.topic.tables import TopicEvents

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.events.time_columns import TimeReader
    from thinrow.jobs.topic.tables import TopicSpan
    from thinrow.online.topic.settings import TopicAddress
    from thinrow.schema import Schema

__all__ = ["TopicReading", "TopicSlice", "cut_topic", "topic_bounds"]


@dataclass(frozen=True, slots=True)
class TopicSlice:
    """One partition of a topic."""

    address: TopicAddress
    span: TopicSpan

    def events(self, schema: Schema) -> TopicEvents:
        """Returns what reads its events."""
        return TopicEvents(self.address, schema, self.span)


class TopicReading:
    """Reads a slice of a topic, whose messages are refused by all traits of the schema.

    Args:
        one: The slice.
        schema: The next generation's schema.
    """

    ignored = ()
    span = None

    def __init__(self, one: TopicSlice, schema: Schema) -> None:
        self._schema = schema
        self._events = one.events(schema)
        self.skipped = self._events.skipped

    @property
    def sealed(self) -> dict[int, int]:
        """Offset up to which the partition was read, once all tables were."""
        return self._events.sealed

    def tables(self, times: TimeReader, users: UserIdReader) -> Iterator[pa.Table]:
        """Yields the events in canonical form."""
        carried = self._schema.carried
        return canonical_tables(self._events, carried, times.of_exports(), users)


def cut_topic(address: TopicAddress, span: TopicSpan) -> list[TopicSlice]:
    """Returns a slice for each partition."""
    return [TopicSlice(address, span.of(number)) for number in span.first]


def topic_bounds(slices: Sequence[TopicSlice], schema: Schema, shards: int) -> NDArray[np.uint64]:
    """Estimates ranges of users, as `slices.user_bounds` does, from the first messages of some.

    Args:
        slices: The input.
        schema: The next generation's schema.
        shards: Number of shards.

    Raises:
        UsageError: A partition is not sealed.
        UnavailableError: The brokers do not answer.
    """
    first = {number: offset for one in slices for number, offset in one.span.first.items()}
    messages = estimated_messages(slices[0].address, first)
    step = max(1, len(slices) // SAMPLED_FILES)
    keys, sampled = [np.empty(0, np.int64)], 0
    for one in slices[::step][:SAMPLED_FILES]:
        events = one.events(schema)
        count, table = events.sample()
        sampled += count
        users = UserIdReader(schema.user_ids)
        keys.append(users.keys(DataFile(events.name), table.column("user_id")))
    found = np.concatenate(keys)
    total = messages * len(found) / max(sampled, 1)
    return ranges_of(found, total, shards)
