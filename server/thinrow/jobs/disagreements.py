"""Disagreements of one user's fat rows: events that changed, vanished, moved or are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.core.ids import shown_id
from thinrow.jobs.facts import Disagreement

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.jobs.stitch import Stitched

__all__ = ["find_disagreements"]

EXAMPLES_MAX = 5
"""Limit on the examples of each kind, in each partition."""


def find_disagreements(
    stitched: Stitched,
) -> tuple[NDArray[np.bool_], dict[str, int], list[Disagreement]]:
    """Compares rows with the histories that were stitched from them.

    Returns:
        A mask of the rows that disagree with others, shape (rows,); the number of disagreements by
        kind; examples of each kind.
    """
    rows, place, row_of = stitched.rows, stitched.flat_place, stitched.row_of
    disagreeing = np.zeros(len(rows.lengths), dtype=np.bool_)
    counts: dict[str, int] = {}
    examples: list[Disagreement] = []

    def report(
        kind: str, event: NDArray[np.int64], lacks: NDArray[np.int64], has: NDArray[np.int64]
    ) -> None:
        if len(event):
            counts[kind] = len(event)
        for code, row, seen in zip(
            event[:EXAMPLES_MAX].tolist(),
            lacks[:EXAMPLES_MAX].tolist(),
            has[:EXAMPLES_MAX].tolist(),
            strict=True,
        ):
            event_row = rows.events.row(code, named=True)
            values = {trait.name: event_row[trait.name] for trait in stitched.schema.traits}
            examples.append(
                Disagreement(
                    kind=kind,
                    user_id=shown_id(event_row["user_id"], stitched.schema.user_ids),
                    event_ts=event_row["event_ts"],
                    request_ts=int(rows.request_ts[row]),
                    seen_request_ts=int(rows.request_ts[seen]),
                    event=", ".join(f"{name}={value}" for name, value in values.items()),
                )
            )

    gone = np.flatnonzero(stitched.vanished)
    disagreeing[row_of[place < 0]] = True
    had = row_of[stitched.last[gone]]
    older = np.where(
        stitched.older[gone] < len(stitched.event), stitched.older[gone], stitched.last[gone]
    )
    later = row_of[stitched.last[stitched.event[older]]]
    changed = _changed(stitched, gone)
    report("changed", gone[changed], later[changed], had[changed])
    report("vanished", gone[~changed], later[~changed], had[~changed])

    inner = np.flatnonzero((row_of[1:] == row_of[:-1]) & (place[1:] >= 0) & (place[:-1] >= 0))
    moved = inner[place[inner + 1] < place[inner]] + 1
    disagreeing[row_of[moved]] = True
    event = stitched.event[moved]
    report("elsewhere", event, row_of[moved], row_of[stitched.last[event]])

    # Events that an earlier row had, and a later one has again: between two of a row, or
    # behind its newest.
    gap = inner[place[inner + 1] > place[inner] + 1]
    filled = np.flatnonzero(rows.lengths > 0)
    newest = stitched.low.copy()
    ending = place[stitched.starts[1:][filled] - 1]
    newest[filled] = np.where(ending >= 0, ending + 1, stitched.high[filled])
    tail = np.flatnonzero(newest < stitched.high)
    seen_ts = stitched.history["seen_ts"].to_numpy()
    since = stitched.history.select(
        pl.col("seen_ts").cum_min(reverse=True).over("user_id")
    ).to_series()
    between = np.ravel(np.column_stack([place[gap] + 1, place[gap + 1]]))
    earliest = np.minimum.reduceat(seen_ts, between)[::2] if len(gap) else seen_ts[:0]
    earliest = np.append(earliest, since.to_numpy()[newest[tail]])
    row = np.append(row_of[gap], tail)
    missing = np.flatnonzero(earliest < rows.request_ts[row])
    disagreeing[row[missing]] = True
    low = np.append(place[gap] + 1, newest[tail])[missing]
    high = np.append(place[gap + 1], stitched.high[tail])[missing]
    at = low.copy()
    for n in range(min(len(at), EXAMPLES_MAX)):
        at[n] += np.argmin(seen_ts[low[n] : high[n]])
    codes = stitched.history["code"].to_numpy()[at]
    report("missing", codes, row[missing], row_of[stitched.first[codes]])
    return disagreeing, counts, examples


def _changed(stitched: Stitched, gone: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the vanished events that have another of their time in the history since."""
    events = stitched.rows.events
    since = stitched.rows.request_ts[stitched.row_of[stitched.last[gone]]]
    theirs = (
        events[gone]
        .select("user_id", "event_ts")
        .with_columns(since=pl.Series(since), at=pl.int_range(pl.len()))
    )
    newer = theirs.join(
        stitched.history.select("user_id", "event_ts", "seen_ts"), on=["user_id", "event_ts"]
    ).filter(pl.col("seen_ts") > pl.col("since"))
    changed = np.zeros(len(gone), dtype=np.bool_)
    changed[newer["at"].to_numpy()] = True
    return changed
