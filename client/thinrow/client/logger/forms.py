"""Forms of traits beside the type of `mutable`: what the integers of its columns count.

Metadata of the type's fields carry them from `mutable_type` to the logger, and no further.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.core.traits import TraitForm, TraitType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["forms_of", "with_forms", "without_forms"]

METADATA = b"thinrow.form"
EVENT_TIME = TraitForm(type=TraitType.INT64, unit="ms")
EVENT_TIMES = {"event_ts": EVENT_TIME, "arrival_ts": EVENT_TIME}


def with_forms(kind: pa.ListType, forms: Mapping[str, TraitForm]) -> pa.ListType:
    """Returns a type of `mutable` that says which integers stand for values of another type."""
    fields = []
    for field in kind.value_type:
        form = forms.get(field.name)
        if form is not None and form.is_counted:
            given = {"type": form.type.value, "unit": form.unit, "scale": form.scale}
            text = json.dumps(given | {"buckets": form.buckets})
            field = field.with_metadata({METADATA: text.encode()})
        fields.append(field)
    return pa.list_(pa.struct(fields))


def forms_of(kind: pa.ListType) -> dict[str, TraitForm]:
    """Returns the forms that a type of `mutable` carries, and those of the times of events."""
    forms = dict(EVENT_TIMES)
    for field in kind.value_type:
        text = (field.metadata or {}).get(METADATA)
        if text is not None:
            given = json.loads(text)
            forms[field.name] = TraitForm(**given | {"type": TraitType(given["type"])})
    return forms


def without_forms(kind: pa.ListType) -> pa.ListType:
    """Returns the type of what is written."""
    if not any(field.metadata for field in kind.value_type):
        return kind
    fields = [field.remove_metadata() for field in kind.value_type]
    return pa.list_(kind.value_field.with_type(pa.struct(fields)))
