"""States for trainers that fetch batches before they have trained on those they hold."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["StatefulLoader", "TrackedLoader"]

UNMARKED_MAX = 1024
"""Batches fetched and not marked; no trainer fetches as far ahead, so it forgot to mark them."""

Batch = TypeVar("Batch", covariant=True)


class StatefulLoader(Protocol[Batch]):
    """A loader whose state is the place after the last batch fetched from it."""

    def __iter__(self) -> Iterator[Batch]:
        """Begins a pass, at the place of the state."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last batch fetched."""

    def load_state_dict(self, state: Any, /) -> None:  # noqa: ANN401
        """Goes to a place."""


class TrackedLoader(Generic[Batch]):
    """A loader whose state is the place after the last batch trained on, not the last one fetched.

    ::

        loader = TrackedLoader(ThinRowLoader(...))
        for batch in fetched_ahead(loader):
            train(batch)
            loader.mark_trained()

    For trainers that fetch ahead, such as Lightning where the loader has no length: they call
    `mark_trained` after each batch, in the order of the batches. A batch that was fetched and not
    marked comes again in the next pass.

    Args:
        loader: A ThinRowLoader, or a StatefulDataLoader that saves its state with every batch.
    """

    def __init__(self, loader: StatefulLoader[Batch]) -> None:
        self._loader = loader
        self._batches: Iterator[Batch] = iter(())
        self._unmarked: deque[dict[str, Any]] = deque()
        """States after the batches that are fetched and not marked."""
        self._marked: dict[str, Any] | None = None
        """State after the last batch marked; None before a pass: it is the loader's."""

    def __iter__(self) -> Iterator[Batch]:
        return self._pass()

    def __len__(self) -> int:
        """Returns the loader's length; raises TypeError where it has none."""
        return len(self._loader)  # type: ignore[arg-type]

    @property
    def epoch(self) -> int:
        """The epoch of the next batch to train on; of a ThinRowLoader."""
        if self._unmarked and self._marked is not None:
            return int(self._marked["epoch"])
        epoch: int = self._loader.epoch  # type: ignore[attr-defined]
        return epoch

    def mark_trained(self) -> None:
        """Counts the next batch as trained on. Raises UsageError where none was fetched."""
        if not self._unmarked:
            raise UsageError("Every batch fetched is marked; call mark_trained once for each.")
        self._marked = self._unmarked.popleft()

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, between passes, as ThinRowLoader.set_epoch does."""
        self._end_pass()
        self._loader.set_epoch(epoch)  # type: ignore[attr-defined]
        self._marked = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last batch marked, as the loader's own state."""
        return self._loader.state_dict() if self._marked is None else self._marked

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401
        """Goes to a place, between passes; takes and raises what the loader does."""
        self._loader.load_state_dict(state)
        self._unmarked.clear()
        # The states of several ranks are not this one's.
        self._marked = state if isinstance(state, dict) else None

    def _pass(self) -> Generator[Batch, None, None]:
        self._end_pass()
        if self._marked is None:
            self._marked = self._loader.state_dict()
        self._batches = iter(self._loader)
        for batch in self._batches:
            if len(self._unmarked) == UNMARKED_MAX:
                raise UsageError(
                    f"{UNMARKED_MAX} batches were fetched and not marked; call mark_trained after "
                    f"each, or use the loader as it is."
                )
            self._unmarked.append(self._loader.state_dict())
            yield batch
        # The end of the pass belongs to its last batch, which may not be marked yet.
        if self._unmarked:
            self._unmarked[-1] = self._loader.state_dict()
        else:
            self._marked = self._loader.state_dict()

    def _end_pass(self) -> None:
        """Goes back to the first batch that is not marked."""
        # A generator is closed first: a ThinRowLoader loads no state during a pass.
        getattr(self._batches, "close", lambda: None)()
        if self._unmarked:
            assert self._marked is not None
            self.load_state_dict(self._marked)
