"""Arrow columns of any type as values of a trait: exact, or refused by name.

Only floats may round, to the width of a float trait.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.codes import bucket_codes, require_codes
from thinrow.core.files.arrow import (
    load_pyarrow,
    one_array,
    plain,
    refuse_bad_utf8,
    relisted,
    shown_type,
    to_pylist,
    trait_type,
)
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.rows import to_column
from thinrow.core.traits import NS_PER_UNIT, TraitForm, TraitType
from thinrow.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.pointers import MutableColumn

__all__ = ["SAME_BITS", "arrow_column", "cast_integers", "is_arrow", "trait_array"]

SAME_BITS = (
    "; write the same bits as int64 in every table: Polars "
    "pl.col('{name}').reinterpret(signed=True), DuckDB {name}::BIT::BIGINT, pandas "
    ".astype('int64')"
)
"""Advice for hashes of 64 bits."""
DECIMAL_DIGITS = 38
"""Digits of Arrow's decimal128."""


def trait_array(
    path: object, name: str, column: pa.ChunkedArray, form: TraitForm
) -> pa.ChunkedArray:
    """Converts a column, in any layout of Arrow, to the trait's own Arrow type.

    Args:
        path: Name of the column's origin, for errors.
        name: Name of the column.
        column: Its values; nulls stay.
        form: Form of the trait.

    Raises:
        InputError: A value would change; names it, and what allows it.
    """
    pa = load_pyarrow()
    takes_text = form.type is TraitType.STRING or form.buckets is not None
    if isinstance(column.type, pa.UuidType) and takes_text:
        texts = [None if one is None else str(uuid.UUID(bytes=one)) for one in _stored(column)]
        column = pa.chunked_array([pa.array(texts, pa.large_string())])
    elif isinstance(column.type, pa.BaseExtensionType):  # such as JSON
        stored = [chunk.storage for chunk in column.chunks]
        column = pa.chunked_array(stored, column.type.storage_type)
    column = plain(column)
    kind, types = column.type, pa.types
    if form.size > 1 or form.length_max:
        return _elements(path, name, column, form)
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        raise InputError(
            f"{path}: {name} is {shown_type(kind)}; the schema says {form.type.label}. A trait "
            f'of lists has a type such as "list<int64>" and a length_max, one of vectors a size.'
        )
    own = trait_type(form.type)
    if form.buckets is not None:
        return _codes(path, name, column, form.buckets)
    if types.is_temporal(kind):
        return _fitted(path, _ticks(path, name, column, form), name, own)
    if form.scale is not None:
        return _fitted(path, _steps(path, name, column, form.scale), name, own)
    if form.type is TraitType.STRING:
        # Writers without logical types, such as Impala, store text as bytes.
        fits = types.is_large_string(kind) or types.is_large_binary(kind)
        if types.is_large_string(kind):  # casting bytes finds what is no UTF-8
            refuse_bad_utf8(path, name, column)
    elif form.type is TraitType.BOOL:
        fits = types.is_boolean(kind)
        if types.is_integer(kind) and _is_zero_or_one(column):
            return column.cast(pa.bool_())
    elif form.type.is_float or types.is_floating(kind):
        fits = types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind)
        if not form.type.is_float:
            # pandas stores integers as floats where some are absent, and NaN for those.
            column = pa.compute.if_else(pa.compute.is_nan(column), None, column)
            _refuse_rounded(path, name, column)
    else:
        if types.is_large_string(kind) and len(column):
            raise InputError(
                f"{path}: {name} is string; it must be an integer, unless the trait has type = "
                f'"string", with codes if it feeds an embedding.'
            )
        return cast_integers(path, column, name, own)
    if not fits:
        raise InputError(
            f"{path}: {name} is {shown_type(kind)}; the schema says {form.type.label}."
        )
    return _fitted(path, column, name, own)


def is_arrow(given: object) -> bool:
    """Returns True for arrays of pyarrow, Polars and others that share Arrow data.

    Series of pandas are not among them: they have NaN where a value is absent, and where it is NaN.
    """
    shares = hasattr(given, "__arrow_c_array__") or hasattr(given, "__arrow_c_stream__")
    return shares and not hasattr(given, "iloc")


def arrow_column(name: str, given: Any, form: TraitForm) -> MutableColumn:  # noqa: ANN401
    """Returns a column from what `is_arrow` finds; see `trait_array`."""
    pa = load_pyarrow()
    is_array = hasattr(given, "__arrow_c_array__")
    column = pa.chunked_array([pa.array(given)]) if is_array else pa.chunked_array(given)
    return to_column("The batch", name, one_array(trait_array("The batch", name, column, form)))


def cast_integers(
    path: object, column: pa.ChunkedArray, name: str, kind: pa.DataType
) -> pa.ChunkedArray:
    """Casts integers and whole decimals to integers of another type. Raises InputError."""
    pa = load_pyarrow()
    if not len(column):
        return pa.chunked_array([], kind)
    if not (pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)):
        raise InputError(f"{path}: {name} is {shown_type(column.type)}; it must be an integer.")
    return _fitted(path, column, name, kind)


def _stored(column: pa.ChunkedArray) -> list[Any]:
    """Returns the stored values of a column of an extension type."""
    return [value for chunk in column.chunks for value in chunk.storage.to_pylist()]


def _ticks(path: object, name: str, column: pa.ChunkedArray, form: TraitForm) -> pa.ChunkedArray:
    """Converts dates, times and durations to int64 counts of a trait's unit."""
    pa = load_pyarrow()
    kind, pc = column.type, pa.compute
    where = f"{path}: {name} is {kind}"
    unit = "d" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else None
    unit = unit or getattr(kind, "unit", None)
    if unit is None:
        raise InputError(f"{where}, which has no fixed length; write it as a duration.")
    if form.unit is None:
        raise InputError(
            f'{where}, and the schema says {form.type.label}; give the trait unit = "{unit}" '
            f"and a type of integers, to store it as a count of that unit."
        )
    counts = column.cast(pa.int32()) if kind.bit_width == 32 else column
    counts = counts.cast(pa.int64())
    given_ns, wanted_ns = NS_PER_UNIT[unit], NS_PER_UNIT[form.unit]
    if given_ns >= wanted_ns:
        try:
            return pc.multiply_checked(counts, given_ns // wanted_ns)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{where} and has times that int64 does not hold in {form.unit}; give the trait a "
                f"coarser unit."
            ) from error
    ratio = wanted_ns // given_ns
    whole = pc.divide(counts, ratio)
    finer = pc.not_equal(pc.multiply(whole, ratio), counts)
    if pc.any(finer).as_py():
        raise InputError(
            f"{where} and has {counts.filter(finer)[0]} {unit}, no whole number of {form.unit}; "
            f'give the trait unit = "{unit}", or round the times.'
        )
    return whole


def _steps(path: object, name: str, column: pa.ChunkedArray, scale: int) -> pa.ChunkedArray:
    """Converts decimals to int64 counts of steps of a scale; integers count them already."""
    pa = load_pyarrow()
    kind = column.type
    if pa.types.is_integer(kind):
        return column
    if not pa.types.is_decimal(kind):
        raise InputError(
            f"{path}: {name} is {shown_type(kind)}, and the schema gives it a scale; write "
            f"decimals, or integers that count steps of 1e-{scale}."
        )
    try:
        decimals = column.cast(pa.decimal128(DECIMAL_DIGITS, scale))
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path}: {name} is {kind} and has values that a scale of {scale} does not hold; give "
            f"the trait scale = {kind.scale}."
        ) from error
    return pa.chunked_array([_low_words(path, name, each) for each in decimals.chunks], pa.int64())


def _codes(path: object, name: str, column: pa.ChunkedArray, buckets: int) -> pa.ChunkedArray:
    """Converts texts to codes; integers are codes already."""
    pa = load_pyarrow()
    types, kind = pa.types, column.type
    if not (types.is_large_string(kind) or types.is_large_binary(kind)):
        codes = cast_integers(path, column, name, pa.int32())
        try:
            require_codes(codes.drop_null().to_numpy(), buckets)
        except ValueError as error:
            raise InputError(f"{path}: {name}: {error}.") from error
        return codes
    texts = one_array(_fitted(path, column, name, pa.large_string())).dictionary_encode()
    codes = pa.array(bucket_codes(to_pylist(path, name, texts.dictionary), buckets))
    return pa.chunked_array([codes.take(texts.indices)])


def _low_words(path: object, name: str, decimals: pa.Array) -> pa.Array:
    """Returns the unscaled integers of decimal128 as int64."""
    pa = load_pyarrow()
    words: NDArray[np.int64] = np.frombuffer(decimals.buffers()[1], "<i8").reshape(-1, 2)
    words = words[decimals.offset : decimals.offset + len(decimals)]
    null = decimals.is_null().to_numpy(zero_copy_only=False)
    low = np.where(null, 0, words[:, 0])
    too_large = ~null & (words[:, 1] != low >> 63)
    if too_large.any():
        value = decimals[int(np.flatnonzero(too_large)[0])]
        raise InputError(f"{path}: {name} does not fit into int64 in steps of its scale: {value}.")
    return pa.array(low, pa.int64(), mask=null)


def _fitted(path: object, column: pa.ChunkedArray, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    pa = load_pyarrow()
    types = pa.types
    try:
        if types.is_decimal(column.type) and types.is_floating(kind):
            fitted = column.cast(pa.float64()).cast(kind)
        else:
            fitted = column.cast(kind)
    except pa.ArrowInvalid as error:
        reason = first_line(error)
        remedy = ""
        if types.is_uint64(column.type) and types.is_int64(kind):
            remedy = SAME_BITS.format(name=name)
        elif types.is_decimal(column.type) and column.type.scale > 0 and types.is_integer(kind):
            remedy = f"; give the trait scale = {column.type.scale}, or a type of floats"
        raise InputError(f"{path}: {name} does not fit into {kind}: {reason}{remedy}.") from error
    if types.is_floating(kind):
        _refuse_overflow(path, column, fitted, name)
        if types.is_integer(column.type) and types.is_float16(kind):
            _refuse_other_integers(path, column, fitted, name)
    return fitted


def _refuse_overflow(
    path: object, column: pa.ChunkedArray, fitted: pa.ChunkedArray, name: str
) -> None:
    """Refuses finite numbers that a narrower float makes infinite, which Arrow casts silently."""
    pa = load_pyarrow()
    pc = pa.compute
    if pa.types.is_floating(column.type) and column.type.bit_width <= fitted.type.bit_width:
        return
    wide = column.cast(pa.float64())
    overflowed = pc.and_(pc.is_finite(wide), pc.is_inf(fitted.cast(pa.float64())))
    if pc.any(overflowed).as_py():
        value = wide.filter(overflowed)[0]
        raise InputError(
            f"{path}: {name} does not fit into {fitted.type}: {value} is too large; give the trait "
            f"a wider type, or clip its values."
        )


def _refuse_other_integers(
    path: object, column: pa.ChunkedArray, fitted: pa.ChunkedArray, name: str
) -> None:
    """Refuses integers that a float rounds, which Arrow casts silently to float16."""
    pa = load_pyarrow()
    pc = pa.compute
    changed = pc.not_equal(fitted.cast(pa.float64()), column.cast(pa.float64()))
    if pc.any(changed).as_py():
        value = column.filter(changed)[0]
        raise InputError(
            f"{path}: {name} does not fit into {fitted.type}: {value} would be rounded; give the "
            f"trait a wider type."
        )


def _is_zero_or_one(column: pa.ChunkedArray) -> bool:
    pa = load_pyarrow()
    chosen = pa.compute.is_in(column.drop_null(), pa.array([0, 1], column.type))
    return bool(pa.compute.all(chosen, min_count=0).as_py())


def _refuse_rounded(path: object, name: str, column: pa.ChunkedArray) -> None:
    """Refuses floats for integers from where on floats skip some."""
    pa = load_pyarrow()
    pc = pa.compute
    exact_below = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
    if pc.any(pc.greater_equal(pc.abs(column.cast(pa.float64())), exact_below)).as_py():
        raise InputError(
            f"{path}: {name} is {column.type}, which rounds integers from {exact_below:.0f} "
            f"on, and has such values; write it as integers."
        )


def _elements(path: object, name: str, column: pa.ChunkedArray, form: TraitForm) -> pa.ChunkedArray:
    """Converts vectors, or lists, of any layout."""
    pa = load_pyarrow()
    kind, types, pc = column.type, pa.types, pa.compute
    vectors = trait_type(form.type, form.size, form.length_max)
    if form.length_max and not (types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        raise InputError(
            f"{path}: {name} is {shown_type(kind)}; the schema says list<{form.type.label}>."
        )
    if types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        chunks = [_of_bytes(path, name, chunk, form) for chunk in column.chunks]
        return pa.chunked_array(chunks, vectors)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    is_number = types.is_integer(inner) or types.is_decimal(inner)
    is_number = is_number or (form.type.is_float and types.is_floating(inner))
    if not form.length_max and not (is_list and is_number):
        raise InputError(
            f"{path}: {name} is {shown_type(kind)}; the schema says a list of {form.size} "
            f"{form.type.label}."
        )
    _check_lengths(path, name, pc.drop_null(pc.list_value_length(column)), form)
    chunks = []
    for chunk in column.chunks:
        values = chunk.flatten()  # of those that are not null
        if types.is_null(values.type):  # then all lists are empty, or hold nulls
            values = values.cast(vectors.value_type)
        typed = trait_array(path, name, pa.chunked_array([values]), TraitForm(type=form.type))
        if typed.null_count:  # NaN is one among integers
            what = "lists; leave them out" if form.length_max else "vectors; fill them"
            raise InputError(f"{path}: {name} has nulls inside {what}.")
        chunks.append(relisted(chunk, one_array(typed), pa.large_list(typed.type)).cast(vectors))
    return pa.chunked_array(chunks, vectors)


def _check_lengths(path: object, name: str, lengths: pa.ChunkedArray, form: TraitForm) -> None:
    """Refuses vectors of another size, and lists that are longer than their limit."""
    pc = load_pyarrow().compute
    if form.length_max:
        longest = pc.max(lengths).as_py() or 0
        if longest > form.length_max:
            raise InputError(
                f"{path}: {name} has a list of {longest} elements; the schema says length_max = "
                f"{form.length_max}, so cut such lists, or give the limit to a new trait."
            )
        return
    found = pc.unique(lengths).to_pylist()
    if any(length != form.size for length in found):
        raise InputError(
            f"{path}: {name} has vectors of length {sorted(found)}; the schema says {form.size}."
        )


def _of_bytes(path: object, name: str, chunk: pa.Array, form: TraitForm) -> pa.Array:
    """Reads vectors from the little-endian bytes of their elements."""
    pa = load_pyarrow()
    dtype = form.type.value_dtype
    size_bytes = form.size * dtype.itemsize
    present = chunk.drop_null().cast(pa.large_binary())
    lengths = pa.compute.unique(pa.compute.binary_length(present)).to_pylist()
    if any(length != size_bytes for length in lengths):
        raise InputError(
            f"{path}: {name} has vectors of {sorted(lengths)} bytes; the schema says {form.size} "
            f"{form.type.label}, which are {size_bytes}."
        )
    there = chunk.is_valid().to_numpy(zero_copy_only=False)
    values = np.zeros((len(chunk), form.size), dtype)
    given = np.frombuffer(b"".join(present.to_pylist()), dtype.newbyteorder("<"))
    values[there] = given.reshape(-1, form.size)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), form.size, mask=None if there.all() else pa.array(~there)
    )
