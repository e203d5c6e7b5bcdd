"""Tasks that read slices of the events: surveys, and rows to shuffle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.compaction.topic import Skipped
from thinrow.compaction.vocabularies import RunValues
from thinrow.core.files.parquet import open_parquet
from thinrow.core.ids import is_text_kind
from thinrow.engines.spark.shuffled import Item, Scatter, batches
from thinrow.engines.spark.slices import Slice
from thinrow.engines.spark.tasks import Software, numbers_in, task
from thinrow.engines.spark.topic_slices import TopicReading, TopicSlice
from thinrow.events.canonical import ID_COLUMNS, ignored_columns, read_events
from thinrow.events.exported import ExportedTopic, Span, export_span
from thinrow.events.time_columns import TimeReader, TimeSpan, read_spans
from thinrow.events.user_ids import UserIdReader
from thinrow.remote.generation_objects import key_of
from thinrow.remote.object_store import ObjectStore
from thinrow.store.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray
    from thinrow.events.units import TimeUnit
    from thinrow.schema import Schema, Trait
    from thinrow.store.stored_files import StoredFile

__all__ = [
    "EVENTS",
    "FACTS",
    "HEAD",
    "SURVEY_COLUMNS",
    "TEXTS",
    "ReadPlan",
    "SliceFacts",
    "SurveyPlan",
    "read_vocabularies",
]

HEAD, FACTS, EVENTS, TEXTS = "head", "facts", "events", "texts"
"""Kinds of rows: one for each shard, one for each slice, and messages of events and of users."""
SURVEY_COLUMNS = "trait string, value string"
_SURVEY = pa.schema([("trait", pa.string()), ("value", pa.large_string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceFacts:
    """Measures of the events of one slice."""

    slice: int
    rows: int
    arrivals: TimeSpan
    times: dict[str, TimeSpan]
    ignored: list[str]
    span: Span | None
    """The arrivals that the file holds in full, if it is an export."""
    sealed: dict[int, int] = field(default_factory=dict)
    """Offset up to which a partition of a topic was read."""
    skipped: Skipped = field(default_factory=Skipped)
    """The part of the partition that gave no event."""

    def encode(self) -> bytes:
        """Returns the facts as JSON."""
        body = asdict(replace(self, span=None))
        body["span"] = None if self.span is None else [*self.span[:2], self.span.topic]
        body["sealed"] = list(self.sealed.items())
        return json.dumps(body).encode()

    @classmethod
    def decode(cls, body: dict[str, Any], slices: Sequence[Slice | TopicSlice]) -> SliceFacts:
        """Reads what `encode` wrote."""
        times = read_spans(body["times"])
        one, span = slices[body["slice"]], None
        if body["span"] is not None:
            assert isinstance(one, Slice)
            from_ts, until_ts, topic = body["span"]
            exported = None if topic is None else ExportedTopic.read(topic)
            span = Span(from_ts, until_ts, one.file, exported)
        return cls(
            slice=body["slice"],
            rows=body["rows"],
            arrivals=TimeSpan(**body["arrivals"]),
            times=times,
            ignored=body["ignored"],
            span=span,
            sealed=dict(body["sealed"]),
            skipped=Skipped(**body["skipped"]),
        )


class FileReading:
    """Reads a slice of a file.

    Args:
        one: The slice.
        schema: The next generation's schema, or the part of it that is wanted.
    """

    def __init__(self, one: Slice, schema: Schema) -> None:
        self._one, self._schema = one, schema.carried
        self.sealed: dict[int, int] = {}
        self.skipped = Skipped()

    @property
    def ignored(self) -> Sequence[str]:
        """Columns that the schema does not list."""
        with open_parquet(self._one.file) as file:
            return ignored_columns(file.schema_arrow, {*ID_COLUMNS, *self._schema.by_name})

    @property
    def span(self) -> Span | None:
        """The arrivals that the file holds in full, if it is an export."""
        return export_span(self._one.file)

    def tables(self, times: TimeReader, users: UserIdReader) -> Iterator[pa.Table]:
        """Yields the events in canonical form."""
        with open_parquet(self._one.file) as file:
            row_groups = self._one.row_groups(file.metadata.num_row_groups)
        return read_events(self._one.file, self._schema, times, users, row_groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """Input of tasks that read slices; Spark carries it to them."""

    software: Software
    slices: Sequence[Slice | TopicSlice]
    schema: Schema
    """The next generation's schema."""
    time_unit: TimeUnit | None
    shards: int
    bounds: NDArray[np.uint64]
    """Last user of each range but the last one, as unsigned numbers, ascending."""

    def scatter(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads slices, and yields their events by shard and range of users.

        Args:
            found: Numbers of slices, in a column `id`.
        """
        with task(self.software):
            yield from batches(self._items(found))

    def _items(self, found: Iterable[pa.RecordBatch]) -> Iterator[Item]:
        for number in numbers_in(found):
            if number == 0:
                # Shards without events are written, too.
                yield from (Item(shard, -1, HEAD, b"") for shard in range(self.shards))
            yield from self.slice_items(number)

    def reading(self, number: int, columns: Schema) -> FileReading | TopicReading:
        """Returns what reads a slice.

        Args:
            number: Number of the slice.
            columns: The part of the schema that is wanted, of which tables have all traits.
        """
        one = self.slices[number]
        if isinstance(one, TopicSlice):
            return TopicReading(one, self.schema)
        return FileReading(one, columns)

    def slice_items(self, number: int) -> Iterator[Item]:
        """Reads one slice, and yields its events by shard and range of users, and its measures."""
        times, users = TimeReader(self.time_unit), UserIdReader(self.schema.user_ids)
        reading = self.reading(number, self.schema)
        events = Scatter(self.shards, self.bounds, EVENTS)
        texts = Scatter(self.shards, self.bounds, TEXTS)
        has_texts = is_text_kind(self.schema.user_ids)
        rows, arrivals = 0, TimeSpan()
        for table in reading.tables(times, users):
            if not table.num_rows:
                continue
            rows += table.num_rows
            arrivals.add(TimeSpan.of(table.column("arrival_ts").to_numpy()))
            yield from events.add(table)
            if has_texts:
                yield from texts.add(users.take_users())
        yield from events.flush()
        yield from texts.flush()
        facts = SliceFacts(
            slice=number,
            rows=rows,
            arrivals=arrivals,
            times=times.spans,
            ignored=list(reading.ignored),
            span=reading.span,
            sealed=reading.sealed,
            skipped=reading.skipped,
        )
        yield Item(number % self.shards, -1, FACTS, facts.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyPlan:
    """Input of tasks that find facts about all events before shards are built."""

    read: ReadPlan
    url: str
    vocabularies: dict[str, StoredFile]
    """Files of the vocabularies so far, by trait."""
    since_ts: int | None
    watermark_ts: int
    erased: NDArray[np.int64]

    def survey(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields the values of slices that vocabularies lack, and the span of their arrivals.

        Args:
            found: Numbers of slices, in a column `id`.
        """
        with task(self.read.software) as folder:
            known = read_vocabularies(
                ObjectStore(self.url), self.read.schema.coded_traits, self.vocabularies, folder
            )
            for number in numbers_in(found):
                yield from self._slice(number, known)

    def _slice(self, number: int, known: Mapping[str, Vocabulary]) -> Iterator[pa.RecordBatch]:
        schema = self.read.schema
        coded = {trait.name for trait in schema.coded_traits}
        groups = (
            replace(group, traits=tuple(trait for trait in group.traits if trait.name in coded))
            for group in schema.groups
        )
        narrow = replace(schema, groups=tuple(groups))
        observed = RunValues(
            narrow,
            known,
            since_ts=self.since_ts,
            watermark_ts=self.watermark_ts,
            erased=self.erased,
        )
        arrivals = TimeSpan()
        users = UserIdReader(schema.user_ids)
        times = TimeReader(self.read.time_unit)
        for table in self.read.reading(number, narrow).tables(times, users):
            users.take_users()
            observed.add(table)
            arrivals.add(TimeSpan.of(table.column("arrival_ts").to_numpy()))
        yield _found("", pa.array([json.dumps({"slice": number, **asdict(arrivals)})]))
        for trait, found in observed.values.found().items():
            yield _found(trait, found)


def _found(trait: str, values: pa.Array) -> pa.RecordBatch:
    names = pa.repeat(pa.scalar(trait), len(values))
    return pa.RecordBatch.from_arrays([names, values.cast(pa.large_string())], schema=_SURVEY)


def read_vocabularies(
    store: ObjectStore, traits: Iterable[Trait], files: Mapping[str, StoredFile], folder: Path
) -> dict[str, Vocabulary]:
    """Copies vocabularies of a store, and reads them; those without a file are empty.

    Args:
        store: The store.
        traits: Traits with a vocabulary.
        files: Files by the names of traits.
        folder: Folder for the copies.

    Raises:
        StoreCorruptError: An object is missing or damaged.
    """
    known = {}
    for trait in traits:
        file = files.get(trait.name)
        if file is None:
            known[trait.name] = Vocabulary.empty(trait)
            continue
        path = folder / file.name
        store.download(key_of(file), path, file.bytes, file.xxh3)
        known[trait.name] = Vocabulary.read(path, file)
    return known
