"""Queues between the threads of the loader."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["BoundedQueue", "ClosedError"]

Item = TypeVar("Item")


class ClosedError(Exception):
    """The queue was closed."""


class BoundedQueue(Generic[Item]):
    """A queue of at most `items_max`, which either side may end while the other waits."""

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._error: BaseException | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """Waits for an item; raises StopIteration, or the producer's error, after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._finished or self._closed)
            if self._closed:
                raise ClosedError
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def put(self, item: Item) -> None:
        """Waits for room, and adds an item.

        Raises:
            ClosedError: The queue was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._items_max or self._closed)
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def fill(self, produce: Callable[[], Iterable[Item]]) -> None:
        """Puts all items that `produce` yields, then the error that ended them, if there is one."""
        try:
            for item in produce():
                self.put(item)
        except ClosedError:
            pass
        except BaseException as error:
            self.finish(error)
        else:
            self.finish()

    def finish(self, error: BaseException | None = None) -> None:
        """Ends the items, because of an error or because there are no more."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Drops all items and wakes both sides."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
