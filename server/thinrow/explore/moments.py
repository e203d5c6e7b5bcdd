"""Moments to see a history at: the request of a thin row, a time, or now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from thinrow.client import Pointers, ThinRows
from thinrow.core.ids import from_wire_kind, parse_user_id
from thinrow.errors import UsageError
from thinrow.explore.values import INT64, parse_integer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.explore.rows import RowFiles
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["NO_ROWS", "Kind", "Moment", "parse_moments", "parse_user"]

MOMENTS = "row:NUMBER of a file of thin rows, at:MILLISECONDS, or now"
Kind: TypeAlias = Literal["row", "at", "now"]
NO_ROWS = "There are no thin rows; start thinrow explore with --rows FILES."


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of one user."""

    kind: Kind
    row: ThinRows
    """One example: the thin row, or a pointer to all that a request at this time was served."""
    labels: dict[str, str]
    """Other columns of the thin row, by name."""

    @property
    def user_id(self) -> int | str:
        """The user."""
        return self.row.pointers.user(0)

    @property
    def start_ts(self) -> int:
        """First visible_ts that its pointer names, ms; 0 for all."""
        return int(self.row.pointers.start_ts[0])

    @property
    def end_ts(self) -> int:
        """The watermark that served it, ms; 0 before the first generation."""
        return int(self.row.pointers.end_ts[0])

    @property
    def request_ts(self) -> int:
        """Time of its request, ms."""
        return int(self.row.pointers.request_ts[0])


def parse_user(text: str, store: wire.DescribeStoreResponse) -> int | str:
    """Reads a user's id, of the store's kind. Raises UsageError."""
    return parse_user_id(text, from_wire_kind(store.user_id_kind))


def parse_moments(
    texts: Sequence[str], user: str, store: wire.DescribeStoreResponse, rows: RowFiles | None
) -> list[Moment]:
    """Reads moments: `row:NUMBER` of the files of thin rows, `at:TIME` in ms, or `now`.

    Args:
        texts: The moments.
        user: Id of the user; if one of the moments is a thin row, its user counts instead.
        store: Describes the store.
        rows: The thin rows, if there are some.

    Raises:
        UsageError: One is no moment, or there is no such row, or no moment at all.
        InputError: A file of thin rows cannot be read.
    """
    if not texts:
        raise UsageError(f"Give a moment: {MOMENTS}.")
    read = [thin_row(text, rows) for text in texts]
    user_ids = [moment.user_id for moment in read if moment is not None]
    user_id = user_ids[0] if user_ids else parse_user(user, store)
    return [
        moment or moment_of(text, user_id, store) for text, moment in zip(texts, read, strict=True)
    ]


def thin_row(text: str, rows: RowFiles | None) -> Moment | None:
    """Returns the moment of a thin row; None if the text names none."""
    kind, _, value = text.partition(":")
    if kind != "row":
        return None
    if rows is None:
        raise UsageError(NO_ROWS)
    row, labels = rows.read(parse_integer("row", value, range(rows.count)))
    return Moment("row", row, labels)


def moment_of(text: str, user_id: int | str, store: wire.DescribeStoreResponse) -> Moment:
    """Returns the moment of a time, or now."""
    if text == "now":
        return Moment("now", served_row(user_id, store.watermark_ts, store), {})
    kind, _, value = text.partition(":")
    if kind != "at":
        raise UsageError(f"{text[:40]!r} is no moment; give {MOMENTS}.")
    return Moment("at", served_row(user_id, parse_integer("at", value, INT64), store), {})


def served_row(user_id: int | str, request_ts: int, store: wire.DescribeStoreResponse) -> ThinRows:
    """Returns a pointer to the whole history that the newest generation of a moment has."""
    watermarks = np.array(store.watermarks, dtype=np.int64)
    place = int(np.searchsorted(watermarks, request_ts, side="right"))
    end_ts = int(watermarks[place - 1]) if place else 0
    return ThinRows(
        Pointers(user_ids=[user_id], end_ts=[end_ts], request_ts=[max(request_ts, end_ts)])
    )
