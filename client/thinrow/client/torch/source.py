"""Sources of thin rows for the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.pointers import ThinRows

__all__ = ["RowChunk", "RowSource"]


@dataclass(frozen=True, slots=True, eq=False)
class RowChunk:
    """Some thin rows, in the order in which they are trained on."""

    rows: ThinRows

    columns: pa.Table
    """The other columns of those rows, including `user_id` and `request_ts`."""

    example_ids: NDArray[np.int64]
    """Shape (rows,): numbers that no other row of the source has."""

    def cut(self, start: int, stop: int) -> RowChunk:
        """Returns the rows [start, stop)."""
        return RowChunk(
            self.rows[start:stop],
            self.columns.slice(start, stop - start),
            self.example_ids[start:stop],
        )


class RowSource(Protocol):
    """A sequence of thin rows that tracks the trainer's progress.

    `chunks` runs in a thread of the loader, everything else in the trainer's. The loader calls
    `took` just before it delivers a batch, and `commit` when the trainer requests the next one.
    """

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        """Yields the rows that no `took` has counted yet, at most `examples` at a time.

        An empty chunk means that no rows are there for now: the loader then delivers the pending
        rows without waiting for more.
        """

    def took(self, rows: int) -> None:
        """Counts the next `rows` rows, in order: they are in the next batch, or skipped."""

    def commit(self) -> None:
        """Releases the counted rows, which the trainer has processed."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the counted rows, in a handful of JSON fields."""

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401
        """Moves to a place: that of a state, or of the states of several ranks in a list.

        Raises:
            UsageError: The state belongs to another source.
        """

    def close(self) -> None:
        """Ends `chunks`, which may be waiting in its thread."""
