"""Records of events as the tier stores them: packed fields of fixed size, then texts and lists."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow import _native
from thinrow.core.ids import canonical_text, is_text_kind
from thinrow.core.pointers import MutableColumn
from thinrow.core.traits import BATCH_DTYPES
from thinrow.errors import InputError, RequestError
from thinrow.online.record_parts import decoded_parts, encoded_parts, has_part, part_bytes
from thinrow.online.users import NamedUsers
from thinrow.schema import EVENT_TS, Schema, Trait, TraitType
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind

    Columns = Mapping[str, MutableColumn]

__all__ = ["Batch", "RecordFormat", "batch_of", "schema_number", "type_name", "user_text"]

USER = Trait(name="user_id", type=TraitType.STRING, number=0)
"""The user as records have them, where ids are texts."""
USER_SIZE = struct.Struct("<I")
USER_SIZE_AT = 19
"""Place of the size of that text in every record, after the id of the event."""
ENCODED_BYTES_MAX = 4 << 20
"""Limit on the bytes of records, texts aside, that are encoded at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one schema, ready to be committed."""

    users: Sequence[bytes]
    ids: Sequence[bytes | None]
    """User and id of each event, as in a key; None for an event without an id."""
    records: Sequence[bytes]
    texts: Sequence[str] = ()
    """The user of each event, where ids are texts."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def size_bytes(self) -> int:
        """Bytes of the records."""
        return sum(map(len, self.records))


def batch_of(
    users_of: NamedUsers | Sequence[int], columns: Columns, record_format: RecordFormat
) -> Batch:
    """Makes a batch from checked columns, less the users'."""
    named = users_of if isinstance(users_of, NamedUsers) else NamedUsers(users_of)
    events = len(named.keys)
    if named.texts is not None:
        columns = {**columns, USER.name: MutableColumn(np.array(named.texts, object))}
    numbers = np.array(named.keys, np.int64).astype(">i8")
    data = numbers.tobytes()
    users = [data[at : at + 8] for at in range(0, len(data), 8)]
    ids = columns["event_id"]
    known = [True] * events if ids.present is None else ids.present.tolist()
    if is_text_kind(record_format.schema.event_ids):
        texts = ids.values.tolist()
        keys = [user + text.encode() for user, text in zip(users, texts, strict=True)]
    else:
        pairs = np.empty((events, 2), ">i8")
        pairs[:, 0], pairs[:, 1] = numbers, ids.values.view(np.int64)
        words = pairs.tobytes()
        keys = [words[at : at + 16] for at in range(0, len(words), 16)]
    return Batch(
        users,
        [key if has else None for key, has in zip(keys, known, strict=True)],
        record_format.encode(columns, events),
        named.texts or (),
    )


class RecordFormat:
    """Converts events of one schema between records and columns.

    Columns are by name: ``event_ts``, ``event_id`` and the traits, in their own dtypes, text as
    object arrays. An absent value of a trait with a default is that default. Traits with a
    vocabulary have values, since a value may get its code after the event arrived.

    Args:
        schema: Defines the traits.
        number: Names the schema in every record, from 0.
    """

    def __init__(self, schema: Schema, number: int) -> None:
        self.schema = schema
        self.number = number
        event_id, traits = schema.event_id, schema.carried.traits
        self._traits = {trait.name: trait for trait in (EVENT_TS, event_id, *traits)}
        self._after_times = (event_id, *traits)
        # The user comes last, so that a record ends with them whatever its schema.
        self._stored = self._after_times
        if is_text_kind(schema.user_ids):
            self._stored += (USER,)
        self._in_parts = [trait for trait in self._stored if has_part(trait)]
        fields: list[tuple[Any, ...]] = [
            ("number", "<u2"),
            ("event_ts", "<i8"),
            ("has event_id", "u1"),
            ("trait event_id", _field_dtype(event_id)),
        ]
        if has_part(event_id):
            # The text is where records of every schema say, so that all are ordered alike.
            fields.append(("event_id at", "<u4"))
        if is_text_kind(schema.user_ids):
            fields.append((f"trait {USER.name}", _field_dtype(USER)))
        for trait in traits:
            if trait.nullable:
                fields.append((f"has {trait.name}", "u1"))
            shape = ((trait.size,),) if trait.size > 1 else ()
            fields.append((f"trait {trait.name}", _field_dtype(trait), *shape))
        self._dtype = np.dtype(fields)
        self._native = _native.RecordFormat(number, self._dtype.itemsize, self._layout())

    def _layout(self) -> list[tuple[str, int, int, bool, int, int, int, int]]:
        """Returns the arguments of the native format of each column of the wire."""

        fields: Any = self._dtype.fields

        def place(name: str) -> tuple[int, int]:
            kind, at = fields[name][:2]
            return kind.itemsize, at

        layout = []
        for trait in (EVENT_TS, *self._after_times):
            size, at = place(trait.name if trait is EVENT_TS else f"trait {trait.name}")
            has_at = place(f"has {trait.name}")[1] if trait.nullable else 0
            words = (trait.name, trait.type.value, trait.size, trait.nullable)
            word_bytes = part_bytes(trait) if trait.length_max else size // trait.size
            layout.append((*words, word_bytes, at, has_at, trait.length_max))
        return layout

    @property
    def text_count(self) -> int:
        """Number of text traits, lists aside."""
        texts = [trait for trait in self._in_parts if not trait.length_max]
        return len(texts)

    @property
    def has_text_lists(self) -> bool:
        """True if a trait is a list of texts."""
        return any(t.length_max and t.type is TraitType.STRING for t in self._in_parts)

    def check_types(self, columns: Iterable[wire.Column]) -> None:
        """Compares the types that columns declare with the schema, before their data are decoded.

        Raises:
            RequestError: The schema lacks a column or gives it another type.
        """
        for column in columns:
            trait = self._known(column.trait)
            size = 0 if trait.length_max else trait.size
            form = (trait.type.value, size, trait.length_max)
            if (column.type, column.vector_size, column.list_length_max) != form:
                raise RequestError(
                    f"{trait.name} comes as {type_name(column.type)} with vector_size "
                    f"{column.vector_size}{_limit(column.list_length_max)}; the schema says "
                    f"{type_name(trait.type.value)} with vector_size {size}"
                    f"{_limit(trait.length_max)}."
                )

    def check_size(self, given: Columns, events: int, bytes_max: int) -> None:
        """Checks the bytes of the events' records, before they are encoded.

        Raises:
            RequestError: They exceed ``bytes_max``.
        """
        size = events * self._dtype.itemsize
        for trait in self._in_parts:
            if trait.name not in given:
                continue
            values = given[trait.name].values
            if trait.length_max:
                size += part_bytes(trait) * len(values)
            if trait.type is TraitType.STRING:
                # A text that many events share travels once, and is stored with each.
                texts = Counter(values.tolist())
                size += sum(times * len(text.encode()) for text, times in texts.items())
        if size > bytes_max:
            raise RequestError(
                f"The records of {events} events would take {size:,} bytes; this server accepts "
                f"{bytes_max:,} in one batch, so send fewer events at once."
            )

    def _known(self, name: str) -> Trait:
        if name not in self._traits:
            raise RequestError(
                f"There is no trait {name!r}; events have {', '.join(self._traits)}."
            )
        return self._traits[name]

    def checked(self, given: Columns, events: int) -> dict[str, MutableColumn]:
        """Returns all columns of events, with defaults for absent values.

        Raises:
            RequestError: The schema lacks a column or gives it another type, or an event lacks a
                value that every event needs.
        """
        for name in given:
            self._known(name)
        columns = {
            name: _checked(trait, given.get(name), events) for name, trait in self._traits.items()
        }
        if is_text_kind(self.schema.event_ids):
            columns["event_id"] = _canonical(columns["event_id"], self.schema.event_ids)
        return columns

    def encode(self, columns: Columns, events: int) -> list[bytes]:
        """Encodes events, given all their columns, as records."""
        # In parts, so that temporary memory is smaller than all records.
        rows = max(1, ENCODED_BYTES_MAX // self._dtype.itemsize)
        parts = (slice(at, min(at + rows, events)) for at in range(0, events, rows))
        return [record for part in parts for record in self._encoded(columns, part)]

    def _encoded(self, columns: Columns, rows: slice) -> list[bytes]:
        records = np.zeros(rows.stop - rows.start, self._dtype)
        records["number"] = self.number
        records["event_ts"] = columns["event_ts"].values[rows]
        if has_part(self.schema.event_id):
            records["event_id at"] = self._dtype.itemsize
        rests: list[Sequence[bytes]] = []
        for trait in self._stored:
            column = columns[trait.name][rows]
            if trait.nullable:
                present = True if column.present is None else column.present
                records[f"has {trait.name}"] = present
            if has_part(trait):
                lengths, parts = encoded_parts(trait, column)
                records[f"trait {trait.name}"] = lengths
                rests.append(parts)
            else:
                records[f"trait {trait.name}"] = column.values.view(trait.type.word_dtype)
        data, size = records.tobytes(), self._dtype.itemsize
        fixed = [data[at : at + size] for at in range(0, len(data), size)]
        return [b"".join(parts) for parts in zip(fixed, *rests, strict=True)] if rests else fixed

    def decode(self, records: Sequence[bytes]) -> dict[str, MutableColumn]:
        """Decodes records to columns; the inverse of :meth:`encode`."""
        size = self._dtype.itemsize
        whole = records if not self._in_parts else [record[:size] for record in records]
        array = np.frombuffer(b"".join(whole), self._dtype)
        columns = {"event_ts": MutableColumn(array["event_ts"])}
        places = [size] * len(records)
        for trait in self._stored:
            words = np.ascontiguousarray(array[f"trait {trait.name}"])
            if has_part(trait):
                column = decoded_parts(trait, words, records, places)
            else:
                column = MutableColumn(words.view(trait.type.value_dtype))
            present = _present(array[f"has {trait.name}"]) if trait.nullable else None
            columns[trait.name] = MutableColumn(column.values, present, column.offsets)
        return columns

    def to_wire(self, arrivals: Sequence[int], records: list[bytes]) -> bytes | None:
        """Encodes records as a MutableEvents, traits in schema order; None for another schema."""
        return self._native.events(arrivals, records)

    def to_topic(self, records: list[bytes]) -> list[bytes]:
        """Encodes records of this format as fields ``events`` of a UserEvents, one each."""
        return self._native.topic_events(records)

    def order(self, record: bytes) -> tuple[object, ...]:
        """Returns a key that sorts an event among others (docs/concepts/semantics.md, Time)."""
        columns = self.decode([record])
        event_ts = int(columns["event_ts"].values[0])
        return (event_ts, *(_order(t, columns[t.name]) for t in self._after_times))


def user_text(record: bytes) -> bytes:
    """Returns the user of a record, where ids are texts."""
    (size,) = USER_SIZE.unpack_from(record, USER_SIZE_AT)
    return record[len(record) - size :]


def schema_number(record: bytes) -> int:
    """Returns the number of the schema that a record was written with."""
    return int.from_bytes(record[:2], "little")


def _limit(length_max: int) -> str:
    return f" and lists of at most {length_max}" if length_max else ""


def _field_dtype(trait: Trait) -> np.dtype[Any]:
    """Returns the dtype of a trait's words in the fixed part of a record."""
    if trait.length_max:
        return np.dtype("<u2")
    return (np.dtype("u4") if has_part(trait) else trait.type.word_dtype).newbyteorder("<")


def _checked(trait: Trait, column: MutableColumn | None, events: int) -> MutableColumn:
    is_list = trait.length_max > 0
    shape = (events, trait.size) if trait.size > 1 else (events,)
    dtype = trait.type.value_dtype
    if column is None:
        offsets = np.zeros(events + 1, np.int64) if is_list else None
        values = np.zeros(0 if is_list else shape, dtype)
        column = MutableColumn(values, np.zeros(events, np.bool_), offsets)
    elif is_list and column.offsets is not None and column.values.dtype == dtype:
        assert len(column) == events
    elif is_list or column.values.shape != shape or column.values.dtype != dtype:
        raise RequestError(
            f"{trait.name} has values of {column.values.dtype} and shape "
            f"{column.values.shape[1:]}; the schema says {trait.type.label}, {trait.size} each."
        )
    if column.present is None:
        return column
    values, present = column.values, column.present
    if not is_list:  # a list that is absent has no elements
        values = values.copy()
        values[~present] = "" if trait.type is TraitType.STRING else 0
    if trait.default is not None:
        if not is_list:
            values[~present] = trait.default
        return MutableColumn(values, None, column.offsets)
    if not trait.nullable and not present.all():
        remedy = "add it"
        if trait is not EVENT_TS:
            remedy += ", or give the trait sparse = true or a default in the schema"
        raise RequestError(
            f"{events - int(present.sum())} events lack {trait.name}, which every event needs; "
            f"{remedy}."
        )
    return MutableColumn(values, present, column.offsets)


def _canonical(ids: MutableColumn, kind: IdKind) -> MutableColumn:
    """Returns ids of events as stores have them; raises RequestError for those of another kind."""
    values, present = ids.values.copy(), ids.present
    rows = np.arange(len(values)) if present is None else np.flatnonzero(present)
    try:
        values[rows] = [canonical_text(text, kind, "event") for text in values[rows].tolist()]
    except InputError as error:
        raise RequestError(str(error)) from error
    return MutableColumn(values, present)


def type_name(number: int) -> str:
    """Returns the name of a TraitType in the protos, or the number if it has none."""
    return wire.TraitType.Name(number) if number in wire.TraitType.values() else str(number)


def _present(flags: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    return None if flags.all() else flags != 0


def _order(trait: Trait, column: MutableColumn) -> tuple[object, ...]:
    if column.present is not None:
        return (0,)
    if trait.length_max:
        element = replace(trait, length_max=0)
        values = column.values
        lists = (_order(element, MutableColumn(values[n : n + 1])) for n in range(len(values)))
        return (1, tuple(lists))
    value = column.values[0]
    if trait.type is TraitType.STRING:
        return (1, value.encode())
    if not trait.type.is_float:
        return (1, *np.atleast_1d(value).tolist())
    bits = 8 * BATCH_DTYPES[trait.type.value].itemsize
    words = np.atleast_1d(value).view(trait.type.word_dtype).tolist()
    # IEEE 754 totalOrder: negative numbers invert all bits, others the sign bit.
    return (
        1,
        *(word ^ ((1 << bits) - 1 if word >> (bits - 1) else 1 << (bits - 1)) for word in words),
    )
