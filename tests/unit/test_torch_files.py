"""Files of thin rows as a source: shards without overlap or loss, order, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.thin_rows import ids_of, rows_table, write_rows
from thinrow.client.torch import FileSource, RowFiles
from thinrow.client.torch.rows.epoch_place import Dealing
from thinrow.client.torch.rows.files import ORDERS
from thinrow.client.torch.rows.groups import FileGroups
from thinrow.client.torch.rows.windows import MIXED_ROWS
from thinrow.errors import InputError, UsageError


def test_each_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [60, 0, 50], row_group=20)
    for order in ORDERS:
        source = RowFiles(paths, order=order, window_rows=30).source()
        epochs = []
        for epoch in (0, 1, 0):
            source.set_epoch(epoch)
            epochs.append(ids_of(source))
            assert sorted(epochs[-1]) == list(range(110))
        assert epochs[0] == epochs[2]
        assert (epochs[0] == epochs[1]) == (order == "files")


def test_the_order_is_the_same_permanently(tmp_path: Path) -> None:
    """Saved states name places in it: these numbers must not change with any release."""
    paths = write_rows(tmp_path, [8, 8], row_group=4)
    for order, right in {
        "users": USERS_ORDER,
        "mixed": MIXED_ORDER,
        "rows": ROWS_ORDER,
        "lengths": LENGTHS_ORDER,
        "files": list(range(16)),
    }.items():
        source = RowFiles(paths, order=order, seed=5, window_rows=10).source()  # type: ignore[arg-type]
        source.set_epoch(2)
        assert ids_of(source) == right


USERS_ORDER = [13, 14, 15, 0, 1, 9, 11, 8, 10, 12, 2, 4, 3, 7, 5, 6]
LENGTHS_ORDER = [7, 4, 12, 1, 9, 8, 5, 15, 2, 14, 11, 6, 3, 13, 0, 10]
MIXED_ORDER = [1, 8, 9, 0, 10, 13, 15, 12, 11, 14, 4, 6, 7, 5, 2, 3]
ROWS_ORDER = [12, 15, 13, 11, 0, 8, 10, 1, 14, 9, 3, 7, 5, 6, 2, 4]


def test_mixed_order_shuffles_the_rows_of_a_lookup(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(rows_table(12_000, users=range(1000)), path)
    users, mixed = (ids_of(RowFiles(path, order=order).source()) for order in ("users", "mixed"))
    assert mixed != users
    for window in ((0, 1024), (1024, 9216), (9216, 12_000)):
        for first in range(*window, MIXED_ROWS):
            block = slice(first, min(first + MIXED_ROWS, window[1]))
            assert sorted(mixed[block]) == sorted(users[block])
    ids = pq.read_table(path)["user_id"].to_numpy()
    batch = slice(1024, 1024 + 256)
    assert len(set(ids[users[batch]])) < 50
    assert len(set(ids[mixed[batch]])) > 150


def test_rows_come_with_all_that_is_theirs(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [40, 30], row_group=9)
    whole = pa.concat_tables([rows_table(40), rows_table(30, seed=1)])
    for chunk in RowFiles(paths, order="rows", window_rows=33).source().chunks(8):
        part = whole.take(chunk.example_ids)
        assert chunk.columns.equals(part.select(["user_id", "request_ts", "row", "label"]))
        pointers = part["uih"].to_pylist()
        assert chunk.rows.pointers.user_ids.tolist() == part["user_id"].to_pylist()
        assert chunk.rows.pointers.max_lengths.tolist() == [row["max_length"] for row in pointers]
        assert chunk.rows.mutable is not None
        lengths = np.diff(chunk.rows.mutable.offsets).tolist()
        assert lengths == [len(events) for events in part["mutable"].to_pylist()]


def test_only_the_columns_requested_are_read(tmp_path: Path) -> None:
    files = RowFiles(write_rows(tmp_path, [5]))
    (chunk,) = files.source(columns=("label",)).chunks(5)
    assert chunk.columns.column_names == ["user_id", "request_ts", "label"]
    with pytest.raises(InputError, match="no column 'price'; there are user_id, request_ts"):
        files.source(columns=("price",))


def test_files_are_named_in_any_way(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [3, 4, 5])
    names = sorted(map(str, tmp_path.glob("rows-*")))
    right = RowFiles(paths)
    assert right.paths == names
    memory = fsspec.filesystem("memory")
    for name in names:
        memory.pipe(f"/rows/{Path(name).name}", Path(name).read_bytes())
    try:
        for given_as in (
            [names[2], paths, names[0]],
            [Path(name) for name in names],
            [f"file://{paths}"],
            f"file://{tmp_path}/./rows-*.parquet",
            "memory://rows/rows-*.parquet",
            [f"memory://rows/{Path(name).name}" for name in names],
        ):
            files = RowFiles(given_as)
            assert len(files.paths) == 3
            assert files.fingerprint == right.fingerprint
            assert ids_of(files.source()) == ids_of(right.source())
    finally:
        memory.rm("/rows", recursive=True)
    odd = tmp_path / "rows[1].parquet"
    odd.write_bytes(Path(names[0]).read_bytes())
    assert len(RowFiles(odd)) == 3


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [3])
    other = tmp_path / "other.parquet"
    for given_as, message in (
        ([], "name at least one"),
        (str(tmp_path / "none-*.parquet"), r"No file matches .*none-\*"),
        (str(tmp_path / "none.parquet"), "There is no file"),
        ("memory://none/*.parquet", "No file matches memory"),
        ("nonsense://a.parquet", "nonsense://a.parquet is no URL"),
        ([paths, str(other)], "other.parquet lacks the column 'label', which .*rows-00"),
    ):
        pq.write_table(rows_table(2).drop_columns(["label"]), other)
        with pytest.raises(InputError, match=message):
            RowFiles(given_as).source()
    table = rows_table(2)
    pq.write_table(table.set_column(3, "label", pa.array(["a", "b"])), other)
    with pytest.raises(InputError, match=r"rows-00\.parquet has a column of another type"):
        RowFiles([paths, str(other)]).source()
    pq.write_table(table.append_column("more", table["label"]), other)
    with pytest.raises(InputError, match=r"rows-00\.parquet lacks the column 'more'"):
        RowFiles([paths, str(other)]).source()


def test_columns_may_stand_in_any_order_and_mutable_events_may_grow(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [3])
    table = rows_table(2)
    grown = [[{"event_ts": 1, "color": 7}], []]
    table = table.set_column(table.column_names.index("mutable"), "mutable", pa.array(grown))
    pq.write_table(table.select(sorted(table.column_names)), tmp_path / "z.parquet")
    source = RowFiles([paths, str(tmp_path / "z.parquet")], order="files").source()
    (chunk,) = source.chunks(5)
    assert chunk.columns["row"].to_pylist() == [0, 1, 2, 0, 1]
    assert chunk.rows.mutable is not None
    assert chunk.rows.mutable.columns["color"].values[-1] == 7


def test_a_row_that_is_wrong_names_its_file(tmp_path: Path) -> None:
    table = rows_table(3)
    table = table.set_column(0, "user_id", pa.array([1, None, 2], pa.int64()))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column user_id must not be null"):
        ids_of(RowFiles(tmp_path / "a.parquet").source())


def test_arguments_are_checked(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [3])
    for arguments, message in (
        ({"order": "random"}, "'users', 'mixed', 'rows', 'files' or 'lengths'"),
        ({"window_rows": 0}, "window_rows is 0"),
        ({"rank": 1}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, r"rank is 2, but must be in 0\.\.1"),
    ):
        with pytest.raises(UsageError, match=message):
            RowFiles(paths, **arguments)


def test_rank_and_world_size_are_those_of_torch_distributed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers initialize it after the files are named, and worker processes lack it."""
    paths = write_rows(tmp_path, [5])
    files = RowFiles(paths)
    assert (files.rank, files.world_size) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    assert (files.rank, files.world_size) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert (files.rank, files.world_size) == (2, 5)
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert (files.rank, files.world_size) == (1, 3)
    given = RowFiles(paths, rank=0, world_size=2)
    assert (given.rank, given.world_size) == (0, 2)
    copies = [pickle.dumps(files), pickle.dumps(given)]
    monkeypatch.undo()
    copied = [pickle.loads(copy) for copy in copies]  # noqa: S301
    assert [(copy.rank, copy.world_size) for copy in copied] == [(1, 3), (0, 2)]


def test_copies_take_the_footers_along(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [20, 20], row_group=6)
    files = RowFiles(paths, rank=1, world_size=2)
    right = ids_of(files.source())
    assert ids_of(pickle.loads(pickle.dumps(files)).source()) == right  # noqa: S301


def test_a_state_belongs_to_its_files_and_order(tmp_path: Path) -> None:
    paths = write_rows(tmp_path, [20])

    def files(**options: object) -> RowFiles:
        return RowFiles(paths, **{"rank": 0, "world_size": 2, **options})  # type: ignore[arg-type]

    def source(**options: object) -> FileSource:
        return files(**options).source(dealing=Dealing(batch_examples=4))

    mine = source()
    mine.took(4)
    state = mine.state_dict()
    assert json.loads(json.dumps(state)) == state
    for other, message in (
        (source(order="rows"), "order 'users', but this has 'rows'"),
        (source(seed=1), "seed 0, but this has 1"),
        (source(window_rows=7), "window_rows 65536, but this has 7"),
    ):
        with pytest.raises(UsageError, match=message):
            other.load_state_dict(state)
    sorted_by_row = source(order="lengths", length_column="row")
    with pytest.raises(UsageError, match="length_column None, but this has 'row'"):
        sorted_by_row.load_state_dict(source(order="lengths").state_dict())
    uncounted = {**state, "done": 3}
    for states, message in (
        ({**state, "version": 1}, "version 1, but this release reads 2"),
        ({}, "version None"),
        ([], "version None"),
        ({**state, "done": 13}, "damaged"),
        ({**state, "done": None}, "damaged"),
        ({**state, "ahead": [[5, 3]]}, "damaged"),
        ({**state, "shards": 3}, "damaged"),
        ([state, uncounted], "Two states of shard 0 differ"),
        ([state, {**state, "shard": 1, "epoch": 3}], "not saved at the same step"),
        ([state, {**state, "shard": 1, "start": 4}], "not saved at the same step"),
        ({"_snapshot": [state], "_steps_since_snapshot": 2}, "snapshot_every_n_steps=1"),
    ):
        with pytest.raises(UsageError, match=message):
            mine.load_state_dict(states)
    assert mine.state_dict() == state
    with pytest.raises(UsageError, match="state of rank 0 of 2 does not say where the other"):
        source(world_size=3).load_state_dict(uncounted)
    write_rows(tmp_path, [20], seed=3)
    with pytest.raises(UsageError, match="other files"):
        source().load_state_dict(state)


def test_lanes_are_read_by_their_own_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard reads no row group of other lanes, nor one whose rows other shards have."""
    opened: list[int] = []
    batches = FileGroups.batches

    def recorded(self: FileGroups, groups: list[int], *rest: Any) -> Any:  # noqa: ANN401
        opened.extend(groups)
        return batches(self, groups, *rest)

    monkeypatch.setattr(FileGroups, "batches", recorded)
    paths = write_rows(tmp_path, [160], row_group=10)
    dealing = Dealing(batch_examples=5)
    for order, window_rows, groups_of_each in (("users", 10, 4), ("files", 10, 16)):
        for rank in range(4):
            files = RowFiles(
                paths,
                order=order,  # type: ignore[arg-type]
                window_rows=window_rows,
                rank=rank,
                world_size=4,
            )
            opened.clear()
            assert len(ids_of(files.source(dealing=dealing))) == 40
            assert len(opened) == len(set(opened))
            assert len(opened) <= groups_of_each
