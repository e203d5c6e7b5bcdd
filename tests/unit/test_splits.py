"""Splits and downsampling: fixed hashes, shares that come out, and arguments that are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.thin_rows import ids_of, rows_table
from thinrow.client.torch import RowFiles, splits
from thinrow.client.torch.rows.choosers import unit_interval
from thinrow.errors import InputError, UsageError

ROWS = 6000
TABLE = rows_table(ROWS, users=range(2000))


def test_hashes_of_users_are_the_same_permanently() -> None:
    """A test set must hold the same users with every release, and in every language."""
    users = np.array([0, 1, 196, -1, -(2**63)])
    assert unit_interval(users, 0).tolist() == HASHES
    assert unit_interval(users, 7)[0] == 0.7215081806049702


HASHES = [
    0.6524484863740322,
    0.03401170130434639,
    0.4865573849325475,
    0.1790798029343914,
    0.3262610137346482,
]


def test_shares_come_out_as_given() -> None:
    files = RowFiles(TABLE)
    parts = splits.by_user(files, 0.8, 0.1, 0.1)
    assert sum(map(len, parts)) == ROWS
    for part, fraction in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) / ROWS - fraction) < 0.03
    users = [set(TABLE["user_id"].take(ids_of(part.source())).to_pylist()) for part in parts]
    assert not users[0] & users[1] and not users[1] & users[2] and not users[0] & users[2]
    other = splits.by_user(files, 0.8, 0.1, 0.1, seed=1)
    assert other[0].fingerprint != parts[0].fingerprint
    negatives = pc.field("label") >= 0.5
    kept = splits.downsample(files, negatives, keep=0.1)
    many = len(files.filter(negatives))
    assert len(kept.filter(pc.field("label") < 0.5)) == ROWS - many
    assert abs(len(kept.filter(negatives)) / many - 0.1) < 0.02
    # The hash of a row is not that of a user with the row's number.
    numbered = RowFiles(TABLE.set_column(0, "user_id", pa.array(range(ROWS), pa.int64())))
    test = splits.by_user(numbered, 0.9, 0.1)[1]
    assert len(splits.downsample(test, pc.scalar(True), keep=0.1)) > 0


def test_splits_stay_equal_with_ids_and_times_of_other_types() -> None:
    users = TABLE["user_id"].to_numpy().astype(np.uint64) + np.uint64(2**63)
    odd = TABLE.set_column(0, "user_id", pa.array(users)).set_column(
        1, "request_ts", TABLE["request_ts"].cast(pa.uint64())
    )
    same = TABLE.set_column(0, "user_id", pa.array(users.view(np.int64)))
    for split in (
        splits.leave_one_out,
        lambda files: splits.by_user(files, 0.5, 0.5),
        lambda files: splits.by_time(files, np.int64(TABLE["request_ts"][0].as_py())),
    ):
        shown = [[part.fingerprint for part in split(RowFiles(each))] for each in (odd, same)]
        assert shown[0] == shown[1]


def test_arguments_are_checked() -> None:
    files = RowFiles(TABLE)
    moment: Any = datetime(2024, 1, 1, tzinfo=UTC)
    for split, message in (
        (lambda: splits.by_time(files), "must have one or more ascending times"),
        (
            lambda: splits.by_time(files, moment),
            "as integers of milliseconds",
        ),
        (lambda: splits.by_time(files, 2**63), "as integers of milliseconds"),
        (lambda: splits.by_time(files, 2, 2), "must have one or more ascending times"),
        (lambda: splits.by_user(files), "must be positive and have the sum 1"),
        (lambda: splits.by_user(files, 0.9, 0.2), "must be positive and have the sum 1"),
        (lambda: splits.by_user(files, 1.1, -0.1), "must be positive and have the sum 1"),
        (lambda: splits.downsample(files, pc.scalar(True), keep=0), "keep is 0, but"),
        (lambda: splits.downsample(files, pc.scalar(True), keep=10), "keep is 10, but"),
        (lambda: splits.downsample(files, pc.field("row"), keep=0.1), "must be true or false"),
    ):
        with pytest.raises(UsageError, match=message):
            split()
    nulls = TABLE.set_column(1, "request_ts", pa.nulls(ROWS, pa.int64()))
    with pytest.raises(InputError, match="The Table in memory: column request_ts must not be null"):
        splits.leave_one_out(RowFiles(nulls))


def test_no_rows_make_empty_parts() -> None:
    for files in (RowFiles(TABLE.slice(0, 0)), RowFiles(TABLE, filter=pc.field("row") < 0)):
        for parts in (
            splits.leave_one_out(files),
            splits.by_user(files, 0.5, 0.5),
            splits.by_time(files, 3),
            [splits.downsample(files, pc.scalar(True), keep=0.5)],
        ):
            assert [len(part) for part in parts] == [0] * len(parts)
            assert ids_of(parts[0].source()) == []
