"""Filters of rows: expressions of pyarrow, and the row groups that statistics rule out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.io_errors import first_line
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from numpy.typing import NDArray

__all__ = ["Condition", "RowFilter", "as_expression", "known_of_key", "known_of_range"]

Condition = Any
"""An expression of pyarrow, or tuples (COLUMN, OPERATOR, VALUE) as pyarrow's `filters` takes."""
RESULT = "kept"
NUMBERED_COLUMN = re.compile(r"(?<!field_ref=FieldRef\.)FieldPath\(")
"""A column's number, as pyarrow shows it; a field's number within a struct is no hazard."""


class RowFilter:
    """An expression over the columns of a schema. Rows where it is null are left out, as in SQL.

    Args:
        condition: The expression.
        schema: Columns in the one layout; the expression may use any of them.

    Raises:
        UsageError: The condition is no expression, names no such column, or is neither true nor
            false.
    """

    def __init__(self, condition: Condition, schema: pa.Schema) -> None:
        self._expression = as_expression(condition, schema)
        empty = schema.empty_table()
        try:
            kind = self._evaluated(empty).type
        except _failures() as error:
            raise UsageError(
                f"The filter {self} does not fit the rows: {first_line(error)}; there are the "
                f"columns {', '.join(schema.names)}."
            ) from error
        if not load_pyarrow().types.is_boolean(kind):
            raise UsageError(f"The filter {self} is {kind}, but must be true or false.")
        self.columns = [name for name in schema.names if self._needs(name, empty)]
        """Names of the columns that the expression reads, in the schema's order."""

    def __str__(self) -> str:
        return " ".join(str(self._expression).split())

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Returns which rows to keep.

        Args:
            batch: Rows with the columns of the filter, in the types of the schema.

        Returns:
            Shape (rows,).

        Raises:
            UsageError: The expression fails on a value.
        """
        try:
            kept = self._evaluated(load_pyarrow().Table.from_batches([batch]))
        except _failures() as error:
            raise UsageError(
                f"The filter {self} fails: {first_line(error)}; where a column and a value have "
                f"different types, give the value as pyarrow.scalar(VALUE, TYPE OF THE COLUMN)."
            ) from error
        mask: NDArray[np.bool_] = kept.fill_null(False).to_numpy()
        return mask

    def possible(self, known: Sequence[pc.Expression], schema: pa.Schema) -> set[int]:
        """Returns the numbers of the row groups that may have rows to keep.

        Args:
            known: What is true of all rows of each row group.
            schema: Types of the columns.
        """
        import pyarrow.dataset
        import pyarrow.fs

        # Only pyarrow's data sets compare expressions with what is known; no file is opened.
        dataset, system = pyarrow.dataset, pyarrow.fs.LocalFileSystem()
        parquet = dataset.ParquetFileFormat()
        groups = [
            parquet.make_fragment(str(number), system, partition_expression=each)
            for number, each in enumerate(known)
        ]
        if not groups:
            return set()
        whole = dataset.FileSystemDataset(groups, schema, parquet, system)
        try:
            return {int(group.path) for group in whole.get_fragments(filter=self._expression)}
        except _failures():  # Arrow compares the statistics in a type that does not hold them.
            return set(range(len(groups)))

    def _evaluated(self, table: pa.Table) -> pa.ChunkedArray:
        import pyarrow.acero as acero

        plan = [
            acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
            acero.Declaration("project", acero.ProjectNodeOptions([self._expression], [RESULT])),
        ]
        # Without threads the rows keep their order.
        return acero.Declaration.from_sequence(plan).to_table(use_threads=False)[RESULT]

    def _needs(self, name: str, empty: pa.Table) -> bool:
        """Returns whether the expression reads a column: pyarrow does not say, so leave it out."""
        try:
            self._evaluated(empty.drop_columns([name]))
        except _failures():
            return True
        return False


def as_expression(condition: Condition, schema: pa.Schema) -> pc.Expression:
    """Returns a condition on columns of a schema as an expression.

    Raises:
        UsageError: The condition is neither an expression nor pyarrow's tuples, or has no names.
    """
    pa = load_pyarrow()
    if isinstance(condition, pa.compute.Expression):
        expression = condition
    else:
        try:
            if not isinstance(condition, list):
                raise TypeError(f"it is a {type(condition).__name__}")
            expression = pa.parquet.filters_to_expression(_typed(condition, schema))
        except _failures() as error:
            raise UsageError(
                f"The filter {condition!r} is not an expression such as "
                f"pyarrow.compute.field('country') == 'de', nor a list such as "
                f"[('country', '==', 'de')]: {first_line(error)}."
            ) from error
    if NUMBERED_COLUMN.search(str(expression)):
        raise UsageError(f"The filter {expression} numbers a column; name it instead.")
    return expression


def known_of_range(
    field: pa.Field, lowest: object, highest: object, *, has_nulls: bool
) -> pc.Expression | None:
    """Returns what the smallest and the largest value of a column say of its rows.

    Returns None for types whose statistics leave out values, such as NaN, or round them.
    """
    pa = load_pyarrow()
    types, kind = pa.types, field.type
    is_exact = (
        types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_date(kind)
        or types.is_large_string(kind)
        or (types.is_timestamp(kind) and kind.unit != "ns")
    )
    if not is_exact:
        return None
    try:
        low, high = pa.scalar(lowest, kind), pa.scalar(highest, kind)
    except _failures():
        return None
    column = pa.compute.field(field.name)
    known = (column >= low) & (column <= high)
    return known | column.is_null() if has_nulls else known


def known_of_key(field: pa.Field, value: object) -> pc.Expression:
    """Returns what the key of a Hive folder says of the rows of its files."""
    pa = load_pyarrow()
    column = pa.compute.field(field.name)
    return column.is_null() if value is None else column == pa.scalar(value, field.type)


def _typed(condition: list[Any], schema: pa.Schema) -> list[Any]:
    """Gives integers that are compared with uint64, as of hashed ids, that type.

    Arrow compares them as int64 otherwise, which does not hold the larger half.
    """
    pa = load_pyarrow()

    def walked(each: Any) -> Any:  # noqa: ANN401 - lists of lists of tuples
        if isinstance(each, list):
            return [walked(inner) for inner in each]
        column, operator, value = each
        place = schema.get_field_index(column)
        if place >= 0 and schema.field(place).type == pa.uint64():
            is_many = isinstance(value, list | tuple | set | frozenset)
            value = pa.array(list(value), pa.uint64()) if is_many else pa.scalar(value, pa.uint64())
        return column, operator, value

    return list(walked(condition))


def _failures() -> tuple[type[Exception], ...]:
    """Returns the errors of pyarrow's expressions."""
    return (load_pyarrow().ArrowException, TypeError, ValueError, LookupError, OverflowError)
