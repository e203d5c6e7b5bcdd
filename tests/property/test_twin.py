"""The native reading of a batch equals the same in plain numpy, on worlds of all kinds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, bits, new_folder
from support.numpy_twin import NumpyPlan, assemble
from support.scenarios import World, bulk, examples, projections, requested, worlds
from thinrow.access.projection import resolve_projection
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import Pointers, ThinRows
from thinrow.core.wire.response import Response
from thinrow.errors import AnswerTooLargeError
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan, PointerBatch
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.oracle import Wanted
    from support.scenarios import Example

SELECTED = ("statuses", "first", "counts", "available_counts", "digests")


def pointers_of(rows: Sequence[Example], digests: Sequence[int]) -> PointerBatch:
    columns = zip(
        *(
            (
                row.pointer.user_id,
                row.pointer.start_ts,
                row.pointer.end_ts,
                row.pointer.max_length,
                row.request_ts,
                len(row.mutable),
            )
            for row in rows
        ),
        strict=True,
    )
    users, starts, ends, most, moment_ts, mutable = (np.array(c, np.int64) for c in columns)
    return PointerBatch(
        user_ids=users,
        start_ts=starts,
        end_ts=ends,
        max_lengths=most,
        digests=np.array(digests, np.uint64),
        request_ts=moment_ts,
        mutable_lengths=mutable,
    )


def widened(response: wire.MaterializeResponse, pointers: PointerBatch) -> dict[str, list[Any]]:
    """Each trait's values, as a client sees them, the mutable events left out."""
    rows = ThinRows(
        Pointers(
            user_ids=pointers.user_ids,
            end_ts=pointers.end_ts,
            request_ts=pointers.request_ts,
            max_lengths=pointers.max_lengths,
        )
    )
    lookup = BatchLookup(rows, "whatever the tenant wants")
    lookup.add(np.arange(len(rows)), Response.read(response.SerializeToString()))
    batch = Batch.from_answers([lookup.answer()])
    return {name: [bits(values or []) for values in batch.to_lists(name)] for name in batch.values}


def check_twins(built: Built, rows: Sequence[Example], wanted: Wanted, seed: int) -> None:
    projection = wire.Projection(
        sequence_length=wanted.sequence_length,
        truncation=wire.TRUNCATION_HEAD if wanted.head else wire.TRUNCATION_NEWEST,
        feature_groups=wanted.feature_groups,
        traits=wanted.traits,
    )
    rng = random.Random(seed)
    with Generation.open_current(built.store) as generation:
        resolved = resolve_projection(projection, generation.schema)
        how = (resolved.truncation, resolved.groups)
        unchecked = pointers_of(rows, [0] * len(rows))
        result = NumpyPlan(generation, unchecked, *how, record_digests=True)
        right = result.resolve(result.read()).digests
        digests = [rng.choice((0, 1, int(digest), int(digest))) for digest in right]
        for record_digests, pointers in ((True, unchecked), (False, pointers_of(rows, digests))):
            twin = NumpyPlan(generation, pointers, *how, record_digests=record_digests)
            stripes = twin.read()
            expected = twin.resolve(stripes)
            plan = HistoryPlan(generation, pointers, *how, record_digests=record_digests)
            assert plan.read() == sum(len(part.buffer) for part in stripes.values())
            selection = plan.resolve()
            for name in SELECTED:
                shown, wanted_array = getattr(selection, name), getattr(expected, name)
                if name == "first":
                    shown = np.where(expected.counts > 0, shown, wanted_array)
                assert shown.tolist() == wanted_array.tolist(), name
            message, events = plan.answer(resolved.traits, 1 << 30, elapsed_us=7)
            assert events == expected.counts.sum() <= max(1, len(rows)) * plan.events_at_most
            response = wire.MaterializeResponse.FromString(message)
            right_response = assemble(twin, expected, stripes, resolved)
            # Where two users' segments meet, one has them in one order and the other in another.
            assert sum(response.block_lengths) == sum(right_response.block_lengths)
            for field in ("statuses", "view_lengths"):
                assert list(getattr(response, field)) == list(getattr(right_response, field)), field
            for shown, other in zip(response.columns, right_response.columns, strict=True):
                for field in ("trait", "type", "vector_size", "nullable"):
                    assert getattr(shown, field) == getattr(other, field)
                for field in ("default_word", "default_string"):
                    assert shown.HasField(field) == other.HasField(field)
                    assert getattr(shown, field) == getattr(other, field)
            for field in ("generation", "watermark_ts", "sequence_length", "truncation"):
                assert getattr(response, field) == getattr(right_response, field), field
            assert response.server_us >= 7
            assert widened(response, pointers) == widened(right_response, pointers)

            wrapped, _ = plan.answer(resolved.traits, 1 << 30, cursor=300)
            on_stream = wire.MaterializeStreamResponse.FromString(wrapped)
            assert on_stream.cursor == 300
            on_stream.response.server_us = response.server_us
            assert on_stream.response == response
            with pytest.raises(AnswerTooLargeError, match="fewer examples"):
                plan.answer(resolved.traits, len(message) - 1)


@given(worlds(kinds=("int64",)), st.integers(0, 2**32), st.data())
@examples(12)
def test_any_world(world: World, seed: int, data: st.DataObject) -> None:
    rows = data.draw(requested(world))
    wanted = [data.draw(projections(world.schema)) for _ in range(3)]
    with new_folder() as folder:
        built = Built(folder, world)
        for run in world.runs:
            built.compact(run)
        for projection in wanted:
            check_twins(built, rows, projection, seed)


@given(worlds(most_runs=3, kinds=("int64",)), st.integers(0, 2**32), st.data())
@examples(3)
def test_long_histories(world: World, seed: int, data: st.DataObject) -> None:
    world = bulk(world, seed, 6000)
    rows = data.draw(requested(world, 40))
    wanted = [data.draw(projections(world.schema)) for _ in range(3)]
    with new_folder() as folder:
        built = Built(folder, world)
        for run in world.runs:
            built.compact(run)
        for projection in wanted:
            check_twins(built, rows, projection, seed)
