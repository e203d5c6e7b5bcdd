"""Fat rows, read a piece at a time: whose they are, and their events, each identified by a key.

A key is a 64-bit hash of a user, an event's values, and of how many equal events follow it in its
row. So the same event has one key in all rows of a user, and most work is done on keys alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from thinrow.compaction.trait_values import digest_fields_of
from thinrow.core.files.arrow import is_list_of_any_length, one_array, plain_type
from thinrow.core.files.nested import field_names, field_type, split_name, with_fields
from thinrow.core.files.parquet import open_parquet
from thinrow.core.shards import xxh3
from thinrow.errors import InputError
from thinrow.events.canonical import (
    FINER_NS,
    canonical_schema,
    canonical_table,
)
from thinrow.events.user_ids import UserIdReader, user_column
from thinrow.schema import RESERVED
from thinrow.schema.proposal import id_kind, id_lines, trait_line
from thinrow.store.hashing import event_digests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.core.files.paths import AnyFile
    from thinrow.events.time_columns import TimeReader
    from thinrow.events.units import TimeUnit
    from thinrow.jobs.layout import FatLayout, LayoutTally
    from thinrow.schema import Schema

__all__ = [
    "BATCH_EVENTS",
    "PIECE_EVENTS",
    "PIECE_ROWS",
    "STATUS_COLUMN",
    "WRITTEN",
    "FatBatch",
    "Piece",
    "check_keys",
    "derived_schema",
    "event_keys",
    "event_schema",
    "fat_batches",
    "finest_unit",
    "has_event_ids",
    "history_lists",
    "is_list",
    "passing_columns",
    "pieces",
]

PIECE_EVENTS = 1 << 22
PIECE_ROWS = 1 << 20
"""Fat events or rows of a piece, which has at least one row group: Parquet has nothing smaller."""
BATCH_EVENTS = 1 << 20
"""Fat events that are decoded at once, about; at least a row."""
STATUS_COLUMN = "uih_status"
WRITTEN = ("uih", "mutable")
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive row groups of one file."""

    path: AnyFile
    row_groups: range
    rows: int
    events: int


@dataclass(frozen=True, slots=True)
class FatBatch:
    """Some fat rows."""

    user_ids: NDArray[np.int64]
    request_ts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Events of each row; shape (rows,), as the others."""
    keys: NDArray[np.uint64]
    """Values of every event, row after row; shape (events,)."""
    events: pl.DataFrame
    """Each key once, as ``key``, with the event in canonical form."""


def pieces(files: Sequence[AnyFile]) -> list[Piece]:
    """Cuts files into pieces. Raises InputError where a file is no Parquet of fat rows."""
    found = []
    for path in files:
        file = open_parquet(path)
        metadata = file.metadata
        fields = file.schema_arrow
        lists = history_lists(path, fields)
        if "event_ts" not in {*lists, *fields.names}:
            raise InputError(f"{path} has no column event_ts; every event of a fat row needs one.")
        leaf = file.leaves(split_name(fields, lists.get("event_ts", "event_ts"))[0]).start
        first = rows = events = 0
        for group in range(metadata.num_row_groups):
            facts = metadata.row_group(group)
            rows += facts.num_rows
            events += facts.column(leaf).num_values
            last = group + 1 == metadata.num_row_groups
            if last or events >= PIECE_EVENTS or rows >= PIECE_ROWS:
                groups = range(first, group + 1)
                if rows:
                    found.append(Piece(path=path, row_groups=groups, rows=rows, events=events))
                first, rows, events = group + 1, 0, 0
    return found


def derived_schema(files: Sequence[AnyFile]) -> str:
    """The schema file that fits fat rows: one feature group of all their lists, none of them a key.

    Raises InputError where a list is of nothing that a trait can be.
    """
    fields = open_parquet(files[0]).schema_arrow
    lists = history_lists(files[0], fields)
    if "event_ts" not in lists:
        raise InputError(f"{files[0]} has no list column event_ts; it holds no fat rows.")
    names = [name for name in lists if name not in RESERVED]
    sparse = {name for path in files for name in _may_lack(path, names)}
    lines = ["[history]"]
    for name in names:
        kind = field_type(fields, lists[name])
        assert kind is not None
        line = trait_line(name, kind.value_type, sparse=name in sparse)
        if line is None:
            raise InputError(
                f"{files[0]}: {name} is {kind}, which is no trait's; say with --schema which lists "
                f"are traits."
            )
        lines.append(line)
    if len(lines) == 1:
        raise InputError(f"{files[0]} has no list column beside event_ts; it holds no fat rows.")
    users = field_type(fields, "user_id")
    ids = "" if users is None else id_lines("user", id_kind(users))
    events = field_type(fields, lists.get("event_id", "event_id"))
    if events is not None and is_list_of_any_length(events):
        ids += id_lines("event", id_kind(events.value_type))
    return "\n".join(lines) + "\n" + ids


def _may_lack(path: AnyFile, names: Sequence[str]) -> list[str]:
    """Names the traits that some event may lack: those with more nulls than empty lists."""
    file = open_parquet(path)
    metadata = file.metadata
    lists = history_lists(path, file.schema_arrow)

    def nulls(column: str) -> list[int | None]:
        leaves = file.leaves(column)
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        statistics = [group.column(leaf).statistics for group in groups for leaf in leaves]
        return [
            None if one is None or not one.has_null_count else one.null_count for one in statistics
        ]

    def may_lack(name: str) -> bool:
        if lists.get(name) != name:
            return True  # a field of structs, whose nulls are not counted apart here
        counted = nulls(name)
        return None in counted or counted != nulls("event_ts")

    return [name for name in names if may_lack(name)]


def history_lists(path: AnyFile, fields: pa.Schema) -> dict[str, str]:
    """Finds the list columns among the fields of a file, by name.

    If none is ``event_ts``, the fields of the one list of structs that has it are such columns.

    Raises:
        InputError: There are several such lists, or a field has a column's name.
    """
    lists = [column for column in fields if is_list(column.type)]
    found = {column.name: column.name for column in lists}
    if "event_ts" in found:
        return found
    histories = {
        column.name: [name.removeprefix(f"{column.name}.") for name in names]
        for column in lists
        for names in [field_names(plain_type(column.type).value_type, column.name)]
        if f"{column.name}.event_ts" in names
    }
    if len(histories) > 1:
        raise InputError(
            f"{path} has event_ts in {' and in '.join(histories)}; leave out all but one of them."
        )
    for column, fields in histories.items():
        del found[column]
        if twice := sorted({*fields} & {*found}):
            raise InputError(f"{path} has {twice[0]} as a list and in {column}; leave out one.")
        found |= {field: f"{column}.{field}" for field in fields}
    return found


def is_list(kind: pa.DataType) -> bool:
    """True if a column of this type holds a list in each row."""
    kind = plain_type(kind)
    return bool(pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def passing_columns(path: AnyFile, schema: Schema) -> list[str]:
    """The columns that thin rows take over as they are.

    Raises InputError where the file lacks what a fat row needs, or has what a thin row brings.
    """
    fields = open_parquet(path).schema_arrow
    lists = history_lists(path, fields)
    names = {*fields.names, *lists}
    for name, among in (
        ("user_id", fields.names),
        ("request_ts", fields.names),
        ("event_ts", names),
    ):
        if name not in among:
            raise InputError(f"{path} has no column {name}; every fat row needs one.")
    for name in WRITTEN:
        if name in fields.names:
            raise InputError(f"{path} already has a column {name}, which slim writes; rename it.")
    if "visible_ts" in names:
        raise InputError(
            f"{path} has a column visible_ts, which follows from the new store; write the fat "
            f"rows without it."
        )
    for trait in schema.traits:
        if trait.name not in names and not trait.sparse:
            raise InputError(
                f"{path} has no column {trait.name}, which the schema lists; take it out of the "
                f"schema, or give the trait sparse = true."
            )
    histories = _history_columns(path, fields, schema)
    for name, column in histories.items():
        if name not in lists:
            raise InputError(f"{path}: {name} is {fields.field(column).type}; it must be a list.")
    used = {split_name(fields, column)[0] for column in histories.values()}
    return [name for name in fields.names if name not in {*used, STATUS_COLUMN}]


def has_event_ids(path: AnyFile) -> bool:
    """True if the events of a file have ids."""
    fields = open_parquet(path).schema_arrow
    return "event_id" in {*fields.names, *history_lists(path, fields)}


def _history_columns(path: AnyFile, fields: pa.Schema, schema: Schema) -> dict[str, str]:
    """The columns of lists, or fields of lists of structs, of ``event_ts``, ``event_id`` where
    there is one, and the traits, by these names."""
    columns = {name: name for name in fields.names} | history_lists(path, fields)
    wanted = ("event_ts", "event_id", *schema.by_name)
    return {name: columns[name] for name in wanted if name in columns}


def finest_unit(files: Sequence[AnyFile], unit: TimeUnit | None) -> TimeUnit:
    """Returns the finest unit of the events' times in some files; ``unit`` is that of integers."""
    found: list[TimeUnit] = ["ms"]
    for path in files:
        fields = open_parquet(path).schema_arrow
        listed = field_type(fields, history_lists(path, fields)["event_ts"])
        assert listed is not None
        kind = listed.value_type
        found.append(kind.unit if pa.types.is_timestamp(kind) else unit or "ms")
    return max(found, key=("s", "ms", "us", "ns").index)


def fat_batches(
    piece: Piece,
    schema: Schema,
    times: TimeReader,
    layout: FatLayout,
    tally: LayoutTally,
    users: UserIdReader,
) -> Iterator[FatBatch]:
    """Reads a piece, and counts in ``tally`` what shows the layout of its rows.

    Raises InputError: names the file, the column at fault and what would be right.
    """
    file = open_parquet(piece.path)
    rows = max(1, BATCH_EVENTS * piece.rows // max(piece.events, 1))
    names = _history_columns(piece.path, file.schema_arrow, schema)
    read = [split_name(file.schema_arrow, column)[0] for column in names.values()]
    batches = file.iter_batches(
        min(rows, PIECE_ROWS),
        row_groups=list(piece.row_groups),
        columns=["user_id", "request_ts", *read],
    )
    for batch in batches:
        if len(batch):
            yield _fat_batch(piece.path, schema, batch, names, times, layout, tally, users)
    times.finish(piece.path)


def _fat_batch(
    path: AnyFile,
    schema: Schema,
    batch: pa.RecordBatch,
    names: Mapping[str, str],
    times: TimeReader,
    layout: FatLayout,
    tally: LayoutTally,
    reader: UserIdReader,
) -> FatBatch:
    table = pa.table(batch)
    users = reader.keys(path, table.column("user_id"))
    shown = user_column(path, table.column("user_id"), schema.user_ids).to_numpy()
    request_ts = times.read(path, table.column("request_ts"), "request_ts").ms.to_numpy()
    with_all = with_fields(table, list(names.values()))
    columns = {name: one_array(with_all.column(column)) for name, column in names.items()}
    for name, column in columns.items():
        if column.null_count:
            raise InputError(
                f"{path}: {name} has {column.null_count} null lists; leave out the rows that have "
                f"no history, and write an empty list for an empty one."
            )
    lists = layout.lists(path, columns, shown, request_ts)
    lengths = lists.lengths
    events = pa.table({"user_id": np.repeat(users, lengths), **lists.columns})
    keys_known = UserIdReader("int64")
    frame = pl.from_arrow(canonical_table(path, schema, events, times, keys_known))
    assert isinstance(frame, pl.DataFrame)
    tally.add(lists, frame["event_ts"].to_numpy(), shown, request_ts)
    tally.check_times(path)
    keys = _numbered(event_keys(frame, schema), lengths)
    check_keys(frame.with_columns(key=pl.Series(keys)))
    first = pl.Series(keys).arg_unique().to_numpy()
    return FatBatch(
        users, request_ts, lengths, keys, frame[first].with_columns(key=pl.Series(keys[first]))
    )


def event_keys(events: pl.DataFrame, schema: Schema) -> NDArray[np.uint64]:
    """A hash of each event's user and values; uint64, shape (events,)."""
    events = events.with_columns(visible_ts="event_ts")
    fields = digest_fields_of(events, schema.event_id, schema.traits)[1:]
    # The digest's word of a list that begins with its own length is that of a shorter one.
    for trait in schema.traits:
        if trait.length_max:
            lengths = events[trait.name].list.len().fill_null(0)
            fields.append(lengths.cast(pl.UInt64).to_numpy())
    return event_digests(events["user_id"].to_numpy(), fields)


def check_keys(events: pl.DataFrame) -> None:
    """Compares the users, ids and values of events whose keys of 64 bits are equal.

    Args:
        events: Events in canonical form, and their ``key``.

    Raises:
        InputError: Two events have one key; names both.
    """
    numbered = events.select("key").with_row_index("number")
    first = numbered.select(pl.col("number").first().over("key")).to_series().to_numpy()
    again = np.flatnonzero(first != np.arange(len(events)))
    # Neither enters the key: fat rows have no arrivals, and the finer part is not stored.
    for column in events.drop("key", "arrival_ts", FINER_NS):
        differs = column.gather(again).ne_missing(column.gather(first[again]))
        if differs.any():
            second = int(again[differs.arg_max() or 0])
            one, other = (_named(events, number) for number in (int(first[second]), second))
            raise InputError(
                f"The {one} and the {other} have the same key of 64 bits, by which slim knows "
                f"events, and nothing was written; give one of them an event_id, or another one."
            )


def _named(events: pl.DataFrame, number: int) -> str:
    """Names an event in an error: by its id, or by its time where it has none."""
    event_id, event_ts = events.select("event_id", "event_ts").row(number)
    if event_id is None:
        return f"event at event_ts {event_ts}"
    return f"event {event_id!r}"


def _numbered(keys: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Distinguishes equal events of one row by how many follow, for rows lose their oldest."""
    rows = xxh3(np.arange(len(lengths)).view(np.uint64))
    in_row = pl.Series(np.repeat(rows, lengths) ^ keys)
    if in_row.n_unique() == len(keys):
        return keys
    again = np.flatnonzero(in_row.is_duplicated().to_numpy())
    nth: NDArray[np.uint64] = (
        pl.DataFrame({"of": in_row.gather(again)})
        .select(pl.int_range(pl.len(), dtype=pl.UInt64).reverse().over("of"))
        .to_series()
        .to_numpy()
    )
    keys = keys.copy()
    keys[again] = np.where(nth > 0, xxh3((keys[again] + nth * _STEP).view(np.uint64)), keys[again])
    return keys


def event_schema(schema: Schema) -> pa.Schema:
    """Arrow schema of ``FatBatch.events``."""
    return pa.schema([*canonical_schema(schema), ("key", pa.uint64())])
