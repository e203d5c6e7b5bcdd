"""Figures of the cost model that people can give."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinrow.core.settings import check, setting

__all__ = ["Amounts", "GivenFigures", "Joules", "Power", "Tenant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A model and the length it trains with."""

    name: str
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFigures:
    """Figures that replace those that are measured or assumed; None keeps them.

    Raises:
        UsageError: A figure is not above 0.
    """

    users: float | None = field(default=None, metadata=setting("Users."))
    requests_per_day: float | None = field(
        default=None, metadata=setting("Requests of a user in a day.", option="--requests")
    )
    events_per_day: float | None = field(
        default=None, metadata=setting("Events of a user in a day.", option="--events")
    )
    retention_days: float | None = field(
        default=None, metadata=setting("Days that events are kept.", option="--retention")
    )
    rows_kept_days: float | None = field(
        default=None, metadata=setting("Days that examples are kept.", option="--rows-kept")
    )
    epochs: float | None = field(
        default=None, metadata=setting("Times that an example is trained on in batch.")
    )
    fat_row_event: float | None = field(
        default=None,
        metadata=setting("Bytes of an event in a file of fat rows.", option="--fat-event-bytes"),
    )
    store_event: float | None = field(
        default=None,
        metadata=setting("Bytes of an event in the store.", option="--store-event-bytes"),
    )
    answer_event: float | None = field(
        default=None,
        metadata=setting(
            "Bytes of an event in a response, for each example.", option="--sent-event-bytes"
        ),
    )
    thin_row: float | None = field(
        default=None, metadata=setting("Bytes of a thin row.", option="--thin-row-bytes")
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """Work of data hosts for one example."""

    disk_bytes: float
    """Bytes read from disks and written to them."""
    network_bytes: float
    cpu_s: float

    def plus(self, other: Amounts, share: float) -> Amounts:
        """Adds a share of other work."""
        return Amounts(
            disk_bytes=self.disk_bytes + share * other.disk_bytes,
            network_bytes=self.network_bytes + share * other.network_bytes,
            cpu_s=self.cpu_s + share * other.cpu_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """Energy of that work, by the part of a host that limits it."""

    disk: float
    network: float
    cpu: float

    @property
    def total(self) -> float:
        """The sum: hosts of disks, of network and of processors are apart."""
        return self.disk + self.network + self.cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Electric power of GPUs and data hosts, and how much they get done with it.

    The defaults are round figures of no machine in particular.

    Raises:
        UsageError: A figure is not above 0.
    """

    gpu_watts: float = field(default=700, metadata=setting("Power that a GPU draws."))
    gpu_examples_per_second: float = field(
        default=5000,
        metadata=setting("Examples that a GPU trains on in a second.", option="--gpu-examples"),
    )
    service_watts: float = field(default=400, metadata=setting("Power that a data host draws."))
    service_cores: float = field(
        default=32,
        metadata=setting("Cores of a data host, each as fast as one that was measured."),
    )
    service_network_mb: float = field(
        default=3125,
        metadata=setting("Megabytes that a data host's network moves in a second."),
    )
    service_disk_mb: float = field(
        default=200, metadata=setting("Megabytes that a data host's disks move in a second.")
    )

    def __post_init__(self) -> None:
        check(self)

    def joules(self, amounts: Amounts) -> Joules:
        """Energy of data hosts for some work."""
        return Joules(
            disk=self.service_watts * amounts.disk_bytes / (1e6 * self.service_disk_mb),
            network=self.service_watts * amounts.network_bytes / (1e6 * self.service_network_mb),
            cpu=self.service_watts * amounts.cpu_s / self.service_cores,
        )

    def share(self, joules_per_example: float) -> float:
        """Returns the power of data hosts as a share of the GPUs'."""
        return joules_per_example * self.gpu_examples_per_second / self.gpu_watts
