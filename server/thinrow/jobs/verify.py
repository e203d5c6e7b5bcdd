"""Compares what training would see with fat rows, event by event."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.client import Projection, row_count
from thinrow.core.files.arrow import one_array, one_batch, plain_schema, relisted, shown_type
from thinrow.core.files.nested import split_name, with_fields
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import DataFile, data_files
from thinrow.core.files.row_ranges import RowRanges
from thinrow.core.files.rows import split_thin_rows, thin_row_files
from thinrow.core.files.trait_arrays import trait_array
from thinrow.core.ids import from_wire_kind, is_text_kind
from thinrow.core.runs import offsets_of
from thinrow.core.status import status_name
from thinrow.core.wire.columns import form_of
from thinrow.errors import InputError
from thinrow.events.id_columns import id_column
from thinrow.events.time_columns import times_ms
from thinrow.events.units import other_unit
from thinrow.events.user_ids import user_column
from thinrow.jobs.fat import WRITTEN, history_lists, is_list
from thinrow.jobs.fat_codes import codes_of, fat_codes
from thinrow.jobs.layout import FatLayout, LayoutTally
from thinrow.jobs.materialize import BATCH_EXAMPLES, STATUS_COLUMN, stream_read, to_arrow
from thinrow.jobs.same_values import IncomparableError, differing
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from thinrow.client import Batch, Client
    from thinrow.core.files.paths import AnyFile, Named
    from thinrow.core.ids import IdKind
    from thinrow.core.traits import TraitForm
    from thinrow.events.units import TimeUnit

__all__ = [
    "DIFFERENCES_SHOWN",
    "KEYS",
    "TIMES",
    "ComparedRows",
    "Comparison",
    "Difference",
    "VerifyReport",
    "difference_fields",
    "one_chunk",
    "rounded",
    "verify",
]

DIFFERENCES_SHOWN = 20
FAT_ROWS = 8192
"""Most fat rows that are read at once."""
KEYS = ("user_id", "request_ts")
TIMES = ("event_ts", "visible_ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place where the two disagree."""

    row: int
    user_id: int | str
    request_ts: int
    where: str
    fat: str
    """Value of the fat row."""
    thin: str
    """Materialized value."""


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """Result of a comparison."""

    traits: list[str]
    """Compared."""
    beside: list[str]
    """Columns beside the lists that both files have; compared, too."""
    not_compared: list[str]
    """List columns of the fat rows that neither the store nor the thin rows have."""
    not_in_fat: list[str]
    """Traits of the store that the fat rows do not have."""
    filled: list[str] = field(default_factory=list)
    """Compared traits whose values may have been filled after the events were served."""
    rows: int = 0
    events: int = 0
    values: int = 0
    rows_that_differ: int = 0
    differences: list[Difference] = field(default_factory=list)
    """The first few."""


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


@dataclass(slots=True)
class ComparedRows:
    """Findings in a range of rows."""

    report: VerifyReport
    """Differences in it are the first few of the range."""
    tally: LayoutTally


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
            _compare(batch, ours, part, report, first, shown, self.time_unit)
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


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


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


def _compare(
    batch: Batch,
    table: pa.Table,
    fat: pa.Table,
    report: VerifyReport,
    first: int,
    path: AnyFile,
    unit: TimeUnit | None,
) -> None:
    """Compares some rows, and adds to the report of those from row `first` on."""
    keys = {key: table.column(key).to_numpy() for key in KEYS}
    for key, ours in keys.items():
        theirs = fat.column(key).to_numpy()
        misplaced = np.flatnonzero(ours != theirs)
        if misplaced.size:
            row = int(misplaced[0])
            raise InputError(
                f"Row {first + report.rows + row} is of {key} {ours[row]} among the thin rows and "
                f"of {theirs[row]} in {path}; sort both files alike, and name the --time-unit of "
                f"integer times if it is not ms."
            )
    differs = np.zeros(len(batch), dtype=np.bool_)
    found: list[Difference] = []

    def note(row: int, where: str, theirs: object, ours: object) -> None:
        differs[row] = True
        found.append(
            Difference(
                row=first + report.rows + row,
                user_id=keys["user_id"].tolist()[row],
                request_ts=int(keys["request_ts"][row]),
                where=where,
                fat=str(theirs),
                thin=str(ours),
            )
        )

    expected = ["OK"] * len(batch)
    if STATUS_COLUMN in fat.column_names:
        expected = fat.column(STATUS_COLUMN).to_pylist()
    for row, (number, status) in enumerate(zip(batch.statuses.tolist(), expected, strict=True)):
        if status_name(number) != status:
            note(row, "status", status, status_name(number))
    comparable = (batch.statuses == wire.STATUS_OK) & ~differs
    for trait in report.traits:
        column = one_chunk(fat.column(trait))
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        ours = np.diff(batch.offsets)
        for row in np.flatnonzero(comparable & (lengths != ours)).tolist():
            note(row, f"{trait}: length", lengths[row], ours[row])
        same = np.flatnonzero(comparable & (lengths == ours))
        theirs_flat, ours_flat = _aligned(batch, column, trait, same, path, unit)
        unequal = np.flatnonzero(_differing(path, trait, theirs_flat, ours_flat))
        owner = np.repeat(same, ours[same])
        starts = np.repeat(np.cumsum(ours[same]) - ours[same], ours[same])
        seen: set[int] = set()
        for place in unequal.tolist():
            row = int(owner[place])
            if row not in seen:
                seen.add(row)
                where = f"{trait}[{place - int(starts[place])}]"
                note(row, where, theirs_flat[place], ours_flat[place])
        report.values += len(ours_flat)
    for name in report.beside:
        theirs_all, ours_all = one_chunk(fat.column(name)), one_chunk(table.column(name))
        for row in np.flatnonzero(_differing(path, name, theirs_all, ours_all)).tolist():
            note(row, name, theirs_all[row], ours_all[row])
    # Those of a row together, so that batches do not decide which are the first.
    found.sort(key=lambda one: one.row)
    report.differences += found[: DIFFERENCES_SHOWN - len(report.differences)]
    report.filled = sorted(batch.filled.intersection(report.traits).union(report.filled))
    report.rows += len(batch)
    report.events += int(batch.offsets[-1])
    report.rows_that_differ += int(differs.sum())


def _aligned(
    batch: Batch,
    column: pa.Array,
    trait: str,
    rows: NDArray[np.int64],
    path: AnyFile,
    unit: TimeUnit | None,
) -> tuple[pa.Array, pa.Array]:
    """The events of some rows, as one side has them and as the other, of one type."""
    ours = to_arrow(batch, trait)
    whole = pa.ListArray.from_arrays(pa.array(batch.offsets, pa.int32()), ours)
    theirs_flat = pc.list_flatten(column.take(pa.array(rows)))
    ours_flat = pc.list_flatten(whole.take(pa.array(rows)))
    if pa.types.is_dictionary(theirs_flat.type):
        theirs_flat = theirs_flat.dictionary_decode()
    is_counted = pa.types.is_integer(theirs_flat.type) and unit is not None
    if trait in TIMES and (is_counted or pa.types.is_temporal(theirs_flat.type)):
        # A store keeps milliseconds, as slim rounds times down to them.
        times = times_ms(path, pa.chunked_array([theirs_flat]), trait, unit=unit, nullable=True)
        return one_chunk(times), ours_flat
    return rounded(theirs_flat, ours_flat.type), ours_flat


def rounded(theirs: pa.Array, kind: pa.DataType) -> pa.Array:
    """Rounds wider floats, and vectors and lists of them, to the store's type, as slim would.

    Numbers that would be infinite there stay as they are, and so differ.
    """
    if pa.types.is_floating(kind) and pa.types.is_floating(theirs.type):
        narrow = theirs.cast(kind, safe=False).cast(theirs.type)
        fits = pc.or_kleene(pc.is_finite(narrow), pc.invert(pc.is_finite(theirs)))
        return pc.if_else(fits, narrow, theirs)
    if is_list(kind) and is_list(theirs.type):
        inner = theirs.type.value_type
        if pa.types.is_floating(inner) and inner != kind.value_type:
            lists = theirs.cast(pa.large_list(inner))
            values = rounded(lists.values, kind.value_type)
            null = lists.is_null() if lists.null_count else None
            return pa.LargeListArray.from_arrays(lists.offsets, values, mask=null)
    return theirs


def _differing(path: AnyFile, name: str, theirs: pa.Array, ours: pa.Array) -> NDArray[np.bool_]:
    try:
        return differing(theirs, ours)
    except IncomparableError as error:
        raise InputError(
            f"{path}: {name} is {shown_type(theirs.type)} and the other side's is "
            f"{shown_type(ours.type)}; they cannot be compared."
        ) from error


def difference_fields(difference: Difference) -> list[Any]:
    """A difference as the cells of a table's row."""
    return [
        str(difference.row),
        str(difference.user_id),
        str(difference.request_ts),
        difference.where,
        difference.fat,
        difference.thin,
    ]
