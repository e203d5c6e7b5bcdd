"""Sizes of requests, adapted to the sizes of their responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinrow.client.config import ClientConfig
    from thinrow.core.lookup.checked_response import CheckedResponse

__all__ = ["RequestSize"]

REGROWTH_RESPONSES = 64
"""A rejection halves the size of later requests; this number of responses restores it."""


class RequestSize:
    """The number of examples to name in the next request."""

    def __init__(self, config: ClientConfig, first: int) -> None:
        self._most = config.examples_per_request
        self._answer_bytes = config.answer_bytes_wanted
        self._taken = self._most
        self.examples = min(first, self._most)
        self.is_known = False

    def answered(self, response: CheckedResponse) -> None:
        """Adapts to a response's size; grows slowly after a rejection."""
        self._taken = min(self._most, self._taken + max(1, self._most // REGROWTH_RESPONSES))
        self.is_known = True
        if len(response.examples):
            wanted = self._answer_bytes * len(response.examples) // max(1, response.travelled_bytes)
            self.examples = max(1, min(self._taken, wanted))

    def rejected(self, examples: int) -> None:
        """Halves the size, because the response about `examples` examples would be too large."""
        self.examples = self._taken = (examples + 1) // 2
