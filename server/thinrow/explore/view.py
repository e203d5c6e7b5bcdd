"""One or two moments of a user's history as one list of events, as the page shows it."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from thinrow.core.status import Status, status_name
from thinrow.errors import UsageError
from thinrow.explore.sentences import cut_sentence, digest_sentence, status_sentence
from thinrow.explore.values import value_text
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from thinrow.explore.histories import Event, Histories, Sight
    from thinrow.explore.moments import Moment

__all__ = ["view"]


class Line:
    """One event of the list: as the store has it now, or as a moment saw it, or both."""

    def __init__(self, event: Event, moments: int) -> None:
        self.event = event
        self.arrival_ts: int | None = event.visible_ts if event.from_snapshot else None
        self.places: list[int | None] = [None] * moments
        """Place of the event among those of each moment; None where that does not list it."""
        self.unlisted: set[int] = set()
        """Moments that saw the event, and do not list it because newer ones fill their list."""

    @property
    def is_stored(self) -> bool:
        """True if the store has it, so that it has a place in the history."""
        return not self.event.from_snapshot

    def seen_by(self, moment: int, place: int, event: Event) -> None:
        """Notes that a moment saw it."""
        self.places[moment] = place
        if event.from_snapshot:
            self.arrival_ts = event.visible_ts


def view(
    histories: Histories,
    moments: Sequence[Moment],
    model: int | str,
    watermark_ts: int,
    traits: Mapping[str, int | None],
) -> dict[str, Any]:
    """Returns all that the page shows of some moments of one user, ready for JSON.

    Args:
        histories: The store.
        moments: One or two.
        model: Most events that the model reads, 0 for all; or the name of its tenant.
        watermark_ts: Watermark of the newest generation, ms.
        traits: The schema's traits by name, in order, each with its `filled_before_ts`: events that
            were visible before it may have values that were filled later, ms. None: none have.

    Raises:
        UsageError: The moments are of two users.
    """
    users = {moment.user_id for moment in moments}
    if len(users) > 1:
        raise UsageError(
            f"The moments are of the users {' and '.join(sorted(map(str, users)))}; compare two "
            f"moments of one user."
        )
    sights = [histories.sight(moment.row, model) for moment in moments]
    start_ts = max(0, min(map(first_place, moments, sights)))
    stored, has_more = histories.from_place(moments[0].user_id, start_ts, watermark_ts)
    as_served = [place for place, filled_ts in enumerate(traits.values()) if filled_ts is None]
    lines = joined(stored, sights, [moment.end_ts for moment in moments], as_served)
    read = sights[0].traits_read
    return {
        "user": str(moments[0].user_id),
        "traits": [
            {"name": name, "read": name in read, "filled_before_ts": filled_ts}
            for name, filled_ts in traits.items()
        ],
        "moments": [described(*pair) for pair in zip(moments, sights, strict=True)],
        "events": [shown(line, moments, sights) for line in lines],
        "has_more": has_more,
    }


def first_place(moment: Moment, sight: Sight) -> int:
    """Returns where the list begins for a moment: its first event of the store, or its end, ms."""
    places = (event.visible_ts for event in sight.events if not event.from_snapshot)
    return next(places, moment.end_ts)


def joined(
    stored: Sequence[Event],
    sights: Sequence[Sight],
    ends_ts: Sequence[int],
    as_served: Sequence[int],
) -> list[Line]:
    """Joins the store's events with those that the moments saw, oldest first.

    An event of a snapshot is the one of the same id that the store has after the moment's end;
    without an id, the one of the same time and values. The store gave it a place of its own, and
    may have filled traits other than those at the places `as_served`.
    """
    lines = [Line(event, len(sights)) for event in stored]
    for moment, (sight, end_ts) in enumerate(zip(sights, ends_ts, strict=True)):
        unseen: defaultdict[Any, deque[Line]] = defaultdict(deque)
        for line in lines:
            is_new = line.event.visible_ts >= end_ts
            unseen[identity(line.event, as_served, in_snapshot=is_new)].append(line)
        for place, event in enumerate(sight.events):
            found = unseen[identity(event, as_served, in_snapshot=event.from_snapshot)]
            if not found:
                lines.append(Line(event, len(sights)))
            line = found.popleft() if found else lines[-1]
            line.seen_by(moment, place, event)
    lines.sort(key=lambda line: line.event.visible_ts)
    for moment, sight in enumerate(sights):
        left = sight.unlisted.copy()
        # The newest first, because a pointer's max_length cuts the oldest of one visible_ts.
        for line in reversed(lines):
            if line.places[moment] is None and line.is_stored and left[line.event.visible_ts]:
                left[line.event.visible_ts] -= 1
                line.unlisted.add(moment)
    return lines


def identity(event: Event, as_served: Sequence[int], *, in_snapshot: bool) -> tuple[Any, ...]:
    """Returns what identifies an event: in a snapshot, it has no place in the history yet."""
    values = repr([event.values[place] for place in as_served])
    if not in_snapshot:
        return (event.visible_ts, event.event_ts, event.event_id, values)
    if event.event_id is not None:
        return (event.event_id,)
    return (event.event_ts, values)


def described(moment: Moment, sight: Sight) -> dict[str, Any]:
    """Returns the facts of a moment."""
    pointers = moment.row.pointers
    has_window = moment.start_ts != moment.end_ts
    recorded = int(pointers.digests[0]) if moment.kind == "row" else None
    return {
        "kind": moment.kind,
        "labels": moment.labels,
        "request_ts": moment.request_ts,
        "request_time": readable_time(moment.request_ts),
        "start_time": readable_time(moment.start_ts) if moment.start_ts else None,
        "end_ts": moment.end_ts if has_window else None,
        "end_time": readable_time(moment.end_ts) if has_window else None,
        "max_length": int(pointers.max_lengths[0]),
        "status": status_name(sight.status),
        "status_sentence": status_sentence(sight, moment.kind, has_window=has_window),
        "is_served": sight.is_served,
        "digest": f"{recorded or sight.digest or 0:016x}" if recorded or sight.digest else None,
        "digest_sentence": digest_sentence(recorded, sight.digest),
        "cut_sentence": cut_sentence(sight),
        "history_events": sight.history_events,
        "total": sight.total,
        "shown": len(sight.events),
        "kept": sight.kept,
        "from_store": sight.total - sight.from_snapshot,
        "from_snapshot": sight.from_snapshot,
    }


def shown(line: Line, moments: Sequence[Moment], sights: Sequence[Sight]) -> dict[str, Any]:
    """Returns one event, and how each moment saw it."""
    event = line.event
    return {
        "event_ts": event.event_ts,
        "event_time": readable_time(event.event_ts),
        "visible_ts": event.visible_ts if line.is_stored else None,
        "visible_time": readable_time(event.visible_ts) if line.is_stored else None,
        "arrival_ts": line.arrival_ts,
        "arrival_time": None if line.arrival_ts is None else readable_time(line.arrival_ts),
        "event_id": None if event.event_id is None else str(event.event_id),
        "values": [value_text(value) for value in event.values],
        "seen": [
            state(line, number, moment, sight)
            for number, (moment, sight) in enumerate(zip(moments, sights, strict=True))
        ],
    }


def state(line: Line, number: int, moment: Moment, sight: Sight) -> dict[str, Any]:
    """Returns how a moment, of a number, saw an event.

    `store`, `snapshot`: serving saw it, from there.
    `unproven`: the store has it there, but the status denies that serving saw the same.
    `unlisted`: it is older than the moment's list.
    `later`: serving did not see it; its place is after the moment's watermark.
    `outside`: serving did not see it; it is before the pointer's window, or not in the store.
    """
    place, visible_ts = line.places[number], line.event.visible_ts
    if place is not None:
        seen, is_kept = sight.events[place], sight.is_kept(place)
        is_proven = sight.is_served or (sight.status == Status.OK and is_kept)
        name = "unproven" if not is_proven else "snapshot" if seen.from_snapshot else "store"
        return {"state": name, "kept": is_kept}
    # Without its id, an event of the snapshot that is not listed is known by its time alone.
    may_be_carried = moment.end_ts <= visible_ts < moment.request_ts and sight.hides_snapshot
    if number in line.unlisted or may_be_carried:
        name = "unlisted"
    elif visible_ts >= moment.end_ts:
        name = "later"
    elif line.is_stored and not sight.is_served and visible_ts >= moment.start_ts:
        name = "unproven"
    else:
        name = "outside"
    return {"state": name, "kept": False}
