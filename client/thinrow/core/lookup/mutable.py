"""Mutable events converted to the kind of an answer's column, whose events they follow."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.convert import exact
from thinrow.core.pointers import MutableColumn
from thinrow.core.wire.widen import cast_integers
from thinrow.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.pointers import MutableEvents
    from thinrow.core.wire.response import Column
    from thinrow.core.wire.widen import ColumnKind

__all__ = ["MutableTail"]


class MutableTail:
    """One trait of mutable events, which follow the immutable ones.

    Any method raises:
        InputError: Events lack a trait they need, or hold it in another type.
    """

    def __init__(
        self, column: Column, kind: ColumnKind, events: MutableEvents, first_code: int
    ) -> None:
        """Reads the trait; codes of texts start at `first_code`."""
        count = len(events.arrival_ts)
        self._column = column
        self._kind = kind
        self._trait = column.trait
        self._first_code = first_code
        if self._trait == "visible_ts":
            mine = MutableColumn(events.arrival_ts)
        else:
            # A column that is missing is absent everywhere.
            absent = MutableColumn(np.zeros(0), np.zeros(count, np.bool_))
            mine = events.columns.get(self._trait, absent)
        self.present = np.ones(count, np.bool_) if mine.present is None else mine.present
        """Shape (events,): False where the event lacks the trait."""
        self._given = mine.values[self.present] if self.present.any() else None

    def values(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns values, shape (events, *shape): 0 or the trait's default where absent."""
        kind = self._kind
        tail = np.zeros((len(self.present), *kind.shape), kind.dtype)
        if self._given is not None:
            tail[self.present] = self._codes if kind.text else self._cast(self._given)
        if not kind.nullable and not self.present.all():
            tail[~self.present] = (
                self._first_code + len(self.strings) - 1 if kind.text else self._default
            )
        return tail if tail.dtype == dtype else cast_integers(self._trait, tail, dtype)

    @cached_property
    def strings(self) -> list[str]:
        """Distinct texts of these events, and the default if it is needed."""
        texts = list(self._own_texts)
        if not self._kind.nullable and not self.present.all():
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
