"""Settings of a loader: batches, statuses, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from thinrow.client.config import ClientConfig
from thinrow.client.torch.rows.epoch_place import Dealing
from thinrow.core.memory import FREED_BYTES_MAX
from thinrow.core.settings import require_bounds
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from thinrow.client.torch.batch import TensorBatch
    from thinrow.client.torch.rows.epoch_place import EvenEnds

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

    even_ends: EvenEnds | None = None
    """Gives all ranks equal numbers of batches of `batch_examples` rows: "drop" leaves out the last
    rows of the epoch, "pad" repeats its first ones. Skipped examples then make their batch smaller,
    or empty. None: ranks may differ by a batch. Not with `batch_events`."""

    whole_passes: bool = False
    """Starts each pass over files at the beginning of the same epoch, as evaluation needs, even if
    the last pass was left. Otherwise a pass continues a pass that was left, and the next one is the
    next epoch."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    """Treatment of examples by status, other than OK: "fail" raises StatusError, "skip" leaves the
    example out, "pass" delivers it without events. Default: "skip" for ERASED, which is normal and
    must not be trained on; "fail" for all others."""

    not_ready_wait_s: float = 0.0
    """Seconds to repeat, in each lookup, the request for examples that are NOT_READY before their
    policy applies."""

    integer_dtype: torch.dtype = torch.int64
    """Dtype of integer traits: torch.int64, or torch.int32, which raises InputError if a value does
    not fit. Traits named `..._ts` are always int64, and so is an `event_id` that is no text."""

    uint64_dtype: torch.dtype | None = None
    """Dtype of uint64 traits: torch.uint64, which has few operations, or None for `integer_dtype`.
    An int64 has the same bits, so that hashes from 2^63 on are negative."""

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
    """Most batches that are ready ahead of the trainer; small ones, up to 2 MiB together, count as
    one."""

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
        if self.even_ends not in (None, "drop", "pad"):
            raise UsageError(f"even_ends is {self.even_ends!r}, but must be 'drop', 'pad' or None.")
        if self.even_ends is not None and self.batch_events is not None:
            raise UsageError("even_ends needs batches of one size, so leave out batch_events.")
        if not 0 <= self.freed_bytes_kept <= FREED_BYTES_MAX:
            raise UsageError(
                f"freed_bytes_kept is {self.freed_bytes_kept}, but must be from 0 to "
                f"{FREED_BYTES_MAX}."
            )
        if self.integer_dtype not in (torch.int64, torch.int32):
            raise UsageError(
                f"integer_dtype is {self.integer_dtype}, but must be torch.int64 or torch.int32."
            )
        if self.uint64_dtype not in (torch.uint64, None):
            raise UsageError(
                f"uint64_dtype is {self.uint64_dtype}, but must be torch.uint64 or None."
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
        if not self.dealing.in_step:
            raise TypeError(
                f"The number of batches is not known in advance, as examples that are "
                f"{' or '.join(self._skipped)} are left out; to know it set their policy to 'fail' "
                f"or 'pass', or set even_ends."
            )
        return rows // self.batch_examples + (not self.drop_last and rows % self.batch_examples > 0)

    @property
    def dealing(self) -> Dealing:
        """The deal of files' rows to ranks and their workers."""
        is_fixed = self.batch_events is None and not self._skipped
        return Dealing(
            batch_examples=self.batch_examples,
            even_ends=self.even_ends,
            in_step=self.even_ends is not None or is_fixed,
        )

    @property
    def _skipped(self) -> list[str]:
        return [status for status in POLICIES if self.policy(status) == "skip"]

    def policy(self, status: str) -> Policy:
        """Returns the treatment of examples with a status other than OK."""
        return self.policies.get(status, POLICIES.get(status, "fail"))
