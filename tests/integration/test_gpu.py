"""CUDA: batches arrive whole, in any case of timing, and the trainer never waits."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import worlds
from support.filled_batches import filled
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.client.torch.device import DeviceCopy
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"
    ),
]
DELAY_CYCLES = 2_000_000
"""Keeps a stream busy for about a millisecond, so that code that should wait for it must."""
LONG_CYCLES = 1_000_000_000


@pytest.fixture(autouse=True)
def _no_quiet_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def test_host_memory_is_pinned() -> None:
    copy = DeviceCopy("cuda", slots=2)
    assert copy.allocate(1 << 20).is_pinned()
    assert filled(1, 1000, copy.allocate).values["item_id"].is_pinned()
    assert (
        filled(1, 1000, lambda size: torch.empty(size, dtype=torch.uint8))
        .pin_memory()
        .offsets.is_pinned()
    )


@pytest.mark.parametrize("slow", ["trainer", "copies", "neither"])
def test_no_batch_is_overwritten_while_it_is_copied_or_used(slow: str) -> None:
    """Each batch is released at once, so its memory, here and there, is wanted for the next."""
    copy = DeviceCopy("cuda", slots=2)
    rng = random.Random(0)
    found = []
    for number in range(300):
        if slow == "copies":
            assert copy._stream is not None
            with torch.cuda.stream(copy._stream):
                torch.cuda._sleep(DELAY_CYCLES)  # type: ignore[no-untyped-call]
        batch = copy.receive(copy.send(filled(number, rng.randrange(100_000), copy.allocate)))
        if slow == "trainer":
            torch.cuda._sleep(DELAY_CYCLES)  # type: ignore[no-untyped-call]
        values = batch.values["item_id"]
        found.append(torch.stack([values.min(), values.max(), batch.example_ids[0]]))
        del batch, values
    torch.cuda.synchronize()
    assert torch.stack(found).tolist() == [[number] * 3 for number in range(300)]


def test_host_memory_is_allocated_once() -> None:
    copy = DeviceCopy("cuda", slots=3, slot_bytes=1 << 21)
    for number in range(100):
        copy.receive(copy.send(filled(number, 50_000, copy.allocate)))
    assert copy.allocations == 3


def test_sending_waits_for_nothing() -> None:
    copy = DeviceCopy("cuda", slots=3)
    assert copy._stream is not None
    copy.send(filled(0, 1000, copy.allocate))
    with torch.cuda.stream(copy._stream):
        torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
    batch = filled(1, 1000, copy.allocate)
    torch.cuda.set_sync_debug_mode("error")
    sent = copy.send(batch)
    assert sent.copied is not None
    assert not sent.copied.query()  # type: ignore[no-untyped-call]
    copy.close()
    assert sent.copied.query()  # type: ignore[no-untyped-call]


def test_the_trainer_waits_for_nothing() -> None:
    """Nor do its views of the batch: any of them that requested the device would raise here."""
    copy = DeviceCopy("cuda", slots=3)
    sent = copy.send(filled(5, 1000, copy.allocate))
    torch.cuda.set_sync_debug_mode("error")
    batch = copy.receive(sent)
    assert batch.events == 1001
    nested = batch.to_njt("item_id") + batch.to_njt("rating")
    padded = [batch.to_padded("embedding"), batch.to_padded("item_id", 7, -1, side="left")]
    batch.record_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("default")
    assert nested.values().unique().tolist() == [10]  # type: ignore[no-untyped-call]
    assert padded[1][0].tolist() == [5] * 7
    assert padded[1][1].tolist() == [-1] * 7


def test_a_keyed_jagged_tensor_is_made_without_waiting() -> None:
    pytest.importorskip("torchrec", reason="torchrec is not installed")
    copy = DeviceCopy("cuda", slots=3)
    batch = copy.receive(copy.send(filled(5, 1000, copy.allocate)))
    torch.cuda.set_sync_debug_mode("error")
    keyed = batch.to_kjt(["item_id", "rating"], contextual=["user_id"])
    split = keyed.split([1, 2])
    torch.cuda.set_sync_debug_mode("default")
    assert split[1].values().unique().tolist() == [5]


def test_pinned_batches_can_be_copied_by_others() -> None:
    batch = filled(3, 1000, lambda size: torch.empty(size, dtype=torch.uint8)).pin_memory()
    moved = batch.to("cuda", non_blocking=True)
    assert moved.values["item_id"].unique().tolist() == [3]  # type: ignore[no-untyped-call]
    back = moved.to("cpu")
    assert torch.equal(back.values["embedding"], batch.values["embedding"])
    memory = moved.offsets.untyped_storage().data_ptr()
    assert {of.untyped_storage().data_ptr() for of in moved._tensors()} == {memory}


def test_a_loader_brings_the_same_to_the_device(tmp_path: Path) -> None:
    world = worlds.built_world(tmp_path, count=4000, users=50)
    requests = pa.table(
        {
            "user_id": np.tile(np.arange(1, 51), 10),
            "request_ts": np.full(500, worlds.as_of(3)),
        }
    )
    rows = tmp_path / "rows.parquet"
    backfill(
        BackfillConfig(
            requests=world.write("requests.parquet", requests),
            store=world.store,
            events=[tmp_path / "events-3.parquet"],
            rows=rows,
        )
    )
    config = LoaderConfig(batch_examples=16)
    with worlds.running_server(world.store) as server:
        sides = []
        for device in ("cpu", "cuda"):
            with ThinRowLoader(rows, server.address, Projection(), config, device=device) as loader:
                sides.append([batch.to("cpu") for batch in loader])
    assert len(sides[0]) == len(sides[1]) > 30
    for mine, theirs in zip(*sides, strict=True):
        assert mine.max_seqlen == theirs.max_seqlen
        assert mine.strings == theirs.strings
        for one, other in zip(mine._tensors(), theirs._tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
