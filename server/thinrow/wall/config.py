"""Figures of the cost model that people can give."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinrow.core.settings import check, setting

__all__ = ["GivenFigures", "Power"]


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
        default=None, metadata=setting("Times that an example is trained on.")
    )
    sharing: float | None = field(
        default=None,
        metadata=setting("Examples of a batch that share one copy of a history."),
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
        metadata=setting("Bytes of an event in a response.", option="--sent-event-bytes"),
    )
    thin_row: float | None = field(
        default=None, metadata=setting("Bytes of a thin row.", option="--thin-row-bytes")
    )

    def __post_init__(self) -> None:
        check(self)


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
    service_mb: float = field(
        default=200, metadata=setting("Megabytes that a data host moves in a second.")
    )

    def __post_init__(self) -> None:
        check(self)

    def share(self, bytes_per_example: float) -> float:
        """Returns the power of data services as a share of the GPUs'."""
        service = self.service_watts / (1e6 * self.service_mb) * bytes_per_example
        return service * self.gpu_examples_per_second / self.gpu_watts
