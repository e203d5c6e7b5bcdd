"""Readiness: whether a service is to get requests, beside its being up."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Readiness"]


class Readiness:
    """A state that a service sets and that its server reports. Thread-safe.

    Args:
        is_ready: The state at first.
    """

    def __init__(self, *, is_ready: bool = True) -> None:
        self._is_ready = is_ready
        self._report: Callable[[bool], None] | None = None
        self._lock = threading.Lock()

    def set(self, is_ready: bool) -> None:
        """Sets the state, which is reported if it is another one."""
        with self._lock:
            if is_ready != self._is_ready:
                self._is_ready = is_ready
                if self._report is not None:
                    self._report(is_ready)

    @contextmanager
    def reported(self, report: Callable[[bool], None]) -> Iterator[None]:
        """Calls `report` with the state now, and with each later one until the block ends."""
        with self._lock:
            self._report = report
            report(self._is_ready)
        try:
            yield
        finally:
            with self._lock:
                self._report = None
