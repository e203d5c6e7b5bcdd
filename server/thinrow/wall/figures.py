"""Measured figures of the cost model: a JSON file that `make bench-wall` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from thinrow.errors import InputError
from thinrow.wall.curve import Curve

__all__ = ["BATCH", "SHIPPED", "STREAMING", "Figures", "Line", "Stored", "read_figures"]

STREAMING, BATCH = ORDERS = ("streaming", "batch")
SHIPPED = Path(__file__).with_name("figures.json")
FIGURES_BYTES_MAX = 1 << 20

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Length = Annotated[int, Field(gt=0)]


class Line(BaseModel):
    """Costs of one length in one order; those of an event count every event of every example."""

    model_config = ConfigDict(frozen=True)

    order: Literal["streaming", "batch"]
    length: Length
    sharing: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Examples of a lookup that share one history."""
    fat_event_bytes: Positive
    """Bytes of an event in a file of fat rows."""
    fat_read_cpu_s_per_million: Positive
    fat_write_cpu_s_per_million: NotNegative
    thin_row_bytes: Positive
    """Bytes of a thin row in its file, its mutable events with it."""
    store_read_event_bytes: Positive
    """Bytes that the server reads from the store's files."""
    sent_event_bytes: Positive
    """Bytes of the server's responses."""
    server_cpu_s_per_million: NotNegative
    client_cpu_s_per_million: NotNegative


class Stored(BaseModel):
    """A store of histories of one length, and its daily increments where they were measured."""

    model_config = ConfigDict(frozen=True)

    length: Length
    event_bytes: Positive
    """Bytes of an event in the store, its share of directories and indexes with it."""
    events: Length
    """Events of all users."""
    layer_event_bytes: Positive | None = None
    """Bytes of an event that a layer holds, its share of directories and indexes with it."""
    written_bytes_per_day: Positive | None = None
    """Bytes that a daily compaction writes into the store."""
    read_bytes_per_day: Positive | None = None
    """Bytes that it reads from files, less those that it has just written."""
    cpu_s_per_written_mb: Positive | None = None


class Figures(BaseModel):
    """A file of figures.

    Raises:
        ValidationError: A figure is missing or out of its range, or lines do not fit together.
    """

    model_config = ConfigDict(frozen=True)

    machine: str
    date: str
    lines: list[Line]
    stores: list[Stored]

    @model_validator(mode="after")
    def _check(self) -> Self:
        streaming, batch = ([line.length for line in self.of(order)] for order in ORDERS)
        if not streaming or streaming != batch or len(set(streaming)) < len(streaming):
            raise ValueError("lines need each length once in streaming and once in batch order")
        if any(len({line.sharing for line in self.of(order)}) != 1 for order in ORDERS):
            raise ValueError("lines of one order need one sharing")
        if {one.length for one in self.stores} != set(streaming):
            raise ValueError("stores need the lengths of the lines")
        self.increments()
        return self

    def of(self, order: str) -> list[Line]:
        """Lines of one order, ascending by length."""
        return sorted((one for one in self.lines if one.order == order), key=lambda one: one.length)

    def sharing(self, order: str) -> float:
        """Returns the examples that shared one history when an order was measured."""
        return self.of(order)[0].sharing

    def nearest(self, sharing: float) -> str:
        """Returns the order whose examples share a history most nearly as often."""
        return min((STREAMING, BATCH), key=lambda order: abs(1 / self.sharing(order) - 1 / sharing))

    def curve(self, order: str, *fields: str) -> Curve:
        """The sum of some fields of an order's lines, of an example, against its events."""
        lines = self.of(order)
        costs = [one.length * sum(getattr(one, name) for name in fields) for one in lines]
        return Curve((0.0, *(float(one.length) for one in lines)), (0.0, *costs))

    def cpu_curve(self, order: str, *fields: str) -> Curve:
        """The same for fields in seconds per million events, in seconds."""
        return self.curve(order, *fields).times(1e-6)

    def thin_row(self, order: str) -> float:
        """Bytes of a thin row, the mean over lengths: it carries no history."""
        lines = self.of(order)
        return sum(one.thin_row_bytes for one in lines) / len(lines)

    def stored(self) -> Curve:
        """Bytes of a user in the store against their events."""
        stores = sorted(self.stores, key=lambda one: one.length)
        lengths = (0.0, *(float(one.length) for one in stores))
        return Curve(lengths, (0.0, *(one.length * one.event_bytes for one in stores)))

    def increments(self) -> tuple[float, float, float]:
        """Bytes of an event in a layer, bytes read per byte written, CPU seconds per MB written.

        Means over the stores whose increments were measured.
        """
        found = [
            (
                one.layer_event_bytes,
                one.read_bytes_per_day / one.written_bytes_per_day,
                one.cpu_s_per_written_mb,
            )
            for one in self.stores
            if one.layer_event_bytes
            and one.written_bytes_per_day
            and one.read_bytes_per_day
            and one.cpu_s_per_written_mb
        ]
        if not found:
            raise ValueError("a store needs its daily increments")
        layer_event, read, cpu_s = (sum(column) / len(found) for column in zip(*found, strict=True))
        return layer_event, read, cpu_s


def read_figures(path: Path = SHIPPED) -> Figures:
    """Reads a file of figures. Raises InputError if it is missing or no such file."""
    try:
        with path.open("rb") as file:
            text = file.read(FIGURES_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    if len(text) > FIGURES_BYTES_MAX:
        raise InputError(
            f"{path} is larger than {FIGURES_BYTES_MAX:,} bytes; give a file of `make bench-wall`."
        )
    try:
        return Figures.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path} holds no figures of `make bench-wall`: {place}: {first['msg']}."
        ) from error
