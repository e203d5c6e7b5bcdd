"""What a loader may be told: batches, statuses, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from thinrow.client.config import ClientConfig
from thinrow.core.memory import FREED_BYTES_MAX
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """How thin rows become batches. Raises UsageError for a value out of its range."""

    batch_examples: int = 512
    """Most examples in a batch."""

    batch_events: int | None = None
    """Most events in a batch, so that long histories do not blow memory: a batch ends before the
    example that would exceed it. One example longer than that comes alone. None: no limit."""

    drop_last: bool = False
    """Whether a last batch of fewer than `batch_examples` is left out. Not with `batch_events`."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    """What becomes of an example by its status, other than OK: "fail" raises StatusError, "skip"
    leaves it out, "pass" hands it on without events. Default: "skip" for ERASED, which is to be
    expected and must not be trained on; "fail" for all others."""

    not_ready_wait_s: float = 0.0
    """Seconds to go on asking, in each lookup, for examples that are NOT_READY before their policy
    applies."""

    integer_dtype: torch.dtype = torch.int64
    """What integer traits become: torch.int64, or torch.int32, which raises InputError where a
    value does not fit. Traits named `..._ts` and `event_id` are int64 in any case."""

    columns: tuple[str, ...] | None = None
    """Which of the rows' other columns go along. None: all."""

    lookup_examples: int = 4096
    """Rows looked up together, several batches' worth: among them a user's events travel once, in
    whatever order the rows come. The batches are cut anew from the answers."""

    chunks_ahead: int = 2
    """Most chunks of `lookup_examples` rows that are read and not yet asked for."""

    widen_threads: int = 2
    """Threads that share the widening of a batch."""

    batches_ahead: int = 2
    """Most batches that are ready and not yet handed out."""

    freed_bytes_kept: int = 0
    """Freed memory that the GNU C library keeps for later allocations, in the whole process; 0
    leaves its settings alone. 256 MiB saves the kernel from clearing pages for each response."""

    client: ClientConfig = field(default_factory=ClientConfig)
    """Deadlines, retries and credentials of the client."""

    def __post_init__(self) -> None:
        for name in (
            "batch_examples",
            "lookup_examples",
            "chunks_ahead",
            "widen_threads",
            "batches_ahead",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be 1 or more.")
        if isinstance(self.columns, str):
            raise UsageError(
                f"columns is the text {self.columns!r}, but must be a tuple of names, such as "
                f"({self.columns!r},)."
            )
        if self.batch_events is not None and self.batch_events < 1:
            raise UsageError(f"batch_events is {self.batch_events}, but must be 1 or more.")
        if self.drop_last and self.batch_events is not None:
            raise UsageError("drop_last needs batches of one size, so leave out batch_events.")
        if not 0 <= self.freed_bytes_kept <= FREED_BYTES_MAX:
            raise UsageError(
                f"freed_bytes_kept is {self.freed_bytes_kept}, but must be from 0 to "
                f"{FREED_BYTES_MAX}."
            )
        if self.not_ready_wait_s < 0:
            raise UsageError(
                f"not_ready_wait_s is {self.not_ready_wait_s}, but must not be below 0."
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

    def policy(self, status: str) -> Policy:
        """Tells what becomes of examples with a status other than OK."""
        return self.policies.get(status, POLICIES.get(status, "fail"))
