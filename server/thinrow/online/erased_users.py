"""Users whose events a tier has deleted, because a published generation erased them.

A generation may be withdrawn later. Then one that still knows such a user is served, and between
its watermark and the erasure the tier lacks the user's events. A key is ``x user(8)``, the user
big-endian; the value is the time before which events of the user are deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rocksdict import WriteBatch
from thinrow.errors import StoreError
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.online.database import TierDatabase

__all__ = ["MARKS", "check_not_erased", "mark_erased"]

MARKS = (b"x", b"y")
"""Range of the keys."""


def mark_erased(database: TierDatabase, runs: Sequence[tuple[int, int, int]]) -> None:
    """Writes the marks of users, durable after a sync.

    Args:
        database: Holds the marks.
        runs: Epochs, users, and the times before which their events are to be deleted.
    """
    pairs = WriteBatch(raw_mode=True)
    for _, user, until_ts in runs:
        pairs.put(_key(user), until_ts.to_bytes(8, "big"))
    database.write(pairs)


def check_not_erased(database: TierDatabase, users: Sequence[int], from_ts: int) -> None:
    """Checks that no event of users that arrived since ``from_ts`` was deleted by an erasure.

    Raises:
        StoreError: Some were, so that a history would be short.
    """
    with database.reading():
        marks = database.get_many([_key(user) for user in users])
    until_ts = max((int.from_bytes(mark, "big") for mark in marks if mark), default=from_ts)
    if until_ts > from_ts:
        raise StoreError(
            f"A generation erased a user of this request, and is not published any more: this "
            f"server has deleted what arrived of the user before {readable_time(until_ts)} "
            f"({until_ts}). Publish a generation of that watermark or a later one; a server of a "
            f"Kafka topic can be given an empty folder as --data instead."
        )


def _key(user: int) -> bytes:
    return b"x" + user.to_bytes(8, "big", signed=True)
