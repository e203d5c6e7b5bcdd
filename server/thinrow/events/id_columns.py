"""Columns of ids of users or events: integers, texts or UUIDs, as the store's kind has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import one_array, plain, refuse_bad_utf8, shown_type
from thinrow.core.files.trait_arrays import SAME_BITS, cast_integers
from thinrow.core.files.user_columns import uuid_texts
from thinrow.core.ids import ID_BYTES_MAX, UUID_TEXT, IdKind, canonical_text, is_text_kind
from thinrow.errors import InputError

if TYPE_CHECKING:
    from thinrow.core.files.paths import AnyFile

__all__ = ["distinct_texts", "id_column", "refuse_nulls"]

Of = Literal["user", "event"]


def id_column(path: AnyFile, column: pa.ChunkedArray, kind: IdKind, of: Of) -> pa.ChunkedArray:
    """Converts a column of ids, in any layout of Arrow: int64, uint64, or large_string.

    Args:
        path: The file of the column, for errors.
        column: The ids; nulls stay.
        kind: The kind of the store's ids.
        of: What they name; the column's name is that with ``_id``.

    Raises:
        InputError: The column has ids of another kind.
    """
    if is_text_kind(kind):
        known = plain(column)
        if pa.types.is_large_string(known.type):
            refuse_bad_utf8(path, f"{of}_id", known)
            # Ids of events are mostly distinct: a dictionary would cost more than it saves.
            if _are_canonical(known, kind):
                return known
        return pa.chunked_array([distinct_texts(path, column, kind, of).dictionary_decode()])
    return _integers(path, plain(column), kind, of)


def refuse_nulls(path: AnyFile, column: pa.ChunkedArray, name: str) -> None:
    """Raises InputError for a column with nulls."""
    if column.null_count:
        raise InputError(f"{path}: {name} has {column.null_count} nulls; every row needs one.")


def distinct_texts(
    path: AnyFile, column: pa.ChunkedArray, kind: IdKind, of: Of
) -> pa.DictionaryArray:
    """Returns texts as stores have them, each distinct one of the column once, as large_string.

    Raises:
        InputError: They are no texts of the kind.
    """
    column, name = plain(column), f"{of}_id"
    found, types = column.type, pa.types
    is_uuid = isinstance(found, pa.UuidType)
    if is_uuid or (kind == "uuid" and types.is_fixed_size_binary(found) and found.byte_width == 16):
        texts = [uuid_texts(chunk) for chunk in column.chunks]
        return one_array(pa.chunked_array(texts, pa.large_string())).dictionary_encode()
    if not (types.is_large_string(found) or types.is_large_binary(found)) and len(column):
        raise InputError(
            f"{path}: {name} is {shown_type(found)}, and {of} ids are {kind} here; write them as "
            f"text."
        )
    refuse_bad_utf8(path, name, column)
    try:
        ids = one_array(column.cast(pa.large_string())).dictionary_encode()
        if _are_canonical(ids.dictionary, kind):
            return ids
        known = [canonical_text(text, kind, of) for text in ids.dictionary.to_pylist()]
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {name} has bytes that are no UTF-8; write texts.") from error
    except InputError as error:
        raise InputError(f"{path}: {name}: {error}") from error
    if kind == "uuid":
        texts = pa.array(known, pa.large_string())
        return pa.DictionaryArray.from_arrays(ids.indices, texts)
    return ids


def _are_canonical(texts: pa.Array | pa.ChunkedArray, kind: IdKind) -> bool:
    """Returns True if all texts are as stores have them, without looking at each in Python."""
    if kind == "uuid":
        fits = pc.match_substring_regex(texts, f"^{UUID_TEXT.pattern}$")
    else:
        fits = pc.less_equal(pc.binary_length(texts), ID_BYTES_MAX)
    return bool(pc.all(fits, min_count=0).as_py())


def _integers(path: AnyFile, column: pa.ChunkedArray, kind: IdKind, of: Of) -> pa.ChunkedArray:
    types, name = pa.types, f"{of}_id"
    is_text = types.is_large_string(column.type) or isinstance(column.type, pa.UuidType)
    if is_text and len(column):
        wanted = "uuid" if isinstance(column.type, pa.UuidType) else "string"
        raise InputError(
            f"{path}: {name} is {shown_type(column.type)}; it must be an integer, as {of} ids are "
            f'{kind} here (a new store takes such {of}s with [{of}] id = "{wanted}" in its schema).'
        )
    if kind == "int64" and types.is_uint64(column.type) and len(column):
        large = column.filter(pc.greater_equal(column, pa.scalar(1 << 63, pa.uint64())))
        if len(large):
            raise InputError(
                f"{path}: {name} does not fit into int64: {large[0]} is no int64; write [{of}] "
                f'id = "uint64" in the schema of a new store to keep such ids as they are'
                f"{SAME_BITS.format(name=name).replace('; write', ', or write')}."
            )
    if kind == "uint64" and types.is_signed_integer(column.type) and len(column):
        least = pc.min(column).as_py()
        if least is not None and least < 0:
            raise InputError(
                f"{path}: {name} has {least}, and {of} ids are uint64 here; write the same bits "
                f"as unsigned integers."
            )
    return cast_integers(path, column, name, pa.from_numpy_dtype(kind))
