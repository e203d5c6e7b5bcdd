"""Histories as a moment saw them, looked up as a trainer does it."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow.client import Batch, Pointers, Projection, ThinRows
from thinrow.core.status import Status
from thinrow.errors import RequestError

if TYPE_CHECKING:
    from thinrow.client import Client
    from thinrow.core.lookup.answer import Answer

__all__ = ["EVENTS_MAX", "LATER_EVENTS_MAX", "Event", "Histories", "Sight"]

EVENTS_MAX = 1000
"""Events shown of a moment, the newest; older ones are only counted."""
LATER_EVENTS_MAX = 2 * EVENTS_MAX
"""Events read of the store as it is now, from the first one shown on."""
BUILT_IN = ("event_ts", "event_id", "visible_ts")


class Event(NamedTuple):
    """One event, as an answer has it."""

    event_ts: int
    visible_ts: int
    """Place in the history, ms; the time of its arrival where it is of a snapshot."""
    event_id: int | str | None
    values: tuple[Any, ...]
    """Values of all traits, in schema order; None where absent."""
    from_snapshot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A history as a moment saw it, and the part of it that a model reads."""

    status: int
    """Status of the model's request."""
    events: list[Event]
    """Events of the moment, oldest first: the newest `EVENTS_MAX`."""
    is_served: bool
    """False if the store cannot prove all that serving saw; `events` are then what it has of it."""
    total: int
    """Events that serving saw, also those that are not shown."""
    from_snapshot: int
    """Events that its mutable snapshot carried."""
    unlisted: Counter[int]
    """Events of the store that serving saw and `events` leaves out: their number by visible_ts."""
    kept: int
    """Events that the model reads, of all that serving saw."""
    keeps_oldest: bool
    """True if the model reads the oldest ones, not the newest."""
    sequence_length: int
    """Most events that the model reads; 0 for no limit."""
    traits_read: frozenset[str]
    history_events: int | None
    """Events of the whole history that the store has up to the moment; None if unknown."""
    digest: int | None
    """Digest of that history; None if unknown."""

    @property
    def hides_snapshot(self) -> bool:
        """True if `events` leaves out some of the snapshot."""
        return self.from_snapshot > len(self.events)

    def is_kept(self, place: int) -> bool:
        """Returns True if the model reads `events[place]`."""
        place += self.total - len(self.events)
        return place < self.kept if self.keeps_oldest else place >= self.total - self.kept


class Histories:
    """Looks up the histories of one store.

    Args:
        client: Client of the store.
        traits: Names of all traits of its schema, in order.
    """

    def __init__(self, client: Client, traits: list[str]) -> None:
        self._client = client
        self._traits = tuple(traits)

    def sight(self, row: ThinRows, model: int | str) -> Sight:
        """Returns what the request of a thin row saw.

        Args:
            row: One example.
            model: Most events that the model reads, 0 for all; or the name of its tenant.
        """
        whole = read = self._answer(row, Projection(traits=("visible_ts",)))
        if model:
            of_model = (
                Projection(model, traits=("visible_ts",)) if isinstance(model, int) else model
            )
            read = self._answer(row, of_model)
        history_events, digest = self._whole_history(row.pointers)
        is_served = int(whole.statuses[0]) == Status.OK
        shown, length = row, EVENTS_MAX
        if not is_served:
            carried = 0 if row.mutable is None else int(row.mutable.lengths[0])
            shown = ThinRows(without_digest(row.pointers), row.mutable)
            length = min(EVENTS_MAX, (history_events or 0) + carried)
        events = self._events(shown, Projection(length, traits=self._all)) if length else []
        total, from_snapshot = len(events), sum(event.from_snapshot for event in events)
        unlisted = Counter[int]()
        if is_served:
            total, from_snapshot = int(whole.lengths[0]), int(whole.mutable.lengths[0])
            places = Batch.from_answers([whole]).to_lists("visible_ts")[0] or []
            unlisted.update(places[: min(total - len(events), total - from_snapshot)])
        return Sight(
            status=int(read.statuses[0]),
            events=events,
            is_served=is_served,
            total=total,
            from_snapshot=from_snapshot,
            unlisted=unlisted,
            kept=int(read.lengths[0]),
            keeps_oldest=read.keeps_oldest,
            sequence_length=read.sequence_length,
            traits_read=frozenset(read.kinds if isinstance(model, str) else self._traits),
            history_events=history_events,
            digest=digest,
        )

    def from_place(
        self, user_id: int | str, start_ts: int, end_ts: int
    ) -> tuple[list[Event], bool]:
        """Returns the events that the store has now from a place in a history on.

        Args:
            user_id: The user.
            start_ts: First visible_ts, ms; 0 for all.
            end_ts: Watermark of the generation, ms.

        Returns:
            At most LATER_EVENTS_MAX events, the oldest, and True if there are more.
        """
        row = ThinRows(Pointers(user_ids=[user_id], start_ts=[start_ts], end_ts=[end_ts]))
        # One more than is returned, to see that there are more.
        most = LATER_EVENTS_MAX + 1
        oldest = Projection(most, traits=self._all, truncation="head")
        events = self._events(row, oldest)
        if not events:
            # Retention has dropped some; what it has left is found from its newest end.
            left = min(most, self._whole_history(row.pointers)[0] or 0)
            events = self._events(row, Projection(left, traits=self._all)) if left else []
            events = [event for event in events if not start_ts or event.visible_ts >= start_ts]
        return events[:LATER_EVENTS_MAX], len(events) > LATER_EVENTS_MAX

    @property
    def _all(self) -> tuple[str, ...]:
        return (*BUILT_IN, *self._traits)

    def _answer(self, row: ThinRows, projection: Projection | str) -> Answer:
        with closing(self._client.answers([row], projection)) as answers:
            return next(answers)

    def _events(self, row: ThinRows, projection: Projection) -> list[Event]:
        """Returns the events of one example, none unless its status is OK."""
        answer = self._answer(row, projection)
        if answer.statuses[0] != Status.OK:
            return []
        batch = Batch.from_answers([answer])
        columns = {name: batch.to_lists(name)[0] or [] for name in batch.values}
        traits = [columns[name] for name in self._traits]
        first_of_snapshot = int(answer.lengths[0] - answer.mutable.lengths[0])
        return [
            Event(
                columns["event_ts"][n],
                columns["visible_ts"][n],
                columns["event_id"][n],
                tuple(column[n] for column in traits),
                n >= first_of_snapshot,
            )
            for n in range(int(answer.lengths[0]))
        ]

    def _whole_history(self, pointers: Pointers) -> tuple[int | None, int | None]:
        """Returns the events that the store has up to a pointer's end, and their digest.

        Both are None where it names no generation, or where the server shows no histories.
        """
        user_id, end_ts = pointers.user(0), int(pointers.end_ts[0])
        if pointers.start_ts[0] == pointers.end_ts[0] or end_ts <= 0:
            return None, None
        try:
            answer = self._client.inspect(user_id, end_ts, Projection(1))
        except RequestError:
            return None, None
        if answer.end_ts != end_ts:
            return None, None
        return answer.event_count, answer.digest or None


def without_digest(pointers: Pointers) -> Pointers:
    """Returns the same pointers, without a proof of their events."""
    return Pointers(
        user_ids=[pointers.user(place) for place in range(len(pointers))],
        end_ts=pointers.end_ts,
        start_ts=pointers.start_ts,
        max_lengths=pointers.max_lengths,
        digests=np.zeros(len(pointers), np.uint64),
        request_ts=pointers.request_ts,
    )
