"""Cost model of fat rows and thin rows in bytes and CPU seconds, and the walls that follow from it.

The model has few named figures, each measured or assumed; none is fitted to a result. Bytes are
those of compressed files and of messages. Hosts and GPUs are assumptions of ``Power``. Stripes and
layers are those of the store: the model calls the store's own code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from thinrow.compaction.shards import WHOLE_EVERY
from thinrow.store.shard import LAYERS_MAX, LAYERS_SHARE_MAX
from thinrow.store.striping import cut_stripes
from thinrow.wall.config import Amounts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.wall.config import Joules, Power
    from thinrow.wall.curve import Curve

__all__ = [
    "INCREMENTS_SAMPLED",
    "SHARE_MAX",
    "Cost",
    "Walls",
    "Workload",
    "costs_of",
    "energy_at",
    "events_read",
    "find_walls",
    "increment_events",
    "rewritten_events",
    "share_at",
    "store_written_per_day",
]

INCREMENTS_SAMPLED = 1024
"""Increments from which their average is computed, over users and successive days."""
SHARE_MAX = 0.75
"""Data services that cost more than this share of the GPUs' power have hit the wall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Data to store and to train on, in one order."""

    order: str
    """Order in which examples are read."""
    sharing: float
    """Examples of a lookup that share one history; the curves hold for it."""
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
    fat_row: Curve
    """Bytes of a fat row in its file."""
    fat_read_cpu_s: Curve
    """CPU seconds from a fat row's file to its tensors."""
    fat_write_cpu_s: Curve
    """CPU seconds that write a fat row into its file."""
    thin_row: float
    """Bytes of a thin row in its file, its mutable events with it."""
    stored: Curve
    """Bytes of a user in the store, their share of directories and indexes with them."""
    layer_event: float
    """Bytes of an event in a layer, its share of directories and indexes with it."""
    compaction_read_per_written: float
    """Bytes that a daily compaction reads, for each byte that it writes."""
    compaction_cpu_s_per_mb: float
    """CPU seconds of compactions for each megabyte that they write."""
    store_read: Curve
    """Bytes of the store's files that the server reads for one example."""
    answer: Curve
    """Bytes of the server's response for one example."""
    thin_read_cpu_s: Curve
    """CPU seconds of server and client from a thin row to its tensors."""
    epochs: float = 1.0
    """Number of times an example is trained on."""

    def events(self, length: int) -> float:
        """Events of an example cut to a sequence length, on average."""
        return float(np.minimum(self.histories, length).mean())

    def store_bytes(self, events: float) -> float:
        """Bytes of the store if it holds a number of events of each user."""
        return self.users * self.stored.at(events)

    @property
    def longest(self) -> int:
        """Events of the longest history."""
        return int(self.histories.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one way of keeping examples."""

    stored: float
    """Bytes of all that is kept."""
    written_per_day: float
    """Bytes."""
    once: Amounts
    """Work to write an example, with its share of compactions."""
    each_time: Amounts
    """Work each time that a tenant trains on it."""

    def per_epoch(self, epochs: float) -> Amounts:
        """All work for an example in an epoch."""
        return self.each_time.plus(self.once, 1 / epochs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """Lengths at which data services cost too much; None if none does up to the longest history."""

    fat: int | None
    thin: int | None


def costs_of(workload: Workload, length: int, union_length: int) -> tuple[Cost, Cost]:
    """Costs of fat rows and of thin rows for a tenant.

    length: the sequence length that the tenant trains with.
    union_length: the longest of all tenants; fat rows carry that much for everyone.
    """
    examples = workload.users * workload.requests_per_day
    kept = examples * workload.rows_kept_days
    carried = workload.events(union_length)
    fat_row = workload.fat_row.at(carried)
    fat = Cost(
        stored=kept * fat_row,
        written_per_day=examples * fat_row,
        once=Amounts(
            disk_bytes=fat_row,
            network_bytes=fat_row,
            cpu_s=workload.fat_write_cpu_s.at(carried),
        ),
        each_time=Amounts(
            disk_bytes=fat_row,
            network_bytes=fat_row,
            cpu_s=workload.fat_read_cpu_s.at(carried),
        ),
    )
    events = workload.events(length)
    store = workload.store_bytes(workload.stored_events)
    written = store_written_per_day(workload)
    thin = Cost(
        stored=kept * workload.thin_row + store,
        written_per_day=examples * workload.thin_row + written,
        once=Amounts(
            disk_bytes=workload.thin_row
            + (1 + workload.compaction_read_per_written) * written / examples,
            network_bytes=workload.thin_row,
            cpu_s=workload.compaction_cpu_s_per_mb * written / 1e6 / examples,
        ),
        each_time=Amounts(
            disk_bytes=workload.thin_row + workload.store_read.at(events),
            network_bytes=workload.thin_row + workload.answer.at(events),
            cpu_s=workload.thin_read_cpu_s.at(events),
        ),
    )
    return fat, thin


def events_read(
    histories: NDArray[np.float64], length: int, events_per_day: float, row_age_days: float
) -> float:
    """Averages the events of the stripes that hold the newest ``length`` events of an example.

    Args:
        histories: Events of each example's history; shape (sample,).
        length: Sequence length.
        events_per_day: New events of a user in a day.
        row_age_days: Age of an example when it is read: by then, its events lie in longer stripes.
    """
    ends = histories.astype(np.int64)
    later = round(events_per_day * row_age_days)
    owners, sizes = cut_stripes(np.zeros_like(ends), ends + later)
    owners //= 2
    stripe_ends = np.cumsum(sizes) - (np.cumsum(ends + later) - ends - later)[owners]
    starts = np.maximum(ends - length, 0)
    needed = (stripe_ends > starts[owners]) & (stripe_ends - sizes < ends[owners])
    return float(sizes[needed].sum() / len(ends))


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
    """Average bytes that daily compactions write: layers, and each shard whole when it is due.

    A shard is written whole every WHOLE_EVERY days, and where its layers have grown too large.
    """
    store = workload.store_bytes(workload.stored_events)
    rewritten = min(workload.increment_events, workload.stored_events)
    layer = workload.users * rewritten * workload.layer_event
    layers = min(LAYERS_MAX, int(LAYERS_SHARE_MAX * store / layer) + 1)
    whole = -(-WHOLE_EVERY // (layers + 1))
    return (whole * store + (WHOLE_EVERY - whole) * layer) / WHOLE_EVERY


def find_walls(workload: Workload, power: Power) -> Walls:
    """The shortest sequence length at which one tenant's bytes cost more than SHARE_MAX."""
    return Walls(
        fat=_first_past(workload, power, 0),
        thin=_first_past(workload, power, 1),
    )


def energy_at(workload: Workload, power: Power, length: int) -> tuple[Joules, Joules]:
    """Energy of data services for an example of one tenant, of fat rows and thin.

    The store is taken to keep no more of a user than the length needs, as fat rows do.
    """
    workload = replace(workload, stored_events=min(workload.stored_events, length))
    fat, thin = (
        power.joules(cost.per_epoch(workload.epochs)) for cost in costs_of(workload, length, length)
    )
    return fat, thin


def share_at(workload: Workload, power: Power, length: int) -> tuple[float, float]:
    """Power of data services as a share of the GPUs', for fat rows and thin, of one tenant."""
    fat, thin = (power.share(joules.total) for joules in energy_at(workload, power, length))
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
