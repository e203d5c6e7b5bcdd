"""Checks of thin rows in parts, and rows to divide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from thinrow.core.shards import part_folder

if TYPE_CHECKING:
    from pathlib import Path

START_TS = 1_700_000_000_000


def part_of(user: int | str, parts: int) -> int:
    """The rule of docs/guides/rows.md, with another implementation of the hash."""
    if isinstance(user, str):
        user = xxhash.xxh3_64_intdigest(user.encode())
    return xxhash.xxh3_64_intdigest((user % (1 << 64)).to_bytes(8, "little")) % parts


def check_parts(folder: Path, whole: pa.Table, parts: int) -> None:
    """Each part has the rows of its users, in the order of `whole`; nothing else is there."""
    users = whole["user_id"].to_pylist()
    owners = np.array([part_of(user, parts) for user in users])
    assert {path.name for path in folder.iterdir()} == {part_folder(n) for n in set(owners)}
    for part in set(owners.tolist()):
        found = pq.ParquetFile(folder / part_folder(part) / "part-00000.parquet").read()
        assert found.schema.equals(whole.schema)
        rows = np.flatnonzero(owners == part).tolist()
        assert pa.concat_tables(whole.slice(row, 1) for row in rows).equals(found)
    assert sum(1 for _ in folder.rglob("*.parquet")) == len(set(owners))


def fat_rows(path: Path, users: list[int] | list[str]) -> Path:
    """Rows of users whose histories grow by one event a row, in an order by time."""
    rows = [(user, START_TS + 1_000_000 * (n + 1), n + 1) for n in range(4) for user in users]
    table = pa.table(
        {
            "user_id": pa.array([user for user, _, _ in rows]),
            "request_ts": pa.array([ts for _, ts, _ in rows], pa.int64()),
            "city": pa.array([f"c{n % 5}" for n in range(len(rows))], pa.string_view()),
            "event_ts": pa.array(
                [[START_TS + 1_000_000 * k + 1 for k in range(n)] for _, _, n in rows]
            ),
            "item_id": pa.array([list(range(n)) for _, _, n in rows]),
        }
    )
    pq.write_table(table, path, row_group_size=20)
    return path


def no_messages(_: pa.Table) -> list[pa.RecordBatch]:
    """Stands for `part_messages` of a task that loses its rows."""
    return []
