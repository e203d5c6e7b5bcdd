"""Messages of a topic of events back to records, many at once.

A message is accepted or refused by itself, whichever messages are decoded with it, so that all
replicas agree on the events of a log.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow import _native
from thinrow.core.pointers import MutableColumn
from thinrow.core.runs import offsets_of
from thinrow.core.shards import shard_of
from thinrow.errors import RequestError
from thinrow.events.units import PLAUSIBLE_FROM_TS, PLAUSIBLE_UNTIL_TS, check_milliseconds
from thinrow.online.records import Batch, batch_of
from thinrow.online.topic.messages import MESSAGE_BYTES_MAX, MESSAGE_EVENTS_MAX, value_field
from thinrow.online.users import NamedUsers, named_users
from thinrow.schema import TraitType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.online.records import RecordFormat
    from thinrow.schema import Trait

    Columns = dict[str, MutableColumn]

__all__ = ["Decoded", "DecodedColumns", "MessageDecoder"]

RECORDS_BYTES_MAX = 16 << 20
"""Limit on the records of one message, where traits left out and equal texts count as well."""

FIELDS = ("integer", "number", "text")
"""Fields of a TraitValue, by their numbers in native code."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events of consecutive messages, all accepted or all refused."""

    messages: int
    """Number of messages."""
    batch: Batch
    """Their events, in order."""
    counts: Sequence[int]
    """Number of events of each message."""
    refused: str = ""
    """The reason, one sentence; empty for messages that were accepted."""


@dataclass(frozen=True, slots=True)
class DecodedColumns:
    """The same as columns of a schema."""

    users: NamedUsers
    """The user of each event."""
    columns: Columns
    """All columns, as records have them; none of messages that were refused."""
    counts: Sequence[int]
    """Number of events of each message."""
    refused: str = ""
    """The reason, one sentence; empty for messages that were accepted."""


class MessageDecoder:
    """Decodes the messages of a topic by one schema.

    Args:
        record_format: The format of the records.
        partitions: Number of partitions of the topic.
    """

    def __init__(self, record_format: RecordFormat, partitions: int) -> None:
        self._format = record_format
        self._partitions = partitions
        self._traits = record_format.schema.carried.traits
        self._fields = [
            (trait.name, FIELDS.index(value_field(trait)), trait.size > 1 or trait.length_max > 0)
            for trait in self._traits
        ]

    def decode(self, values: Sequence[bytes], placed: Sequence[int]) -> Iterator[Decoded]:
        """Decodes messages to records; see `decode_columns`."""
        for part in self.decode_columns(values, placed):
            batch = Batch((), (), ())
            if not part.refused:
                batch = batch_of(part.users, part.columns, self._format)
            yield Decoded(len(part.counts), batch, part.counts, part.refused)

    def decode_columns(
        self, values: Sequence[bytes], placed: Sequence[int]
    ) -> Iterator[DecodedColumns]:
        """Decodes messages, one after the other where their records would be too large together.

        So memory is bounded if the caller keeps no part.

        Args:
            values: Values of the messages.
            placed: Partition of each message.
        """
        if not values:
            return
        try:
            part = self._accepted(values, placed)
        except RequestError as error:
            if len(values) == 1:
                yield DecodedColumns(NamedUsers(()), {}, (0,), " ".join(str(error).split()))
                return
        else:
            yield part
            return
        half = len(values) // 2
        yield from self.decode_columns(values[:half], placed[:half])
        yield from self.decode_columns(values[half:], placed[half:])

    def _accepted(self, values: Sequence[bytes], placed: Sequence[int]) -> DecodedColumns:
        """Decodes messages; raises RequestError if one of them is refused, or all are too large."""
        if any(len(value) > MESSAGE_BYTES_MAX for value in values):
            raise RequestError(f"A message has more than {MESSAGE_BYTES_MAX:,} bytes.")
        try:
            scanned = _native.scan_events(list(values), self._fields, MESSAGE_EVENTS_MAX)
        except ValueError as error:
            raise RequestError(f"A message is no UserEvents of this schema: {error}.") from error
        user_ids, user_texts, counts, event_ts, id_rows, integer_ids, text_ids, traits = scanned
        schema = self._format.schema
        named = named_users(user_ids.tolist(), user_texts, schema.user_ids)
        keys = np.array(named.keys, np.int64)
        if (shard_of(keys, self._partitions) != np.array(placed)).any():
            raise RequestError(
                "A message lies in another partition than its user's; partition by the documented "
                "function."
            )
        _check_times(event_ts, counts)
        events = len(event_ts)
        given = {"event_ts": MutableColumn(event_ts)}
        if len(id_rows):
            ids = text_ids if schema.event_id.type is TraitType.STRING else integer_ids
            if len(ids) != len(id_rows):
                raise RequestError(f"An event has an id that is no {schema.event_id.type.label}.")
            given["event_id"] = _column(
                schema.event_id, id_rows, _typed(schema.event_id, ids), id_rows, events
            )
        for trait, (rows, lengths, *elements) in zip(self._traits, traits, strict=True):
            if len(rows):
                found = _typed(trait, elements[FIELDS.index(value_field(trait))])
                given[trait.name] = _column(trait, rows, found, lengths, events)
        self._format.check_size(given, events, RECORDS_BYTES_MAX)
        columns = self._format.checked(given, events)
        rows_of = np.repeat(np.arange(len(values)), counts)
        users = named._replace(
            keys=keys[rows_of].tolist(),
            texts=None if named.texts is None else [named.texts[row] for row in rows_of.tolist()],
        )
        return DecodedColumns(users, columns, counts.tolist())


def _check_times(times: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Raises RequestError if the times of a message are probably no milliseconds."""
    if len(times) and (times.min() < PLAUSIBLE_FROM_TS or times.max() >= PLAUSIBLE_UNTIL_TS):
        for start, stop in pairwise(offsets_of(counts).tolist()):
            check_milliseconds(times[start:stop])


def _typed(trait: Trait, values: Any) -> NDArray[Any]:  # noqa: ANN401 - texts or an array
    """Returns values as an array of the trait's dtype; raises RequestError if one does not fit."""
    dtype = trait.type.value_dtype
    if trait.type is TraitType.STRING:
        texts = np.empty(len(values), object)
        texts[:] = values
        return texts
    if trait.type.is_float:
        numbers: NDArray[np.float64] = values
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rounded: NDArray[Any] = numbers.astype(dtype)
        if (np.isinf(rounded) & np.isfinite(numbers)).any():
            raise RequestError(f"{trait.name} has a number that is too large for {dtype}.")
        return rounded
    integers: NDArray[np.int64] = values
    if dtype.itemsize == 8:
        return integers.view(dtype)
    typed = integers.astype(dtype)
    if (typed.astype(np.int64) != integers).any():
        raise RequestError(f"{trait.name} has an integer that is no {trait.type.label}.")
    return typed


def _column(
    trait: Trait,
    rows: NDArray[np.int64],
    found: NDArray[Any],
    lengths: NDArray[np.int64],
    events: int,
) -> MutableColumn:
    """Returns a column from the values of the events that have the trait.

    Raises:
        RequestError: A list is too long, or a vector has another size.
    """
    present = np.zeros(events, np.bool_)
    present[rows] = True
    is_whole = len(rows) == events
    if trait.length_max:
        if lengths.max() > trait.length_max:
            raise RequestError(
                f"{trait.name} has a list of {lengths.max()} elements; the schema says "
                f"length_max = {trait.length_max}."
            )
        every = np.zeros(events, np.int64)
        every[rows] = lengths
        return MutableColumn(found, None if is_whole else present, offsets_of(every))
    if trait.size > 1:
        if np.any(lengths != trait.size):
            raise RequestError(f"{trait.name} has vectors that have not {trait.size} elements.")
        found = found.reshape(-1, trait.size)
    if is_whole:
        return MutableColumn(found)
    scattered = np.zeros((events, *found.shape[1:]), found.dtype)
    if trait.type is TraitType.STRING:
        scattered[:] = ""
    scattered[rows] = found
    return MutableColumn(scattered, present)
