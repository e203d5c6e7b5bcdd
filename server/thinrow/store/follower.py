"""The serving generation: opened once published, closed once no request reads it."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from thinrow.errors import ThinRowError
from thinrow.store.current import current_folder
from thinrow.store.generation import CACHE_BYTES_MAX, Generation
from thinrow.store.shard_source import EVERY_SHARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from thinrow.schema import Schema
    from thinrow.store.shard_source import ShardSource

__all__ = ["GenerationFollower", "ReadCounts", "reads_of"]

log = logging.getLogger("thinrow.serving")


@dataclass(frozen=True, slots=True)
class ReadCounts:
    """Values read from a store, by where they were found."""

    from_memory: int = 0
    from_files: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(self.from_memory + other.from_memory, self.from_files + other.from_files)


class GenerationFollower:
    """Follows a store's CURRENT. A request keeps the generation it started with.

    A thread opens new generations and closes old ones, because closing one takes long enough to
    hold up a request.

    Args:
        store: Folder of the store.
        poll_s: Interval at which CURRENT is read.
        on_failure: Called for each failure to open a new generation.
        cache_bytes_max: Limit on the memory of a generation's cached values.
        shards: The shards to open; looked at as often as CURRENT.
        after_poll: Receives the serving generation after each look at CURRENT, in the thread of the
            follower.

    Raises:
        StoreError: The serving generation cannot be opened.
    """

    def __init__(
        self,
        store: Path,
        poll_s: float,
        on_failure: Callable[[], None],
        cache_bytes_max: int = CACHE_BYTES_MAX,
        shards: ShardSource = EVERY_SHARD,
        after_poll: Callable[[Generation], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._cache_bytes_max = cache_bytes_max
        self._poll_s = poll_s
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._shards = shards
        self._after_poll = after_poll
        self._generation = Generation.open_current(store, cache_bytes_max, shards)
        self._readers: dict[Generation, int] = {self._generation: 0}
        self._closed_reads = ReadCounts()
        self.opened_ts = time.time_ns() // 1_000_000
        """Time at which the serving generation was opened."""
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="thinrow-current", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()
        with self._lock:
            for generation in self._readers:
                generation.close()
            self._readers.clear()

    @property
    def watermark_ts(self) -> int:
        """Watermark of the serving generation."""
        return self._generation.watermark_ts

    @property
    def number(self) -> int:
        """Number of the serving generation."""
        return self._generation.number

    @property
    def shards_open(self) -> int:
        """Number of shards that the serving generation has open."""
        return len(self._generation.shards)

    @property
    def has_older_readers(self) -> bool:
        """True while a request reads a generation that has been replaced."""
        with self._lock:
            return any(
                readers
                for generation, readers in self._readers.items()
                if generation is not self._generation
            )

    def schema(self) -> Schema:
        """Returns the schema of the serving generation."""
        return self._generation.schema

    def read_counts(self) -> ReadCounts:
        """Returns the reads of all generations so far."""
        with self._lock:
            return sum(map(reads_of, self._readers), self._closed_reads)

    @contextmanager
    def use(self) -> Iterator[Generation]:
        """Yields the serving generation, open until the block ends."""
        with self._lock:
            generation = self._generation
            self._readers[generation] += 1
        try:
            yield generation
        finally:
            with self._lock:
                self._readers[generation] -= 1
                is_unused = not self._readers[generation] and generation is not self._generation
            if is_unused:
                self._wake.set()

    def _close_unused(self) -> None:
        with self._lock:
            unused = [
                generation
                for generation, readers in self._readers.items()
                if not readers and generation is not self._generation
            ]
            for generation in unused:
                del self._readers[generation]
                self._closed_reads += reads_of(generation)
        for generation in unused:
            generation.close()
            log.info("generation closed", extra={"generation": generation.number})

    def _follow(self) -> None:
        failed = None
        while True:
            self._wake.wait(self._poll_s)
            if self._stopping:
                return
            self._wake.clear()
            self._close_unused()
            try:
                self._poll()
                failed = None
            except (ThinRowError, OSError) as error:
                # The old generation is complete and keeps serving; the log names each reason once.
                self._on_failure()
                if str(error) != failed:
                    failed = str(error)
                    log.error("new generation cannot be opened", extra={"reason": failed})
            self._after_poll(self._generation)

    def _poll(self) -> None:
        """Opens what CURRENT names, if it is another generation or other shards of the same one."""
        earlier = self._generation
        folder = current_folder(self._store)
        is_same = folder is None or folder.name == earlier.folder.name
        if is_same and not self._shards.has_changed(earlier):
            return
        opened = Generation.open_current(self._store, self._cache_bytes_max, self._shards, earlier)
        with self._lock:
            self._generation = opened
            if not is_same:
                self.opened_ts = time.time_ns() // 1_000_000
            self._readers[opened] = 0
        self._close_unused()
        log.info(
            "shards opened" if is_same else "generation opened",
            extra={
                "generation": opened.number,
                "watermark_ts": opened.watermark_ts,
                "shards": len(opened.shards),
            },
        )


def reads_of(generation: Generation) -> ReadCounts:
    """Returns the reads of one generation."""
    requested, read = generation.values_requested, generation.values_read
    return ReadCounts(requested - read, read)
