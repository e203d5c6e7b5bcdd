"""Lists of users to erase."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.core.files.io_errors import failure_reason
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import SUFFIXES, DataFile, data_files
from thinrow.core.ids import is_text_kind
from thinrow.errors import InputError
from thinrow.events.user_ids import UserIdReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_user_ids"]


def read_user_ids(named: str | Path | None, users: UserIdReader | None = None) -> NDArray[np.int64]:
    """Reads user ids from Parquet with user_id, or from a local text file with one id a line.

    Args:
        named: A file, folder, glob or URL of Parquet. A name with another extension is a text file.
        users: Reads the ids; by default int64.

    Returns:
        The users' keys, in any order.

    Raises:
        InputError: The file cannot be read, or holds something else; names it.
    """
    if named is None:
        return np.empty(0, dtype=np.int64)
    users = users or UserIdReader("int64")
    name = str(named)
    is_parquet = PurePath(name).suffix.lower() in SUFFIXES
    is_one_name = "://" not in name and "*" not in name and not Path(name).is_dir()
    if is_one_name and not is_parquet:
        return _listed(Path(name), users)
    found = []
    for file in data_files(name):
        with open_parquet(file) as table:
            if "user_id" not in table.schema_arrow.names:
                raise InputError(f"{file} has no column user_id; it names the users to erase.")
            found.append(users.keys(file, table.read(["user_id"]).column("user_id")))
    return np.concatenate(found)


def _listed(path: Path, users: UserIdReader) -> NDArray[np.int64]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Cannot read the users to erase from {path}: {failure_reason(error)}."
        ) from error
    if is_text_kind(users.kind):
        texts = pa.array([line for line in text.splitlines() if line], pa.string())
        return users.keys(DataFile(str(path)), pa.chunked_array([texts]))
    try:
        ids = np.array([int(line) for line in text.split()], dtype=users.kind)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a list of user ids, one a line: {error}.") from error
    return ids.view(np.int64)
