"""Copies of batches from host memory to the device that trains the model."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch
from thinrow.client.torch.ring import Ring
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.client.torch.batch import TensorBatch
    from torch import Tensor

__all__ = ["DeviceCopy", "PendingCopy"]


class PendingCopy(NamedTuple):
    """A batch whose copy is in flight."""

    batch: TensorBatch
    """The batch on the device; to be read after `copied`."""

    copied: torch.cuda.Event | None
    """The end of the copy; None if there is no copy to wait for."""


class DeviceCopy:
    """Copies batches to a device on a CUDA stream of its own, in parallel with the training.

    One thread calls `allocate` and `send`, the trainer `receive`. Without CUDA the same calls
    return the host's tensors.

    Args:
        device: Target of the batches: a CUDA device, or the CPU.
        slots: Batches in flight or not yet delivered, and one that is being written.
        slot_bytes: Size of the largest batch, or 0 if that is not known; see Ring.

    Raises:
        UsageError: The device does not exist, or is of another kind.
    """

    def __init__(self, device: torch.device | str, *, slots: int, slot_bytes: int = 0) -> None:
        self.device = resolved(device)
        self.copied_bytes = 0
        cuda = self.device.type == "cuda"
        self._ring = Ring(slots, slot_bytes, pinned=cuda)
        self._slots = slots
        self._stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]
        # Host memory must outlive the copy that reads it.
        self._reading: deque[tuple[torch.cuda.Event, Sequence[TensorBatch]]] = deque()

    @property
    def allocations(self) -> int:
        """Pieces of host memory allocated so far; constant once it has warmed up."""
        return self._ring.allocations

    def allocate(self, size_bytes: int) -> Tensor:
        """Lends host memory for batches: uint8, shape (size_bytes,). See `lay_out`.

        Waits for the oldest copy if all slots are being read.
        """
        while self._reading:
            copied = self._reading[0][0]
            done = copied.query()  # type: ignore[no-untyped-call]
            if not done and len(self._reading) < self._slots:
                break
            copied.synchronize()
            self._reading.popleft()
        return self._ring.borrow(size_bytes)

    def send(self, batch: TensorBatch) -> PendingCopy:
        """Enqueues the copy of a batch, which must not change any more; does not wait."""
        return self.send_all([batch])[0]

    def send_all(self, batches: Sequence[TensorBatch]) -> list[PendingCopy]:
        """Enqueues the copies of batches that lie in one piece of memory; see `send`."""
        if self._stream is None:
            return [PendingCopy(batch, None) for batch in batches]
        self.copied_bytes += sum(batch.nbytes for batch in batches)
        with torch.cuda.stream(self._stream):
            moved = [batch.to(self.device, non_blocking=True) for batch in batches]
            copied = self._stream.record_event()
        self._reading.append((copied, batches))
        return [PendingCopy(batch, copied) for batch in moved]

    def receive(self, sent: PendingCopy) -> TensorBatch:
        """Makes the current stream wait for the copy of a batch; the host does not wait."""
        if sent.copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(sent.copied)
            # It was allocated on the copying stream, which must not reuse it too early.
            sent.batch.record_stream(stream)
        return sent.batch

    def close(self) -> None:
        """Waits for the copies in flight. Delivered batches stay valid."""
        while self._reading:
            self._reading.popleft()[0].synchronize()


def resolved(device: torch.device | str) -> torch.device:
    """Returns the device with its number, because other threads may have another current one."""
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"There is no device {device!r}; take 'cpu' or 'cuda'.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"Batches are copied to CUDA devices only, not to {device}; load them on the 'cpu' and "
            f"move them with `batch.to`."
        )
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise UsageError(f"There is no CUDA device here to copy to {device}; take 'cpu'.")
    return torch.device(
        "cuda", torch.cuda.current_device() if device.index is None else device.index
    )
