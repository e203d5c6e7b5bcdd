"""Memory that batches borrow: never rewritten while in use, and reused."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.filled_batches import filled
from support.paths import BENCH
from thinrow.client.torch.device import DeviceCopy
from thinrow.client.torch.ring import Ring
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.client.torch.batch import TensorBatch
    from torch import Tensor

VIEWS: list[Callable[[TensorBatch], Tensor]] = [
    lambda batch: batch.values["item_id"],
    lambda batch: batch.values["item_id"][1:],
    lambda batch: batch.to_njt("rating").values(),
    lambda batch: torch.from_numpy(batch.offsets.numpy()),
    lambda batch: torch.utils.dlpack.from_dlpack(batch.values["embedding"]),
    lambda batch: batch.to("cpu").statuses,
]
"""Ways to hold on to a part of a batch, and not to the batch."""


@given(
    events=st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    slots=st.integers(1, 4),
    slot_bytes=st.sampled_from([0, 1000, 100_000]),
    seed=st.integers(0, 1 << 32),
)
def test_what_is_held_never_changes(
    events: list[int], slots: int, slot_bytes: int, seed: int
) -> None:
    rng = random.Random(seed)
    copy = DeviceCopy("cpu", slots=slots, slot_bytes=slot_bytes)
    held: list[tuple[Tensor, Tensor]] = []
    for number, count in enumerate(events):
        batch = copy.receive(copy.send(filled(number, count, copy.allocate)))
        view = rng.choice(VIEWS)(batch)
        held.append((view, view.clone()))
        for place in sorted(range(len(held)), reverse=True):
            if rng.random() < 0.3:
                del held[place]
        assert all(torch.equal(view, before) for view, before in held)
    copy.close()
    assert all(torch.equal(view, before) for view, before in held)


def test_memory_comes_back_once_the_last_view_of_it_is_gone() -> None:
    ring = Ring(2, 4096)
    assert ring.free == 2
    first = ring.borrow(4096)
    place = first.data_ptr()
    view = first[100:200].view(torch.int32)
    del first
    assert ring.free == 1
    assert ring.borrow(4096).data_ptr() != place
    del view
    assert ring.free == 2
    assert place in {ring.borrow(10).data_ptr(), ring.borrow(10).data_ptr()}


def test_memory_outlives_its_ring() -> None:
    ring = Ring(1, 1 << 20)
    lent = ring.borrow(1 << 20).fill_(7)
    del ring
    gc.collect()
    others = [np.full(1 << 20, 1, np.uint8) for _ in range(4)]
    assert len(others) * bool((lent == 7).all()) == 4


def test_nothing_is_allocated_once_warm() -> None:
    copy = DeviceCopy("cpu", slots=3)
    rng = random.Random(0)
    batches: list[TensorBatch] = []
    allocations = []
    for number in range(200):
        batches.append(
            copy.receive(copy.send(filled(number, rng.randrange(500, 1000), copy.allocate)))
        )
        del batches[:-2]
        allocations.append(copy.allocations)
    assert allocations[9] == allocations[-1] <= 6


def test_more_is_lent_than_there_are_slots_rather_than_wait_forever() -> None:
    copy = DeviceCopy("cpu", slots=2, slot_bytes=1 << 16)
    batches = [copy.receive(copy.send(filled(n, 100, copy.allocate))) for n in range(50)]
    assert [int(batch.example_ids[0]) for batch in batches] == list(range(50))
    assert copy.allocations == 50
    batches.clear()
    # What was lent beyond the slots is released.
    filled(0, 100, copy.allocate)
    assert copy._ring.free == 2


def test_a_batch_larger_than_its_slot_makes_slots_grow() -> None:
    ring = Ring(2, 1000)
    assert ring.allocations == 2
    for _ in range(10):
        assert len(ring.borrow(5000)) == 5000
        assert len(ring.borrow(8192)) == 8192
    assert ring.allocations <= 4
    for _ in range(10):
        ring.borrow(8193)
    assert ring.allocations <= 6


@pytest.mark.parametrize("size_bytes", [0, 1])
def test_a_batch_of_next_to_nothing_is_lent_too(size_bytes: int) -> None:
    ring = Ring(1)
    for _ in range(3):
        assert len(ring.borrow(size_bytes)) == size_bytes


def test_memory_comes_back_from_any_thread() -> None:
    """A trainer releases batches while the loader requests memory: neither waits nor is lost."""
    copy = DeviceCopy("cpu", slots=4)
    wrong: list[int] = []

    def release(batches: list[TensorBatch]) -> None:
        for batch in batches:
            number = int(batch.example_ids[0])
            if not bool((batch.values["item_id"] == number).all()):
                wrong.append(number)
        batches.clear()

    for start in range(0, 400, 4):
        batches = [
            copy.receive(copy.send(filled(number, 200, copy.allocate)))
            for number in range(start, start + 4)
        ]
        thread = threading.Thread(target=release, args=(batches,))
        thread.start()
        for number in range(10_000, 10_004):
            filled(number, 200, copy.allocate)
        thread.join()
    assert not wrong


def test_without_cuda_nothing_is_copied() -> None:
    copy = DeviceCopy("cpu", slots=2)
    batch = filled(1, 10, copy.allocate)
    received = copy.receive(copy.send(batch))
    assert received.values["item_id"].data_ptr() == batch.values["item_id"].data_ptr()
    assert copy.copied_bytes == 0


def test_a_device_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="not to meta; load them on the 'cpu'"):
        DeviceCopy("meta", slots=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="no CUDA device here to copy to cuda:1; take 'cpu'"):
        DeviceCopy("cuda:1", slots=1)


def test_the_benchmark_runs_without_a_gpu_and_says_what_that_is_worth(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, BENCH / "gpu.py", "--device", "cpu", "--quick", "--out", page]
    ended = subprocess.run([*map(str, command)], capture_output=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    result = page.read_text(encoding="utf-8")
    assert "they mean nothing" in result
    # Of two lengths, three ways to copy and one training each.
    assert [result.count(f"| {case} |") for case in ("64 x 4", "256 x 2")] == [3, 3]
