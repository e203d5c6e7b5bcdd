"""Slices of files and ranges of users, which the driver of a job on Spark plans."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.core.files.paths import data_files
from thinrow.engines.spark.slices import Slice, cut_files, user_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SLICES = "thinrow.engines.spark.slices"


def written(path: Path, *groups: Sequence[int | None]) -> list[Slice]:
    """Slices of a file with these users in its row groups."""
    schema = pa.schema([("user_id", pa.int64())])
    with pq.ParquetWriter(path, schema) as file:
        for users in groups:
            file.write_table(pa.table({"user_id": users}, schema=schema))
    assert pq.ParquetFile(path).num_row_groups == len(groups)
    return cut_files(data_files([path]))


def test_slices_cover_each_row_group_once(tmp_path: Path) -> None:
    with mock.patch(f"{SLICES}.SLICE_BYTES", 100):
        slices = written(tmp_path / "a.parquet", *([user] for user in range(7)))
    assert len(slices) > 7
    assert sorted(group for one in slices for group in one.row_groups(7)) == list(range(7))


def test_ranges_ascend_as_unsigned_users(tmp_path: Path) -> None:
    slices = written(tmp_path / "a.parquet", [*range(-50, 50)])
    with mock.patch(f"{SLICES}.RANGE_EVENTS", 10):
        bounds = user_bounds(slices, "int64", 2)
    assert bounds.dtype == np.uint64
    assert len(bounds) > 2
    assert np.all(np.diff(bounds) > 0)
    assert bounds[-1] > 1 << 63


def test_ranges_of_files_whose_first_row_group_is_empty(tmp_path: Path) -> None:
    """Writers leave such groups, and files without any row."""
    slices = written(tmp_path / "a.parquet", [], [1, None, 3])
    slices += written(tmp_path / "b.parquet", [])
    assert len(user_bounds(slices, "int64", 2)) == 0
    with mock.patch(f"{SLICES}.RANGE_EVENTS", 1):
        assert user_bounds(slices, "int64", 1).tolist() == [1, 3]
