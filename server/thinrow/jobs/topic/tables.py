"""Events of a topic up to a watermark, as tables with the columns of an exported file."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
from thinrow.compaction.topic import Skipped
from thinrow.core.files.arrow import trait_type
from thinrow.core.files.column_arrays import column_array
from thinrow.core.files.user_columns import user_type
from thinrow.core.ids import id_type
from thinrow.core.pointers import MutableColumn
from thinrow.errors import UsageError
from thinrow.events.canonical import arrow_type
from thinrow.jobs.topic.moments import FirstOfMoment
from thinrow.jobs.topic.sealed import SealedMessages
from thinrow.online.clock import wall_ts
from thinrow.online.records import RecordFormat
from thinrow.online.topic.decoding import MessageDecoder
from thinrow.store.manifest import TopicSeal
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.events.split import Progress
    from thinrow.jobs.topic.sealed import ArrivedMessage
    from thinrow.online.topic.decoding import DecodedColumns
    from thinrow.online.topic.settings import TopicAddress
    from thinrow.schema import Schema
    from thinrow.store.manifest import Manifest

__all__ = ["TopicEvents", "TopicSpan", "check_topic_watermark"]

TABLE_ROWS = 1 << 16
TABLE_BYTES = 32 << 20
"""Size of a table, about; its last messages may exceed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpan:
    """The part of a topic that one run reads."""

    first: dict[int, int]
    """Offset of the first message to read, by partition."""
    since_ts: int | None
    """The watermark that these messages sealed, ms; None if they begin the topic."""
    watermark_ts: int
    """The watermark up to which the topic is read, ms."""

    @classmethod
    def after(cls, previous: Manifest | None, address: TopicAddress, watermark_ts: int) -> Self:
        """Returns what a generation lacks, whose events may come from files.

        Raises:
            UsageError: The topic has more partitions than it had, or fewer.
        """
        count = address.partition_count
        if previous is None or previous.topic is None:
            return cls(
                first=dict.fromkeys(range(count), 0), since_ts=None, watermark_ts=watermark_ts
            )
        known = previous.topic
        if len(known.offsets) != count:
            raise UsageError(
                f"Topic {address.topic} has {count} partitions, and had {len(known.offsets)} when "
                f"the last generation was built: events of a user are in one partition, so give "
                f"the topic with the partitions that it had."
            )
        first = dict(enumerate(known.offsets))
        return cls(first=first, since_ts=previous.watermark_ts, watermark_ts=watermark_ts)

    def seal(self, topic: str, sealed: Mapping[int, int]) -> TopicSeal:
        """Returns what the next generation records, once every partition was read up to a seal."""
        assert sealed.keys() == self.first.keys()
        return TopicSeal(name=topic, offsets=[sealed[number] for number in sorted(sealed)])

    def inputs(self, topic: str, sealed: Mapping[int, int]) -> list[str]:
        """Returns the identity of what was read, a text for each partition."""
        return [f"kafka:{topic} {n} {self.first[n]}-{sealed[n]}" for n in sorted(self.first)]

    def of(self, partition: int) -> TopicSpan:
        """Returns the part of one partition."""
        return replace(self, first={partition: self.first[partition]})


def check_topic_watermark(watermark_ts: int) -> None:
    """Refuses a watermark that lies ahead of the clock, up to which no partition is sealed.

    Raises:
        UsageError: It does.
    """
    if watermark_ts > wall_ts():
        raise UsageError(
            f"--watermark {readable_time(watermark_ts)} lies ahead of the clock, and events from "
            f"before may still come; give one that has passed."
        )


class TopicEvents:
    """Reads the events of a topic up to a watermark, once.

    Args:
        address: The topic.
        schema: The schema of its events.
        span: The part to read.
        progress: Receives the work done.
    """

    def __init__(
        self,
        address: TopicAddress,
        schema: Schema,
        span: TopicSpan,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._topic = address.topic
        self._span = span
        carried = schema.carried
        self.columns = pa.schema(
            [
                ("user_id", user_type(schema.user_ids)),
                ("event_ts", pa.int64()),
                ("arrival_ts", pa.int64()),
                ("event_id", trait_type(id_type(schema.event_ids), 1)),
                *((trait.name, arrow_type(trait)) for trait in carried.traits),
            ]
        )
        """Columns of the tables, which are those of exported files."""
        self._decoder = MessageDecoder(RecordFormat(schema, 0), address.partition_count)
        self._messages = SealedMessages(
            address, span.first, span.since_ts, span.watermark_ts, progress
        )
        self.skipped = Skipped()
        self._moments = FirstOfMoment()

    @property
    def name(self) -> str:
        """Name of the topic among inputs."""
        return f"kafka:{self._topic}"

    @property
    def sealed(self) -> dict[int, int]:
        """Offset up to which each partition is read, once all tables were."""
        return self._messages.sealed

    @property
    def seal(self) -> TopicSeal:
        """The record of the next generation, once all tables were read."""
        return self._span.seal(self._topic, self.sealed)

    @property
    def inputs(self) -> list[str]:
        """Identity of what was read, a text for each partition."""
        return self._span.inputs(self._topic, self.sealed)

    def tables(self) -> Iterator[pa.Table]:
        """Yields the events; errors as of `SealedMessages.groups`."""
        waiting: list[pa.RecordBatch] = []
        rows = size = 0
        for group in self._messages.groups():
            for batch in self._batches(group):
                waiting.append(batch)
                rows += batch.num_rows
                size += batch.nbytes
            if rows >= TABLE_ROWS or size >= TABLE_BYTES:
                yield pa.Table.from_batches(waiting, self.columns)
                waiting, rows, size = [], 0, 0
        if waiting:
            yield pa.Table.from_batches(waiting, self.columns)

    def sample(self) -> tuple[int, pa.Table]:
        """Returns the number of the first messages that are read together, and their events."""
        with closing(self._messages.groups()) as groups:
            group = next(groups, [])
        return len(group), pa.Table.from_batches(self._batches(group), self.columns)

    def _batches(self, group: Sequence[ArrivedMessage]) -> Iterator[pa.RecordBatch]:
        values = [message.value for message in group]
        parts = self._decoder.decode_columns(values, [message.partition for message in group])
        first = 0
        for part in parts:
            messages = group[first : first + len(part.counts)]
            first += len(part.counts)
            if part.refused:
                (message,) = messages
                self._refuse(message, part.refused)
            else:
                arrivals, numbers = (
                    np.repeat(np.array(values, np.int64), part.counts)
                    for values in (
                        [message.arrival_ts for message in messages],
                        [message.partition for message in messages],
                    )
                )
                batch = self._batch(part, arrivals)
                is_first = self._moments.are_first(batch, numbers)
                if not is_first.all():
                    self.skipped.duplicates += int((~is_first).sum())
                    batch = batch.filter(pa.array(is_first))
                yield batch

    def _refuse(self, message: ArrivedMessage, reason: str) -> None:
        place = f"partition {message.partition}, offset {message.offset}"
        self.skipped.add(Skipped(1, [f"{place}: {reason}"]))

    def _batch(self, part: DecodedColumns, arrivals: NDArray[np.int64]) -> pa.RecordBatch:
        kind = self.columns.field("user_id").type
        if part.users.texts is not None:
            users = np.array(part.users.texts, object)
        else:
            users = np.array(part.users.keys, np.int64).view(kind.to_pandas_dtype())
        given = {
            "user_id": MutableColumn(users),
            "arrival_ts": MutableColumn(arrivals),
            **part.columns,
        }
        arrays = [column_array(given[one.name], one.type) for one in self.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.columns)
