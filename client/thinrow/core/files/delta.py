"""Tables of Delta Lake: the data files that some commits appended, or those of one version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.io_errors import failure_reason, first_line
from thinrow.core.files.paths import DataFile, located
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from deltalake import DeltaTable
    from thinrow.core.files.table_range import TableRange

__all__ = ["delta_files"]


def delta_files(wanted: TableRange) -> list[DataFile]:
    """Lists the data files of a table.

    Args:
        wanted: `table` is the URL or the path of the table. With `first`, the files that the
            commits from `first` to `last`, both included, appended; commits that only rearrange
            files are passed over. Without, the files of the version `last`.

    Returns:
        The files, with partition values as keys. Their fingerprints are the table's id, the range,
        and the path in the table.

    Raises:
        UsageError: deltalake is not installed.
        InputError: There is no such table or version, a commit removes or updates rows, or the
            table has a feature that only its own readers can apply.
    """
    try:
        import deltalake
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise UsageError(
            f"{wanted.name} needs {error.name}; pip install 'thinrow[delta]'."
        ) from error
    try:
        table = deltalake.DeltaTable(wanted.table)
        last = _last(wanted, table.version())
        table.load_as_version(last)
        if wanted.first is None and any(batch.num_rows for batch in table.deletion_vectors()):
            raise _with_deletions(wanted)
    except (DeltaError, OSError, ValueError) as error:
        raise InputError(
            f"{wanted.name} cannot be opened as a Delta table: {first_line(error)}."
        ) from error
    metadata = table.metadata()
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        raise InputError(
            f"{wanted.name} has column mapping, so its files have other names for columns; write "
            f"the events to a table without delta.columnMapping.mode."
        )
    pa = load_pyarrow()
    schema = pa.schema(table.schema().to_arrow())
    for name in metadata.partition_columns:
        kind = schema.field(name).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view():
            raise InputError(
                f"{wanted.name} is partitioned by {name}, whose values are bytes, and writers "
                f"escape those in different ways; write the events to a table that is not."
            )
    if wanted.first is None:
        added = _added_until(table, metadata.partition_columns)
        version = f"@{last}"
    else:
        added = _added_between(wanted, wanted.first, last, schema)
        version = f"@{wanted.first}..{last}"
    found = []
    for path, keys in added:
        found.append(
            DataFile(
                path if "://" in path else f"{wanted.table.rstrip('/')}/{path}",
                keys=tuple(keys.items()),
                other_keys=tuple(name for name in schema.names if name not in keys),
                fingerprint=f"delta {metadata.id}{version} {path}",
            )
        )
    if not found:
        raise InputError(f"{wanted.name} adds no rows to the table; name versions that do.")
    return found


def _last(wanted: TableRange, newest: int) -> int:
    """Returns the last version to read. Raises InputError where the table lacks a version."""
    last = newest if wanted.last is None else wanted.last
    if last > newest or (wanted.first or 0) > last:
        raise InputError(
            f"{wanted.name} names versions that do not exist; the newest is {newest}, and the "
            f"first of a range comes before its last."
        )
    return last


def _added_until(
    table: DeltaTable,
    partitions: list[str],
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields path and partition values of each file of the open version."""
    pa = load_pyarrow()
    actions = pa.table(table.get_add_actions(flatten=True))
    wanted_columns = {"path": "path", **{f"partition.{name}": name for name in partitions}}
    for action in actions.select([*wanted_columns]).to_pylist():
        keys = {name: action[column] for column, name in wanted_columns.items()}
        yield unquote(str(keys.pop("path"))), keys


def _added_between(
    wanted: TableRange, first: int, last: int, schema: pa.Schema
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields path and partition values of each file that commits appended.

    Raises:
        InputError: A commit is gone, or removes or updates rows.
    """
    for version in range(first, last + 1):
        for action in _actions(wanted, version):
            removed = action.get("remove")
            if removed is not None and removed.get("dataChange", True):
                raise InputError(
                    f"{wanted.name}: version {version} removes or updates rows, which histories "
                    f"never do; name a range of versions that only append."
                )
            added = action.get("add")
            if added is None or not added["dataChange"]:
                continue
            if added.get("deletionVector") is not None:
                raise _with_deletions(wanted)
            texts = added.get("partitionValues", {})
            yield (
                unquote(added["path"]),
                {name: _typed(text, schema.field(name).type) for name, text in texts.items()},
            )


def _actions(wanted: TableRange, version: int) -> Iterator[dict[str, Any]]:
    """Yields the actions of a commit, one a line."""
    name = f"{wanted.table.rstrip('/')}/_delta_log/{version:020d}.json"
    path, filesystem = located(name)
    try:
        with Path(path).open("rb") if filesystem is None else filesystem.open(path) as lines:
            yield from map(json.loads, lines)
    except FileNotFoundError as error:
        raise InputError(
            f"{wanted.name}: the table's log no longer has version {version}, as Delta removes old "
            f"entries; leave the range out to read all rows of the newest version."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {failure_reason(error)}.") from error


def _typed(text: str | None, kind: pa.DataType) -> object:
    """Returns a partition value, which the log has as text, in its column's type."""
    pa = load_pyarrow()
    if text is None or text == "":
        return None
    if pa.types.is_timestamp(kind) and kind.tz is not None and not text.endswith("Z"):
        text += "Z"  # without a zone it is UTC
    return pa.scalar(text).cast(kind).as_py()


def _with_deletions(wanted: TableRange) -> InputError:
    return InputError(
        f"{wanted.name} has deletion vectors, which mark rows in its files as deleted; purge the "
        f"table (REORG TABLE … APPLY (PURGE)), or name a range of versions that only append."
    )
