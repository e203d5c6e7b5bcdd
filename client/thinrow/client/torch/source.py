"""Where the loader's thin rows come from."""

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
    """The other columns of those rows, `user_id` and `request_ts` among them."""

    example_ids: NDArray[np.int64]
    """Shape (rows,): numbers that no other row of the source has."""

    def cut(self, start: int, stop: int) -> RowChunk:
        """The rows [start, stop)."""
        return RowChunk(
            self.rows[start:stop],
            self.columns.slice(start, stop - start),
            self.example_ids[start:stop],
        )


class RowSource(Protocol):
    """A sequence of thin rows that knows how far the trainer has come.

    `chunks` runs in a thread of the loader, everything else in the trainer's. The loader calls
    `took` just before it hands a batch out, and `commit` once the trainer asks for the next one.
    """

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        """Yields the rows that no `took` has counted yet, at most `examples` at a time.

        An empty chunk says that nothing is there for now: what was asked before is then delivered
        without waiting for more.
        """

    def took(self, rows: int) -> None:
        """Counts the next `rows` rows, in order: they are in a batch now handed out, or skipped."""

    def commit(self) -> None:
        """Lets go of what was taken: the trainer is done with it."""

    def state_dict(self) -> dict[str, Any]:
        """Tells the place after what was taken, in a handful of JSON fields."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises UsageError where `state` belongs to something else."""

    def close(self) -> None:
        """Ends `chunks`, which may be waiting in its thread."""
