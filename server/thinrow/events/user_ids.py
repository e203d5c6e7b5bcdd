"""User ids in files: columns of integers, texts or UUIDs, and the keys of the users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import one_array, plain, shown_type
from thinrow.core.files.trait_arrays import SAME_BITS, cast_integers
from thinrow.core.files.user_columns import user_type, uuid_texts
from thinrow.core.user_ids import (
    USER_ID_BYTES_MAX,
    UUID_TEXT,
    UserIdKind,
    canonical_text,
    is_text_kind,
    shown_ids,
)
from thinrow.errors import InputError
from thinrow.store.user_texts import text_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.files.paths import AnyFile

__all__ = ["USERS", "UserIdReader", "user_column", "written_ids"]

USERS = pa.schema([("user_id", pa.int64()), ("text", pa.large_string())])
"""Keys and texts of users."""


class UserIdReader:
    """Converts columns of ids to keys; where ids are texts, keeps each text that it read.

    Args:
        kind: The kind of the store's ids.
    """

    def __init__(self, kind: UserIdKind) -> None:
        self.kind = kind
        self._read: list[pa.Table] = []

    def keys(self, path: AnyFile, column: pa.ChunkedArray) -> NDArray[np.int64]:
        """Returns the keys of the users of some rows; int64, shape (rows,).

        Raises:
            InputError: The column has nulls, or ids of another kind.
        """
        if not is_text_kind(self.kind):
            keys: NDArray[np.int64] = user_column(path, column, self.kind).to_numpy()
            return keys.view(np.int64)
        ids = _texts(path, column, self.kind)
        texts = ids.dictionary
        keys = text_keys(texts.cast(pa.large_binary()).to_pylist(), len(texts))
        self._read.append(pa.table([pa.array(keys), texts], schema=USERS))
        users: NDArray[np.int64] = keys[ids.indices.to_numpy()]
        return users

    def take_users(self) -> pa.Table:
        """Returns the users read since the last call, some of them repeatedly: see USERS."""
        read, self._read = self._read, []
        return pa.concat_tables(read) if read else USERS.empty_table()


def user_column(path: AnyFile, column: pa.ChunkedArray, kind: UserIdKind) -> pa.ChunkedArray:
    """Converts a column of ids, in any layout of Arrow: int64, uint64, or texts.

    Raises:
        InputError: It has nulls, or ids of another kind.
    """
    if is_text_kind(kind):
        texts = _texts(path, column, kind).dictionary_decode()
        return pa.chunked_array([texts.cast(user_type(kind))])
    _refuse_nulls(path, column)
    return _integers(path, plain(column), kind)


def _refuse_nulls(path: AnyFile, column: pa.ChunkedArray) -> None:
    if column.null_count:
        raise InputError(f"{path}: user_id has {column.null_count} nulls; every row needs one.")


def _texts(path: AnyFile, column: pa.ChunkedArray, kind: UserIdKind) -> pa.DictionaryArray:
    """Returns texts as stores have them, each distinct one of the column once."""
    _refuse_nulls(path, column)
    column = plain(column)
    found, types = column.type, pa.types
    is_uuid = isinstance(found, pa.UuidType)
    if is_uuid or (kind == "uuid" and types.is_fixed_size_binary(found) and found.byte_width == 16):
        texts = [uuid_texts(chunk) for chunk in column.chunks]
        return one_array(pa.chunked_array(texts, pa.large_string())).dictionary_encode()
    if not (types.is_large_string(found) or types.is_large_binary(found)) and len(column):
        raise InputError(
            f"{path}: user_id is {shown_type(found)}, and user ids are {kind} here; write them as "
            f"text."
        )
    try:
        ids = one_array(column.cast(pa.large_string())).dictionary_encode()
        if _are_canonical(ids.dictionary, kind):
            return ids
        known = [canonical_text(text, kind) for text in ids.dictionary.to_pylist()]
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: user_id has bytes that are no UTF-8; write texts.") from error
    except InputError as error:
        raise InputError(f"{path}: user_id: {error}") from error
    if kind == "uuid":
        texts = pa.array(known, pa.large_string())
        return pa.DictionaryArray.from_arrays(ids.indices, texts)
    return ids


def _are_canonical(texts: pa.Array, kind: UserIdKind) -> bool:
    """Returns True if all texts are as stores have them, without looking at each in Python."""
    if kind == "uuid":
        fits = pc.match_substring_regex(texts, f"^{UUID_TEXT.pattern}$")
    else:
        fits = pc.less_equal(pc.binary_length(texts), USER_ID_BYTES_MAX)
    return bool(pc.all(fits, min_count=0).as_py())


def _integers(path: AnyFile, column: pa.ChunkedArray, kind: UserIdKind) -> pa.ChunkedArray:
    types = pa.types
    is_text = types.is_large_string(column.type) or isinstance(column.type, pa.UuidType)
    if is_text and len(column):
        wanted = "uuid" if isinstance(column.type, pa.UuidType) else "string"
        raise InputError(
            f"{path}: user_id is {shown_type(column.type)}; it must be an integer, as user ids are "
            f'{kind} here (a new store takes such users with [user] id = "{wanted}" in its schema).'
        )
    if kind == "int64" and types.is_uint64(column.type) and len(column):
        large = column.filter(pc.greater_equal(column, pa.scalar(1 << 63, pa.uint64())))
        if len(large):
            raise InputError(
                f"{path}: user_id does not fit into int64: {large[0]} is no int64; write [user] "
                f'id = "uint64" in the schema of a new store to keep such ids as they are'
                f"{SAME_BITS.format(name='user_id').replace('; write', ', or write')}."
            )
    if kind == "uint64" and types.is_signed_integer(column.type) and len(column):
        least = pc.min(column).as_py()
        if least < 0:
            raise InputError(
                f"{path}: user_id has {least}, and user ids are uint64 here; write the same bits "
                f"as unsigned integers."
            )
    return cast_integers(path, column, "user_id", user_type(kind))


def written_ids(keys: NDArray[np.int64], kind: UserIdKind) -> pa.Array:
    """Returns a column of the ids that people know, of users whose ids are integers."""
    return pa.array(shown_ids(keys, kind))
