"""Columns of user ids in files of thin rows: integers of any type, texts and UUIDs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.codes import text_hash
from thinrow.core.files.arrow import load_pyarrow, plain, plain_type, to_numpy, to_pylist
from thinrow.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind

__all__ = ["holds_users", "user_type", "user_values", "user_words", "uuid_texts"]


def holds_users(kind: pa.DataType) -> bool:
    """Returns True if a column of this type holds user ids."""
    pa = load_pyarrow()
    kind = plain_type(kind)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_large_string(kind) or isinstance(kind, pa.UuidType)
    )


def user_type(kind: IdKind) -> pa.DataType:
    """Returns the Arrow type in which files of a store have their users."""
    pa = load_pyarrow()
    return {"int64": pa.int64(), "uint64": pa.uint64()}.get(kind, pa.string())


def user_values(path: object, array: pa.Array) -> NDArray[Any]:
    """Returns the ids of a column: integers, or texts as an object array of str.

    Raises:
        InputError: A row has none, or bytes that are no UTF-8.
    """
    _refuse_nulls(path, array)
    return to_numpy(path, "user_id", uuid_texts(plain(array)))


def user_words(array: pa.Array, path: object | None = None) -> NDArray[np.int64]:
    """Returns integers by which users are shuffled and divided; 0 for nulls.

    The bits of integers; of a text the hash by which codes of buckets are made.

    Args:
        array: The column.
        path: Name of its origin, for errors; None if nulls are none.

    Raises:
        InputError: A row has no user, and ``path`` is given.
    """
    if path is not None:
        _refuse_nulls(path, array)
    array = uuid_texts(plain(array))
    if load_pyarrow().types.is_integer(array.type):
        words: NDArray[np.int64] = array.fill_null(0).to_numpy().astype(np.int64)
        return words
    known: dict[str, int] = {}
    hashes = [
        0 if text is None else known.get(text) or known.setdefault(text, text_hash(text))
        for text in to_pylist(path or "The rows", "user_id", array)
    ]
    return np.array(hashes, np.uint64).view(np.int64)


def _refuse_nulls(path: object, array: pa.Array) -> None:
    if array.null_count:
        raise InputError(
            f"{path}: column user_id must not be null, but is in {array.null_count} rows."
        )


def uuid_texts(array: pa.Array) -> pa.Array:
    """Returns UUIDs as text, in lower case with hyphens; other arrays as they are."""
    pa = load_pyarrow()
    is_uuid = isinstance(array.type, pa.UuidType)
    storage = array.storage if is_uuid else array
    if not (is_uuid or pa.types.is_fixed_size_binary(array.type)):
        return array
    texts = [None if one is None else _hyphenated(one.hex()) for one in storage.to_pylist()]
    return pa.array(texts, pa.large_string())


def _hyphenated(digits: str) -> str:
    # Several times as fast as an object of uuid.UUID for each.
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
