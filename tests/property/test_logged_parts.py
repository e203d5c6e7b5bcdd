"""Rows that are logged in parts are those logged without, each in the part of its user's hash."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.logged import (
    HOUR_MS,
    NOW_TS,
    Clock,
    a_row,
    check_layout,
    config_in,
    features_of,
    parts,
    published,
)
from support.paths import DOCS
from support.row_parts import part_of
from support.scenarios import examples
from thinrow.client.logger import FileOutput, LoggerConfig, ThinRowLogger, outputs
from thinrow.client.torch import RowFiles
from thinrow.core.ids import ID_KINDS, IdKind
from thinrow.errors import UsageError

USERS: dict[IdKind, st.SearchStrategy[int | str]] = {
    "int64": st.integers(-(1 << 63), (1 << 63) - 1),
    "uint64": st.integers(0, (1 << 64) - 1),
    "uuid": st.uuids().map(str),
    "string": st.text(max_size=20).filter(lambda text: text.isprintable()),
}
"""Users of each kind of ids, as stores have them."""


@st.composite
def logs(draw: st.DrawFn) -> tuple[IdKind, list[tuple[int | str, int]]]:
    """A kind of ids, and the user and hour of each row; users come again."""
    kind = draw(st.sampled_from(ID_KINDS))
    users = draw(st.lists(USERS[kind], min_size=1, max_size=12))
    rows = st.tuples(st.sampled_from(users), st.integers(-1, 2))
    return kind, draw(st.lists(rows, max_size=60))


def logged(
    folder: Path,
    kind: IdKind,
    rows: list[tuple[int | str, int]],
    layouts: list[int],
    part_rows: int,
) -> None:
    """Logs rows, every second of them with a label, by one logger after the other."""
    clock = Clock()
    each = -(-len(rows) // len(layouts)) or 1
    for start, row_parts in enumerate(layouts):
        files = FileOutput(
            folder=folder / "rows", part_rows=part_rows, part_ms=0, row_parts=row_parts
        )
        config = config_in(folder, user_ids=kind, files=files)
        with ThinRowLogger(config, clock=clock) as logger:
            for n in range(start * each, min(start * each + each, len(rows))):
                user, hour = rows[n]
                row = replace(a_row(n, request_ts=NOW_TS + hour * HOUR_MS), user_id=user)
                logger.log(f"r{n}", row, features_of(n))
                if n % 2:
                    logger.label(f"r{n}", {"click": 1})
            if start == len(layouts) - 1:
                logger.flush()
                clock.now_ts += 1000
                logger.drain(60)


@given(
    drawn=logs(),
    layouts=st.lists(st.sampled_from([0, 1, 2, 16, 4096]), min_size=1, max_size=3),
    part_rows=st.sampled_from([1, 7, 1000]),
)
@examples(40)
def test_rows_in_parts_are_the_rows_without(
    drawn: tuple[IdKind, list[tuple[int | str, int]]], layouts: list[int], part_rows: int
) -> None:
    kind, rows = drawn
    with TemporaryDirectory() as name:
        plain, divided = Path(name, "plain"), Path(name, "divided")
        logged(plain, kind, rows, [0], part_rows)
        logged(divided, kind, rows, layouts, part_rows)
        expected = {row["request_id"]: row for row in published(plain)}
        assert len(expected) == len(published(divided)) == len(rows)
        assert {row["request_id"]: row for row in published(divided)} == expected
        check_layout(divided, sorted(set(layouts)))
        for path in parts(divided):
            found = pq.ParquetFile(path).read()
            numbers = [int(request_id[1:]) for request_id in found["request_id"].to_pylist()]
            assert numbers == sorted(numbers)
            assert len(numbers) <= part_rows


def test_the_parts_of_a_batch_are_bounded_together(tmp_path: Path) -> None:
    """No row waits for its part to be full, and one file is written at a time."""
    rows: list[tuple[int | str, int]] = [(n, 0) for n in range(300)]
    write, open_files = outputs.write_part, []

    def counted(table: pa.Table, path: Path) -> None:
        hidden = [found.name for found in (tmp_path / "rows").rglob(".*")]
        open_files.append(len(hidden))
        write(table, path)

    with mock.patch.object(outputs, "write_part", counted):
        logged(tmp_path, "int64", rows, [64], 100)
    assert set(open_files) == {0}
    assert len(open_files) == len(parts(tmp_path)) > 64
    batches = {path.name for path in parts(tmp_path)}
    assert len(batches) == 3
    counts = dict.fromkeys(batches, 0)
    for path in parts(tmp_path):
        counts[path.name] += pq.ParquetFile(path).metadata.num_rows
    assert set(counts.values()) == {100}


@pytest.mark.parametrize("kind", [pa.string_view(), pa.list_(pa.string_view())], ids=str)
@pytest.mark.parametrize("row_parts", [0, 4])
def test_columns_of_views_are_published(tmp_path: Path, kind: pa.DataType, row_parts: int) -> None:
    """Arrow itself selects no rows of views, and rows of two hours lie in files of their own."""
    clock = Clock()
    said = "so" if kind == pa.string_view() else ["so", "and so"]
    config = config_in(
        tmp_path,
        features=pa.schema([("query", kind)]),
        unlabelled="drop",
        files=FileOutput(folder=tmp_path / "rows", part_ms=0, row_parts=row_parts),
        close_ms=300,
    )
    with ThinRowLogger(config, clock=clock) as logger:
        for n in range(20):
            row = a_row(n, request_ts=NOW_TS + n % 2 * HOUR_MS)
            logger.log(f"r{n}", row, {"query": said})
            if n % 4:
                logger.label(f"r{n}", {"click": 1})
        logger.flush()
        clock.now_ts += 1000
        logger.drain(10)
    assert [row["query"] for row in published(tmp_path)] == [said] * 15


def test_parts_are_checked_before_anything_is_logged(tmp_path: Path) -> None:
    for wrong in (3, -4, 8192):
        with pytest.raises(UsageError, match=r"row_parts is .*; give a power of two up to 4,096"):
            FileOutput(folder=tmp_path, row_parts=wrong)

    def config(row_parts: int, kind: IdKind = "int64") -> LoggerConfig:
        return config_in(
            tmp_path,
            files=FileOutput(folder=tmp_path / "rows", row_parts=row_parts),
            features=pa.schema([("part" if kind == "int64" else "place", pa.int16())]),
            user_ids=kind,
        )

    with pytest.raises(UsageError, match="There is a column part, which row_parts makes"):
        config(2)
    config(0)
    with (
        mock.patch.dict(sys.modules, {"xxhash": None}),
        pytest.raises(UsageError, match=r"pip install 'thinrow\[cluster\]'"),
    ):
        ThinRowLogger(config(2, "uuid"))
    ThinRowLogger(config(2, "uuid")).close()
    with mock.patch.dict(sys.modules, {"xxhash": None}):
        ThinRowLogger(config(0, "uuid")).close()


def test_the_files_of_a_day_are_joined_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "guides/logging.md").read_text(encoding="utf-8")
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "days/" in block
    ]
    logged(tmp_path, "int64", [(n % 40, n % 3) for n in range(300)], [16], 50)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("2026-11-23", "2027-01-15"), {})
    before, after = RowFiles("rows"), RowFiles("days")
    assert len(after.paths) < len(before.paths) / 3
    assert len(after) == 300
    days = pq.read_table("days").to_pylist()
    assert {row["request_id"] for row in days} == {row["request_id"] for row in published(tmp_path)}
    assert all(row["part"] == part_of(row["user_id"], 16) for row in days)
