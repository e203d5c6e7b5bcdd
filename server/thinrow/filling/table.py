"""The table of values of a fill: what joins its rows to events, and the rows in canonical form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.core.codes import VALUES_MAX
from thinrow.core.files.arrow import plain, plain_schema
from thinrow.core.files.nested import field_type, split_name, with_fields
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError, UsageError
from thinrow.events.canonical import BATCH_ROWS, canonical_type, ignored_columns, trait_column
from thinrow.events.id_columns import id_column
from thinrow.schema import EVENT_ID, EVENT_TS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.core.files.paths import DataFile
    from thinrow.core.ids import IdKind
    from thinrow.events.time_columns import TimeReader
    from thinrow.events.user_ids import UserIdReader
    from thinrow.schema import FeatureGroup, Schema, Trait

__all__ = ["FillTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FillTable:
    """The columns of a table of values."""

    files: Sequence[DataFile]
    key: tuple[str, ...]
    """Columns that join rows to events; user_id comes first where rows name users."""
    key_traits: tuple[Trait, ...]
    """Traits among them, the built-in ones too."""
    filled: tuple[Trait, ...]
    """Traits that the rows give values for, in schema order."""
    ignored: tuple[str, ...]
    """Other columns."""
    event_ids: IdKind
    """The kind of the store's event ids."""

    @staticmethod
    def of(
        files: Sequence[DataFile], schema: Schema, group: FeatureGroup, by: str | None
    ) -> FillTable:
        """Reads the columns' names, and decides what they are for.

        Args:
            files: Files that make one table.
            schema: The schema with the group.
            group: The group to be filled.
            by: What joins rows to events; None for the first of what the table has.

        Raises:
            InputError: A file cannot be read, or lacks a column.
            UsageError: The columns do not fit the schema or `by`.
        """
        with open_parquet(files[0]) as first:
            columns = first.schema_arrow
        by = by or _first_way(files[0], columns, schema, group)
        key, key_traits = _key(schema, by)
        names = [name for name in schema.by_name if field_type(columns, name) is not None]
        filled = tuple(
            trait for trait in group.traits if trait.name in names and trait.name not in key
        )
        for trait in filled:
            if trait.key:
                raise UsageError(
                    f"{trait.name} is a key of the stored digests and cannot be filled; leave the "
                    f"column out of {files[0]}."
                )
        if not filled:
            own = [trait.name for trait in group.traits if not trait.key and trait.name not in key]
            raise UsageError(
                f"{files[0]} has no values for the group {group.name}; name a column "
                f"{' or '.join(own[:3]) or 'of a trait that is no key'}."
            )
        wanted = [*key, *(trait.name for trait in filled)]
        ignored: dict[str, None] = {}
        for file in files:
            with open_parquet(file) as table:
                for name in wanted:
                    if field_type(table.schema_arrow, name) is None:
                        raise InputError(f"{file} has no column {name}; {_reason(name, key, by)}.")
                for name in (trait.name for trait in group.traits if trait.name not in wanted):
                    if field_type(table.schema_arrow, name) is not None:
                        raise InputError(
                            f"{file} has a column {name}, and {files[0]} has not; give every file "
                            f"the same columns."
                        )
                ignored |= dict.fromkeys(ignored_columns(table.schema_arrow, wanted))
        return FillTable(
            event_ids=schema.event_ids,
            files=files,
            key=key,
            key_traits=key_traits,
            filled=filled,
            ignored=tuple(ignored),
        )

    @property
    def by_user(self) -> bool:
        """True if rows name users; else they name values of a trait."""
        return self.key[0] == "user_id"

    @property
    def filled_names(self) -> list[str]:
        """Names of the traits that the rows give values for."""
        return [trait.name for trait in self.filled]

    @property
    def coded_key(self) -> tuple[Trait, ...]:
        """Traits that join rows to events and have codes in the store.

        Values that no event has get codes, too, but of one fill only: the limit of the schema does
        not count, and int32 has room for all that memory holds.
        """
        return tuple(
            replace(trait, values_max=2 * VALUES_MAX)
            for trait in self.key_traits
            if trait.coded is not None
        )

    @property
    def coded_filled(self) -> tuple[Trait, ...]:
        """Traits that the rows give values for, and that have codes in the store."""
        return tuple(trait for trait in self.filled if trait.coded is not None)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows in canonical form, with values where the store has codes."""
        own = [pa.field("user_id", pa.int64())] if self.by_user else []
        traits = (trait.carried for trait in (*self.key_traits, *self.filled))
        return pa.schema([*own, *(pa.field(t.name, canonical_type(t)) for t in traits)])

    @property
    def row_count(self) -> int:
        """Rows by the footers."""
        return sum(open_parquet(file).metadata.num_rows for file in self.files)

    def read(self, times: TimeReader, users: UserIdReader) -> Iterator[pa.Table]:
        """Reads the rows in canonical form, at most BATCH_ROWS at a time.

        Args:
            times: Reads times.
            users: Reads users, and keeps the texts that name them.

        Raises:
            InputError: names the file, the column at fault and what would be right.
        """
        for file in self.files:
            with open_parquet(file) as table:
                columns = [
                    split_name(table.schema_arrow, name)[0]
                    for name in (*self.key, *(trait.name for trait in self.filled))
                ]
                for batch in table.iter_batches(BATCH_ROWS, columns=columns):
                    if batch.num_rows:
                        yield self._canonical(file, pa.table(batch), times, users)
            times.finish(file)

    def _canonical(
        self, file: DataFile, table: pa.Table, times: TimeReader, users: UserIdReader
    ) -> pa.Table:
        traits = (*self.key_traits, *self.filled)
        table = with_fields(table, [trait.name for trait in traits if "." in trait.name])
        table = pa.table([plain(each) for each in table.columns], plain_schema(table.schema))
        arrays = []
        for name in self.key:
            column = table.column(name)
            if name == "user_id":
                arrays.append(pa.chunked_array([pa.array(users.keys(file, column))]))
            elif name == EVENT_TS.name:
                arrays.append(times.read(file, column, name).ms)
            elif name == EVENT_ID.name:
                _refuse_nulls(file, name, column)
                arrays.append(id_column(file, column, self.event_ids, "event"))
            else:
                arrays.append(self._key_trait(file, table, name))
        arrays += [_known(file, table, trait) for trait in self.filled]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _key_trait(self, file: DataFile, table: pa.Table, name: str) -> pa.ChunkedArray:
        (trait,) = (trait for trait in self.key_traits if trait.name == name)
        if self.by_user:
            return _known(file, table, trait)
        # A row without the value would name every event that lacks the trait.
        column = _known(file, table, replace(trait, sparse=True, default=None))
        _refuse_nulls(file, name, column)
        return column


def _known(file: DataFile, table: pa.Table, trait: Trait) -> pa.ChunkedArray:
    """A trait's column, which may be of nulls alone."""
    if pa.types.is_null(table.schema.field(trait.name).type):
        table = table.drop_columns([trait.name])
    return trait_column(file, table, trait.carried)


def _refuse_nulls(file: DataFile, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        raise InputError(
            f"{file}: {name} has {column.null_count} nulls; every row needs one, to be joined to "
            f"events."
        )


def _first_way(file: DataFile, columns: pa.Schema, schema: Schema, group: FeatureGroup) -> str:
    """Chooses what joins rows to events by the columns that there are."""
    for name in (EVENT_ID.name, EVENT_TS.name):
        if {"user_id", name} <= {*columns.names}:
            return name
    for name in ("user_id", EVENT_ID.name):
        if name in columns.names:
            raise UsageError(
                f"{file} has {name}, but not user_id with event_id or event_ts, by which rows are "
                f"joined to single events; add the other, or give --by with a trait to fill every "
                f"user's events."
            )
    own = {trait.name for trait in group.traits if not trait.key}
    others = [
        trait.name
        for trait in schema.traits
        if trait.name not in own and field_type(columns, trait.name) is not None
    ]
    if len(others) != 1:
        found = f"several traits ({', '.join(others)})" if others else "no trait"
        raise UsageError(
            f"{file} has neither user_id with event_id or event_ts, nor one trait to join by: it "
            f"has {found} outside of what is filled; give --by."
        )
    return others[0]


def _key(schema: Schema, by: str) -> tuple[tuple[str, ...], tuple[Trait, ...]]:
    """Columns that join rows to events, and the traits among them."""
    if by == EVENT_ID.name:
        return ("user_id", by), (schema.event_id,)
    if by == EVENT_TS.name:
        traits = (EVENT_TS, *schema.key_traits)
        return ("user_id", *(trait.name for trait in traits)), traits
    trait = next((trait for trait in schema.traits if trait.name == by), None)
    if trait is None:
        raise UsageError(
            f"--by {by} names no trait of the store; use event_id, event_ts or one of "
            f"{', '.join(trait.name for trait in schema.traits)}."
        )
    if trait.buckets is not None:
        raise UsageError(
            f"--by {by}: the store has codes in place of its texts, which two texts may share; use "
            f"event_id, event_ts or another trait."
        )
    if trait.type.is_float or trait.size > 1 or trait.length_max:
        raise UsageError(
            f"--by {by}: rows are joined by a single integer, category, text or bool, and {by} is "
            f"another; use event_id or event_ts."
        )
    return (by,), (trait,)


def _reason(name: str, key: Sequence[str], by: str) -> str:
    if name in key:
        return f"rows that are joined by {by} need {', '.join(key)}"
    return "all files need the same columns"
