"""The generations that requests are served from: none yet, or the newest one published."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Protocol, Self

from thinrow.errors import StoreMissingError, ThinRowError
from thinrow.online.erasure import erase_from_tier
from thinrow.store.current import current_folder
from thinrow.store.directory import NEVER_TS
from thinrow.store.follower import GenerationFollower
from thinrow.store.manifest import read_manifest
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from thinrow.online.event_tier import EventTier
    from thinrow.store.generation import Generation

__all__ = ["Generations", "TierFollower"]

log = logging.getLogger("thinrow.online")

_NONE_YET = nullcontext()


class Generations(Protocol):
    """The generations that a server's requests are served from."""

    @property
    def number(self) -> int:
        """Number of the newest generation; 0 before the first."""

    @property
    def watermark_ts(self) -> int:
        """Watermark of the newest generation; 0 before the first."""

    def newest_ts(self) -> int:
        """The watermark published at this moment; NEVER_TS before the first."""

    def use(self) -> AbstractContextManager[Generation | None]:
        """The newest generation, open until the block ends; None before the first."""

    def refresh(self) -> None:
        """Looks at the store at once."""


class TierFollower:
    """Follows a store, which may hold nothing yet, and reports its generations to the tier."""

    def __init__(
        self,
        store: Path,
        tier: EventTier,
        poll_s: float,
        on_failure: Callable[[], None],
        cache_bytes_max: int,
    ) -> None:
        self._store = store
        self._tier = tier
        self._poll_s = poll_s
        self._on_failure = on_failure
        self._cache_bytes_max = cache_bytes_max
        self._current: GenerationFollower | None = None
        self._taken_up = 0
        self._refused = 0
        self.refusal = ""
        """The reason for which the tier refused a generation last."""
        self._erased_by = 0
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="thinrow-published", daemon=True)

    def __enter__(self) -> Self:
        """Opens what is published; raises StoreError where it cannot be."""
        try:
            self.refresh()
        except BaseException:
            self._stack.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()

    @property
    def number(self) -> int:
        """Number of the newest generation; 0 before the first."""
        return 0 if self._current is None else self._current.number

    @property
    def watermark_ts(self) -> int:
        """Watermark of the newest generation; 0 before the first."""
        return 0 if self._current is None else self._current.watermark_ts

    def newest_ts(self) -> int:
        """The watermark published at this moment, open here or not; NEVER_TS before the first."""
        folder = current_folder(self._store)
        if folder is None:
            return NEVER_TS if self._current is None else self._current.watermark_ts
        return read_manifest(folder).watermark_ts

    def use(self) -> AbstractContextManager[Generation | None]:
        """The newest generation, open until the block ends; None before the first."""
        return _NONE_YET if self._current is None else self._current.use()

    def refresh(self) -> None:
        """Opens the first generation where there is one, and lets the tier take up a new one."""
        with self._lock:
            if self._current is None:
                try:
                    current = GenerationFollower(
                        self._store, self._poll_s, self._on_failure, self._cache_bytes_max
                    )
                except StoreMissingError as error:
                    self._check_none_yet(error)
                    self._tier.forget_ids()
                    self._tier.purge()
                    return
                self._current = self._stack.enter_context(current)
            with self._current.use() as generation:
                # Also looked at again where nothing is new: what retention keeps, time ends.
                taken = self._tier.take_up(generation)
                if taken.is_accepted:
                    self._taken_up = generation.number
                elif taken.refusal and self._refused < generation.number:
                    self._refused = generation.number
                    self.refusal = taken.refusal
                    self._on_failure()
                    log.error(
                        "generation is not served",
                        extra={"generation": generation.number, "reason": taken.refusal},
                    )
                if (
                    self._erased_by != generation.number
                    and self._taken_up == generation.number
                    and not self._current.has_older_readers
                ):
                    erase_from_tier(self._tier, generation)
                    self._erased_by = generation.number
            self._tier.purge()

    def _check_none_yet(self, missing: StoreMissingError) -> None:
        """Checks that the tier has not served from a generation before, whose histories it lacks.

        Raises:
            StoreMissingError: It has.
        """
        accepted_ts = self._tier.state.now.accepted_ts
        if accepted_ts != NEVER_TS:
            raise StoreMissingError(
                f"{self._store} holds no generation, and this tier has served from one of "
                f"watermark {readable_time(accepted_ts)} ({accepted_ts}); mount or restore that "
                f"store, or give an empty folder as --data to begin without its histories."
            ) from missing

    def _follow(self) -> None:
        failed = None
        while not self._stop.wait(self._poll_s):
            try:
                self.refresh()
            except ThinRowError as error:
                self._on_failure()
                if str(error) != failed:
                    failed = str(error)
                    log.error("store cannot be opened", extra={"reason": failed})
