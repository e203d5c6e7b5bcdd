"""Thin rows for the loader's tests: files, and what came out of them."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.worlds import as_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from thinrow.client.torch import FileSource, TensorBatch

UIH = pa.struct(
    [(name, pa.int64()) for name in ("start_ts", "end_ts", "max_length")]
    + [("digest", pa.uint64())]
)
EVENT = pa.struct(
    [
        ("event_ts", pa.int64()),
        ("arrival_ts", pa.int64()),
        ("event_id", pa.int64()),
        ("item_id", pa.int64()),
        ("brand", pa.string()),
        ("rating", pa.int8()),
        ("price", pa.float64()),
    ]
)
USERS = (1, 2, 3, 4, 5, 99)


def rows_table(
    rows: int, *, users: Sequence[int] = USERS, seed: int = 0, end_ts: int | None = None
) -> pa.Table:
    """Rows that are OK at a server of `built_world`; some have mutable events, or short windows."""
    rng = random.Random(seed)
    end_ts = as_of(3) if end_ts is None else end_ts

    def mutable() -> list[dict[str, Any]]:
        times = sorted(end_ts + rng.randrange(1000) for _ in range(rng.choice((0, 0, 1, 3))))
        return [
            {
                "event_ts": time,
                "arrival_ts": time,
                "event_id": 0,
                "item_id": rng.randrange(9),
                "brand": rng.choice("ab"),
                "rating": rng.choice((None, 3)),
                "price": 0.5,
            }
            for time in times
        ]

    return pa.table(
        {
            "user_id": pa.array([rng.choice(users) for _ in range(rows)], pa.int64()),
            "request_ts": pa.array([end_ts + 1000] * rows, pa.int64()),
            "row": pa.array(range(rows), pa.int64()),
            "label": pa.array([rng.random() for _ in range(rows)], pa.float32()),
            "uih": pa.array(
                [
                    {
                        "start_ts": 0,
                        "end_ts": end_ts,
                        "max_length": rng.choice((0, 0, 1, 10)),
                        "digest": 0,
                    }
                    for _ in range(rows)
                ],
                UIH,
            ),
            "mutable": pa.array([mutable() for _ in range(rows)], pa.list_(EVENT)),
        }
    )


def write_rows(folder: Path, counts: Iterable[int], *, row_group: int = 50, seed: int = 0) -> str:
    """Writes files of that many rows each; the glob that finds them."""
    for number, count in enumerate(counts):
        pq.write_table(
            rows_table(count, seed=seed + number),
            folder / f"rows-{number:02}.parquet",
            row_group_size=row_group,
        )
    return str(folder / "rows-*.parquet")


def ids_of(source: FileSource, examples: int = 7) -> list[int]:
    """Remaining rows of a source."""
    return [number for chunk in source.chunks(examples) for number in chunk.example_ids.tolist()]


def shown(batch: TensorBatch) -> list[Any]:
    """A batch as Python values, one entry per example, so that two can be compared.

    Text is shown as such: the codes of a batch depend on how its examples were requested.
    """
    ends = batch.offsets.tolist()
    traits = {}
    for trait, values in batch.values.items():
        listed = values.tolist()
        if trait in batch.strings:
            texts = batch.strings[trait]
            listed = [texts[code] if code < len(texts) else None for code in listed]
        if trait in batch.list_offsets:
            places = pairwise(batch.list_offsets[trait].tolist())
            listed = [listed[start:stop] for start, stop in places]
        if trait in batch.present:
            there = batch.present[trait].tolist()
            listed = [value if known else None for value, known in zip(listed, there, strict=True)]
        traits[trait] = listed
    columns = {
        name: column if isinstance(column, list) else column.tolist()
        for name, column in batch.columns.items()
    }
    return [
        (
            batch.example_ids[n].item(),
            batch.statuses[n].item(),
            {trait: listed[ends[n] : ends[n + 1]] for trait, listed in traits.items()},
            {name: column[n] for name, column in columns.items()},
        )
        for n in range(len(batch))
    ]
