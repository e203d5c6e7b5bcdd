"""User ids in files: columns of integers, texts or UUIDs, and the keys of the users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.core.files.user_columns import user_type
from thinrow.core.ids import IdKind, is_text_kind, shown_ids
from thinrow.events.id_columns import distinct_texts, id_column, refuse_nulls
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

    def __init__(self, kind: IdKind) -> None:
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
        refuse_nulls(path, column, "user_id")
        ids = distinct_texts(path, column, self.kind, "user")
        texts = ids.dictionary
        keys = text_keys(texts.cast(pa.large_binary()).to_pylist(), len(texts))
        self._read.append(pa.table([pa.array(keys), texts], schema=USERS))
        users: NDArray[np.int64] = keys[ids.indices.to_numpy()]
        return users

    def take_users(self) -> pa.Table:
        """Returns the users read since the last call, some of them repeatedly: see USERS."""
        read, self._read = self._read, []
        return pa.concat_tables(read) if read else USERS.empty_table()


def user_column(path: AnyFile, column: pa.ChunkedArray, kind: IdKind) -> pa.ChunkedArray:
    """Converts a column of ids, in any layout of Arrow: int64, uint64, or texts.

    Raises:
        InputError: It has nulls, or ids of another kind.
    """
    refuse_nulls(path, column, "user_id")
    return id_column(path, column, kind, "user").cast(user_type(kind))


def written_ids(keys: NDArray[np.int64], kind: IdKind) -> pa.Array:
    """Returns a column of the ids that people know, of users whose ids are integers."""
    return pa.array(shown_ids(keys, kind))
