"""Tables of Iceberg: the data files that some snapshots appended, or those of one snapshot."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from thinrow.core.files.io_errors import first_line
from thinrow.core.files.paths import DataFile
from thinrow.errors import InputError, ThinRowError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot
    from thinrow.core.files.table_range import TableRange

__all__ = ["iceberg_files"]

EPOCH = date(1970, 1, 1)


def iceberg_files(wanted: TableRange) -> list[DataFile]:
    """Lists the data files of a table.

    Args:
        wanted: `table` is CATALOG.NAMESPACE.TABLE, of a catalog that pyiceberg is configured for.
            With `first`, the files that the snapshots after `first`, up to and with `last`,
            appended. Without, the files of the snapshot `last`.

    Returns:
        The files, with the values of identity partitions as keys. Their fingerprints are the
        table's UUID, the range, and the path of the file.

    Raises:
        UsageError: pyiceberg is not installed.
        InputError: There is no such table or snapshot, a snapshot does more than append, or rows of
            the files are deleted by other files.
    """
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise UsageError(
            f"{wanted.name} needs {error.name}; pip install 'thinrow[iceberg]'."
        ) from error
    catalog_name, _, identifier = wanted.table.partition(".")
    if "." not in identifier:
        raise InputError(f"{wanted.name} names no table; write iceberg:CATALOG.NAMESPACE.TABLE.")
    try:
        with load_catalog(catalog_name) as catalog:
            table = catalog.load_table(identifier)
            last = _last(wanted, table)
            tasks = list(_tasks(wanted, table, last))
    except ThinRowError:
        raise
    except Exception as error:  # of the library of any catalog and file system
        raise InputError(
            f"{wanted.name} cannot be read as an Iceberg table: {first_line(error)}."
        ) from error
    if not tasks:
        raise InputError(f"{wanted.name} adds no rows to the table; name snapshots that do.")
    schema = _schema(wanted, table, last)
    since = "" if wanted.first is None else f"{wanted.first}.."
    known = f"iceberg {table.metadata.table_uuid}@{since}{last.snapshot_id}"
    return [_data_file(wanted, table, schema, task, known) for task in tasks]


def _last(wanted: TableRange, table: Table) -> Snapshot:
    """Returns the last snapshot to read. Raises InputError where the table lacks it."""
    snapshot = (
        table.current_snapshot() if wanted.last is None else table.snapshot_by_id(wanted.last)
    )
    if snapshot is None:
        raise InputError(
            f"{wanted.name}: the table has no snapshot {wanted.last or 'yet'}; name one that it "
            f"has, or leave the range out."
        )
    return snapshot


def _tasks(wanted: TableRange, table: Table, last: Snapshot) -> Iterable[FileScanTask]:
    """Plans the files to read.

    Raises:
        InputError: The range is none, or its snapshots do more than append.
    """
    from pyiceberg.table.snapshots import Operation, ancestors_between_ids, is_parent_ancestor_of

    if wanted.first is None:
        return table.scan(snapshot_id=last.snapshot_id).plan_files()
    if wanted.first == last.snapshot_id:
        return []
    if not is_parent_ancestor_of(last.snapshot_id, wanted.first, table.metadata):
        raise InputError(
            f"{wanted.name}: snapshot {wanted.first} does not come before {last.snapshot_id}, or "
            f"what lies between was expired; name snapshots of one history that the table has."
        )
    for snapshot in ancestors_between_ids(wanted.first, last.snapshot_id, table.metadata):
        operation = None if snapshot.summary is None else snapshot.summary.operation
        if operation is not Operation.APPEND:
            done = "unknown" if operation is None else operation.value
            raise InputError(
                f"{wanted.name}: the operation of snapshot {snapshot.snapshot_id} is {done}, but "
                f"histories only ever get more events; name a range of snapshots that append."
            )
    return table.incremental_append_scan(
        from_snapshot_id_exclusive=wanted.first, to_snapshot_id_inclusive=last.snapshot_id
    ).plan_files()


def _schema(wanted: TableRange, table: Table, last: Snapshot) -> Schema:
    """Returns the schema at a snapshot.

    Files are read by names of columns, which Iceberg knows by number.

    Raises:
        InputError: Names and numbers do not always agree, or files lack values that are not null.
    """
    from pyiceberg.schema import index_name_by_id

    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for schema in table.schemas().values():
        for number, name in index_name_by_id(schema).items():
            is_same = names.setdefault(number, name) == name
            if not is_same or numbers.setdefault(name, number) != number:
                raise InputError(
                    f"{wanted.name}: the column {name} was renamed, or has the name of one that "
                    f"was dropped, so older files have it otherwise; write the events to a table "
                    f"whose columns keep their names."
                )
    schema = table.schema()
    if last.schema_id is not None:
        schema = table.schemas()[last.schema_id]
    if filled := [field.name for field in schema.fields if field.initial_default is not None]:
        raise InputError(
            f"{wanted.name}: the column {filled[0]} has a default for older files, which only "
            f"Iceberg's readers apply; write the events to a table without it."
        )
    return schema


def _data_file(
    wanted: TableRange, table: Table, schema: Schema, task: FileScanTask, known: str
) -> DataFile:
    """Returns one file. Raises InputError where its rows alone are not those of the table."""
    file = task.file
    if task.delete_files:
        raise InputError(
            f"{wanted.name} has deleted rows of {file.file_path} in other files; rewrite the data "
            f"files, or name a range of snapshots that append."
        )
    if file.file_format != "PARQUET":
        raise InputError(
            f"{file.file_path} of {wanted.name} is no Parquet; write the table as such."
        )
    keys, own = _partitions(table, schema, file)
    columns = [field.name for field in schema.fields]
    return DataFile(
        file.file_path,
        keys=tuple(keys.items()),
        other_keys=tuple(name for name in columns if name not in keys and name not in own),
        fingerprint=f"{known} {file.file_path}",
    )


def _partitions(
    table: Table,
    schema: Schema,
    file: Any,  # noqa: ANN401 - a DataFile of pyiceberg
) -> tuple[dict[str, object], set[str]]:
    """Returns values of identity partitions, which files of a migrated table lack.

    Returns:
        Values by column, and the columns whose values only the file itself has in its type.
    """
    from pyiceberg.transforms import IdentityTransform
    from pyiceberg.types import BooleanType, DateType, IntegerType, LongType, StringType

    kept = (BooleanType, DateType, IntegerType, LongType, StringType)
    columns = {each.field_id: each for each in schema.fields}
    keys: dict[str, object] = {}
    own: set[str] = set()
    for place, field in enumerate(table.specs()[file.spec_id].fields):
        column = columns.get(field.source_id)
        if column is None or not isinstance(field.transform, IdentityTransform):
            continue
        value = file.partition[place]
        if not isinstance(column.field_type, kept):
            own.add(column.name)
        elif isinstance(column.field_type, DateType) and value is not None:
            keys[column.name] = EPOCH + timedelta(days=value)
        else:
            keys[column.name] = value
    return keys, own
