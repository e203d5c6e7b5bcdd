"""Places in a topic: how far a replica has applied each of its partitions."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from thinrow.errors import PartitionMissingError, RequestError
from thinrow.events.units import PLAUSIBLE_UNTIL_TS
from thinrow.online.topic.messages import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rocksdict import WriteBatch
    from thinrow.online.database import TierDatabase

__all__ = ["Place", "Places", "PlacesClock", "Progress", "arrival_of", "put_places"]

_PLACE = struct.Struct(">qqI")


class Place(NamedTuple):
    """A place in one partition; all of it is a function of the log."""

    offset: int = 0
    """Offset of the next message to apply."""
    as_of_ts: int = 0
    """Arrival of the last message applied, ms; see `arrival_of`."""
    events: int = 0
    """Number of events so far that arrived at that moment, which no request sees yet."""


@dataclass(slots=True)
class Progress:
    """A place that moves on with each message; see `Place`."""

    offset: int
    as_of_ts: int
    events: int

    def pass_message(self, offset: int, timestamp_ts: int) -> None:
        """Moves behind a message, whose events are not counted yet."""
        self.offset = offset + 1
        arrival_ts = arrival_of(timestamp_ts, self.as_of_ts)
        if arrival_ts != self.as_of_ts:
            self.as_of_ts, self.events = arrival_ts, 0

    def place(self) -> Place:
        """Returns the place that was reached."""
        return Place(self.offset, self.as_of_ts, self.events)


def arrival_of(timestamp_ts: int, as_of_ts: int) -> int:
    """Returns the arrival of a message, ms: the largest timestamp up to and including it.

    A timestamp after 2100 is no time in milliseconds, and counts as none.

    Args:
        timestamp_ts: Timestamp of the message, ms.
        as_of_ts: Arrival of the message before it in the partition.
    """
    return timestamp_ts if as_of_ts < timestamp_ts < PLAUSIBLE_UNTIL_TS else as_of_ts


class Places:
    """The places of a replica in its partitions. One thread advances them; any thread reads.

    Args:
        database: Has the places of the last start.
        partitions: The partitions that this replica reads.
        partition_count: Number of partitions of the topic.
    """

    def __init__(
        self, database: TierDatabase, partitions: Iterable[int], partition_count: int
    ) -> None:
        self._count = partition_count
        with database.reading():
            stored = {number: database.get(_place_key(number)) for number in partitions}
        self._now = {
            number: Place() if data is None else Place(*_PLACE.unpack(data))
            for number, data in stored.items()
        }
        self._advanced_s = dict.fromkeys(self._now, time.monotonic())

    @property
    def now(self) -> Mapping[int, Place]:
        """The place by partition."""
        return self._now

    def advanced_s(self, partition: int) -> float:
        """Returns when the arrival of a partition last grew, `time.monotonic`."""
        return self._advanced_s[partition]

    def advance(self, places: Mapping[int, Place]) -> None:
        """Moves to places whose events can be read."""
        for number, place in places.items():
            if place.as_of_ts > self._now[number].as_of_ts:
                self._advanced_s[number] = time.monotonic()
            self._now[number] = place

    def reset(self, places: Mapping[int, Place]) -> None:
        """Starts again from places, perhaps earlier ones."""
        self._now = dict(places)

    @property
    def latest_ts(self) -> int:
        """The latest moment of a partition, ms."""
        return max(place.as_of_ts for place in list(self._now.values()))

    def as_of(self, users: Sequence[int]) -> int:
        """Returns the latest moment before which no more events of users arrive, ms.

        Args:
            users: Keys of the users; none for the users of all partitions.

        Raises:
            PartitionMissingError: This replica does not read the partition of a user.
        """
        if not users:
            return min(place.as_of_ts for place in list(self._now.values()))
        moments = []
        for user in users:
            number = partition_of(user, self._count)
            place = self._now.get(number)
            if place is None:
                raise PartitionMissingError(
                    f"This server does not read partition {number} of the topic, which has a user "
                    f"of this request; request them from a server whose --partitions include it."
                )
            moments.append(place.as_of_ts)
        return min(moments)


class PlacesClock:
    """The clock by which watermarks are handed over: the log's."""

    def __init__(self, places: Places) -> None:
        self._places = places

    @property
    def now_ts(self) -> int:
        """No partition of this replica has an event that arrives before, ms."""
        return self._places.as_of(())

    @property
    def floor_ts(self) -> int:
        """The latest arrival of an event so far, or later, ms."""
        return self._places.latest_ts

    def promise(self, moment_ts: int, subject: str = "The moment") -> int:
        """Returns the moment if all that arrived before it is applied; else raises RequestError."""
        if moment_ts > self.now_ts:
            raise RequestError(
                f"{subject} lies after {self.now_ts}, up to which this server has applied the "
                f"topic."
            )
        return moment_ts

    def wait_committed(self, moment_ts: int) -> None:
        """Returns at once: what is applied can be read."""


def put_places(pairs: WriteBatch, places: Mapping[int, Place]) -> None:
    """Adds places to a write, which are then durable with all the events before them."""
    for number, place in places.items():
        pairs.put(_place_key(number), _PLACE.pack(place.offset, place.as_of_ts, place.events))


def _place_key(partition: int) -> bytes:
    return b"mplace" + partition.to_bytes(4, "big")
