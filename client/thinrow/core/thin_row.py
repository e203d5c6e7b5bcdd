"""One thin row, from the online service to the logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinrow.core.pointers import MutableColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.core.pointers import MutableEvents

__all__ = ["EventView", "ThinRow"]


class EventView(Sequence[Mapping[str, Any]]):
    """The mutable events of one example as mappings, made from columns when they are read.

    Args:
        events: The mutable events of some examples.
        example: The example's place among them.
    """

    __slots__ = ("events", "start", "stop")

    def __init__(self, events: MutableEvents, example: int) -> None:
        self.events = events
        self.start, self.stop = map(int, events.offsets[example : example + 2])

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def names(self) -> frozenset[str]:
        """The fields of its events."""
        return frozenset({*self.events.columns, "arrival_ts"})

    def column(self, name: str) -> MutableColumn:
        """Returns one field of its events."""
        part = slice(self.start, self.stop)
        if name == "arrival_ts":
            return MutableColumn(self.events.arrival_ts[part])
        return self.events.columns[name][part]

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - a mapping, or a tuple for a slice
        return self._mappings()[place]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._mappings())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return self._mappings() == tuple(other)

    def __repr__(self) -> str:
        return repr(self._mappings())

    def _mappings(self) -> tuple[Mapping[str, Any], ...]:
        """Returns event_ts, arrival_ts, event_id and the traits of each event, in that order."""
        lists: dict[str, list[Any]] = {}
        for name in self.events.columns:
            lists[name] = self.column(name).to_list()
            if name == "event_ts":
                lists["arrival_ts"] = self.column("arrival_ts").to_list()
        return tuple(
            dict(zip(lists, event, strict=True)) for event in zip(*lists.values(), strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinRow:
    """The pointer of one request, and the events too new for its generation. Times are ms."""

    user_id: int | str

    request_ts: int
    """Time of the request; everything here arrived strictly before."""

    start_ts: int
    """First visible_ts named, inclusive."""

    end_ts: int
    """Watermark of the generation that served the request, exclusive; start_ts before the first."""

    max_length: int
    """Most immutable events named, the newest; 0 for no limit."""

    digest: int
    """Digest of the history up to end_ts, 64 bits unsigned; 0 for not recorded."""

    mutable: Sequence[Mapping[str, Any]]
    """The snapshot in the order served. Each event has the fields that `mutable` has in a file of
    thin rows: event_ts, arrival_ts, event_id and the traits; None where it lacks one."""
