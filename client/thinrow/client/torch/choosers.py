"""Choices of rows: what filters, splits and downsampling keep, by the values of a few columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.client.torch.row_groups import all_columns, joint_columns
from thinrow.core.files.arrow import plain_schema
from thinrow.core.files.row_filter import RowFilter

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.row_groups import RowGroups
    from thinrow.core.files.row_filter import Condition

__all__ = ["KeptRows"]


class KeptRows:
    """The rows for which a condition is true: a Chooser."""

    def __init__(self, groups: RowGroups, condition: Condition) -> None:
        # Only the columns that the condition reads must have one type in all files.
        columns = RowFilter(condition, plain_schema(all_columns(groups))).columns
        self.schema = joint_columns(groups, columns or ["user_id"])
        self._filter = RowFilter(condition, self.schema)

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns 0 for rows to keep, -1 for others; see Chooser."""
        del numbers
        return np.where(self._filter.mask(batch), 0, -1)

    def possible(self, groups: RowGroups, part: int) -> set[int]:
        """Returns the row groups that statistics do not rule out; see Chooser."""
        return self._filter.possible(groups.known(part, self.schema), self.schema)
