"""Compares what training would see with fat rows, event by event."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from thinrow.client import Projection, row_count
from thinrow.core.files.arrow import one_array, one_batch, plain_schema, relisted
from thinrow.core.files.history_columns import STATUS_COLUMN
from thinrow.core.files.nested import split_name, with_fields
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import DataFile, data_files
from thinrow.core.files.row_ranges import RowRanges
from thinrow.core.files.rows import split_thin_rows, thin_row_files
from thinrow.core.files.trait_arrays import trait_array
from thinrow.core.ids import from_wire_kind, is_text_kind
from thinrow.core.runs import offsets_of
from thinrow.core.wire.columns import form_of
from thinrow.errors import InputError
from thinrow.events.id_columns import id_column
from thinrow.events.time_columns import times_ms
from thinrow.events.units import other_unit
from thinrow.events.user_ids import user_column
from thinrow.jobs.compared_rows import (
    DIFFERENCES_SHOWN,
    KEYS,
    ComparedRows,
    VerifyReport,
    compare_rows,
    one_chunk,
)
from thinrow.jobs.fat import WRITTEN, history_lists
from thinrow.jobs.fat_codes import codes_of, fat_codes
from thinrow.jobs.layout import FatLayout, LayoutTally
from thinrow.jobs.materialize import BATCH_EXAMPLES, stream_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from thinrow.client import Client
    from thinrow.core.files.paths import AnyFile, Named
    from thinrow.core.ids import IdKind
    from thinrow.core.traits import TraitForm
    from thinrow.events.units import TimeUnit

__all__ = ["Comparison", "verify"]

FAT_ROWS = 8192
"""Most fat rows that are read at once."""


def verify(
    client: Client,
    rows: Named,
    fat: Named,
    sequence_length: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    layout: FatLayout | None = None,
    time_unit: TimeUnit | None = None,
) -> VerifyReport:
    """Materializes ``rows`` and compares every event with ``fat``, which has the same row order.

    Columns beside the lists are compared where both files have them. Values are compared as
    numbers, moments and texts, whatever types hold them; ``time_unit`` is that of times in ``fat``
    that are integers, milliseconds where it is None.

    Raises:
        InputError: the files cannot be compared, or ``fat`` has another layout than ``layout``.
        ThinRowError: the server failed, or cannot be reached.
    """
    comparison = Comparison.of(client, rows, fat, sequence_length, layout, time_unit)
    total = comparison.rows.rows
    whole = comparison.compare(client, 0, total, progress)
    return comparison.total([whole])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Thin rows and fat rows to be compared, in one range of rows or several."""

    rows: RowRanges
    """The thin rows."""
    fat: RowRanges
    """The columns of the fat rows that are compared."""
    fields: dict[str, str]
    """Columns of the fat rows, or fields of them, by the names that they get."""
    rows_shown: str
    fat_shown: DataFile
    """Both as errors name them."""
    report: VerifyReport
    """Names of the columns that are compared; no rows."""
    forms: dict[str, TraitForm]
    """Forms of the traits that are compared."""
    user_ids: IdKind
    event_ids: IdKind
    sequence_length: int
    layout: FatLayout
    time_unit: TimeUnit | None

    @staticmethod
    def of(
        client: Client,
        rows: Named,
        fat: Named,
        sequence_length: int = 0,
        layout: FatLayout | None = None,
        time_unit: TimeUnit | None = None,
    ) -> Comparison:
        """Finds what can be compared; arguments and errors as of `verify`."""
        files, row_files = data_files(fat), data_files(rows)
        with open_parquet(files[0]) as file:
            fields = file.schema_arrow
        total, others = row_count(rows), row_count(fat)
        if total != others:
            raise InputError(
                f"{rows} has {total} rows and {fat} has {others}; compare files of the same "
                f"requests."
            )
        store = client.describe_store()
        groups = store.feature_groups
        forms = {trait.name: form_of(trait) for group in groups for trait in group.traits}
        for name in codes_of(fields):
            if name in forms:
                forms[name] = replace(forms[name], coded=None)
        stored = list(forms)
        known = {"event_ts", "event_id", "visible_ts", *stored}
        lists = history_lists(files[0], fields)
        traits = [name for name in lists if name in known]
        with open_parquet(row_files[0]) as file:
            names = file.schema_arrow.names
        beside = [
            name
            for name in names
            if name in fields.names and name not in {*known, *KEYS, *WRITTEN, STATUS_COLUMN}
        ]
        report = VerifyReport(
            traits=traits,
            beside=beside,
            not_compared=[name for name in lists if name not in {*traits, *beside, "mutable"}],
            not_in_fat=[name for name in stored if name not in lists],
        )
        if not report.traits:
            raise InputError(
                f"{fat} has no list column named as a trait of the store; check the file."
            )
        for key in KEYS:
            if key not in fields.names:
                raise InputError(f"{fat} has no column {key}, which identifies the rows.")
        read = {name: name for name in (*KEYS, *beside)} | {name: lists[name] for name in traits}
        if STATUS_COLUMN in fields.names:
            read[STATUS_COLUMN] = STATUS_COLUMN
        roots = dict.fromkeys(split_name(fields, column)[0] for column in read.values())
        return Comparison(
            rows=RowRanges.of(thin_row_files(rows)),
            fat=RowRanges.of(files, [*roots]),
            fields=read,
            rows_shown=str(rows),
            fat_shown=files[0] if len(files) == 1 else DataFile(str(fat)),
            report=report,
            forms={name: forms[name] for name in traits if name in forms},
            user_ids=from_wire_kind(store.user_id_kind),
            event_ids=from_wire_kind(store.event_id_kind),
            sequence_length=sequence_length,
            layout=layout or FatLayout(),
            time_unit=time_unit,
        )

    def compare(
        self,
        client: Client,
        first: int,
        last: int,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> ComparedRows:
        """Compares rows `[first, last)`. Errors as of `verify`."""
        report, tally = deepcopy(self.report), LayoutTally(self.layout)
        projection = Projection(self.sequence_length, traits=tuple(report.traits))
        parts = _Reader(self.fat.batches(first, last, FAT_ROWS), self.fat, self.fields)
        thin = split_thin_rows(self.rows.batches(first, last, BATCH_EXAMPLES))
        shown = self.fat_shown
        for batch, table in stream_read(client, thin, projection):
            part = _laid_out(
                parts.read(len(batch)),
                report.traits,
                tally,
                shown,
                self.time_unit,
                self.user_ids,
            )
            part = _counted(client, part, self.forms, shown)
            part = _with_event_ids(part, self.event_ids, shown)
            ours = with_users(self.rows_shown, table, self.user_ids)
            compare_rows(batch, ours, part, report, first, shown, self.time_unit)
            progress("Comparing rows", report.rows, last - first)
        return ComparedRows(report, tally)

    def total(self, parts: Iterable[ComparedRows]) -> VerifyReport:
        """Joins the findings in all ranges, which come in the order of the rows.

        Raises:
            InputError: All rows together show another layout than the one named.
        """
        whole, tally = deepcopy(self.report), LayoutTally(self.layout)
        for part in parts:
            found = part.report
            whole.filled = sorted({*whole.filled, *found.filled})
            whole.rows += found.rows
            whole.events += found.events
            whole.values += found.values
            whole.rows_that_differ += found.rows_that_differ
            whole.differences += found.differences
            tally.add_tally(part.tally)
        del whole.differences[DIFFERENCES_SHOWN:]
        tally.check_padding(self.fat_shown)
        tally.check_direction(self.fat_shown)
        return whole


def _laid_out(
    fat: pa.Table,
    traits: list[str],
    tally: LayoutTally,
    path: AnyFile,
    unit: TimeUnit | None,
    kind: IdKind,
) -> pa.Table:
    """Fat rows with their lists oldest first and without padding; keys and times as integers, ms.

    Raises InputError if a layout shows that was not named.
    """
    users = user_column(path, _whole(path, fat.column("user_id"), "user_id"), kind)
    requested = _whole(path, fat.column("request_ts"), "request_ts")
    times = times_ms(path, requested, "request_ts", unit=unit)
    for name, column in (("user_id", users), ("request_ts", times)):
        fat = fat.set_column(fat.column_names.index(name), name, column)
    columns = {trait: one_chunk(fat.column(trait)) for trait in traits}
    layout = tally.layout
    lengths = [pc.fill_null(pc.list_value_length(column), 0) for column in columns.values()]
    converts = layout.order == "newest-first" or layout.padding in ("left", "right")
    if not converts and any(not lengths[0].equals(other) for other in lengths):
        return fat  # a difference, to be reported as one
    lists = layout.lists(path, columns, users.to_numpy(), times.to_numpy())
    if "event_ts" in columns:
        events = pa.chunked_array([lists.columns["event_ts"]])
        event_ts = times_ms(
            path, _whole(path, events, "event_ts"), "event_ts", unit=unit, nullable=True
        )
        other = other_unit(event_ts.drop_null().to_numpy())
        if unit is None and other is not None and not pa.types.is_timestamp(events.type):
            raise InputError(
                f"{path}: event_ts is {events.type}, and most of its times make sense as {other}, "
                f"not as milliseconds; give --time-unit {other}, or --time-unit ms if that is "
                f"wrong."
            )
        tally.add(lists, event_ts.fill_null(0).to_numpy(), users.to_numpy(), times.to_numpy())
        tally.check_times(path)
    if converts:
        offsets = pa.array(offsets_of(lists.lengths), pa.int64())
        for trait, column in columns.items():
            converted = pa.LargeListArray.from_arrays(
                offsets, lists.columns[trait], mask=column.is_null()
            )
            fat = fat.set_column(fat.column_names.index(trait), trait, converted)
    return fat


def with_users(path: Named, table: pa.Table, kind: IdKind) -> pa.Table:
    """Returns columns of thin rows with the users in the one type of their kind."""
    users = user_column(DataFile(str(path)), table.column("user_id"), kind)
    return table.set_column(table.column_names.index("user_id"), "user_id", users)


def _with_event_ids(fat: pa.Table, kind: IdKind, path: AnyFile) -> pa.Table:
    """Fat rows with event ids as stores have them, where these are texts."""
    if "event_id" not in fat.column_names or not is_text_kind(kind):
        return fat
    lists = one_chunk(fat.column("event_id"))
    lists = lists.cast(pa.large_list(lists.type.value_type))
    ids = one_array(id_column(path, pa.chunked_array([lists.flatten()]), kind, "event"))
    converted = relisted(lists, ids, pa.large_list(ids.type))
    return fat.set_column(fat.column_names.index("event_id"), "event_id", converted)


def _counted(
    client: Client, fat: pa.Table, forms: Mapping[str, TraitForm], path: AnyFile
) -> pa.Table:
    """Fat rows with the values that traits hold: counts, codes, and what stands in bytes or NaN."""
    types = pa.types
    for name, form in forms.items():
        kind = fat.field(name).type.value_type
        is_bytes = types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
        has_gaps = types.is_floating(kind) and form.type.is_integer and form.size == 1
        if not (form.is_counted or is_bytes or has_gaps or isinstance(kind, pa.BaseExtensionType)):
            continue
        lists = one_chunk(fat.column(name)).cast(pa.large_list(kind))
        values = lists.flatten()
        if form.coded is not None:
            values = fat_codes(client, path, name, values, form.coded)
        elif has_gaps and not form.is_counted:
            values = pc.if_else(pc.is_nan(values), None, values)
        else:
            values = one_array(trait_array(path, name, pa.chunked_array([values]), form))
        if form.buckets is not None:
            values = values.fill_null(0)
        converted = relisted(lists, values, pa.large_list(values.type))
        fat = fat.set_column(fat.column_names.index(name), name, converted)
    return fat


def _whole(path: AnyFile, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A column of floats as the integers that they hold. Raises InputError for another number."""
    if not pa.types.is_floating(column.type):
        return column
    try:
        return column.cast(pa.int64())
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: {name} is {column.type} and holds more than whole numbers; write integers."
        ) from error


class _Reader:
    """Reads fat rows a chosen number at a time.

    Args:
        batches: Batches of files.
        source: The files.
        fields: Columns, or fields of them, by the names that they get.
    """

    def __init__(
        self,
        batches: Iterator[tuple[DataFile, pa.RecordBatch]],
        source: RowRanges,
        fields: Mapping[str, str],
    ) -> None:
        self._batches, self._fields = batches, fields
        self._rest = plain_schema(source.columns.schema).empty_table()

    def read(self, rows: int) -> pa.Table:
        while len(self._rest) < rows:
            _, more = next(self._batches)
            self._rest = pa.concat_tables([self._rest, pa.table(one_batch(pa.table(more)))])
        part = pa.table(one_batch(self._rest.slice(0, rows)))
        self._rest = self._rest.slice(rows)
        part = with_fields(part, [*self._fields.values()])
        return part.select([*self._fields.values()]).rename_columns([*self._fields])
