"""Ids of the oracle's worlds, of the kinds that stores have.

Users are integers to the oracle, and events have the ids that people know.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["EVENT_IDS", "KINDS", "event_id_array", "id_array", "known_id", "oracle_id"]

KINDS = ("int64", "int64", "uint64", "string", "uuid")
EVENT_IDS: dict[str, tuple[int | str | None, ...]] = {
    "int64": (None, None, None, -1, 0, 1, 2, 2**60),
    "uint64": (None, None, None, 2**64 - 1, 0, 1, 2**63, 2**60),
    # The order of texts is that of UTF-8, which is not that of UTF-16 or of numbers.
    "string": (None, None, None, "", "10", "9", "\uffff", "\U00010000", "a\0", "a"),
    "uuid": (None, None, None, *(str(uuid.UUID(int=n)) for n in (0, 9, 10, 1 << 127))),
}
"""Few ids of each kind, so that events share them."""
SPECIAL = {1: "", 2: "é\0", 3: "-3"}


def known_id(user: int, kind: str) -> int | str:
    """Returns a user's id, of a kind."""
    if kind == "string":
        return SPECIAL.get(user, f"user {user}")
    if kind == "uuid":
        return str(uuid.UUID(int=user % (1 << 128)))
    return user % (1 << 64) if kind == "uint64" else user


def oracle_id(known: int | str, kind: str, users: Iterable[int]) -> int:
    """Returns the user who has an id."""
    (found,) = [user for user in users if known_id(user, kind) == known]
    return found


def id_array(users: Iterable[int], kind: str, *, shouted: bool = False) -> pa.Array:
    """Returns a column of ids; `shouted` has UUIDs in upper case, without hyphens."""
    known: list[Any] = [known_id(user, kind) for user in users]
    if kind == "uuid" and shouted:
        return pa.array([one.replace("-", "").upper() for one in known], pa.string())
    return pa.array(known, {"int64": pa.int64(), "uint64": pa.uint64()}.get(kind, pa.string()))


def event_id_array(
    ids: Sequence[int | str | None], kind: str, *, shouted: bool = False
) -> pa.Array:
    """Returns a column of event ids; `shouted` has UUIDs in upper case, without hyphens."""
    if kind == "uuid" and shouted:
        ids = [one if one is None else str(one).replace("-", "").upper() for one in ids]
    return pa.array(ids, {"int64": pa.int64(), "uint64": pa.uint64()}.get(kind, pa.string()))
