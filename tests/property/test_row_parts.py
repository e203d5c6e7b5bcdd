"""Ranks read whole parts of thin rows, and so few groups of servers."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.epochs import Fleet, lengths_table, write_tables
from support.logged import HOUR_MS, NOW_TS, Clock, a_row, config_in, features_of
from support.scenarios import examples
from thinrow.client.logger import FileOutput, ThinRowLogger
from thinrow.client.torch import RowFiles
from thinrow.client.torch.rows import file_source
from thinrow.client.torch.rows import order as row_order
from thinrow.client.torch.rows.epoch_place import Dealing, EvenEnds
from thinrow.client.torch.rows.order import EpochOrder, part_lane_count
from thinrow.core.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POWERS = st.integers(0, 5).map(lambda power: 1 << power)
ORDERS = ("users", "mixed", "rows", "lengths")
PARTS = 16
ENDS: tuple[EvenEnds | None, ...] = (None, "drop", "pad")


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Lanes of few rows."""
    with (
        mock.patch.object(row_order, "FIRST_WINDOW_ROWS", 16),
        mock.patch.object(row_order, "PART_LANE_ROWS_MIN", 4),
    ):
        yield


def written(folder: Path, users: int, rows_each: int, parts: int) -> str:
    """Rows of users in parts by their hash; a file of each part, with small row groups."""
    ids = np.repeat(np.arange(users), rows_each)
    owners = shard_of(ids, parts)
    tables = [
        lengths_table(ids[owners == part].tolist(), [1] * int((owners == part).sum()))
        for part in range(parts)
    ]
    return write_tables(folder, tables, 50, range(parts))


def logged(folder: Path, users: int, rows_each: int, parts: int) -> str:
    """The same users in the files of a logger, by hour and part."""
    clock = Clock()
    files = FileOutput(folder=folder / "rows", part_ms=0, row_parts=parts)
    with ThinRowLogger(config_in(folder, files=files), clock=clock) as logger:
        for n in range(users * rows_each):
            row = a_row(n // rows_each, request_ts=NOW_TS + n % 3 * HOUR_MS)
            logger.log(f"r{n}", row, features_of(n))
        logger.flush()
        clock.now_ts += 1000
        logger.drain(60)
    return str(files.folder)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[..., str]], str]:
    """Rows of 400 users in 16 parts, which each writer writes once for all cases."""

    @cache
    def write(writer: Callable[..., str]) -> str:
        return writer(tmp_path_factory.mktemp(writer.__name__), 400, 5, PARTS)

    return write


def fleet(paths: str, ranks: int, workers: int, batch: int, order: str) -> Fleet:
    files = RowFiles(paths, order=order)  # type: ignore[arg-type]  # the footers are read once
    return Fleet(
        [files_of(files, n, ranks) for n in range(ranks)], workers, Dealing(batch_examples=batch)
    )


def users_of(paths: str) -> list[int]:
    """The user of each row, by its number."""
    return [
        user
        for batch, _ in RowFiles(paths, order="files").users_and_times()
        for user in batch["user_id"].to_pylist()
    ]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=32), POWERS, st.integers(1, 20))
@examples(60)
def test_a_rank_leaves_its_parts_once_a_rank_has_no_batch_of_its_own(
    sizes: list[int], ranks: int, batch: int
) -> None:
    lanes = 1 << (len(sizes) - 1).bit_length()
    sizes += [0] * (lanes - len(sizes))
    ranks = min(ranks, lanes)
    order = EpochOrder(sum(sizes), lanes, batch, 64, sizes=tuple(sizes))
    places = [
        (lane, place)
        for lane, first, last in order.segments(0, order.rows)
        for place in range(first, last)
    ]
    assert sorted(places) == [(lane, n) for lane, size in enumerate(sizes) for n in range(size)]
    for lane in range(lanes):
        mine = [place for other, place in places if other == lane]
        assert mine == sorted(mine)
    whole = min(sum(sizes[rank::ranks]) for rank in range(ranks)) // batch
    for number, first in enumerate(range(0, whole * ranks * batch, batch)):
        assert {lane % ranks for lane, _ in places[first : first + batch]} == {number % ranks}
    # Any range of positions has the rows that the whole order has there.
    start, stop = len(places) // 3, 2 * len(places) // 3
    some = [(lane, n) for lane, i, j in order.segments(start, stop) for n in range(i, j)]
    assert some == places[start:stop]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (2, 4), (4, 2), (8, 1), (32, 1)])
@pytest.mark.parametrize("writer", [written, logged])
def test_ranks_request_users_of_few_groups(
    stored: Callable[[Callable[..., str]], str],
    order: str,
    ranks: int,
    workers: int,
    writer: Callable[..., str],
) -> None:
    parts, batch = PARTS, 8
    paths = stored(writer)
    users = users_of(paths)
    shares = np.bincount(shard_of(np.array(users), parts), minlength=parts)
    lanes = RowFiles(paths).epoch_order(batch).lanes
    assert lanes == parts
    trainers = fleet(paths, ranks, workers, batch, order)
    of_rank = min(ranks, lanes)
    whole = min(int(shares[rank::of_rank].sum()) for rank in range(of_rank)) // batch
    steps = whole * of_rank // ranks
    seen: list[set[int]] = [set() for _ in range(ranks)]
    for _ in range(steps):
        for rank, rows in enumerate(trainers.step()):
            seen[rank] |= {users[row] for row in rows}
    assert steps > 3
    for groups in (1, 2, 4, 16, 64):
        for mine in seen:
            found = np.unique(shard_of(np.array(sorted(mine)), groups))
            # A part lies in several groups if there are more of them than parts.
            assert len(found) <= max(1, groups // min(ranks, parts))


def test_a_filter_that_empties_parts_loses_and_doubles_nothing(tmp_path: Path) -> None:
    paths = written(tmp_path, 300, 4, 16)
    everything = RowFiles(paths)
    for kept in ([3], [0, 1, 5], list(range(8)), []):
        files = everything.filter(pc.field("part").isin(kept))
        order = [
            row
            for chunk in files.source(dealing=Dealing(batch_examples=8)).chunks(64)
            for row in chunk.example_ids.tolist()
        ]
        numbers = np.flatnonzero(np.isin(shard_of(np.array(users_of(paths)), 16), kept))
        assert sorted(order) == numbers.tolist()
        for ranks in (2, 3, 8):
            for ends in ENDS:
                dealing = Dealing(batch_examples=8, even_ends=ends)
                shards = [files_of(files, rank, ranks) for rank in range(ranks)]
                steps = list(iter(Fleet(shards, 1, dealing).step, []))
                found = list(itertools.chain(*itertools.chain(*steps)))
                if dealing.even_ends == "drop":
                    assert found == order[: len(found)]
                    assert len(order) - len(found) < ranks * 8
                else:
                    assert found[: len(order)] == order
                    assert dealing.even_ends == "pad" or len(found) == len(order)


def files_of(files: RowFiles, rank: int, ranks: int) -> RowFiles:
    mine = files._with(files._selection)
    mine._given_ranks = rank, ranks
    return mine


def test_more_lanes_than_files_may_be_open_have_the_same_order(tmp_path: Path) -> None:
    paths = written(tmp_path, 300, 4, 16)

    def order() -> list[int]:
        source = RowFiles(paths, window_rows=20).source(dealing=Dealing(batch_examples=4))
        return [row for chunk in source.chunks(30) for row in chunk.example_ids.tolist()]

    expected = order()
    with mock.patch.object(file_source, "OPEN_LANES_MAX", 2):
        assert order() == expected


def test_order_files_keeps_the_order_of_the_files(tmp_path: Path) -> None:
    paths = written(tmp_path, 100, 3, 8)
    source = RowFiles(paths, order="files").source()
    rows = [row for chunk in source.chunks(64) for row in chunk.example_ids.tolist()]
    assert rows == list(range(300))


def test_files_of_other_parts_have_other_states(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tables = [lengths_table([1] * 40, [1] * 40)] * 2
    one = RowFiles(write_tables(tmp_path / "a", tables, 9, [0, 1]))
    two = RowFiles(write_tables(tmp_path / "b", tables, 9, [0, 2]))
    assert one.fingerprint != two.fingerprint


def test_files_with_and_without_parts_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = written(tmp_path, 40, 1, 2)
    write_tables(tmp_path, [lengths_table([1], [1])], 9)
    files = RowFiles(paths)
    assert "1 of 3 files of thin rows have no part=NNNN folder" in caplog.text
    assert not files.epoch_order(8).sizes


def test_lanes_of_parts_hold_bounded_memory() -> None:
    with mock.patch.object(row_order, "PART_LANE_ROWS_MIN", 4096):
        assert part_lane_count(10**9, 20 * 10**9, 4_096, 4096) == 1024
        assert part_lane_count(10**9, 40 * 10**9, 65_536, 4096) == 64
        assert part_lane_count(10**6, 10**8, 65_536, 16) == 16
        assert part_lane_count(10_000, 10**6, 65_536, 16) == 2
        assert part_lane_count(0, 0, 65_536, 16) == 1
