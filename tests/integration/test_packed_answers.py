"""Answers that pass between processes as bytes are the same answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.thin_rows import rows_table
from support.worlds import built_world, shown
from thinrow.client import Projection, connect
from thinrow.core.files.rows import to_thin_rows
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.packed import pack, unpack

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("shift", [0, 1, 4, 8])
def test_packed_answers_widen_alike_wherever_the_bytes_lie(tmp_path: Path, shift: int) -> None:
    world = built_world(tmp_path)
    [batch] = rows_table(60).combine_chunks().to_batches()
    rows = to_thin_rows("rows", batch)
    with connect(world.store) as client:
        [answer] = client.answers([rows], Projection(sequence_length=20))
    packed = pack(answer)
    place = np.zeros(len(packed) + shift, np.uint8)[shift:]
    place[:] = packed
    place.flags.writeable = False
    again = unpack(place)
    assert shown(Batch.from_answers([again])) == shown(Batch.from_answers([answer]))
    assert again.generation == answer.generation
    assert again.watermark_ts == answer.watermark_ts
    assert (again.rows.pointers.user_ids == rows.pointers.user_ids).all()
