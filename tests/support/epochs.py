"""A naive model of an epoch's order, and trainers that share it without servers."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.thin_rows import EVENT, UIH
from thinrow.client.torch.rows import order as orders
from thinrow.client.torch.rows.windows import MIXED_ROWS
from thinrow.core.shards import part_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.client.torch import FileSource, RowFiles
    from thinrow.client.torch.rows.epoch_place import Dealing

__all__ = ["Fleet", "lengths_table", "model_order", "write_tables"]


def lengths_table(users: Sequence[int], lengths: Sequence[int]) -> pa.Table:
    """Rows of some users, whose histories have at most these lengths; one has a mutable event."""
    rows = len(users)
    event = {name: 0 if name != "brand" else "a" for name in EVENT.names}
    pointers = [
        {"start_ts": 0, "end_ts": 1, "max_length": length, "digest": 0} for length in lengths
    ]
    return pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "request_ts": pa.array([1] * rows, pa.int64()),
            "length": pa.array(lengths, pa.int64()),
            "uih": pa.array(pointers, UIH),
            "mutable": pa.array([[event] if n == 0 else [] for n in range(rows)], pa.list_(EVENT)),
        }
    )


def write_tables(
    folder: Path, tables: Sequence[pa.Table], row_group: int, parts: Sequence[int] = ()
) -> str:
    """Writes files, each into the folder of its part if there are parts, which ascend."""
    for number, (table, part) in enumerate(zip(tables, parts, strict=False)):
        (folder / part_folder(part)).mkdir(exist_ok=True)
        path = folder / part_folder(part) / f"rows-{number:02}.parquet"
        pq.write_table(table, path, row_group_size=row_group)
    if parts:
        return str(folder)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"rows-{number:02}.parquet", row_group_size=row_group)
    return str(folder / "rows-*.parquet")


def model_order(
    files: RowFiles,
    tables: Sequence[pa.Table],
    row_group: int,
    epoch: int,
    batch: int,
    parts: Sequence[int] = (),
) -> list[int]:
    """The numbers of an epoch's rows in its order, row after row from plain lists."""
    users = [user for table in tables for user in table["user_id"].to_pylist()]
    lengths = [row for table in tables for row in table["length"].to_pylist()]
    ids = itertools.count()
    groups = [
        [next(ids) for _ in range(min(row_group, len(table) - first))]
        for table in tables
        for first in range(0, len(table), row_group)
    ]
    if files.order == "files":
        return list(range(len(users)))
    numbers = orders.shuffled(np.arange(len(files._selection.counts)), files.seed, epoch)
    # An empty file may have a row group without rows.
    filled = iter(groups)
    by_number = [next(filled) if rows else [] for rows in files._selection.counts.tolist()]
    rows = [row for number in numbers.tolist() for row in by_number[number]]
    lanes = files.epoch_order(batch).lanes
    edges = [lane * len(rows) // lanes for lane in range(lanes + 1)]
    if parts:
        part_of_row = [
            part for part, table in zip(parts, tables, strict=True) for _ in range(len(table))
        ]
        of_lane = [
            [row for row in rows if part_of_row[row] % lanes == lane] for lane in range(lanes)
        ]
        rows = list(itertools.chain(*of_lane))
        edges = [0, *itertools.accumulate(map(len, of_lane))]
    ordered = []
    for first, last in itertools.pairwise(edges):
        lane: list[int] = []
        size = orders.FIRST_WINDOW_ROWS
        while len(lane) < last - first:
            step = batch if files.order == "lengths" else 1
            most = -(-min(size, files.window_rows) // step) * step
            start = first + len(lane)
            window = rows[start : min(start + most, last)]
            salts = (files.seed, epoch, start)
            if files.order in ("users", "mixed"):
                keys = orders.mixed(np.array([users[row] for row in window]), *salts)
            else:
                keys = orders.mixed(np.arange(len(window)), *salts)
            pairs = sorted(zip(keys.tolist(), range(len(window)), strict=True))
            window = [window[place] for _, place in pairs]
            if files.order == "mixed":
                keys = orders.mixed(np.arange(len(window)), *salts)
                keyed = list(zip(keys.tolist(), window, strict=True))
                blocks = range(0, len(window), MIXED_ROWS)
                window = [row for n in blocks for _, row in sorted(keyed[n : n + MIXED_ROWS])]
            if files.order == "lengths":
                window.sort(key=lambda row: lengths[row])
                runs = [window[n : n + batch] for n in range(0, len(window), batch)]
                rest = [runs.pop()] if runs and len(runs[-1]) < batch else []
                places = orders.shuffled(np.arange(len(runs)), *salts).tolist()
                window = [row for run in [runs[n] for n in places] + rest for row in run]
            lane += window
            size = most * orders.WINDOW_GROWTH
        ordered.append(lane)
    result: list[int] = []
    while len(ordered) > 1:
        while all(len(lane) >= batch for lane in ordered):
            for lane in ordered:
                result += lane[:batch]
                del lane[:batch]
        half = len(ordered) // 2
        if not parts:
            break
        ordered = [ordered[lane] + ordered[lane + half] for lane in range(half)]
    return result + [row for lane in ordered for row in lane]


class Fleet:
    """Ranks, each with a DataLoader of worker processes, in this process."""

    def __init__(
        self,
        files: Sequence[RowFiles],
        workers: int,
        dealing: Dealing,
        saved: Any = None,  # noqa: ANN401
    ) -> None:
        self.dealing = dealing
        self.sources = [
            [rank.source(worker, workers, dealing=dealing) for worker in range(workers)]
            for rank in files
        ]
        if saved is not None:
            for source in itertools.chain(*self.sources):
                source.load_state_dict(json.loads(json.dumps(saved)))
        self._batches = [interleaved(rank, dealing.batch_examples) for rank in self.sources]

    def step(self) -> list[list[int]]:
        """A batch of each rank, those that have one."""
        batches = [next(rank, None) for rank in self._batches]
        return [batch for batch in batches if batch is not None]

    def states(self) -> list[list[dict[str, Any]]]:
        """The states of each rank's workers."""
        return [[source.state_dict() for source in rank] for rank in self.sources]


def interleaved(workers: Sequence[FileSource], batch: int) -> Iterator[list[int]]:
    """Batches of workers in turn, as torch's DataLoader takes them; counted when delivered."""
    each = [batches_of(source, batch) for source in workers]
    live = list(range(len(workers)))
    while live:
        for worker in list(live):
            found = next(each[worker], None)
            if found is None:
                live.remove(worker)
                continue
            workers[worker].took(len(found))
            yield found


def batches_of(source: FileSource, batch: int) -> Iterator[list[int]]:
    left: list[int] = []
    for chunk in source.chunks(3 * batch - 1):
        left += chunk.example_ids.tolist()
        while len(left) >= batch:
            yield left[:batch]
            del left[:batch]
    if left:
        yield left
