"""Arrow types that Spark has, and casts to them."""

from __future__ import annotations

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType
from thinrow.core.files.arrow import plain, plain_type
from thinrow.core.files.io_errors import first_line
from thinrow.errors import InputError

__all__ = ["cast_batch", "spark_schema"]

WIDER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
}
"""The next larger type that Spark has, of each that it lacks."""

DECIMAL_DIGITS_MAX = 38
"""Digits of Spark's decimals."""


def spark_schema(schema: pa.Schema) -> StructType:
    """Returns the columns of a schema in Spark's types, each of which may be null.

    Raises:
        InputError: Spark has no type that holds a column's values.
    """
    fields = []
    for field in schema:
        try:
            kind = from_arrow_type(larger(plain_type(field.type)))
        except (PySparkException, ValueError) as error:
            raise InputError(
                f"The column {field.name} is {field.type}, which Spark lacks; leave it out with "
                f"the option columns."
            ) from error
        fields.append(StructField(field.name, kind))
    return StructType(fields)


def larger(kind: pa.DataType) -> pa.DataType:
    """Returns a plain type or, where Spark lacks it, one that holds its values."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return larger(plain_type(kind.storage_type))
    if types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(larger(kind.value_type))
    if types.is_decimal(kind) and kind.precision > DECIMAL_DIGITS_MAX:
        raise ValueError(f"{kind} has more digits than Spark's decimals")
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, larger(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(larger(kind.key_type), larger(kind.item_type))
    return WIDER.get(kind, kind)


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns a batch in the types that Spark has for its columns.

    Raises:
        InputError: A value does not fit, such as a time of nanoseconds in one of microseconds.
    """
    arrays = []
    for field, array in zip(schema, batch.columns, strict=True):
        try:
            arrays.append(plain(array).cast(field.type))
        except pa.ArrowException as error:
            raise InputError(
                f"The column {field.name} is {array.type}, and Spark's {field.type} cannot hold "
                f"its values ({first_line(error)}); leave it out with the option columns."
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
