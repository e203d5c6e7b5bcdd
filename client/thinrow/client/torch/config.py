"""Settings of a loader: batches, statuses, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from thinrow.client.config import ClientConfig
from thinrow.core.memory import FREED_BYTES_MAX
from thinrow.core.settings import require_bounds
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from thinrow.client.torch.batch import TensorBatch

__all__ = ["LoaderConfig", "Policy"]

Policy = Literal["fail", "skip", "pass"]

POLICIES: dict[str, Policy] = {
    "NOT_READY": "fail",
    "EXPIRED": "fail",
    "DIGEST_MISMATCH": "fail",
    "ERASED": "skip",
    "INVALID": "fail",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderConfig:
    """Settings of a loader.

    Raises:
        UsageError: A value is out of its range.
    """

    batch_examples: int = 512
    """Most examples in a batch."""

    batch_events: int | None = None
    """Most events in a batch, which bounds its memory: a batch ends before the example that would
    exceed it. A longer example forms a batch alone. None: no limit."""

    drop_last: bool = False
    """Leaves out a last batch of fewer than `batch_examples`. Not with `batch_events`."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    """Treatment of examples by status, other than OK: "fail" raises StatusError, "skip" leaves the
    example out, "pass" delivers it without events. Default: "skip" for ERASED, which is normal and
    must not be trained on; "fail" for all others."""

    not_ready_wait_s: float = 0.0
    """Seconds to repeat, in each lookup, the request for examples that are NOT_READY before their
    policy applies."""

    integer_dtype: torch.dtype = torch.int64
    """Dtype of integer traits: torch.int64, or torch.int32, which raises InputError if a value does
    not fit. Traits named `..._ts` and `event_id` are always int64."""

    columns: tuple[str, ...] | None = None
    """The rows' other columns that a batch carries. None: all."""

    transform: Callable[[TensorBatch], Any] | None = None
    """Converts each batch into what the loader delivers, such as a dict. It runs in the trainer's
    thread, on a batch that is on the device, or in the worker process of a dataset."""

    lookup_examples: int = 4096
    """Rows looked up together, enough for several batches: among them a user's events travel once,
    in any order of the rows. Batches are cut from the answers."""

    chunks_ahead: int = 2
    """Most chunks of `lookup_examples` rows that are read ahead of their lookup."""

    widen_threads: int = 2
    """Threads that share the widening of a batch."""

    batches_ahead: int = 2
    """Most batches that are ready ahead of the trainer."""

    freed_bytes_kept: int = 0
    """Freed memory that the GNU C library keeps for later allocations, in the whole process; 0
    leaves its settings alone. 256 MiB saves the kernel from clearing pages for each response."""

    client: ClientConfig = field(default_factory=ClientConfig)
    """Deadlines, retries and credentials of the client."""

    def __post_init__(self) -> None:
        counts = ("batch_examples", "batch_events", "lookup_examples", "chunks_ahead")
        require_bounds(self, *counts, "widen_threads", "batches_ahead", not_ready_wait_s=0)
        if isinstance(self.columns, str):
            raise UsageError(
                f"columns is the text {self.columns!r}, but must be a tuple of names, such as "
                f"({self.columns!r},)."
            )
        if self.drop_last and self.batch_events is not None:
            raise UsageError("drop_last needs batches of one size, so leave out batch_events.")
        if not 0 <= self.freed_bytes_kept <= FREED_BYTES_MAX:
            raise UsageError(
                f"freed_bytes_kept is {self.freed_bytes_kept}, but must be from 0 to "
                f"{FREED_BYTES_MAX}."
            )
        if self.integer_dtype not in (torch.int64, torch.int32):
            raise UsageError(
                f"integer_dtype is {self.integer_dtype}, but must be torch.int64 or torch.int32."
            )
        for status, policy in self.policies.items():
            if status not in POLICIES or policy not in ("fail", "skip", "pass"):
                raise UsageError(
                    f"The policy {status}: {policy} is unknown; name one of {', '.join(POLICIES)} "
                    f"as 'fail', 'skip' or 'pass'."
                )

    def batches(self, rows: int) -> int:
        """Returns how many batches an epoch of `rows` rows makes.

        Raises:
            TypeError: the examples decide where batches end, so that only a pass can count them.
        """
        if self.batch_events is not None:
            raise TypeError("With batch_events the number of batches is not known in advance.")
        skipped = [status for status in POLICIES if self.policy(status) == "skip"]
        if skipped:
            raise TypeError(
                f"The number of batches is not known in advance, as examples that are "
                f"{' or '.join(skipped)} are left out; to know it set their policy to 'fail' or "
                f"'pass'."
            )
        return rows // self.batch_examples + (not self.drop_last and rows % self.batch_examples > 0)

    def policy(self, status: str) -> Policy:
        """Returns the treatment of examples with a status other than OK."""
        return self.policies.get(status, POLICIES.get(status, "fail"))
