"""Sizes of requests, adapted to the sizes of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinrow.client.config import ClientConfig
    from thinrow.core.wire.checked_response import CheckedResponse

__all__ = ["RequestSize"]

REGROWTH_ANSWERS = 64
"""A request that was too large halves those to come; so many answers restore their size."""


class RequestSize:
    """How many examples to name in the next request."""

    def __init__(self, config: ClientConfig, first: int) -> None:
        self._most = config.examples_per_request
        self._answer_bytes = config.answer_bytes_wanted
        self._taken = self._most
        self.examples = min(first, self._most)
        self.is_known = False

    def answered(self, part: CheckedResponse) -> None:
        """Learns from an answer: sizes follow the answers', but slowly where one was refused."""
        self._taken = min(self._most, self._taken + max(1, self._most // REGROWTH_ANSWERS))
        self.is_known = True
        if len(part.examples):
            wanted = self._answer_bytes * len(part.examples) // max(1, part.travelled_bytes)
            self.examples = max(1, min(self._taken, wanted))

    def refused(self, examples: int) -> None:
        """Learns that an answer about so many examples would be too large."""
        self.examples = self._taken = (examples + 1) // 2
