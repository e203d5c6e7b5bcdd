"""Tables of Delta Lake as events: ranges of versions, and what they must refuse."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import thinrow
from deltalake import DeltaTable, write_deltalake
from support.worlds import DAY_MS, SCHEMA, START_TS, some_events
from thinrow.core.files.parquet import joined_batches, open_parquet
from thinrow.core.files.paths import data_files
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

INLINE_DELETIONS = {
    "storageType": "i",
    "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
    "sizeInBytes": 44,
    "cardinality": 6,
}
"""Six rows of the first 30, encoded as Delta's protocol shows it."""


def read(name: str) -> list[dict[str, Any]]:
    """Rows of a table, as every job reads them."""
    _, batches = joined_batches(data_files(name), 1000)
    return [row for _, batch in batches for row in batch.to_pylist()]


def users(name: str) -> list[int]:
    return sorted(int(row["user_id"]) for row in read(name))


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Versions 0 to 2 append a row each; 3 joins their files; 4 appends; 5 deletes."""
    path = str(tmp_path / "a b")
    for user in range(3):
        write_deltalake(path, pa.table({"user_id": [user], "dt": ["é/1"]}), mode="append")
    DeltaTable(path).optimize.compact()
    write_deltalake(path, pa.table({"user_id": [4], "dt": ["2"]}), mode="append")
    DeltaTable(path).delete("user_id = 0")
    return path


def test_ranges(table: str) -> None:
    assert users(f"delta:{table}@1..4") == [1, 2, 4]
    assert users(f"delta:file://{table}@2..2") == [2]
    assert users(f"delta:{table}@..3") == [0, 1, 2]
    assert users(f"delta:{table}@..") == users(f"delta:{table}/") == [1, 2, 4]


def test_fingerprints_are_of_table_and_range(table: str) -> None:
    first, again = data_files(f"delta:{table}@1..2"), data_files(f"delta:file://{table}/@1..2")
    assert [file.fingerprint for file in first] == [file.fingerprint for file in again]
    other = {file.fingerprint for file in data_files(f"delta:{table}@1..3")}
    assert len(other) == len(first) == 2
    assert not other & {file.fingerprint for file in first}
    assert str(DeltaTable(table).metadata().id) in first[0].fingerprint


def test_partition_values_have_their_columns_types(tmp_path: Path) -> None:
    """The log has them as texts, and a text of digits stays one."""
    moment = datetime(2024, 1, 1, 5, 6, 7, 89, tzinfo=UTC)
    values = {"text": "007", "day": date(2024, 1, 1), "at": moment, "flag": False, "number": 2.5}
    rows = pa.table(
        {
            "user_id": [1, 2],
            "text": ["007", "a b/é"],
            "day": [values["day"], None],
            "at": pa.array([moment, None], pa.timestamp("us", "UTC")),
            "flag": [False, None],
            "number": [2.5, None],
        }
    )
    write_deltalake(tmp_path, rows, partition_by=[*values])
    for name in (f"delta:{tmp_path}", f"delta:{tmp_path}@0..0"):
        found = {row["user_id"]: row for row in read(name)}
        assert [found[1], found[2]] == rows.to_pylist()


def test_a_column_that_came_later_is_null_before(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pa.table({"user_id": [1]}))
    later = pa.table({"user_id": [2], "item_id": [5]})
    write_deltalake(tmp_path, later, mode="append", schema_mode="merge")
    rows = {row["user_id"]: row["item_id"] for row in read(f"delta:{tmp_path}")}
    assert rows == {1: None, 2: 5}


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        ("@4..5", "version 5 removes or updates rows"),
        ("@2..9", "do not exist; the newest is 5"),
        ("@4..2", "do not exist"),
        ("@3..3", "adds no rows"),
        ("@yesterday..", "is no table with versions"),
        ("@3", "is no table with versions"),
    ],
)
def test_ranges_that_are_refused(table: str, versions: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        data_files(f"delta:{table}{versions}")
    assert str(raised.value).startswith(f"delta:{table}{versions}")
    assert "\n" not in str(raised.value)


def test_tables_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened as a Delta table"):
        data_files(f"delta:{tmp_path}/nowhere")
    write_deltalake(tmp_path / "marked", pa.table({"user_id": range(40)}))
    log = tmp_path / "marked/_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            features = {
                "readerFeatures": ["deletionVectors"],
                "writerFeatures": ["deletionVectors"],
            }
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        if "add" in action:
            action["add"]["deletionVector"] = INLINE_DELETIONS
    log.write_text("\n".join(map(json.dumps, actions)))
    for versions in ("", "@0..0"):
        with pytest.raises(InputError, match="has deletion vectors"):
            data_files(f"delta:{tmp_path}/marked{versions}")
    DeltaTable.create(tmp_path / "mapped", schema=pa.schema([("user_id", pa.int64())]))
    mapped = tmp_path / "mapped/_delta_log" / f"{0:020d}.json"
    text = mapped.read_text()
    identity = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "c1"}
    for plain, other in (
        ('"configuration":{}', '"configuration":{"delta.columnMapping.mode":"name"}'),
        ('\\"metadata\\":{}', json.dumps('"metadata":' + json.dumps(identity))[1:-1]),
        ('"minReaderVersion":1,"minWriterVersion":2', '"minReaderVersion":2,"minWriterVersion":5'),
    ):
        assert plain in text
        text = text.replace(plain, other)
    mapped.write_text(text)
    with pytest.raises(InputError, match="has column mapping"):
        data_files(f"delta:{tmp_path}/mapped")


def test_a_log_that_was_cleaned_up(tmp_path: Path) -> None:
    for user in range(3):
        write_deltalake(tmp_path, pa.table({"user_id": [user]}), mode="append")
    DeltaTable(tmp_path).create_checkpoint()
    (tmp_path / "_delta_log" / f"{1:020d}.json").unlink()
    with pytest.raises(InputError, match="no longer has version 1"):
        data_files(f"delta:{tmp_path}@1..2")
    assert users(f"delta:{tmp_path}") == [0, 1, 2]


def test_partitions_of_bytes_are_refused(tmp_path: Path) -> None:
    """The log has them as text, which readers would take for the bytes."""
    table = pa.table({"user_id": [1], "device": [b"\x00a"]})
    write_deltalake(tmp_path, table, partition_by=["device"])
    for name in (f"delta:{tmp_path}", f"delta:{tmp_path}@0..0"):
        with pytest.raises(InputError, match="partitioned by device, whose values are bytes"):
            data_files(name)


def test_without_deltalake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(UsageError, match=r"needs deltalake; pip install 'thinrow\[delta\]'"):
        data_files("delta:events")


def test_a_daily_job_is_not_done_twice(tmp_path: Path) -> None:
    """The store is that of plain files, and each day's range of versions is compacted once."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    days = [some_events(60, days=1, first_day=day) for day in range(2)]
    for number, events in enumerate(days):
        write_deltalake(tmp_path / "events", events.slice(0, 30), mode="append")
        write_deltalake(tmp_path / "events", events.slice(30), mode="append")
        options = {
            "schema": tmp_path / "schema.toml",
            "watermark": START_TS + (number + 1) * DAY_MS,
        }
        name = f"delta:{tmp_path}/events@{2 * number}..{2 * number + 1}"
        done = [thinrow.compact(name, store=tmp_path / "store", **options) for _ in range(2)]
        assert [report.already_published for report in done] == [False, True]
        plain = thinrow.compact(events, store=tmp_path / "plain", **options)
        assert done[0].rows_read == plain.rows_read == 60
        assert done[0].events_added == plain.events_added
    with pytest.raises(UsageError, match="other input"):
        thinrow.compact(f"delta:{tmp_path}/events@1..3", store=tmp_path / "store", **options)
    requests = pa.table({"user_id": [1, 2], "request_ts": [START_TS + 2 * DAY_MS] * 2})
    written = []
    for store, events in (("store", f"delta:{tmp_path}/events"), ("plain", pa.concat_tables(days))):
        rows = tmp_path / f"{store}.parquet"
        thinrow.backfill(requests, store=tmp_path / store, events=events, out=rows)
        written.append(pq.read_table(rows))
    assert written[0].equals(written[1])
    write_deltalake(tmp_path / "other", days[0].drop_columns("event_ts"))
    with pytest.raises(InputError, match="has no column event_ts"):
        thinrow.compact(f"delta:{tmp_path}/other", store=tmp_path / "new", **options)
    assert open_parquet(data_files(f"delta:{tmp_path}/other")[0]).metadata.num_rows == 60
