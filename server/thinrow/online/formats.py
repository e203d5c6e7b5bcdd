"""The record formats of all schemas that the tier has had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.online.records import USER, RecordFormat, schema_number
from thinrow.schema import Schema, from_stored, to_stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.core.traits import TraitType
    from thinrow.online.state import StoredState

__all__ = ["RecordFormats"]


class RecordFormats:
    """Formats by the number in each record. Reads are thread-safe; the caller serializes `add`.

    Args:
        state: Keeps the schemas.
    """

    def __init__(self, state: StoredState) -> None:
        self._state = state
        self._formats = [
            RecordFormat(from_stored(schema), number)
            for number, schema in enumerate(state.now.schemas)
        ]

    @property
    def oldest(self) -> RecordFormat | None:
        """The format that the tier began with; None before the tier has a schema."""
        return self._formats[0] if self._formats else None

    @property
    def newest(self) -> RecordFormat | None:
        """The format of new events; None before the tier has a schema."""
        return self._formats[-1] if self._formats else None

    @property
    def event_id_type(self) -> TraitType:
        """The type of the events' ids, which all formats have in common."""
        return self._formats[-1].schema.event_id.type

    def add(self, schema: Schema) -> RecordFormat:
        """Returns the format of events of a schema, durably registered if it is new."""
        newest = self.newest
        if newest is None or newest.schema != schema:
            newest = RecordFormat(schema, len(self._formats))
            self._formats.append(newest)
            self._state.update(schemas=(*self._state.now.schemas, to_stored(schema)))
        return newest

    def to_wire(self, arrivals: Sequence[int], records: list[bytes]) -> bytes:
        """Encodes events of any schemas as a MutableEvents of the newest schema."""
        newest = self._formats[-1]
        message = newest.to_wire(arrivals, records)
        if message is None:
            message = newest.to_wire(arrivals, [self._rewritten(record) for record in records])
            assert message is not None
        return message

    def order(self, record: bytes) -> tuple[object, ...]:
        """Returns a key that sorts a record by the newest schema, whatever its own is."""
        return self._formats[-1].order(self._rewritten(record))

    def _rewritten(self, record: bytes) -> bytes:
        newest, number = self._formats[-1], schema_number(record)
        if number == newest.number:
            return record
        old = self._formats[number].decode([record])
        names = {"event_ts", "event_id", USER.name, *(trait.name for trait in newest.schema.traits)}
        known = {name: column for name, column in old.items() if name in names}
        user = {USER.name: known.pop(USER.name)} if USER.name in known else {}
        return newest.encode({**newest.checked(known, 1), **user}, 1)[0]
