"""Users of the oracle's worlds, which are integers there, as the kinds of ids that stores have."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KINDS", "id_array", "known_id", "oracle_id"]

KINDS = ("int64", "int64", "uint64", "string", "uuid")
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
