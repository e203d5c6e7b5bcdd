"""Codes of the values that mutable events have, as the store's vocabularies give them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from thinrow.core.codes import UNKNOWN_CODE, VALUES_PER_REQUEST_MAX
from thinrow.core.ids import utf8
from thinrow.core.wire.malformed import require
from thinrow.errors import InputError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from thinrow.core.lookup.coding import Coder, Value
    from thinrow.core.pointers import Projection

    LookUp: TypeAlias = Callable[[wire.LookUpCodesRequest, float], wire.LookUpCodesResponse]

__all__ = ["REQUEST_BYTES", "VALUES_KEPT_MAX", "CodeBook"]

VALUES_KEPT_MAX = 1 << 20
"""Limit on the values of a trait whose codes are kept; then they are looked up again."""
REQUEST_BYTES = 1 << 18
"""Bytes of texts in a request, but for one text that is longer."""
SIGN_BIT = 1 << 63


class CodeBook:
    """Looks codes up, and keeps them: they never change. Thread-safe.

    Args:
        look_up: Sends one request, with the time for its response.
    """

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._lock = threading.Lock()
        self._known: dict[str, dict[Value, int]] = {}
        self._unknown: dict[str, dict[Value, int]] = {}
        """Ends of the vocabularies that did not have a value."""

    def coder(self, projection: Projection | str, deadline_s: float) -> Coder:
        """Returns what looks codes up for requests of a projection, or of the tenant it names."""
        tenant = projection if isinstance(projection, str) else ""

        def codes(trait: str, values: Sequence[Value], codes_end: int) -> dict[Value, int]:
            return self.codes(tenant, trait, values, codes_end, deadline_s)

        return codes

    def codes(
        self, tenant: str, trait: str, values: Sequence[Value], codes_end: int, deadline_s: float
    ) -> dict[Value, int]:
        """Returns the codes of values in a generation.

        Args:
            tenant: The tenant whose projection has the trait; "" for none.
            trait: A trait with a vocabulary.
            values: Distinct values: all texts, or all integers.
            codes_end: End of the generation's codes: a value that got one later is unknown.
            deadline_s: Time for each request.

        Raises:
            ThinRowError: A request failed.
        """
        with self._lock:
            known = self._known.setdefault(trait, {})
            unknown = self._unknown.setdefault(trait, {})
            if len(known) + len(unknown) + len(values) > VALUES_KEPT_MAX:
                known.clear()
                unknown.clear()
            found = {value: known[value] for value in values if value in known}
            missing = [
                value
                for value in values
                if value not in found and unknown.get(value, -1) < codes_end
            ]
        for part in _parts(missing):
            request = wire.LookUpCodesRequest(trait=trait, codes_end_min=codes_end, tenant=tenant)
            _fill(request, part)
            response = self._look_up(request, deadline_s)
            require(len(response.codes) == len(part), "it has another number of codes")
            require(response.codes_end >= codes_end, "its vocabulary ends too early")
            pairs = list(zip(part, response.codes, strict=True))
            with self._lock:
                for value, code in pairs:
                    if code == UNKNOWN_CODE:
                        unknown[value] = response.codes_end
                    else:
                        unknown.pop(value, None)
                        known[value] = code
            found.update(pairs)
        return {
            value: code if (code := found.get(value, UNKNOWN_CODE)) < codes_end else UNKNOWN_CODE
            for value in values
        }


def _parts(values: Sequence[Value]) -> Iterator[list[Value]]:
    """Cuts values into those of single requests."""
    part: list[Value] = []
    size = 0
    for value in values:
        bytes_ = len(utf8(value, "values")) if isinstance(value, str) else 8
        if part and (size + bytes_ > REQUEST_BYTES or len(part) == VALUES_PER_REQUEST_MAX):
            yield part
            part, size = [], 0
        part.append(value)
        size += bytes_
    if part:
        yield part


def _fill(request: wire.LookUpCodesRequest, values: list[Value]) -> None:
    """Puts the values into a request. Raises InputError if they are of two kinds."""
    texts = [value for value in values if isinstance(value, str)]
    words = [value for value in values if not isinstance(value, str)]
    if texts and words:
        raise InputError(
            f"The mutable column {request.trait!r} has texts and integers; give one kind."
        )
    request.strings.extend(texts)
    request.integers.extend(word - 2 * SIGN_BIT if word >= SIGN_BIT else word for word in words)
