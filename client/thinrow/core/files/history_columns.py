"""The histories of a batch as columns of Arrow: for each trait a list of each row.

The reader for other engines, and the files that `thinrow materialize` writes, have these columns.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.runs import offsets_of
from thinrow.core.status import Status, status_name
from thinrow.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.lookup.batch import Batch

__all__ = ["STATUS_COLUMN", "TEXT_BYTES_MAX", "event_values", "history_lists", "with_histories"]

STATUS_COLUMN = "uih_status"
TEXT_BYTES_MAX = (1 << 31) - 1
"""Text in one Arrow array of 32-bit offsets."""


def with_histories(batch: Batch, table: pa.Table, source: object) -> pa.Table:
    """Returns the columns of a table, the status by name, and a list column for each trait.

    Values of numbers are shared with the batch, not copied. A row whose status is not OK has null
    for every list.

    Args:
        batch: The histories of the table's rows.
        table: Other columns of the rows.
        source: Name of the rows in errors.

    Raises:
        InputError: A column has the name of a trait.
    """
    pa = load_pyarrow()
    for name in (STATUS_COLUMN, *batch.values):
        if name in table.column_names:
            raise InputError(
                f"{source} has a column {name}, and fat rows have a history of that name; rename "
                f"the column (for example label_{name}), or leave the trait out of the projection "
                f"(--traits)."
            )
    names = [status_name(number) for number in batch.statuses.tolist()]
    table = table.append_column(STATUS_COLUMN, pa.array(names, pa.string()))
    for name in batch.values:
        table = table.append_column(name, history_lists(batch, name))
    return table


def history_lists(batch: Batch, trait: str) -> pa.ChunkedArray:
    """Returns a list for each row of a batch, in chunks that have room for their text.

    Raises:
        InputError: The text of a single row is too long.
    """
    pa = load_pyarrow()
    values = event_values(batch, trait)
    failed = batch.statuses != Status.OK
    bounds = [0, len(batch)]
    kind, flat, ends = values.type, values, batch.offsets
    if trait in batch.list_offsets:
        kind, flat = pa.list_(kind.value_type), values.values
        ends = batch.list_offsets[trait][ends]
    if trait in batch.strings:
        kind = pa.string() if flat is values else pa.list_(pa.string())
        lengths = pa.compute.fill_null(pa.compute.binary_length(flat), 0).to_numpy()
        bounds = text_bounds(trait, offsets_of(lengths)[ends])
    lists = []
    for first, last in pairwise(bounds):
        offsets = batch.offsets[first : last + 1]
        lists.append(
            pa.ListArray.from_arrays(
                pa.array(offsets - offsets[0], pa.int32()),
                values.slice(offsets[0], offsets[-1] - offsets[0]).cast(kind),
                mask=pa.array(failed[first:last]),
            )
        )
    return pa.chunked_array(lists, pa.list_(kind))


def text_bounds(trait: str, ends: NDArray[np.int64]) -> list[int]:
    """Cuts rows so that each part has at most TEXT_BYTES_MAX; `ends[row]` are those before it."""
    bounds = [0]
    while bounds[-1] < len(ends) - 1:
        first = bounds[-1]
        last = int(np.searchsorted(ends, ends[first] + TEXT_BYTES_MAX, side="right")) - 1
        if last == first:
            raise InputError(
                f"A history has {ends[first + 1] - ends[first]} bytes of {trait}, and Arrow's "
                f"arrays of texts take {TEXT_BYTES_MAX} in a row; give the projection a length "
                f"(--sequence-length)."
            )
        bounds.append(last)
    return bounds


def event_values(batch: Batch, trait: str) -> pa.Array:
    """Returns one trait of all events of a batch; null where an event lacks it."""
    pa = load_pyarrow()
    values = batch.values[trait]
    present = batch.present.get(trait)
    mask = None if present is None else ~present
    if trait in batch.list_offsets:
        elements = pa.array(values)
        if trait in batch.strings:
            elements = pa.array(batch.strings[trait], pa.large_string()).take(elements)
        null = None if mask is None else pa.array(mask)
        return pa.LargeListArray.from_arrays(batch.list_offsets[trait], elements, mask=null)
    if trait in batch.strings:
        codes = pa.array(values, mask=mask)
        return pa.array(batch.strings[trait], pa.large_string()).take(codes)
    if values.ndim == 2:
        flat = pa.array(values.reshape(-1))
        null = None if mask is None else pa.array(mask)
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=null)
    return pa.array(values, mask=mask)
