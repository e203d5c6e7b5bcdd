"""Events of one user and id that arrive in the same millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["FirstOfMoment"]

NAME = ("arrival_ts", "user_id", "event_id")


class FirstOfMoment:
    """Finds the events that no other of the same user, id and arrival precedes in the log.

    Servers keep the first in the log, so generations must hold that one as well. Compaction, which
    knows no log, would keep the first in the order of a history.
    """

    def __init__(self) -> None:
        self._last: pl.DataFrame | None = None
        """Events of the last moment of each partition, which may go on."""

    def are_first(self, batch: pa.RecordBatch, partitions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether each event is the first of its name; true for those without an id.

        Args:
            batch: The next events of the log, with the columns of an exported file.
            partitions: Partition of each event, each in the order of its log.
        """
        frame = pl.DataFrame({name: pl.from_arrow(batch[name]) for name in NAME})
        frame = frame.with_columns(partition=pl.Series(partitions))
        before = 0
        if self._last is not None:
            before = len(self._last)
            frame = pl.concat([self._last, frame])
        is_first = frame.select(
            pl.col("event_id").is_null() | pl.struct(NAME).is_first_distinct()
        ).to_series()
        self._last = frame.filter(
            is_first
            & pl.col("event_id").is_not_null()
            & (pl.col("arrival_ts") == pl.col("arrival_ts").max().over("partition"))
        )
        found: NDArray[np.bool_] = is_first[before:].to_numpy()
        return found
