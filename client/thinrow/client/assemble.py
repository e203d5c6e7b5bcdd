"""From an answer and the mutable events kept at home to a batch.

The server is not trusted to agree with itself, nor a thin row to be free of events that its
request could not have known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.batch import Batch
from thinrow.client.pointers import MutableColumn, MutableEvents, Pointers, Projection, ThinRows
from thinrow.client.request import TRUNCATIONS
from thinrow.client.widen import VALUE_DTYPES, WideColumn, require, widen
from thinrow.errors import InputError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["assemble"]

LONG_RANGE_EVENTS = 24


def assemble(
    response: wire.MaterializeResponse, rows: ThinRows, projection: Projection | str
) -> Batch:
    """Makes the batch that `rows` asked for.

    Raises ThinRowError for a malformed answer, InputError for mutable events that lack a trait
    they need or hold it in another type.
    """
    mutable = rows.mutable
    if mutable is None:
        mutable = MutableEvents(np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int64), {})
    block_lengths = np.array(response.block_lengths, np.int64)
    run_events = int(block_lengths.sum())
    statuses, starts, lengths = views(response, run_events, rows, mutable, projection)

    leaking = leaks(rows.pointers, mutable)
    statuses[leaking] = wire.STATUS_INVALID
    lengths[leaking] = 0
    mutable_lengths = np.where(statuses == wire.STATUS_OK, np.diff(mutable.offsets), 0)
    # The server has already made room: only the mutable part is left to cut.
    mutable_starts = mutable.offsets[:-1]
    if response.sequence_length:
        if response.truncation == wire.TRUNCATION_HEAD:
            kept_lengths = np.minimum(mutable_lengths, response.sequence_length - lengths)
        else:
            kept_lengths = np.minimum(mutable_lengths, response.sequence_length)
            mutable_starts = mutable_starts + mutable_lengths - kept_lengths
        mutable_lengths = kept_lengths
    kept_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(mutable_lengths)])
    kept = mutable.take(
        ranges(mutable_starts, mutable_lengths, len(mutable.arrival_ts)), kept_offsets
    )

    # Events of the batch, by their place in the run followed by the mutable events kept.
    pick = picker(
        np.stack([starts, run_events + kept_offsets[:-1]], axis=1).ravel(),
        np.stack([lengths, mutable_lengths], axis=1).ravel(),
        run_events + len(kept.arrival_ts),
    )
    batch = Batch(
        statuses=statuses.astype(np.uint8),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + mutable_lengths)]),
        values={},
        present={},
        strings={},
        generation=response.generation,
        watermark_ts=response.watermark_ts,
    )
    for column in response.columns:
        require(column.trait not in batch.values, f"{column.trait} comes twice")
        wide = widen(column, block_lengths)
        if len(kept.arrival_ts):
            wide = append(wide, column, kept)
        batch.values[column.trait] = pick(wide.values)
        if wide.present is not None:
            batch.present[column.trait] = pick(wide.present)
        if wide.strings is not None:
            batch.strings[column.trait] = wide.strings
    return batch


def views(
    response: wire.MaterializeResponse,
    run_events: int,
    rows: ThinRows,
    mutable: MutableEvents,
    projection: Projection | str,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Checks statuses, starts and lengths against the request, int64, shape (examples,)."""
    statuses = np.array(response.statuses, np.int64)
    starts = np.array(response.view_starts, np.int64)
    lengths = np.array(response.view_lengths, np.int64)
    require(
        len(statuses) == len(starts) == len(lengths) == len(rows),
        f"it is not about the {len(rows)} examples asked for",
    )
    require(((statuses >= 1) & (statuses <= 255)).all(), "an example has no status")
    require((starts + lengths <= run_events).all(), "a view reaches past the run")
    require(
        (lengths[statuses != wire.STATUS_OK] == 0).all(), "an example that is not OK has events"
    )
    if isinstance(projection, Projection):
        require(
            response.sequence_length == projection.sequence_length
            and response.truncation == TRUNCATIONS[projection.truncation],
            "it applied another projection than the one asked for",
        )
    most = rows.pointers.max_lengths
    require(((lengths <= most) | (most <= 0)).all(), "an example has more events than its pointer")
    require(response.sequence_length >= 0, "its sequence length is negative")
    if response.sequence_length:
        room = np.full(len(rows), response.sequence_length)
        if response.truncation != wire.TRUNCATION_HEAD:
            room = np.maximum(room - np.diff(mutable.offsets), 0)
        require((lengths <= room).all(), "an example is longer than the sequence length")
    return statuses, starts, lengths


def leaks(pointers: Pointers, mutable: MutableEvents) -> NDArray[np.bool_]:
    """Tells which examples have mutable events from outside [end_ts, request_ts)."""
    examples = np.repeat(np.arange(len(pointers)), np.diff(mutable.offsets))
    # An empty window names no generation, so the mutable part holds everything.
    first_ts = np.where(
        pointers.start_ts == pointers.end_ts, np.iinfo(np.int64).min, pointers.end_ts
    )
    outside = (mutable.arrival_ts < first_ts[examples]) | (
        mutable.arrival_ts >= pointers.request_ts[examples]
    )
    leaking = np.zeros(len(pointers), np.bool_)
    leaking[examples[outside]] = True
    return leaking


def ranges(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], whole: int
) -> slice | NDArray[np.int64]:
    """Concatenates the ranges [starts[i], starts[i] + lengths[i]) as an index.

    Where they tile [0, whole) in order the index is a slice, and using it costs nothing.
    """
    ends = np.cumsum(lengths)
    shifts = starts - (ends - lengths)
    if lengths.sum() == whole and not shifts[lengths > 0].any():
        return slice(None)
    places: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
    return places


def picker(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], whole: int
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Makes a function that concatenates the ranges [starts[i], starts[i] + lengths[i])."""
    total = int(lengths.sum())
    if total <= LONG_RANGE_EVENTS * np.count_nonzero(lengths) or total == whole:
        index = ranges(starts, lengths, whole)
        return lambda values: values[index]
    # Long ranges are copied several times faster as slices than element by element.
    there = lengths > 0
    firsts = starts[there].tolist()
    lasts = (starts + lengths)[there].tolist()
    bounds = [slice(first, last) for first, last in zip(firsts, lasts, strict=True)]
    return lambda values: np.concatenate([values[part] for part in bounds])


def append(wide: WideColumn, column: wire.Column, mutable: MutableEvents) -> WideColumn:
    """Puts mutable events behind the run's."""
    events = len(mutable.arrival_ts)
    if column.trait == "visible_ts":
        mine = MutableColumn(mutable.arrival_ts)
    else:
        # A column that is missing is absent everywhere.
        mine = mutable.columns.get(
            column.trait, MutableColumn(np.zeros(0), np.zeros(events, np.bool_))
        )
    there = np.ones(events, np.bool_) if mine.present is None else mine.present
    given = mine.values[there] if there.any() else None
    appended = np.zeros((events, *wide.values.shape[1:]), wide.values.dtype)
    strings = wide.strings
    if strings is not None:
        strings = strings.copy()
        if given is not None:
            appended[there] = to_codes(column.trait, given, strings)
    elif given is not None:
        appended[there] = cast(column.trait, given, appended)
    if wide.present is None and not there.all():
        appended[~there] = default(column, strings)
    present = None if wide.present is None else np.concatenate([wide.present, there])
    return WideColumn(np.concatenate([wide.values, appended]), present, strings)


def to_codes(trait: str, texts: NDArray[Any], strings: list[str]) -> NDArray[np.int32]:
    """Adds texts to `strings` and returns their places there."""
    codes = {text: len(strings) + code for code, text in enumerate(dict.fromkeys(texts.tolist()))}
    if not all(isinstance(text, str) for text in codes):
        raise InputError(f"The mutable column {trait!r} must hold text, as the trait does.")
    strings.extend(codes)
    return np.fromiter(map(codes.__getitem__, texts.tolist()), np.int32, len(texts))


def cast(trait: str, given: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Casts mutable values to the trait's dtype; floats may round, integers must fit."""
    if given.shape[1:] != like.shape[1:]:
        raise InputError(
            f"The mutable column {trait!r} has values of shape {given.shape[1:]}, but the trait "
            f"has {like.shape[1:]}."
        )
    kinds = given.dtype.kind + like.dtype.kind
    if not (kinds in ("ff", "bb") or (kinds[0] in "iu" and kinds[1] in "iuf")):
        raise InputError(
            f"The mutable column {trait!r} holds {given.dtype}, but the trait is {like.dtype}."
        )
    values = given.astype(like.dtype)
    if kinds[0] in "iu" and not (values == given).all():
        raise InputError(f"The mutable column {trait!r} has values out of range of {like.dtype}.")
    return values


def default(column: wire.Column, strings: list[str] | None) -> int | NDArray[Any]:
    """What an event without the trait has where the column is not nullable."""
    if strings is not None and column.HasField("default_string"):
        strings.append(column.default_string)
        return len(strings) - 1
    if strings is None and column.HasField("default_word"):
        dtype = VALUE_DTYPES[column.type]
        return np.array([column.default_word]).astype(f"i{dtype.itemsize}").view(dtype)
    raise InputError(
        f"A mutable event lacks {column.trait!r}, which is not nullable and has no default; add "
        f"it to the thin rows or give it a default in the schema."
    )
