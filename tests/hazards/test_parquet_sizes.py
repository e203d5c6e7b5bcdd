"""Parquet files that repeat long texts, or have damaged bytes, take no memory for it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.peak import MIB, peak_of
from thinrow.core.files import parquet_sizes
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

REFUSED_BYTES_MAX = 160 * MIB
WRITE = """
import pyarrow as pa, pyarrow.parquet as pq
def write(path, columns):
    # Like Spark, without Arrow's schema, by which dictionaries would stay dictionaries.
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
rows = 60_000
def repeated(texts, kind=pa.string()):
    return pa.DictionaryArray.from_arrays(
        pa.array([n % len(texts) for n in range(rows)], pa.int32()), pa.array(texts, kind))
times = pa.array([1_700_000_000_000] * rows)
same = pa.array([1] * rows)
"""
READ = """
from thinrow.core.files.parquet import open_parquet
def read(path, **chosen):
    with open_parquet(path) as file:
        return sum(len(batch) for batch in file.iter_batches(1 << 16, **chosen))
"""
BOMBS = {
    "a dictionary of one text": 'repeated(["x" * 100_000])',
    "a dictionary of bytes": "repeated([bytes(100_000)], pa.binary())",
    "a dictionary of many texts": 'repeated([str(n) * 900 for n in range(4)] + ["x" * 100_000])',
    "in a struct": 'pa.StructArray.from_arrays([repeated(["x" * 100_000])], ["text"])',
    "in lists": 'pa.ListArray.from_arrays(range(rows + 1), repeated(["x" * 100_000]))',
    "in one list": "pa.ListArray.from_arrays([0] + [rows] * rows, repeated(['x' * 100_000]))",
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_texts_that_repeat_are_measured_before_they_are_read(make: str, tmp_path: Path) -> None:
    path = str(tmp_path / "events.parquet")
    columns = f'{{"user_id": same, "event_ts": times, "label": {make}}}'
    exec(f"{WRITE}\nwrite({path!r}, {columns})", {})
    peak = peak_of(f"read({path!r})", READ)
    assert peak.outcome.startswith("InputError: ") and "label" in peak.outcome, peak
    assert peak.grown_bytes < REFUSED_BYTES_MAX, peak
    with open_parquet(path) as file:  # no one wants that column
        assert sum(map(len, file.iter_batches(1 << 16, columns=["user_id"]))) == 60_000


@pytest.mark.parametrize("kind", ["prefixes", "fixed size"])
def test_other_values_that_repeat_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Texts that share a prefix, and bytes of a fixed size, are mostly not in the pages."""
    path = tmp_path / "events.parquet"
    texts = [b"x" * 100_000 + b"%d" % (number % 10) for number in range(400)]
    if kind == "prefixes":
        encoding = {"label": "DELTA_BYTE_ARRAY"}
        table = pa.table({"label": texts})
        pq.write_table(table, path, use_dictionary=False, column_encoding=encoding)
    else:
        table = pa.table({"label": pa.array(texts, pa.binary(100_001))})
        pq.write_table(table, path)
    monkeypatch.setattr(parquet_sizes, "BYTES_PER_STORED_BYTE", 1)
    monkeypatch.setattr(parquet_sizes, "BATCH_TEXT_BYTES_MAX", 16 * MIB)
    with open_parquet(path) as file:
        assert file.read().equals(table)
        monkeypatch.setattr(parquet_sizes, "GROUP_BYTES_MAX", 32 * MIB)
        with pytest.raises(InputError, match="most of them for label"):
            file.read()


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
def test_long_texts_that_are_there_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    """Fewer rows at a time where they repeat, and the same values."""
    monkeypatch.setattr(parquet_sizes, "BATCH_TEXT_BYTES_MAX", MIB)
    rng = random.Random(7)
    texts = [rng.randbytes(2_000).hex() for _ in range(50)]
    rows = [rng.choice([*texts, "", None]) for _ in range(4_000)]
    table = pa.table(
        {
            "text": rows,
            "bytes": [None if row is None else row.encode() for row in rows],
            "lists": [[row] * rng.randrange(3) for row in rows],
            "structs": [{"a": row, "b": number} for number, row in enumerate(rows)],
            "unique": [rng.randbytes(50).hex() for _ in rows],
        }
    )
    path = tmp_path / "events.parquet"
    pq.write_table(table, path, row_group_size=1500, **options)
    with open_parquet(path) as file:
        assert file.read().equals(table)
        batches = list(file.iter_batches(1 << 16))
    if options.get("use_dictionary", True):
        assert max(batch.nbytes for batch in batches) < 3 * MIB
        assert len(batches) > 30
    else:
        assert len(batches) == 1


def test_files_with_any_byte_changed(tmp_path: Path) -> None:
    """Never another exception than InputError from what reads sizes."""
    path = tmp_path / "events.parquet"
    table = pa.table({"label": ["text"] * 50 + ["other"] * 50, "n": range(100)})
    pq.write_table(table, path)
    data = path.read_bytes()
    rng = random.Random(11)
    for _ in range(600):
        changed = bytearray(data)
        changed[rng.randrange(4, len(data) - 4)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            with open_parquet(path) as file:
                assert sum(len(batch) for batch in file.iter_batches(30)) <= 100
        except InputError as error:
            assert "events.parquet" in str(error)


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
def test_footers_that_lie_about_counts_and_sizes(tmp_path: Path, options: dict[str, str]) -> None:
    """All rows or InputError, whichever number of a footer is wrong."""
    rows = 20_000
    table = pa.table(
        {
            "n": range(rows),
            "text": [f"text {number % 50}" for number in range(rows)],
            "list": [[number] * (number % 3) for number in range(rows)],
            "maybe": [None if number % 2 else number for number in range(rows)],
        }
    )
    path = tmp_path / "events.parquet"
    pq.write_table(table, path, row_group_size=12_000, **options)
    data, footer = path.read_bytes(), pq.read_metadata(path)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    numbers = {footer.num_rows}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        numbers |= {group.num_rows, group.total_byte_size}
        for column in map(group.column, range(group.num_columns)):
            numbers |= {column.num_values, column.data_page_offset}
            numbers |= {column.total_compressed_size, column.total_uncompressed_size}
    before = pa.default_memory_pool().max_memory()
    outcomes = []
    for number in numbers:
        written = varint(number)
        most = (1 << 7 * len(written) - 1) - 1
        for place in range(start, len(data) - 8):
            if not data.startswith(written, place):
                continue
            for lie in {0, 1, -1, number // 2, number - 1, min(number + 1, most), most} - {number}:
                lied = varint(lie, len(written))
                path.write_bytes(data[:place] + lied + data[place + len(lied) :])
                try:
                    with open_parquet(path) as file:
                        assert file.read().equals(table), (number, lie)
                    outcomes.append("read")
                except InputError as error:
                    assert "events.parquet" in str(error)
                    outcomes.append("refused")
    assert {"read", "refused"} == set(outcomes)
    assert pa.default_memory_pool().max_memory() - before < 64 * MIB


def varint(number: int, size: int = 1) -> bytes:
    """Encodes an integer as Thrift does, in `size` bytes or as many as it takes."""
    rest, encoded = number << 1 ^ number >> 63, bytearray()
    while rest > 0x7F or len(encoded) < size - 1:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*encoded, rest])
