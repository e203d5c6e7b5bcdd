"""Interactions as events: ids from 1, the order of the log, requests, and their split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.errors import InputError
from thinrow.schema import RESERVED, is_trait_name
from thinrow.schema.proposal import trait_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.jobs.interaction_log import InteractionLog

__all__ = [
    "PARTS",
    "PLACE",
    "Interactions",
    "answered",
    "fewest_cuts",
    "interactions",
    "requests_of",
    "split_leave_one_out",
    "split_time",
    "thinned",
]

PARTS = ("train", "validation", "test")
IDS = ("user_id", "event_ts", "arrival_ts", "event_id")
PLACE = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("user_id")
"""Place of each event among its user's, from 1, in the order of the frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """A log as ThinRow takes it."""

    events: pl.DataFrame
    """IDS (int64), ``item_id`` and the traits, by user and then in the order of the log."""
    items: pl.DataFrame
    """``item_id`` from 1, and ``original``: the item's id in the log."""
    users: pl.DataFrame | None
    """``user_id`` from 1, and ``original``; None where the log has integers, which stay."""
    schema: str
    """TOML."""
    left_out: tuple[str, ...]
    """Columns of types that no trait has."""


def interactions(log: InteractionLog) -> Interactions:
    """Converts a log to events.

    An event's ``event_id`` is its place among its user's, from 1. Its ``arrival_ts`` is its
    ``event_ts``, or the millisecond after the arrival before it where that is later: so no two
    events of a user arrive together, and a request at the arrival of one sees all before it.

    Raises:
        InputError: A column has a name that no trait can have.
    """
    traits, lines, left_out = _traits(log)
    users = None
    user_id = log.rows["user"]
    if user_id.dtype == pl.String or not user_id.cast(pl.Int64, strict=False).is_not_null().all():
        user_id, users = _numbered(user_id, "user_id")
    item_id, items = _numbered(log.rows["item"], "item_id")
    events = (
        log.rows.select("event_ts", "finer_ns")
        .with_columns(user_id.cast(pl.Int64).alias("user_id"), item_id, *traits)
        .sort("user_id", "event_ts", "finer_ns", maintain_order=True)
        .with_columns(event_id=PLACE)
        .with_columns(
            arrival_ts=(pl.col("event_ts") - pl.col("event_id")).cum_max().over("user_id")
            + pl.col("event_id")
        )
    )
    schema = '[item]\nitem_id = { type = "int64", key = true }\n'
    if lines:
        schema += "\n[context]\n" + "".join(f"{line}\n" for line in lines)
    return Interactions(
        events=events.select(*IDS, "item_id", *(trait.name for trait in traits)),
        items=items,
        users=users,
        schema=schema,
        left_out=left_out,
    )


def _numbered(column: pl.Series, name: str) -> tuple[pl.Series, pl.DataFrame]:
    """Numbers values from 1 in their sorted order; 0 stays free for padding."""
    original = column.unique().sort()
    numbers = column.rank("dense").cast(pl.Int64).alias(name)
    ids = pl.int_range(1, len(original) + 1, dtype=pl.Int64, eager=True)
    return numbers, pl.DataFrame({name: ids, "original": original})


def _traits(log: InteractionLog) -> tuple[list[pl.Series], list[str], tuple[str, ...]]:
    """Returns the columns that become traits, their lines of the schema, and the others' names."""
    traits, lines, left_out = [], [], []
    for column in log.others:
        kind = column.dtype
        if kind in (pl.Date, pl.Datetime):
            column = column.dt.epoch("ms")
        elif kind == pl.Decimal:
            column = column.cast(pl.Float64)
        line = None
        if kind != pl.Null:
            line = trait_line(column.name, column.to_arrow().type, sparse=column.null_count() > 0)
        if line is None:
            left_out.append(column.name)
            continue
        if not is_trait_name(column.name) or column.name in RESERVED or column.name == "item_id":
            raise InputError(
                f"{log.name} has a column {column.name}, which no trait can be named; rename it "
                f"(letters, digits and _, and none of ThinRow's own names), or leave it out."
            )
        traits.append(column)
        lines.append(line)
    return traits, lines, tuple(left_out)


def requests_of(events: pl.DataFrame) -> pl.DataFrame:
    """Makes every event of a user but the first a request, which the event answers.

    Args:
        events: As in `Interactions`.

    Returns:
        ``user_id``, ``request_ts`` (the event's arrival, ms), ``label_item_id`` and a label for
        each trait, ``history_length``, and ``since_ts`` (the arrival before the request's), by time
        as a log would have them.
    """
    return (
        events.select(
            *answered("arrival_ts"),
            history_length=pl.col("event_id") - 1,
            since_ts=pl.col("arrival_ts").shift(1).over("user_id"),
        )
        .drop_nulls("since_ts")
        .sort("request_ts", "user_id")
    )


def answered(time: str) -> tuple[pl.Expr, ...]:
    """Returns the columns of requests that events answer, with each trait as a label.

    Args:
        time: The column of events that is the time of their requests.
    """
    labels = pl.exclude(IDS).name.prefix("label_")
    return pl.col("user_id"), pl.col(time).alias("request_ts"), labels


def fewest_cuts(requests: pl.DataFrame, cuts_max: int) -> list[int]:
    """Returns the watermarks to cut, ms, so that rows carry no event, or few, inside.

    A row carries none if there is a watermark after the arrival before its request, and not after
    the request. The fewest that give each row one are, by time, the requests since whose arrival
    before there is none yet. If these are more than ``cuts_max``, one in N of them is cut.

    Args:
        requests: As of `requests_of`.
        cuts_max: Limit on the watermarks.
    """
    cuts, last_ts = [], 0
    for since_ts, request_ts in requests.select("since_ts", "request_ts").iter_rows():
        if last_ts <= since_ts and request_ts > 0:
            last_ts = request_ts
            cuts.append(last_ts)
    return cuts[:: -(-len(cuts) // cuts_max)] if cuts else cuts


def split_leave_one_out(requests: pl.DataFrame) -> NDArray[np.int64]:
    """Returns each request's number in PARTS: each user's newest is for test, that before it for
    validation."""
    newer = pl.col("request_ts").rank("ordinal", descending=True).over("user_id").cast(pl.Int64)
    return requests.select((3 - newer).clip(lower_bound=0)).to_series().to_numpy()


def split_time(requests: pl.DataFrame, shares: Sequence[float]) -> NDArray[np.int64]:
    """Returns each request's number in PARTS, by time.

    Requests of one millisecond stay together.

    Args:
        requests: By ``request_ts``.
        shares: Share of the requests in each part; their sum is 1.
    """
    request_ts = requests["request_ts"].to_numpy()
    ends = np.round(np.cumsum(shares[:-1]) * len(request_ts)).astype(np.int64)
    cuts = request_ts[np.minimum(ends, len(request_ts) - 1)]
    return np.searchsorted(cuts, request_ts, side="right")


def thinned(requests: pl.DataFrame, parts: NDArray[np.int64], every: int) -> NDArray[np.bool_]:
    """Returns True for the requests to keep: of training, every N-th of a user from the newest."""
    newer = pl.col("request_ts").rank("ordinal", descending=True).over("user_id", "part")
    kept = requests.select("user_id", "request_ts").with_columns(part=pl.Series(parts))
    return kept.select((pl.col("part") > 0) | ((newer - 1) % every == 0)).to_series().to_numpy()
