"""The mutable events of one call's users: counted before they are taken into memory."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from thinrow.errors import AnswerTooLargeError
from thinrow.online.record_parts import TEXT_SIZE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.online.event_tier import EventTier
    from thinrow.online.users import NamedUsers

__all__ = ["COPIES", "EVENT_BYTES", "TEXT_BYTES", "MutableEvents"]

COPIES = 4
"""Copies of a record's bytes: as it was read, as columns, as their message, and in the answer."""
EVENT_BYTES = 256
"""Memory of an event beside its record: Python objects and places in lists."""
TEXT_BYTES = 64
"""Memory of each of its texts beside the text."""
TEXT_LIST_COPIES = TEXT_BYTES // TEXT_SIZE_BYTES
"""The same in proportion to a record, whose lists may be of very short texts."""


class MutableEvents:
    """Mutable events of a call's users; a user named several times is read once.

    Up to `small_bytes` of memory are read at once. Beyond, events are only counted until `load`,
    which is to be called while room for `memory_bytes` is held.
    """

    def __init__(
        self,
        tier: EventTier,
        named: NamedUsers,
        arrived: tuple[int, int],
        response_bytes_max: int,
        small_bytes: int,
    ) -> None:
        """Reads or counts the events that arrived in the half-open window `arrived`.

        Raises:
            AnswerTooLargeError: All records together exceed `response_bytes_max`.
            RequestError: Retention dropped some of the events.
        """
        self._tier = tier
        self._arrived = arrived
        # By bytes, whose hashes callers cannot choose.
        self._keys = [key.to_bytes(8, "big", signed=True) for key in named.keys]
        texts: Sequence[bytes | None] = [None] * len(self._keys)
        if named.texts is not None:
            texts = self._keys = [text.encode() for text in named.texts]
        self._users = dict(zip(self._keys, zip(named.keys, texts, strict=True), strict=True))
        self._read: dict[bytes, tuple[list[int], list[bytes]]] | None = {}
        self.memory_bytes = 0
        """Memory that the events take while they are answered."""
        text_count = 0 if tier.format is None else tier.format.text_count
        event_bytes = EVENT_BYTES + TEXT_BYTES * text_count
        copies = COPIES
        if tier.format is not None and tier.format.has_text_lists:
            copies += TEXT_LIST_COPIES
        repeats = Counter(self._keys)
        counts: dict[bytes, int] = {}
        left = response_bytes_max
        for key, (user_id, text) in self._users.items():
            times = repeats[key]
            most = left // times
            found = None
            if self._read is not None:
                small = max(0, small_bytes - self.memory_bytes) // (copies * times)
                found = self._read_small(user_id, min(most, small), text)
            if found is None:
                self._read = None
                count, size = tier.measure(user_id, *arrived, most, text)
            else:
                assert self._read is not None
                self._read[key] = found
                count, size = len(found[1]), sum(map(len, found[1]))
            counts[key] = count
            left -= times * size
            self.memory_bytes += times * (copies * size + event_bytes * count)
        self.lengths = [counts[key] for key in self._keys]
        """Events of each user of the call."""

    def _read_small(
        self, user_id: int, bytes_max: int, text: bytes | None
    ) -> tuple[list[int], list[bytes]] | None:
        try:
            return self._tier.read(user_id, *self._arrived, bytes_max, text)
        except AnswerTooLargeError:
            return None

    def of_first(self) -> tuple[list[int], list[bytes]] | None:
        """Arrival times and records of the first user; None if they were only counted."""
        return None if self._read is None else self._read[self._keys[0]]

    def load(self) -> list[tuple[list[int], list[bytes]]]:
        """Returns arrival times and records of each user of the call, in order."""
        if self._read is None:
            self._read = {
                key: self._tier.read(user_id, *self._arrived, sys.maxsize, text)
                for key, (user_id, text) in self._users.items()
            }
        return [self._read[key] for key in self._keys]
