"""Tables of Iceberg, in an SQLite catalog, as events: ranges of snapshots, and refusals."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyiceberg.catalog
import pytest
import thinrow
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.table import FileScanTask
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import StringType
from pyiceberg.utils.config import Config
from support.worlds import DAY_MS, SCHEMA, START_TS, some_events
from thinrow.core.files.parquet import joined_batches
from thinrow.core.files.paths import data_files
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a catalog; pyiceberg reads it when it is imported."""
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}/lake house")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())


@contextmanager
def catalog() -> Iterator[Catalog]:
    with load_catalog("lake") as opened:
        opened.create_namespace_if_not_exists("app")
        yield opened


def append(table: Table, *users: int) -> int:
    """Appends a row for each user; returns the snapshot."""
    return append_rows(table, pa.table({"user_id": pa.array(users, pa.int64())}))


def append_rows(table: Table, rows: pa.Table) -> int:
    table.append(rows)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return snapshot.snapshot_id


def read(name: str) -> list[dict[str, Any]]:
    """Rows of a table, as every job reads them."""
    _, batches = joined_batches(data_files(name), 1000)
    return [row for _, batch in batches for row in batch.to_pylist()]


def users(name: str) -> list[int]:
    return sorted(int(row["user_id"]) for row in read(name))


NAME = "iceberg:lake.app.events"
USERS = pa.schema([("user_id", pa.int64())])


def test_ranges_and_fingerprints() -> None:
    """Start excluded, end included; later rows do not change what a range is."""
    with catalog() as lake:
        table = lake.create_table("app.events", USERS)
        first, second, third = (append(table, number) for number in (1, 2, 3))
        assert users(f"{NAME}@{first}..{third}") == [2, 3]
        assert users(f"{NAME}@..{second}") == [1, 2]
        assert users(f"{NAME}@{second}..") == [3]
        assert users(NAME) == [1, 2, 3]
        known = [file.fingerprint for file in data_files(f"{NAME}@{first}..{third}")]
        table.delete("user_id = 2")
        fourth = append(table, 4)
        assert users(NAME) == [1, 3, 4]
        assert users(f"{NAME}@..{third}") == [1, 2, 3]
        again = [file.fingerprint for file in data_files(f"{NAME}@{first}..{third}")]
        assert again == known
        assert str(table.metadata.table_uuid) in known[0]
        with pytest.raises(InputError, match=r"is (delete|overwrite), but") as raised:
            data_files(f"{NAME}@{third}..{fourth}")
        assert str(raised.value).startswith(f"{NAME}@{third}..{fourth}: the operation of snapshot")


def test_ranges_that_are_refused() -> None:
    with catalog() as lake:
        table = lake.create_table("app.events", USERS)
        with pytest.raises(InputError, match="has no snapshot yet"):
            data_files(NAME)
        first, second = append(table, 1), append(table, 2)
        for versions, sentence in (
            (f"@{second}..{first}", "does not come before"),
            (f"@5..{second}", "does not come before"),
            (f"@{first}..5", "has no snapshot 5"),
            (f"@{first}..{first}", "adds no rows"),
            ("@main..", "is no table with versions"),
        ):
            with pytest.raises(InputError, match=sentence):
                data_files(f"{NAME}{versions}")
        for name, sentence in (
            ("iceberg:lake.app.other", "cannot be read as an Iceberg table: Table does not exist"),
            ("iceberg:pond.app.events", "cannot be read as an Iceberg table: URI missing"),
            ("iceberg:lake.events", "write iceberg:CATALOG.NAMESPACE.TABLE"),
        ):
            with pytest.raises(InputError, match=sentence) as raised:
                data_files(name)
            assert "\n" not in str(raised.value)


def test_columns_that_came_later_and_partitions() -> None:
    with catalog() as lake:
        dated = pa.schema([("user_id", pa.int64()), ("day", pa.date32()), ("text", pa.string())])
        table = lake.create_table("app.events", dated)
        with table.update_spec() as spec:
            spec.add_field("day", IdentityTransform())
            spec.add_field("text", IdentityTransform())
        rows = {"user_id": [1, 2], "day": [date(2026, 1, 2), None], "text": ["007", None]}
        append_rows(table, pa.table(rows, dated))
        with table.update_schema() as update:
            update.add_column("brand", StringType())
        later = pa.table({"user_id": [3], "day": [None], "text": ["8"], "brand": ["a"]})
        append_rows(table, later.cast(pa.schema([*dated, ("brand", pa.string())])))
        found = {row["user_id"]: (row["day"], row["text"], row["brand"]) for row in read(NAME)}
    assert found == {1: (date(2026, 1, 2), "007", None), 2: (None, None, None), 3: (None, "8", "a")}


def test_a_renamed_column_is_refused() -> None:
    """Older files have the other name, and a new column of it would take their values."""
    with catalog() as lake:
        table = lake.create_table("app.events", pa.schema([*USERS, ("brand", pa.string())]))
        append_rows(table, pa.table({"user_id": [1], "brand": ["a"]}))
        with table.update_schema() as update:
            update.rename_column("brand", "maker")
        append_rows(table, pa.table({"user_id": [1], "maker": ["a"]}))
        with pytest.raises(InputError, match="was renamed"):
            data_files(NAME)


def test_files_with_deleted_rows_or_of_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other engines write these; pyiceberg only plans them."""
    with catalog() as lake:
        table = lake.create_table("app.events", USERS)
        append(table, 1)
        [task] = table.scan().plan_files()
        deletes = IcebergFile.from_args(file_path="deletes.parquet")
        monkeypatch.setattr(
            "pyiceberg.table.DataScan.plan_files",
            lambda _: [FileScanTask(task.file, delete_files={deletes})],
        )
        with pytest.raises(InputError, match=r"deleted rows of .* in other files"):
            data_files(NAME)
        task.file[2] = "ORC"
        monkeypatch.setattr("pyiceberg.table.DataScan.plan_files", lambda _: [task])
        with pytest.raises(InputError, match="is no Parquet"):
            data_files(NAME)


def test_without_pyiceberg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(UsageError, match=r"pip install 'thinrow\[iceberg\]'"):
        data_files(NAME)


def test_a_daily_job_is_not_done_twice(tmp_path: Path) -> None:
    """The store is that of plain files, and each day's range of snapshots is compacted once."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    days = [some_events(60, days=1, first_day=day) for day in range(2)]
    since = ""
    with catalog() as lake:
        table = lake.create_table("app.events", days[0].schema)
        for number, events in enumerate(days):
            append_rows(table, events.slice(0, 30))
            last = append_rows(table, events.slice(30))
            options = {
                "schema": tmp_path / "schema.toml",
                "watermark": START_TS + (number + 1) * DAY_MS,
            }
            name = f"{NAME}@{since}..{last}"
            done = [thinrow.compact(name, store=tmp_path / "store", **options) for _ in range(2)]
            assert [report.already_published for report in done] == [False, True]
            plain = thinrow.compact(events, store=tmp_path / "plain", **options)
            assert done[0].rows_read == plain.rows_read == 60
            assert done[0].events_added == plain.events_added
            since = str(last)
        with pytest.raises(UsageError, match="other input"):
            thinrow.compact(NAME, store=tmp_path / "store", **options)
        requests = pa.table({"user_id": [1, 2], "request_ts": [START_TS + 2 * DAY_MS] * 2})
        written = []
        for store, given in (("store", NAME), ("plain", pa.concat_tables(days))):
            rows = tmp_path / f"{store}.parquet"
            thinrow.backfill(requests, store=tmp_path / store, events=given, out=rows)
            written.append(pq.read_table(rows))
        assert written[0].equals(written[1])
        lake.create_table("app.other", USERS)
        append(lake.load_table("app.other"), 1)
        with pytest.raises(InputError, match="has no column event_ts"):
            thinrow.compact("iceberg:lake.app.other", store=tmp_path / "new", **options)
