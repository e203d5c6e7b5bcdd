"""The error of a message that contradicts itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MalformedError", "require"]


class MalformedError(ThinRowError):
    """A response that contradicts itself.

    A server that reads a client's columns with the same code reports `reason` in a sentence of its
    own.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"The server's answer is malformed: {reason}.")
        self.reason = reason


def require(condition: bool | np.bool_, reason: str) -> None:
    """Rejects a message that contradicts itself, rather than return wrong values.

    Raises:
        MalformedError: The condition does not hold.
    """
    if not condition:
        raise MalformedError(reason)
