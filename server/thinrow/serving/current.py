"""The generation that serves: taken up when published, let go when nobody reads it any more."""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from thinrow.errors import StoreError, StoreMissingError, ThinRowError
from thinrow.store.generation import Generation
from thinrow.store.manifest import current_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger("thinrow.serving")

OPEN_ATTEMPTS_MAX = 5
OPEN_PAUSE_S_MAX = 0.05


class CurrentGeneration:
    """Follows a store's CURRENT. A request keeps the generation it started with."""

    def __init__(self, store: Path, poll_s: float, on_failure: Callable[[], None]) -> None:
        """Opens the serving generation; raises StoreError where that cannot be done."""
        self._store = store
        self._poll_s = poll_s
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._generation = open_current(store)
        self._readers: dict[Generation, int] = {self._generation: 0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="thinrow-current", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with self._lock:
            for generation in self._readers:
                generation.close()
            self._readers.clear()

    @property
    def watermark_ts(self) -> int:
        return self._generation.watermark_ts

    @property
    def number(self) -> int:
        return self._generation.number

    @contextmanager
    def use(self) -> Iterator[Generation]:
        """The serving generation, open until the block ends."""
        with self._lock:
            generation = self._generation
            self._readers[generation] += 1
        try:
            yield generation
        finally:
            with self._lock:
                self._readers[generation] -= 1
                self._let_go()

    def _let_go(self) -> None:
        for generation, readers in list(self._readers.items()):
            if not readers and generation is not self._generation:
                del self._readers[generation]
                generation.close()
                log.info("generation closed", extra={"generation": generation.number})

    def _follow(self) -> None:
        failed = None
        while not self._stop.wait(self._poll_s):
            try:
                folder = current_folder(self._store)
                if folder is None or folder.name == self._generation.folder.name:
                    continue
                opened = open_current(self._store)
            except (ThinRowError, OSError) as error:
                # The old generation is whole: it serves on, and people are told once.
                self._on_failure()
                if str(error) != failed:
                    failed = str(error)
                    log.error("new generation cannot be opened", extra={"reason": failed})
                continue
            failed = None
            with self._lock:
                self._generation = opened
                self._readers[opened] = 0
                self._let_go()
            log.info(
                "generation opened",
                extra={"generation": opened.number, "watermark_ts": opened.watermark_ts},
            )


def open_current(store: Path) -> Generation:
    """Opens the serving generation, as several processes do at the same moment.

    rocksdict writes a small file of each shard anew whenever it opens one, so another process may
    find it empty: damage that stays is damage. Raises as Generation.open_current.
    """
    for _ in range(OPEN_ATTEMPTS_MAX - 1):
        try:
            return Generation.open_current(store)
        except StoreMissingError:
            raise
        except StoreError:
            time.sleep(random.uniform(0, OPEN_PAUSE_S_MAX))
    return Generation.open_current(store)
