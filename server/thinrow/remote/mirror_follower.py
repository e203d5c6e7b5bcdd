"""A mirror that follows the store's CURRENT, while a server reads it as a local store."""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Self

from thinrow.errors import StoreCorruptError, StoreFullError, StoreUnavailableError, ThinRowError
from thinrow.remote.mirror import Mirror
from thinrow.remote.mirror_metrics import MirrorMetrics
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from thinrow.remote.copies import Pull

__all__ = ["PAUSE_S_MAX", "REPORT_S", "MirrorFollower"]

log = logging.getLogger("thinrow.mirror")

PAUSE_S_MAX = 60.0
"""Longest pause after failures, which doubles with each."""
REPORT_S = 5.0
"""Interval at which the log shows the progress of a pull."""
STOP_S = 2.0
"""Longest time that closing waits for a request to an object store that does not answer."""
SIGNAL_CHECK_S = 1.0
"""Interval at which the first copy lets the handlers of signals run."""


class MirrorFollower:
    """Keeps a mirror like its store until it is closed; a context manager.

    When it is entered, the mirror has a complete generation: the last one that was copied before,
    or else the serving one, which is copied first.

    Args:
        url: URL of the store.
        folder: Folder of the mirror.
        choose: The shards to mirror.
        poll_s: Mean interval at which CURRENT is read; each wait is drawn from half to three halves
            of it, so that servers do not read at the same moment.
        registry: Registry that gets the mirror's series.
        may_lack: True if `choose` may return other shards with time; then what is here already is
            served first, and `wake` makes the mirror add the shards that it lacks.
        prepare: Called once the folder is this process's own, before anything is copied.

    Raises, when entered:
        UsageError: The URL, the folder or the choice of shards cannot be used.
        StoreError: There is no generation in the mirror, and none can be copied.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        choose: Callable[[int], Collection[int]],
        poll_s: float,
        registry: CollectorRegistry,
        *,
        may_lack: bool = False,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._mirror = Mirror(ObjectStore(url), folder, choose, self._show, may_lack=may_lack)
        self._prepare = prepare
        self._poll_s = poll_s
        self._metrics = MirrorMetrics(registry)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        # A daemon, since a request to an object store that does not answer takes a minute to fail.
        self._thread = threading.Thread(target=self._run, name="thinrow-mirror", daemon=True)
        self._ready: Future[None] = Future()
        self._failed: str | None = None
        self._failures = 0
        self._received_bytes = 0
        self._reported_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            while not self._ready.done():
                wait([self._ready], SIGNAL_CHECK_S)
            self._ready.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._wake.set()
        self._mirror.copies.stop()
        self._thread.join(STOP_S)

    def wake(self) -> None:
        """Makes the mirror look at the store and at its choice of shards now."""
        self._wake.set()

    def _run(self) -> None:
        """Copies what is missing, then follows; the mirror is locked until the thread ends."""
        try:
            with self._mirror as mirror:
                self._prepare()
                problem = mirror.problem()
                if problem is not None:
                    log.info("copying before serving", extra={"reason": problem})
                    mirror.pull(verify=mirror.generation > 0)
                self._metrics.generation.set(mirror.generation)
                self._ready.set_result(None)
                self._follow()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    def _follow(self) -> None:
        pause_s = 0.0  # a mirror of before may be old
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                is_new = self._mirror.pull(is_open=True)
            except (ThinRowError, OSError) as error:
                self._fail(error)
            else:
                self._succeed(is_new=is_new)
            interval_s = min(self._poll_s * 2**self._failures, max(PAUSE_S_MAX, self._poll_s))
            pause_s = interval_s * random.uniform(0.5, 1.5)

    def _succeed(self, *, is_new: bool) -> None:
        if self._failed is not None:
            log.info("mirror follows the store again")
        self._failed, self._failures = None, 0
        self._metrics.failing.set(0)
        self._metrics.pulling.set(0)
        self._metrics.checked.set(time.time())
        self._metrics.generation.set(self._mirror.generation)
        if is_new:
            log.info("mirror complete", extra={"generation": self._mirror.generation})

    def _fail(self, error: Exception) -> None:
        """Counts a failure; the log names each reason once, and the old generation serves on."""
        if self._stopping.is_set():
            return
        kind = "other"
        if isinstance(error, StoreUnavailableError):
            kind = "unreachable"
        elif isinstance(error, StoreCorruptError):
            kind = "damaged"
        elif isinstance(error, StoreFullError):
            kind = "full"
        self._metrics.failures.labels(kind).inc()
        self._metrics.failing.set(1)
        self._metrics.pulling.set(0)
        self._failures = min(self._failures + 1, 16)
        if str(error) != self._failed:
            self._failed = str(error)
            log.error(
                "mirror cannot follow the store; what it has serves on",
                extra={"kind": kind, "reason": self._failed},
            )

    def _show(self, pull: Pull) -> None:
        """Shows progress in metrics, and now and then in the log."""
        metrics = self._metrics
        is_first = pull.bytes_received == 0 and pull.files_received == 0
        if is_first:
            self._received_bytes = 0
        metrics.pulling.set(pull.generation)
        metrics.missing_bytes.set(pull.bytes_missing)
        metrics.shared_bytes.set(pull.bytes_shared)
        metrics.received_bytes.set(pull.bytes_received)
        metrics.all_bytes.inc(pull.bytes_received - self._received_bytes)
        self._received_bytes = pull.bytes_received
        if is_first or pull.is_complete or time.monotonic() - self._reported_s > REPORT_S:
            self._reported_s = time.monotonic()
            log.info(
                "objects copied" if pull.is_complete else "copying objects",
                extra={
                    "generation": pull.generation,
                    "bytes_missing": pull.bytes_missing,
                    "bytes_received": pull.bytes_received,
                    "bytes_shared": pull.bytes_shared,
                    "files_missing": pull.files_missing,
                    "files_received": pull.files_received,
                },
            )
