"""Cost model of fat rows and thin rows in bytes, and the fat-row wall that follows from it.

The model has few named figures, each measured or assumed; none is fitted to a result. Bytes are
those of compressed files and of messages. The cost of a byte and the speed of a GPU are assumptions
of ``Power``. Stripes and layers are those of the store: the model calls the store's own code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from thinrow.store.shard import LAYERS_MAX, LAYERS_SHARE_MAX
from thinrow.store.striping import cut_stripes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.wall.config import Power

__all__ = [
    "INCREMENTS_SAMPLED",
    "SHARE_MAX",
    "Bytes",
    "Curve",
    "FatRowWall",
    "Workload",
    "bytes_of",
    "find_wall",
    "increment_events",
    "rewritten_events",
    "share_at",
    "store_written_per_day",
]

INCREMENTS_SAMPLED = 1024
"""Increments from which their average is computed, over users and successive days."""
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
        """Bytes of a row of a given number of events."""
        if events <= self.events[-1]:
            return float(np.interp(events, self.events, self.bytes))
        slope = (self.bytes[-1] - self.bytes[-2]) / (self.events[-1] - self.events[-2])
        return self.bytes[-1] + slope * (events - self.events[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Data to store and to train on."""

    users: float
    requests_per_day: float
    """Requests of each user: each becomes an example."""
    histories: NDArray[np.float64]
    """Events of the history of an example, for a sample of examples; shape (sample,)."""
    stored_events: float
    """Events of each user, as far back as retention goes."""
    events_per_day: float
    """Events per day of each user."""
    increment_events: float
    """Average events of a user that a daily increment writes; see :func:`increment_events`."""
    rows_kept_days: float
    """Retention of examples, fat or thin."""
    row_age_days: float
    """Age of an example when it is trained on: by then, its events lie in longer stripes."""
    fat_row: Curve
    """Bytes of a fat row in its file."""
    thin_row: float
    """Bytes of a thin row in its file, its mutable events with it."""
    store_event: float
    """Bytes of an event in the store, its share of directories and indexes with it."""
    answer: Curve
    """Bytes of a server's answer for one example."""
    sharing: float = 1.0
    """Examples that one copy of a history serves in a batch, beyond what ``answer`` has already."""
    epochs: float = 1.0
    """Number of times an example is trained on."""

    def events(self, length: int) -> float:
        """Events of an example cut to a sequence length, on average."""
        return float(np.minimum(self.histories, length).mean())

    def events_read(self, length: int) -> float:
        """Average events of the stripes that hold the newest ``length`` events of an example."""
        ends = self.histories.astype(np.int64)
        later = round(self.events_per_day * self.row_age_days)
        owners, sizes = cut_stripes(np.zeros_like(ends), ends + later)
        owners //= 2
        stripe_ends = np.cumsum(sizes) - (np.cumsum(ends + later) - ends - later)[owners]
        starts = np.maximum(ends - length, 0)
        needed = (stripe_ends > starts[owners]) & (stripe_ends - sizes < ends[owners])
        return float(sizes[needed].sum() / len(ends))

    @property
    def longest(self) -> int:
        """Events of the longest history."""
        return int(self.histories.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Cost of one way of keeping examples."""

    stored: float
    written_per_day: float
    read_per_example: float
    """Bytes from storage, each time that a tenant trains on it."""
    sent_per_example: float
    """Bytes to the trainer, each time."""

    def served_per_example(self, examples_per_day: float, epochs: float) -> float:
        """All that data services move for an example in an epoch, its share of writing too."""
        written = self.written_per_day / examples_per_day / epochs
        return written + self.read_per_example + self.sent_per_example


@dataclass(frozen=True, slots=True, kw_only=True)
class FatRowWall:
    """Length at which data services cost too much; None if none does, up to the longest history."""

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
    histories = workload.events_read(length) / workload.sharing
    answer = workload.answer.at(events) / workload.sharing
    thin = Bytes(
        stored=kept * workload.thin_row + store,
        written_per_day=examples * workload.thin_row + store_written_per_day(workload),
        read_per_example=workload.thin_row + histories * workload.store_event,
        sent_per_example=workload.thin_row + answer,
    )
    return fat, thin


def increment_events(histories: NDArray[np.float64], events_per_day: float) -> float:
    """Averages the events of a user that a daily increment writes, the new ones included.

    Args:
        histories: Events of each history of a sample; shape (sample,).
        events_per_day: Average new events of a user, who has them in proportion to their history.
    """
    users = np.resize(histories, INCREMENTS_SAMPLED)
    days = np.arange(INCREMENTS_SAMPLED) // len(histories)
    daily = events_per_day * users / histories.mean()
    fresh = np.maximum(np.rint(daily), 1).astype(np.int64)
    before = users.astype(np.int64) + days * fresh
    return float((np.minimum(daily, 1.0) * rewritten_events(before, before + fresh)).mean())


def rewritten_events(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts the events that an increment writes for each user, the new ones included.

    Args:
        before: Events of each user's history; shape (users,).
        after: The same with the new events.
    """
    written = np.zeros_like(after)
    for user, counts in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        old, new = (cut_stripes(*np.array([[0], [count]]))[1] for count in counts)
        shared = min(len(old), len(new))
        unchanged = np.cumprod(old[:shared] == new[:shared]) * old[:shared]
        written[user] = counts[1] - unchanged.sum()
    return written


def store_written_per_day(workload: Workload) -> float:
    """Average bytes that daily compactions write: layers, then the whole store again."""
    store = workload.users * workload.stored_events * workload.store_event
    rewritten = min(workload.increment_events, workload.stored_events)
    layer = workload.users * rewritten * workload.store_event
    layers = min(LAYERS_MAX, int(LAYERS_SHARE_MAX * store / layer) + 1)
    return (layers * layer + store) / (layers + 1)


def find_wall(workload: Workload, power: Power) -> FatRowWall:
    """The shortest sequence length at which one tenant's bytes cost more than SHARE_MAX."""
    return FatRowWall(
        fat=_first_past(workload, power, 0),
        thin=_first_past(workload, power, 1),
    )


def share_at(workload: Workload, power: Power, length: int) -> tuple[float, float]:
    """Power of data services as a share of the GPUs', for fat rows and thin, of one tenant.

    The store is taken to keep no more of a user than the length needs, as fat rows do.
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
