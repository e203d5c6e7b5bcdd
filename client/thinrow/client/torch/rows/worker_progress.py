"""Progress that the worker processes of one DataLoader show each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.utils.data._utils.worker import WorkerInfo

__all__ = ["WorkerProgress"]

WORKERS_MAX = 1024
"""Workers of a DataLoader that are heard; with more, none counts as over."""


class WorkerProgress:
    """Epochs that workers have ended, in memory that all of them share.

    A StatefulDataLoader resumes all workers before it requests a batch of any, so that each worker
    then finds the positions of the others.
    """

    def __init__(self) -> None:
        # By worker: the DataLoader's seed, the epoch, and 1 if the worker has no batch left of it.
        self._table = torch.zeros((WORKERS_MAX, 3), dtype=torch.int64)
        self._table.share_memory_()  # type: ignore[no-untyped-call]

    def publish(self, worker: WorkerInfo, epoch: int, *, is_over: bool) -> None:
        """Shows the position at which a worker begins a pass."""
        if worker.id < WORKERS_MAX:
            self._table[worker.id] = torch.tensor([loader_seed(worker), epoch, int(is_over)])

    def all_over(self, worker: WorkerInfo, epoch: int) -> bool:
        """Returns True if no worker of this DataLoader has a batch left of an epoch."""
        expected = torch.tensor([loader_seed(worker), epoch, 1])
        return worker.num_workers <= WORKERS_MAX and bool(
            (self._table[: worker.num_workers] == expected).all()
        )


def loader_seed(worker: WorkerInfo) -> int:
    """Returns the seed that the workers of a DataLoader have in common."""
    return worker.seed - worker.id
