"""Traits: the columns of an event."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
from thinrow.core.codes import FIRST_CODE
from thinrow.core.traits import TraitForm, TraitType

__all__ = [
    "BUILT_IN_NAMES",
    "EVENT_ID",
    "EVENT_TS",
    "FIRST_NUMBER",
    "LABELS",
    "LIST_LABELS",
    "NAME_BYTES_MAX",
    "RESERVED",
    "VISIBLE_TS",
    "Trait",
    "is_name",
    "is_trait_name",
]

LABELS = {kind.label: kind for kind in TraitType}
LIST_LABELS = {f"list<{kind.label}>": kind for kind in TraitType if kind is not TraitType.BOOL}
NAME_BYTES_MAX = 128


def is_name(text: str) -> bool:
    """Returns True for letters, digits and _, with no digit first: a group, or part of a trait."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]*", text) is not None


def is_trait_name(text: str) -> bool:
    """Returns True for the name of a trait, in which dots separate the fields of structs."""
    return len(text) <= NAME_BYTES_MAX and all(map(is_name, text.split(".")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """One column of an event."""

    name: str
    type: TraitType
    number: int
    """Identifies the trait in stored stripes for ever; never used again for another."""
    size: int = 1
    """Elements of a fixed-size vector; 1 for a scalar or a list."""
    length_max: int = 0
    """Limit on the elements of a list of values of the type; 0 where the trait is no list."""
    sparse: bool = False
    """True where events may lack the trait."""
    default: int | float | bool | str | tuple[()] | None = None
    """Value of events that lack the trait, () for the empty list; None: null."""
    key: bool = False
    """True where the trait is part of the digest."""
    unit: str | None = None
    scale: int | None = None
    buckets: int | None = None
    """All three mean the same in `TraitForm`."""
    filled_before_ts: int | None = field(default=None, compare=False)
    """Events with an earlier visible_ts may have values that were filled later; None: all are as
    served. It is a fact of a generation and no part of the trait's identity."""
    coded: TraitType | None = None
    """Type of the values that a vocabulary of the store codes as int32; None for other traits."""
    values_max: int = 0
    """Limit on the values of the vocabulary; 0 without one."""
    codes_end: int = field(default=0, compare=False)
    """End of the codes that the vocabulary of a generation gives out; 0 without one."""

    def __post_init__(self) -> None:
        if self.coded is not None and not self.codes_end:
            object.__setattr__(self, "codes_end", FIRST_CODE)

    @property
    def form(self) -> TraitForm:
        """The form that input is converted to."""
        return TraitForm(
            type=self.type,
            size=self.size,
            length_max=self.length_max,
            unit=self.unit,
            scale=self.scale,
            buckets=self.buckets,
        )

    @property
    def carried(self) -> Trait:
        """The trait as events have it outside of stores: with a vocabulary, values and no codes."""
        if self.coded is None:
            return self
        return replace(self, type=self.coded, default=None, coded=None, values_max=0, codes_end=0)

    @property
    def label(self) -> str:
        """The type as schema files name it."""
        return f"list<{self.type.label}>" if self.length_max else self.type.label

    @property
    def nullable(self) -> bool:
        """True where a history may hold nulls."""
        return self.sparse and self.default is None

    @property
    def default_word(self) -> int:
        """The default's bits, as an int64; for a categorical trait the value itself."""
        if self.default is None or isinstance(self.default, str | tuple):
            return 0
        value = np.array(self.default, dtype=self.type.value_dtype)
        return int(value.view(self.type.word_dtype).astype(np.int64))


VISIBLE_TS = Trait(name="visible_ts", type=TraitType.INT64, number=1)
EVENT_TS = Trait(name="event_ts", type=TraitType.INT64, number=2)
EVENT_ID = Trait(name="event_id", type=TraitType.INT64, number=3, sparse=True)
"""The id of an event, where a schema says nothing of its kind."""
BUILT_IN_NAMES = (EVENT_TS.name, EVENT_ID.name, VISIBLE_TS.name)
"""Names of the traits that every event has, in the order answers list them."""
FIRST_NUMBER = 16
RESERVED = {
    *("user_id", "arrival_ts", "request_ts", "uih", "mutable", "uih_status"),
    *BUILT_IN_NAMES,
}
"""Columns of events, requests, thin rows and fat rows that are not traits."""
