"""Host memory that batches borrow and return, so that it is allocated and touched once.

Fresh memory costs a page fault for every 4 KiB and, if pinned, a call that stalls the GPU: both
cost more than filling it.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Ring"]

log = logging.getLogger(__name__)


class Ring:
    """Memory for a fixed number of batches, of `slot_bytes` each.

    Memory is lent until the last tensor that views it is gone, in any thread; then it is lent
    again. If more is borrowed at once than there are slots, or a batch is larger than its slot, new
    memory is allocated, which `allocations` counts. One thread calls `borrow`.

    Args:
        slots: Most pieces of memory kept.
        slot_bytes: Size of the largest batch, if it is known. Grows if that is too small.
        pinned: True if a GPU copies from it.
    """

    def __init__(self, slots: int, slot_bytes: int = 0, *, pinned: bool = False) -> None:
        self.allocations = 0
        self._pinned = pinned
        self._slot_bytes = slot_bytes
        # A deque, because memory may come back in a finalizer, which must not wait for a lock.
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=slots)
        if slot_bytes:
            self._free.extend([self._allocate() for _ in range(slots)])

    def borrow(self, size_bytes: int) -> Tensor:
        """Lends host memory: uint8, shape (size_bytes,), of any content."""
        slot = self._free_slot(size_bytes)
        # A view that only the tensors of this loan share.
        lent = slot[:size_bytes]
        weakref.finalize(lent, self._free.append, slot).atexit = False
        return torch.from_numpy(lent)

    @property
    def free(self) -> int:
        """Pieces of memory that are not lent."""
        return len(self._free)

    def _free_slot(self, size_bytes: int) -> NDArray[np.uint8]:
        if size_bytes > self._slot_bytes:
            # A power of two, so that growth stops soon; pinned memory has such sizes anyway.
            self._slot_bytes = 1 << (size_bytes - 1).bit_length()
            log.info("The memory of a batch grows to %d bytes.", self._slot_bytes)
        # Smaller slots, from before the last growth, are dropped.
        while self._free:
            slot = self._free.popleft()
            if len(slot) >= size_bytes:
                return slot
        return self._allocate()

    def _allocate(self) -> NDArray[np.uint8]:
        self.allocations += 1
        if not self._pinned:
            return np.empty(self._slot_bytes, np.uint8)
        memory: NDArray[Any] = torch.empty(
            self._slot_bytes, dtype=torch.uint8, pin_memory=True
        ).numpy()
        return memory
