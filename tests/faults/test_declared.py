"""Messages that declare far more than they have are refused within the limits on memory."""

from __future__ import annotations

import ast

from support.peak import MIB, peak_of
from support.tried import SEED, Tried, times
from thinrow.core.wire.sizes import CONSTANT_BYTES_MAX

GROWN_BYTES_MAX = 3 * CONSTANT_BYTES_MAX + 64 * MIB
"""Limit on what is taken: the values, what widening them needs meanwhile, and some room."""
TRY = """
import random
from collections import Counter
import numpy as np, pyarrow as pa
from thinrow.client import Batch, Pointers
from thinrow.core.wire.columns import from_wire
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.files.message import decode_thin_rows, split_thin_rows
from thinrow.core.wire.response import Response
from thinrow.errors import InputError, ThinRowError
from thinrow.v1 import materialization_pb2 as wire
from support.declared_arrow import MAKE
exec(MAKE)

KINDS = (1, 4, 8, 10, 11, 12, 13, 14)

def column(rng, events):
    kind = rng.choice(KINDS)
    size = rng.choice((1, 64, 4096)) if kind in (10, 11) else 1
    made = wire.Column(trait=rng.choice("abc"), type=kind, vector_size=size, bases=[0],
                       widths=bytes(1), strings=["a"] if kind == 14 else [])
    if kind == 13 and rng.random() < 0.5:
        made.dictionary.append(7)
    if rng.random() < 0.2:
        made.nullable, made.present = True, bytes((events + 7) // 8 if events < 1 << 26 else 3)
    return made

def an_answer(rng):
    events, examples = rng.choice((10**7, 10**8, 2**31, 2**32 - 1)), rng.choice((1, 2, 2048))
    data = wire.MaterializeResponse(
        generation=1, statuses=[1] * examples, view_starts=[0] * examples,
        view_lengths=[events] * examples, block_lengths=[events], truncation=1,
        columns=[column(rng, events)]).SerializeToString()
    pointers = Pointers(user_ids=range(examples), end_ts=[9] * examples)
    lookup = BatchLookup(pointers, "tenant")
    lookup.add(np.arange(examples), Response.read(data))
    return Batch.from_answers([lookup.answer()])

def mutable_events(rng):
    events = rng.choice((10**6, 10**8, 2**31))
    return from_wire([column(rng, events) for _ in range(3)], events)

def a_message(rng):
    events = rng.choice((9, 12, 20)) * 10**6
    nulls = pa.nulls(2**30)
    data = [rows(), {"mutable": mutable({"event_ts": times(1)}, [1])}]
    kind = rng.randrange(3)
    if kind == 0:
        data[1] = {"mutable": mutable({"event_ts": times(events)}, [events])}
    elif kind == 1:
        data.append({"label": pa.FixedSizeListArray.from_arrays(nulls, 2**30)})
    else:
        data.append({"label": pa.array([bytes(8 * events)])})
    message = encoded({k: v for part in data for k, v in part.items()}, rng.choice(("zstd", "lz4")))
    # What making it took is not what reading it takes.
    return message

def read(message):
    return split_thin_rows("m", decode_thin_rows("m", message))

messages = [a_message(random.Random(number)) for number in range(6)]

def run(count, seed):
    rng, seen = random.Random(seed), Counter()
    for _ in range(count):
        call = rng.choice((an_answer, mutable_events, read))
        try:
            call(rng.choice(messages) if call is read else rng)
        except ThinRowError as error:
            seen["refused"] += 1
        else:
            seen["taken"] += 1
    return dict(seen)
"""


def test_sizes_that_are_only_declared() -> None:
    count = times(60, 1000)
    peak = peak_of(f"run({count}, {SEED})", TRY)
    assert peak.outcome.startswith("{"), peak
    seen: dict[str, int] = ast.literal_eval(peak.outcome)
    assert seen.get("refused", 0) >= 0.8 * count, seen
    assert peak.grown_bytes < GROWN_BYTES_MAX, peak
    Tried(
        "Answers, columns and messages of some bytes that declare up to 2^56 of them",
        count,
        "refused before the memory is taken, or taken within the limits",
        f"{seen.get('refused', 0):,} refused, {seen.get('taken', 0):,} taken; memory "
        f"+{peak.grown_bytes / MIB:.0f} MiB at most",
    ).keep()
