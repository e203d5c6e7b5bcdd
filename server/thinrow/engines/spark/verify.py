"""Verification on Spark: each task compares a range of rows, on a connection of its own."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.client.target import parse_targets
from thinrow.engines.spark.session import Spark
from thinrow.engines.spark.tasks import (
    check_numbers,
    numbers_in,
    software,
    task,
)
from thinrow.errors import UsageError
from thinrow.jobs.connected_jobs import targets_of
from thinrow.jobs.connecting import connected
from thinrow.jobs.layout import FatLayout
from thinrow.jobs.verify import Comparison
from thinrow.remote.reading import is_remote_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from thinrow.engines.spark.tasks import Software
    from thinrow.events.split import Progress
    from thinrow.jobs.compared_rows import ComparedRows, VerifyReport
    from thinrow.jobs.config import FatLayoutConfig, VerifyConfig
    from thinrow.jobs.connecting import Access

__all__ = ["RANGE_ROWS", "verify"]

RANGE_ROWS = 1 << 16
"""Rows that one task compares, about: a task connects once, and row groups stay whole."""
COMPARED_COLUMNS = "range int, body binary"
_COMPARED = pa.schema([("range", pa.int32()), ("body", pa.binary())])


def verify(
    config: VerifyConfig,
    layout: FatLayoutConfig,
    access: Access,
    properties: Mapping[str, str],
    progress: Progress = lambda *_: None,
) -> VerifyReport:
    """Materializes thin rows and compares every event with fat rows.

    Args:
        config: The run.
        layout: Layout of the fat rows.
        access: Credentials, which executors have at the same paths.
        properties: Properties of Spark by name.
        progress: Receives the work done.

    Raises:
        UsageError: The store is at a URL, or a target is unclear.
        InputError: The files cannot be compared, or have another layout.
        EngineError: Spark did not finish.
        ThinRowError: A server failed, or cannot be reached.
    """
    targets = targets_of(config.server)
    if len(targets) == 1 and is_remote_store(str(targets[0])):
        raise UsageError(
            f"--server is {targets[0]}, which every task would have to copy; with --engine spark "
            f"name servers of that store, or a store in a folder that all executors share."
        )
    place = parse_targets(targets)
    targets = [place] if isinstance(place, Path) else [*place]
    access = replace(access, **{name: path.absolute() for name, path in _paths(access).items()})
    with connected(targets, access) as client:
        comparison = Comparison.of(
            client,
            config.rows,
            config.against,
            config.sequence_length,
            FatLayout.of(layout),
            config.time_unit,
        )
    comparison = replace(comparison, rows=comparison.rows.absolute, fat=comparison.fat.absolute)
    bounds = comparison.rows.bounds(RANGE_ROWS)
    plan = VerifyPlan(
        software=software(), comparison=comparison, bounds=bounds, targets=targets, access=access
    )
    with Spark(properties, progress) as spark:
        frame = spark.numbers(len(bounds) - 1).mapInArrow(plan.compare, COMPARED_COLUMNS)
        rows = sorted(spark.rows(frame, "Comparing rows"), key=lambda row: row[0])
    check_numbers("ranges", [row[0] for row in rows], len(bounds) - 1)
    # Tasks of this run wrote them, as Spark's own results are.
    return comparison.total(pickle.loads(row[1]) for row in rows)  # noqa: S301


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyPlan:
    """Input of tasks; Spark carries it to them."""

    software: Software
    comparison: Comparison
    bounds: list[int]
    """First row of each range, and the number of all rows."""
    targets: list[str | Path]
    access: Access

    def compare(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compares ranges of rows, and yields what was found in each.

        Args:
            found: Numbers of ranges, in a column `id`.
        """
        with task(self.software):
            ranges = list(pairwise(self.bounds))
            for number in numbers_in(found):
                with connected(self.targets, self.access) as client:
                    compared = self.comparison.compare(client, *ranges[number])
                yield _row(number, compared)


def _row(number: int, compared: ComparedRows) -> pa.RecordBatch:
    body = pickle.dumps(compared)
    return pa.RecordBatch.from_pydict({"range": [number], "body": [body]}, schema=_COMPARED)


def _paths(access: Access) -> dict[str, Path]:
    paths = {name: getattr(access, name) for name in ("ca", "cert", "key", "token_file")}
    return {name: path for name, path in paths.items() if path is not None}
