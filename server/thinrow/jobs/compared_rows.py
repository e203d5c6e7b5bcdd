"""Comparison of rows as training sees them with fat rows, value by value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import shown_type
from thinrow.core.files.history_columns import STATUS_COLUMN, event_values
from thinrow.core.status import status_name
from thinrow.errors import InputError
from thinrow.events.time_columns import times_ms
from thinrow.jobs.fat import is_list
from thinrow.jobs.same_values import IncomparableError, differing
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.client import Batch
    from thinrow.core.files.paths import AnyFile
    from thinrow.events.units import TimeUnit
    from thinrow.jobs.layout import LayoutTally

__all__ = [
    "DIFFERENCES_SHOWN",
    "KEYS",
    "TIMES",
    "ComparedRows",
    "Difference",
    "VerifyReport",
    "compare_rows",
    "difference_fields",
    "one_chunk",
    "rounded",
]

DIFFERENCES_SHOWN = 20
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


@dataclass(slots=True)
class ComparedRows:
    """Findings in a range of rows."""

    report: VerifyReport
    """Differences in it are the first few of the range."""
    tally: LayoutTally


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def compare_rows(
    batch: Batch,
    table: pa.Table,
    fat: pa.Table,
    report: VerifyReport,
    first: int,
    path: AnyFile,
    unit: TimeUnit | None,
) -> None:
    """Compares some rows, and adds what differs to a report.

    Args:
        batch: Histories as training sees them.
        table: Columns of the thin rows beside them, the keys among them.
        fat: The same rows as fat rows have them.
        report: The report of a range of rows.
        first: Number of the range's first row.
        path: The file of fat rows, for errors.
        unit: Unit of its times that are integers; None for ms.

    Raises:
        InputError: The rows are of other users or moments, or cannot be compared.
    """
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
    ours = event_values(batch, trait)
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
