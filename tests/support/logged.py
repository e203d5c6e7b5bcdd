"""For the logger's tests: rows and configurations, and what came out."""

# ruff: noqa: ANN401 - options go through as they are

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.row_parts import part_of
from thinrow.client.logger import FileOutput, LoggerConfig, ThinRow, ThinRowLogger
from thinrow.core.shards import part_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HOUR_MS = 3_600_000
NOW_TS = 500_000 * HOUR_MS
FEATURES = pa.schema([("score", pa.float32()), ("place", pa.int16())])
EVENT = pa.struct(
    [
        *((name, pa.int64()) for name in ("event_ts", "arrival_ts", "event_id", "item_id")),
        ("brand", pa.string()),
        ("rating", pa.int8()),
        ("price", pa.float64()),
    ]
)
LABELS = pa.schema([("click", pa.int8()), ("watch_s", pa.float32()), ("said", pa.string())])


class Clock:
    """Time as a test wants it."""

    def __init__(self, now_ts: int = NOW_TS) -> None:
        self.now_ts = now_ts

    def __call__(self) -> int:
        return self.now_ts


def a_row(user_id: int, *, request_ts: int = NOW_TS, events: int = 2) -> ThinRow:
    """A thin row whose every value follows from the user."""
    return ThinRow(
        user_id=user_id,
        request_ts=request_ts,
        start_ts=user_id,
        end_ts=request_ts - 1000,
        max_length=user_id % 3,
        digest=(1 << 64) - 1 - user_id,
        mutable=tuple(
            {
                "event_ts": request_ts - 10 + n,
                "arrival_ts": request_ts - 10 + n,
                "event_id": n or None,
                "item_id": user_id * 10 + n,
                "brand": f"é{n}",
                "rating": None if n else 5,
                "price": 0.1,
            }
            for n in range(events)
        ),
    )


def features_of(user_id: int) -> dict[str, object]:
    return {"score": user_id / 4, "place": user_id % 100}


def config_in(folder: Path, **options: Any) -> LoggerConfig:
    return LoggerConfig(
        **{
            "journal": folder / "journal",
            "mutable": pa.list_(EVENT),
            "features": FEATURES,
            "labels": LABELS,
            "label_defaults": {"click": 0},
            "join_window_ms": 1000,
            "files": FileOutput(folder=folder / "rows", part_ms=0),
            "commit_ms": 5,
            "retry_ms": 20,
            **options,
        }
    )


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "rows").rglob("*.parquet"))


def published(folder: Path) -> list[dict[str, Any]]:
    """Every row in the files."""
    rows: list[dict[str, Any]] = []
    for path in parts(folder):
        table = pq.ParquetFile(path).read()
        assert len(table)
        rows += table.to_pylist()
    return rows


def request_ids(folder: Path) -> Counter[str]:
    return Counter(row["request_id"] for row in published(folder))


def check_layout(folder: Path, layouts: Sequence[int]) -> dict[int, int]:
    """Checks that each batch is in the folders of one layout, and each row where it belongs.

    Args:
        folder: The logger's folder.
        layouts: Numbers of parts that files may have; 0 for none.

    Returns:
        The number of batches in each layout; files of so few rows that several fit count as the
        first of these.
    """
    batches: dict[str, list[Path]] = {}
    for path in parts(folder):
        batches.setdefault(path.name, []).append(path)
    found: Counter[int] = Counter()
    for name, paths in batches.items():
        fitting = [
            layout
            for layout in layouts
            if all(
                path.parent == folder / "rows" / place_of(row, layout)
                for path in paths
                for row in pq.ParquetFile(path).read().to_pylist()
            )
        ]
        assert fitting, f"{name} has files of several layouts"
        found[fitting[0]] += 1
    return found


def place_of(row: dict[str, Any], layout: int) -> str:
    """Names the folder of a row, below that of the files."""
    hour = datetime.fromtimestamp(row["request_ts"] / 1000, UTC).strftime("hour=%Y-%m-%dT%H")
    return f"{hour}/{part_folder(part_of(row['user_id'], layout))}" if layout else hour


def pending(folder: Path) -> int:
    with ThinRowLogger(config_in(folder), clock=Clock()) as logger:
        return logger.counts.rows_pending


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("segment-*"))


def wait_for(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.005)
