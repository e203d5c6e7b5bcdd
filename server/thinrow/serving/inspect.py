"""One history as a person reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.assemble import assemble as to_batch
from thinrow.client.pointers import Pointers as ClientPointers
from thinrow.client.pointers import Projection, ThinRows
from thinrow.errors import RequestError
from thinrow.schema import BUILT_IN, EVENT_GROUP, TraitType
from thinrow.serving.assemble import assemble
from thinrow.serving.projection import resolve_projection
from thinrow.store.history import HistoryPlan, Pointers
from thinrow.store.times import readable_time
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from thinrow.schema import Trait
    from thinrow.store.generation import Generation

EVENTS_DEFAULT = 20
_SIGNED = range(TraitType.INT8, TraitType.INT64 + 1)
_UNSIGNED = range(TraitType.UINT8, TraitType.UINT64 + 1)


def inspect(
    generation: Generation,
    request: wire.InspectRequest,
    events_max: int,
    response_bytes_max: int,
) -> wire.InspectResponse:
    """Answers Inspect.

    Raises:
        RequestError: a projection that does not fit the schema, or more than ``events_max``.
        StoreCorruptError: a file is damaged.
    """
    asked = wire.Projection()
    asked.CopyFrom(request.projection)
    asked.sequence_length = asked.sequence_length or EVENTS_DEFAULT
    if asked.sequence_length > events_max:
        raise RequestError(
            f"Inspect shows at most {events_max} events; ask for a shorter sequence_length."
        )
    projection = resolve_projection(asked, generation.schema)
    wanted = [trait for trait in projection.traits if trait not in BUILT_IN]
    projection = replace(
        projection, traits=(*BUILT_IN, *wanted), groups=projection.groups | {EVENT_GROUP}
    )
    end_ts = _end_ts(generation, request.as_of_ts)
    zero = np.zeros(1, dtype=np.int64)
    user_ids = np.array([request.user_id], dtype=np.int64)
    pointers = Pointers(
        user_ids=user_ids,
        start_ts=np.minimum(zero, end_ts),
        end_ts=zero + end_ts,
        max_lengths=zero,
        digests=zero.view(np.uint64),
        request_ts=zero + max(request.as_of_ts, end_ts),
        mutable_lengths=zero,
    )
    plan = HistoryPlan(
        generation, pointers, projection.truncation, projection.groups, record_digests=True
    )
    stripes = plan.read()
    selection = plan.resolve(stripes)
    answer = assemble(plan, selection, stripes, projection, response_bytes_max)
    head = projection.truncation.head
    batch = to_batch(
        answer,
        ThinRows(ClientPointers(user_ids=user_ids, end_ts=zero + end_ts)),
        Projection(asked.sequence_length, truncation="head" if head else "newest"),
    )
    columns = {trait.name: batch.to_lists(trait.name)[0] or [] for trait in projection.traits}
    return wire.InspectResponse(
        generation=generation.number,
        watermark_ts=generation.watermark_ts,
        status=answer.statuses[0],
        end_ts=end_ts,
        event_count=int(selection.left[0]),
        digest=int(selection.digests[0]),
        events=[
            _event({name: column[row] for name, column in columns.items()}, wanted)
            for row in range(len(columns["event_ts"]))
        ],
    )


def _end_ts(generation: Generation, as_of_ts: int) -> int:
    """The watermark that served requests at a moment; 0 where there was none."""
    if as_of_ts == 0:
        return generation.watermark_ts
    place = int(np.searchsorted(generation.watermarks, as_of_ts, side="right"))
    return int(generation.watermarks[place - 1]) if place else 0


def _event(values: dict[str, Any], traits: list[Trait]) -> wire.InspectedEvent:
    event = wire.InspectedEvent(
        event_ts=values["event_ts"],
        event_time=readable_time(values["event_ts"]),
        visible_ts=values["visible_ts"],
    )
    if values["event_id"] is not None:
        event.event_id = values["event_id"]
    for trait in traits:
        if values[trait.name] is not None:
            event.traits.append(_trait(trait, values[trait.name]))
    return event


def _trait(trait: Trait, value: Any) -> wire.InspectedTrait:  # noqa: ANN401 - by type of trait
    if trait.size > 1:
        return wire.InspectedTrait(name=trait.name, vector_value=wire.FloatVector(values=value))
    if trait.type in _SIGNED or trait.type is TraitType.CATEGORICAL:
        return wire.InspectedTrait(name=trait.name, int_value=value)
    if trait.type in _UNSIGNED:
        return wire.InspectedTrait(name=trait.name, uint_value=value)
    if trait.type is TraitType.BOOL:
        return wire.InspectedTrait(name=trait.name, bool_value=value)
    if trait.type is TraitType.STRING:
        return wire.InspectedTrait(name=trait.name, string_value=value)
    return wire.InspectedTrait(name=trait.name, float_value=value)
