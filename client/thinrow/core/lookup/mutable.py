"""Mutable events converted to the kind of an answer's column, whose events they follow."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.convert import exact
from thinrow.core.pointers import MutableColumn
from thinrow.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.pointers import MutableEvents
    from thinrow.core.wire.response import Column
    from thinrow.core.wire.widen import ColumnKind

__all__ = ["MutableTail", "is_plain"]


def is_plain(events: MutableEvents, trait: str, kind: ColumnKind) -> bool:
    """Returns True if a trait of events is of an answer's kind as it is."""
    column = column_of(events, trait)
    return (
        column is not None
        and column.present is None
        and column.values.dtype == kind.dtype
        and column.values.shape[1:] == kind.shape
        and (column.offsets is not None) == kind.listed
        and column.values.flags.c_contiguous
        and not (kind.text or kind.nullable)
    )


def column_of(events: MutableEvents, trait: str) -> MutableColumn | None:
    """Returns a trait of events; None if they lack it."""
    if trait == "visible_ts":
        return MutableColumn(events.arrival_ts)
    return events.columns.get(trait)


class MutableTail:
    """One trait of mutable events, which follow the immutable ones.

    Any method raises:
        InputError: Events lack a trait they need, or hold it in another type.
    """

    def __init__(
        self, column: Column, kind: ColumnKind, events: MutableEvents, first_code: int
    ) -> None:
        """Reads the trait; codes of texts start at `first_code`."""
        self._column = column
        self._kind = kind
        self._trait = column.trait
        self._first_code = first_code
        self._count = len(events.arrival_ts)
        mine = column_of(events, self._trait)
        if mine is not None and (mine.offsets is not None) != kind.listed:
            if len(mine) if mine.present is None else mine.present.any():
                what = "lists" if kind.listed else "no lists"
                raise InputError(
                    f"The mutable column {self._trait!r} must have {what}, as the trait does."
                )
            mine = None
        if mine is None:  # then it is absent everywhere
            lists = np.zeros(self._count + 1, np.int64) if kind.listed else None
            values = np.zeros(0 if kind.listed else self._count)
            mine = MutableColumn(values, np.zeros(self._count, np.bool_), lists)
        self._present = mine.present
        self._offsets = mine.offsets
        self._given: NDArray[Any] | None = mine.values
        if self._present is not None and self._offsets is None:
            self._given = mine.values[self._present]
        if not len(self._given):  # then its type does not matter
            self._given = None

    @property
    def present(self) -> NDArray[np.bool_]:
        """Shape (events,): False where the event lacks the trait."""
        return np.ones(self._count, np.bool_) if self._present is None else self._present

    @property
    def values(self) -> NDArray[Any]:
        """Shape (events, *shape): 0 or the trait's default where absent. Not to be written to.

        Of lists, the elements, shape (elements,).
        """
        kind = self._kind
        if self._has_defaults and self._kind.listed and self._column.default_word is None:
            raise self._lacking()
        if self._given is None:
            given = np.zeros((0, *kind.shape), kind.dtype)
        else:
            given = self._codes if kind.text else self._cast(self._given)
        if self._present is None or kind.listed:
            return given
        tail = np.zeros((self._count, *kind.shape), kind.dtype)
        tail[self._present] = given
        if self._has_defaults:
            tail[~self._present] = (
                self._first_code + len(self.strings) - 1 if kind.text else self._default
            )
        return tail

    @property
    def element_offsets(self) -> NDArray[np.int64]:
        """Place of each event's first element, and the end of the last; shape (events + 1,)."""
        assert self._offsets is not None
        return self._offsets

    @property
    def _has_defaults(self) -> bool:
        """True if events lack the trait, and have its default."""
        return not (self._kind.nullable or self._present is None or self._present.all())

    @cached_property
    def strings(self) -> list[str]:
        """Distinct texts of these events, and the default if it is needed."""
        texts = list(self._own_texts)
        if self._has_defaults and not self._kind.listed:
            if self._column.default_string is None:
                raise self._lacking()
            texts.append(self._column.default_string)
        return texts

    @cached_property
    def _own_texts(self) -> dict[str, int]:
        """Distinct texts and their codes."""
        if self._given is None:
            return {}
        distinct = dict.fromkeys(self._given.tolist())
        texts = {text: self._first_code + number for number, text in enumerate(distinct)}
        if not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"The mutable column {self._trait!r} must hold text, as the trait does."
            )
        return texts

    @property
    def _codes(self) -> NDArray[np.int32]:
        assert self._given is not None
        codes = map(self._own_texts.__getitem__, self._given.tolist())
        return np.fromiter(codes, np.int32, len(self._given))

    def _cast(self, given: NDArray[Any]) -> NDArray[Any]:
        """Converts to the trait's dtype."""
        kind = self._kind
        if given.shape[1:] != kind.shape:
            raise InputError(
                f"The mutable column {self._trait!r} has values of shape {given.shape[1:]}, but "
                f"the trait has {kind.shape}."
            )
        try:
            return exact(given, kind.dtype)
        except ValueError as error:
            raise InputError(
                f"The mutable column {self._trait!r} does not fit its trait: {error}."
            ) from error

    @property
    def _default(self) -> NDArray[Any]:
        """The value of an event without the trait, if the column is not nullable."""
        if self._column.default_word is None:
            raise self._lacking()
        dtype = self._kind.dtype
        word = np.array([self._column.default_word])
        return word.astype(f"i{dtype.itemsize}").view(dtype)

    def _lacking(self) -> InputError:
        return InputError(
            f"A mutable event lacks {self._trait!r}, which is not nullable and has no default; "
            f"add it to the thin rows or give it a default in the schema."
        )
