"""The generation that serves: taken up when published, let go when nobody reads it any more."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from thinrow.errors import ThinRowError
from thinrow.serving.metrics import ReadCounts
from thinrow.store.generation import CACHE_BYTES_MAX, Generation
from thinrow.store.manifest import current_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from thinrow.schema import Schema

log = logging.getLogger("thinrow.serving")


class CurrentGeneration:
    """Follows a store's CURRENT. A request keeps the generation it started with."""

    def __init__(
        self,
        store: Path,
        poll_s: float,
        on_failure: Callable[[], None],
        cache_bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        """Opens the serving generation; raises StoreError where that cannot be done."""
        self._store = store
        self._cache_bytes_max = cache_bytes_max
        self._poll_s = poll_s
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._generation = Generation.open_current(store, cache_bytes_max)
        self._readers: dict[Generation, int] = {self._generation: 0}
        self._closed_reads = ReadCounts()
        self.opened_ts = time.time_ns() // 1_000_000
        """When the serving generation was opened."""
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

    @property
    def has_older_readers(self) -> bool:
        """True while a request still reads a generation that does not serve any more."""
        with self._lock:
            return len(self._readers) > 1

    def schema(self) -> Schema:
        """The serving generation's."""
        return self._generation.schema

    def read_counts(self) -> ReadCounts:
        """What was read from all generations so far."""
        with self._lock:
            return sum(map(reads_of, self._readers), self._closed_reads)

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
                self._closed_reads += reads_of(generation)
                generation.close()
                log.info("generation closed", extra={"generation": generation.number})

    def _follow(self) -> None:
        failed = None
        while not self._stop.wait(self._poll_s):
            try:
                folder = current_folder(self._store)
                if folder is None or folder.name == self._generation.folder.name:
                    continue
                opened = Generation.open_current(self._store, self._cache_bytes_max)
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
                self.opened_ts = time.time_ns() // 1_000_000
                self._readers[opened] = 0
                self._let_go()
            log.info(
                "generation opened",
                extra={"generation": opened.number, "watermark_ts": opened.watermark_ts},
            )


def reads_of(generation: Generation) -> ReadCounts:
    """What was read from one generation."""
    asked, read = generation.values_asked, generation.values_read
    return ReadCounts(asked - read, read)
