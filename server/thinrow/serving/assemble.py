"""From selected histories to the answer's bytes: each user's events once, every example a view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from thinrow.errors import AnswerTooLargeError, StoreCorruptError
from thinrow.schema import TraitType
from thinrow.store.narrow import NarrowBlocks, by_width, narrow, ranges, starts_of
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from thinrow.schema import Trait
    from thinrow.serving.projection import ResolvedProjection
    from thinrow.store.history import HistoryPlan, Selection
    from thinrow.store.stripe import StripeSet

COLUMN_BYTES = 128
"""More than a column's type, lengths and tags take."""


@dataclass(frozen=True, slots=True)
class Run:
    """The events of an answer, cut into blocks of consecutive events of one stripe."""

    view_starts: NDArray[np.int64]
    """Position of each example's first event in the run, shape (examples,)."""
    stripes: NDArray[np.int64]
    """The plan's stripe that each block comes from, shape (blocks,)."""
    first: NDArray[np.int64]
    """Where in its stripe each block starts, events."""
    counts: NDArray[np.int64]
    """Events of each block."""


def lay_out(plan: HistoryPlan, selection: Selection) -> Run:
    """Joins what examples share: overlapping slices of a history become one segment."""
    view_starts = np.zeros(len(selection.counts), dtype=np.int64)
    examples = np.flatnonzero(selection.counts)
    if not examples.size:
        nothing = np.empty(0, dtype=np.int64)
        return Run(view_starts, nothing, nothing, nothing)
    begin = plan.user_places[selection.user[examples]] + selection.first[examples]
    end = begin + selection.counts[examples]
    order = np.argsort(begin, kind="stable")
    reach = np.maximum.accumulate(end[order])
    opens = np.append(True, begin[order][1:] > reach[:-1])
    segment = np.empty(len(order), dtype=np.int64)
    segment[order] = np.cumsum(opens) - 1
    # Segments stand in the order in which examples first look at them: where nothing is shared
    # the run is then the batch itself, and the client has nothing to gather.
    _, seen_first = np.unique(segment, return_index=True)
    rank = np.argsort(seen_first, kind="stable")
    segment = np.argsort(rank, kind="stable")[segment]
    segment_begin = begin[order][opens][rank]
    segment_end = reach[np.append(np.flatnonzero(opens)[1:], len(order)) - 1][rank]
    run_starts = starts_of(segment_end - segment_begin)
    view_starts[examples] = begin - segment_begin[segment] + run_starts[segment]

    first_stripe = np.searchsorted(plan.stripe_places, segment_begin, side="right") - 1
    last_stripe = np.searchsorted(plan.stripe_places, segment_end - 1, side="right") - 1
    block_counts = last_stripe - first_stripe + 1
    stripes = ranges(first_stripe, block_counts)
    places = plan.stripe_places[stripes]
    lengths = plan.stripe_ends[stripes] - plan.directories.stripe_ordinals[stripes]
    first = np.maximum(np.repeat(segment_begin, block_counts) - places, 0)
    last = np.minimum(np.repeat(segment_end, block_counts) - places, lengths)
    return Run(view_starts, stripes, first, last - first)


def assemble(
    plan: HistoryPlan,
    selection: Selection,
    stripes: Mapping[int, StripeSet],
    projection: ResolvedProjection,
    response_bytes_max: int,
) -> tuple[wire.MaterializeResponse, int]:
    """Builds the answer.

    Raises:
        AnswerTooLargeError: it would be larger than ``response_bytes_max``.
        StoreCorruptError: a stripe contradicts itself.

    Returns:
        The answer, and its size in bytes, within a few per column.
    """
    run = lay_out(plan, selection)
    head = projection.truncation.head
    response = wire.MaterializeResponse(
        generation=plan.generation.number,
        watermark_ts=plan.generation.watermark_ts,
        statuses=selection.statuses.tolist(),
        view_starts=run.view_starts.tolist(),
        view_lengths=selection.counts.tolist(),
        block_lengths=run.counts.tolist(),
        sequence_length=projection.truncation.sequence_length,
        truncation=wire.TRUNCATION_HEAD if head else wire.TRUNCATION_NEWEST,
    )
    size = response.ByteSize()
    try:
        for trait in projection.traits:
            group = plan.generation.schema.group_of[trait.name]
            rows = np.searchsorted(plan.stripes_wanted[group], run.stripes)
            room = response_bytes_max - size
            size += _add_column(response, stripes[group], trait, rows, run, room)
    except StoreCorruptError as error:
        raise plan.generation.corrupt(error) from error
    return response, size


def wire_type(trait: Trait) -> wire.TraitType:
    """A trait's type in the wire's terms; both number the types alike."""
    return cast("wire.TraitType", trait.type.value)


def _add_column(
    response: wire.MaterializeResponse,
    stripes: StripeSet,
    trait: Trait,
    rows: NDArray[np.int64],
    run: Run,
    room: int,
) -> int:
    """Adds one column and returns its bytes."""
    column = response.columns.add(
        trait=trait.name,
        type=wire_type(trait),
        vector_size=trait.size,
        nullable=trait.nullable,
    )
    entry_bytes = 0
    where = (rows, run.first, run.counts)
    if trait.type is TraitType.CATEGORICAL:
        codes, numbers, present = stripes.categories(trait, *where)
        blocks, buffer = one_base(codes, value_counts(run, present)), codes.view(np.uint8)
        column.dictionary.extend(numbers.tolist())
        entry_bytes = numbers.nbytes
    elif trait.type is TraitType.STRING:
        values = stripes.words(trait, *where)
        present = values.present
        blocks, buffer = narrow(values.words, value_counts(run, present))
        assert isinstance(values.dictionary, pa.Array)
        column.strings.extend(values.dictionary.to_pylist())
        entry_bytes = values.dictionary.nbytes
    else:
        slices = stripes.slices(trait, *where)
        present, blocks, buffer = slices.present, slices.blocks, stripes.buffer
    _check_room(blocks, room)
    column.bases.extend(blocks.bases.tolist())
    column.widths = blocks.widths.tobytes()
    data, bits = by_width(buffer, blocks), b""
    column.data = data
    if trait.nullable:
        if present is None:
            present = np.ones(int(run.counts.sum()), dtype=np.bool_)
        bits = np.packbits(present, bitorder="little").tobytes()
        column.present = bits
    elif isinstance(trait.default, str):
        column.default_string = trait.default
    elif trait.default is not None:
        column.default_word = trait.default_word
    # Asking the message for its size would encode it once more.
    names = len(trait.name.encode()) + len(str(trait.default).encode())
    size = COLUMN_BYTES + names + 9 * len(blocks.bases) + len(data) + len(bits) + entry_bytes
    _check_size(size, room)
    return size


def value_counts(run: Run, present: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Events of each block that have a trait."""
    if present is None:
        return run.counts
    before = starts_of(present.view(np.int8))
    return np.diff(before[starts_of(run.counts)])


def one_base(codes: NDArray[np.unsignedinteger[Any]], counts: NDArray[np.int64]) -> NarrowBlocks:
    """Blocks of codes that are all of one width, as they are."""
    widths = np.full(len(counts), codes.itemsize, np.uint8)
    starts = starts_of(counts * codes.itemsize)[:-1]
    return NarrowBlocks(np.zeros(len(counts), np.int64), widths, counts, starts)


def _check_room(blocks: NarrowBlocks, room: int) -> None:
    _check_size(int(blocks.byte_lengths.sum()) + 9 * len(blocks.bases), room)


def _check_size(size: int, room: int) -> None:
    if size > room:
        raise AnswerTooLargeError(
            "The answer would be larger than this server sends (response_bytes_max); ask for "
            "fewer examples at once, shorter sequences or fewer traits."
        )
