"""The fat-row wall: what fat rows and thin rows cost in bytes, and where bytes cost too much.

A model of few named figures, each measured or assumed; nothing in it is fitted to a result that it
tells. Bytes are those of compressed files and of messages. What a byte costs, and what a GPU does,
are assumptions of ``Power``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIPE_EVENTS = 512
"""Events that a store reads at once; what it reads too much is half of them, on average."""
SHARE_MAX = 0.75
"""Data services that cost more than this share of the GPUs' power have hit the wall."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes of a row against its events: straight between points, and on beyond the last two.

    A curve and not a line, since files of shorter rows compress better or worse than those of long.
    """

    events: tuple[float, ...]
    """Ascending; two points at least."""
    bytes: tuple[float, ...]

    @staticmethod
    def line(per_row: float, per_event: float) -> Curve:
        """The same for every event."""
        return Curve((0.0, 1.0), (per_row, per_row + per_event))

    def at(self, events: float) -> float:
        """Bytes of a row of so many events."""
        if events <= self.events[-1]:
            return float(np.interp(events, self.events, self.bytes))
        slope = (self.bytes[-1] - self.bytes[-2]) / (self.events[-1] - self.events[-2])
        return self.bytes[-1] + slope * (events - self.events[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What there is to store and to train on."""

    users: float
    requests_per_day: float
    """Of each user: each becomes an example."""
    histories: NDArray[np.float64]
    """Events of the history of an example, for a sample of examples; shape (sample,)."""
    stored_events: float
    """Of each user, as far back as retention goes."""
    events_per_day: float
    """Of each user."""
    rows_kept_days: float
    """For how long examples are kept, fat or thin."""
    fat_row: Curve
    """Of a fat row in its file."""
    thin_row: float
    """Bytes of a thin row in its file, its mutable events with it."""
    store_event: float
    """Bytes of an event in the store, its share of directories and indexes with it."""
    answer: Curve
    """Of a server's answer for one example."""
    sharing: float = 1.0
    """Examples that one copy of a history serves in a batch, beyond what ``answer`` has already."""
    epochs: float = 1.0
    """How often an example is trained on."""

    def events(self, length: int) -> float:
        """Events of an example cut to a sequence length, on average."""
        return float(np.minimum(self.histories, length).mean())

    @property
    def longest(self) -> int:
        """Events of the longest history."""
        return int(self.histories.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """What one way of keeping examples costs."""

    stored: float
    written_per_day: float
    read_per_example: float
    """From storage, each time that a tenant trains on it."""
    sent_per_example: float
    """To the trainer, each time."""

    def served_per_example(self, examples_per_day: float, epochs: float) -> float:
        """All that data services move for an example in an epoch, its share of writing too."""
        written = self.written_per_day / examples_per_day / epochs
        return written + self.read_per_example + self.sent_per_example


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Assumptions: what hosts draw, and what they do for it."""

    gpu_watts: float
    gpu_examples_s: float
    """Examples that a GPU trains on in a second."""
    service_watts: float
    """Of a host that stores, reads, decodes and sends."""
    service_bytes_s: float
    """Bytes that it moves in a second."""

    def share(self, bytes_per_example: float) -> float:
        """Power of data services, as a share of the GPUs'."""
        service = self.service_watts / self.service_bytes_s * bytes_per_example
        return service * self.gpu_examples_s / self.gpu_watts


@dataclass(frozen=True, slots=True, kw_only=True)
class FatRowWall:
    """Where data services cost too much; None where no length does, up to the longest history."""

    fat: int | None
    thin: int | None


def bytes_of(workload: Workload, length: int, union_length: int) -> tuple[Bytes, Bytes]:
    """Bytes of fat rows and of thin rows for a tenant.

    length: the sequence length that the tenant trains with.
    union_length: the longest of all tenants; fat rows carry that much for everyone.
    """
    examples = workload.users * workload.requests_per_day
    kept = examples * workload.rows_kept_days
    fat_row = workload.fat_row.at(workload.events(union_length))
    fat = Bytes(
        stored=kept * fat_row,
        written_per_day=examples * fat_row,
        read_per_example=fat_row,
        sent_per_example=fat_row,
    )
    events = workload.events(length)
    store = workload.users * workload.stored_events * workload.store_event
    histories = (events + STRIPE_EVENTS / 2) / workload.sharing
    answer = workload.answer.at(events) / workload.sharing
    thin = Bytes(
        stored=kept * workload.thin_row + store,
        # Every generation is complete: the store is written anew each day.
        written_per_day=examples * workload.thin_row + store,
        read_per_example=workload.thin_row + histories * workload.store_event,
        sent_per_example=workload.thin_row + answer,
    )
    return fat, thin


def find_wall(workload: Workload, power: Power) -> FatRowWall:
    """The shortest sequence length at which one tenant's bytes cost more than SHARE_MAX."""
    return FatRowWall(
        fat=_first_past(workload, power, 0),
        thin=_first_past(workload, power, 1),
    )


def share_at(workload: Workload, power: Power, length: int) -> tuple[float, float]:
    """Power of data services as a share of the GPUs', for fat rows and thin, of one tenant.

    The store is taken to keep no more of a user than the length asks for, as fat rows do.
    """
    workload = replace(workload, stored_events=min(workload.stored_events, length))
    examples = workload.users * workload.requests_per_day
    fat, thin = (
        power.share(kind.served_per_example(examples, workload.epochs))
        for kind in bytes_of(workload, length, length)
    )
    return fat, thin


def _first_past(workload: Workload, power: Power, kind: int) -> int | None:
    low, high = 0, workload.longest
    if share_at(workload, power, high)[kind] <= SHARE_MAX:
        return None
    while low + 1 < high:  # more events never cost less
        middle = (low + high) // 2
        past = share_at(workload, power, middle)[kind] > SHARE_MAX
        low, high = (low, middle) if past else (middle, high)
    return high
