"""Draws sizes of what passes between Spark's driver and tasks; no answer depends on them."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from hypothesis import strategies as st
from support.task_hooks import Patch, hooked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.spark_cluster import Sparked

SHUFFLED = "thinrow.engines.spark.shuffled"
SLICES, SESSION = "thinrow.engines.spark.slices", "thinrow.engines.spark.session"


@dataclass(frozen=True)
class Sizes:
    """Sizes of slices, of ranges of users, and of messages."""

    slice_bytes: int
    range_events: int
    flush_bytes: int
    message_bytes: int
    batch_bytes: int
    rows_per_batch: int

    @contextmanager
    def applied(self, spark: Sparked, more: dict[str, object] | None = None) -> Iterator[None]:
        """Lets jobs have these sizes until the block ends, and tasks `more` patches, by name."""
        rows = {"spark.sql.execution.arrow.maxRecordsPerBatch": str(self.rows_per_batch)}
        patches: dict[str, object] = {
            f"{SHUFFLED}.FLUSH_BYTES": self.flush_bytes,
            f"{SHUFFLED}.MESSAGE_BYTES": self.message_bytes,
            f"{SHUFFLED}.BATCH_BYTES": self.batch_bytes,
            **(more or {}),
        }
        with ExitStack() as stack:
            stack.enter_context(mock.patch(f"{SLICES}.SLICE_BYTES", self.slice_bytes))
            stack.enter_context(mock.patch(f"{SLICES}.RANGE_EVENTS", self.range_events))
            stack.enter_context(mock.patch.dict(f"{SESSION}._RUNTIME", rows))
            hooks = [Patch(name, value) for name, value in patches.items()]
            stack.enter_context(hooked(spark.hooks, *hooks))
            yield


SIZES = st.builds(
    Sizes,
    slice_bytes=st.sampled_from((64 << 20, 3000, 1500)),
    range_events=st.sampled_from((1 << 21, 20, 1)),
    flush_bytes=st.sampled_from((96 << 20, 500, 1)),
    message_bytes=st.sampled_from((4 << 20, 200, 1)),
    batch_bytes=st.sampled_from((16 << 20, 1000, 1)),
    rows_per_batch=st.sampled_from((64, 3, 1)),
)
SMALL = Sizes(3000, 20, 500, 200, 1000, 3)
"""Sizes of which this world has several."""
