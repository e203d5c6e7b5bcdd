"""What two threads of the loader hand to each other."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BoundedQueue", "ClosedError"]

Item = TypeVar("Item")


class ClosedError(Exception):
    """The other side of a queue has left."""


class BoundedQueue(Generic[Item]):
    """A queue of at most `items_max`, which either side can end while the other waits."""

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
        """Waits for an item. After the last: StopIteration, or what the giver failed with."""
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
        """Waits for room. Raises ClosedError where nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._items_max or self._closed)
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Says that no more items come, because of `error` or because that was all."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Drops what is there and wakes both sides."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
