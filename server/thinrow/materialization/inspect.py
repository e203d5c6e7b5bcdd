"""One history as a person reads it."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.access.projection import resolve_projection
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import Pointers, Projection, ThinRows
from thinrow.errors import AnswerTooLargeError, RequestError, StoreCorruptError
from thinrow.materialization.users import inspected_key
from thinrow.schema import BUILT_IN_NAMES, EVENT_GROUP, TraitType
from thinrow.store.history import PointerBatch
from thinrow.store.times import readable_time
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from thinrow.core.ids import IdKind
    from thinrow.core.wire.response import Response
    from thinrow.schema import Trait
    from thinrow.store.generation import Generation
    from thinrow.store.history import Selection

__all__ = ["EVENTS_DEFAULT", "SHOWN_ELEMENT_BYTES", "SHOWN_VALUE_BYTES", "Question"]

EVENTS_DEFAULT = 20
SHOWN_VALUE_BYTES, SHOWN_ELEMENT_BYTES = 128, 64
"""Sizes of a value as a person reads it, and of each element in it: in Python and as a message."""


SHOWN_IN = {
    "i": "int_value",
    "u": "uint_value",
    "f": "float_value",
    "b": "bool_value",
    "O": "string_value",
}
"""The field of InspectedTrait that shows a value, by the kind of its NumPy dtype."""
SHOWN_VECTOR_IN = {
    "i": "int_vector_value",
    "u": "uint_vector_value",
    "f": "vector_value",
    "O": "string_vector_value",
}
"""The same for a vector or a list."""


class Question:
    """The request of Inspect, as a batch of one pointer."""

    def __init__(
        self, generation: Generation, request: wire.InspectRequest, events_max: int
    ) -> None:
        """Raises RequestError for a projection that does not fit, or more than ``events_max``."""
        projection = wire.Projection()
        projection.CopyFrom(request.projection)
        projection.sequence_length = projection.sequence_length or EVENTS_DEFAULT
        if projection.sequence_length > events_max:
            raise RequestError(
                f"Inspect shows at most {events_max} events; request a shorter sequence_length."
            )
        resolved = resolve_projection(projection, generation.schema)
        self._traits = [trait for trait in resolved.traits if trait.name not in BUILT_IN_NAMES]
        self.projection = replace(
            resolved,
            traits=(*generation.schema.built_in, *self._traits),
            groups=resolved.groups | {EVENT_GROUP},
        )
        self._generation = generation
        self._end_ts = _end_ts(generation, request.as_of_ts)
        zero = np.zeros(1, dtype=np.int64)
        self.pointers = PointerBatch(
            user_ids=inspected_key(generation, request),
            start_ts=zero,
            end_ts=zero + self._end_ts,
            max_lengths=zero,
            digests=zero.view(np.uint64),
            request_ts=zero + max(request.as_of_ts, self._end_ts),
            mutable_lengths=zero,
        )

    @property
    def event_bytes(self) -> int:
        """Size of one event as `readable` shows it, text aside."""
        return sum(
            SHOWN_VALUE_BYTES + SHOWN_ELEMENT_BYTES * max(trait.size, trait.length_max)
            for trait in self.projection.traits
        )

    def readable(
        self, selection: Selection, answer: Response, text_bytes_max: int
    ) -> wire.InspectResponse:
        """The answer as a person reads it, widened as a trainer's client does it.

        Raises:
            AnswerTooLargeError: Its texts, each with every event that has it, have more than
                `text_bytes_max` bytes.
        """
        pointers, truncation = self.pointers, self.projection.truncation
        rows = ThinRows(Pointers(user_ids=pointers.user_ids, end_ts=pointers.end_ts))
        projection = Projection(
            truncation.sequence_length, truncation="head" if truncation.head else "newest"
        )
        piece = BatchLookup(rows, projection).whole()
        piece.answered(answer)
        batch = Batch.from_answers([piece.lookup.answer()])
        names = [trait.name for trait in self.projection.traits]
        columns = {name: batch.to_lists(name)[0] or [] for name in names}
        known = self._known(columns)
        texts = [columns[t.name] for t in self.projection.traits if t.type is TraitType.STRING]
        texts += [
            list(map(known[t.name].get, columns[t.name]))
            for t in self._traits
            if t.coded is TraitType.STRING
        ]
        if sum(map(_text_length, chain.from_iterable(texts))) > text_bytes_max:
            raise AnswerTooLargeError(
                "The texts of these events would take more bytes than this server sends "
                "(response_bytes_max); request a shorter sequence_length or fewer traits."
            )
        return wire.InspectResponse(
            generation=answer.generation,
            watermark_ts=answer.watermark_ts,
            status=wire.Status.Name(int(answer.statuses[0])),
            end_ts=self._end_ts,
            event_count=int(selection.available_counts[0]),
            digest=int(selection.digests[0]),
            events=[
                _event(
                    {name: column[row] for name, column in columns.items()},
                    self._traits,
                    known,
                    self._generation.schema.event_ids,
                )
                for row in range(len(columns["event_ts"]))
            ],
        )

    def _known(self, columns: dict[str, list[Any]]) -> dict[str, dict[int, Any]]:
        """Returns the values of codes by trait.

        Raises:
            StoreCorruptError: The vocabulary does not have a code.
        """
        known = {}
        for trait in self._traits:
            if trait.coded is not None:
                codes = [code for code in dict.fromkeys(columns[trait.name]) if code]
                values = self._generation.vocabulary(trait).values_of(codes)
                if None in values:
                    raise StoreCorruptError(
                        f"{self._generation.folder} has a code of {trait.name} that its vocabulary "
                        f"does not have; build the generation again."
                    )
                known[trait.name] = dict(zip(codes, values, strict=True))
        return known


def _text_length(value: str | list[str] | None) -> int:
    return sum(map(len, value)) if isinstance(value, list) else len(value or "")


def _end_ts(generation: Generation, as_of_ts: int) -> int:
    """The watermark that served requests at a moment; 0 where there was none."""
    if as_of_ts == 0:
        return generation.watermark_ts
    place = int(np.searchsorted(generation.watermarks, as_of_ts, side="right"))
    return int(generation.watermarks[place - 1]) if place else 0


def _event(
    values: dict[str, Any],
    traits: list[Trait],
    known: dict[str, dict[int, Any]],
    event_ids: IdKind,
) -> wire.InspectedEvent:
    event = wire.InspectedEvent(
        event_ts=values["event_ts"],
        event_time=readable_time(values["event_ts"]),
        visible_ts=values["visible_ts"],
    )
    if values["event_id"] is not None:
        if event_ids == "int64":
            event.event_id = values["event_id"]
        else:
            event.event_id_text = str(values["event_id"])
    for trait in traits:
        value = values[trait.name]
        code = 0 if trait.coded is None else value
        if trait.coded is not None:
            value = known[trait.name].get(code)  # None for 0, the code of absent values
        if value is not None:
            shown = _trait(trait.carried, value)
            before_ts = trait.filled_before_ts
            shown.filled = before_ts is not None and values["visible_ts"] < before_ts
            shown.code = code
            event.traits.append(shown)
    return event


def _trait(trait: Trait, value: Any) -> wire.InspectedTrait:  # noqa: ANN401 - by type of trait
    kind = trait.type.value_dtype.kind
    shown = wire.InspectedTrait(name=trait.name)
    if trait.size > 1 or trait.length_max:
        elements = getattr(shown, SHOWN_VECTOR_IN[kind])
        elements.SetInParent()  # an empty list is a value
        elements.values.extend(value)
    else:
        setattr(shown, SHOWN_IN[kind], value)
    return shown
