"""Lance: a table with one row per user and one list per trait, read with `take`.

Written with the format's defaults. `take` is what its documentation has for random access; it is
read for each user of a batch once, and for the traits wanted. A list comes whole: there is no
taking of its newest elements, so these are cut from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from sides import ahead

from peers.parquet import int64_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from expected import Examples
    from sides import Tensors


class LanceTake:
    """The newest events of some users."""

    name = "Lance, take"
    pids: Sequence[int] = ()

    def __init__(self, folder: Path, examples: Examples) -> None:
        """Writes the table, every user's whole history."""
        import lance

        self.examples = examples
        histories = examples.histories
        starts = pa.array(histories.starts.astype(np.int32))
        table = pa.table(
            {
                "user_id": histories.users,
                **{
                    trait: pa.ListArray.from_arrays(starts, pa.array(values))
                    for trait, values in histories.traits.items()
                },
            }
        )
        self.table = lance.write_dataset(table, str(folder))

    def batches(self) -> Iterator[Tensors]:
        """Read ahead in a thread."""
        return ahead(self.tensors())

    def tensors(self) -> Iterator[Tensors]:
        """One take per batch."""
        examples, histories = self.examples, self.examples.histories
        for places in examples.places:
            ranks = histories.ranks(examples.user_ids[places])
            rows, row_of = np.unique(ranks, return_inverse=True)
            taken = self.table.take(rows.tolist(), columns=list(examples.traits))
            lists = [column.combine_chunks() for column in taken.columns]
            row_starts = lists[0].offsets.to_numpy()[row_of].astype(np.int64)
            shift = row_starts - lists[0].offsets[0].as_py() - histories.starts[ranks]
            starts = (examples.starts[places] + shift).tolist()
            ends = (examples.ends[places] + shift).tolist()
            columns = []
            for column in lists:
                values = column.flatten().to_numpy()
                pairs = zip(starts, ends, strict=True)
                columns.append(np.concatenate([values[start:end] for start, end in pairs]))
            lengths = examples.lengths[places]
            yield int64_tensors(np.append(0, np.cumsum(lengths)), columns)
