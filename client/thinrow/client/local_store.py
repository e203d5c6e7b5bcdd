"""A store that this process reads itself, without a server between."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from thinrow.client.closable import CLOSED
from thinrow.core.tracing import UNTRACED, span_attributes, tracing
from thinrow.core.wire.response import Response
from thinrow.errors import DeadlineError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from pathlib import Path

    from thinrow.client.config import ClientConfig
    from thinrow.core.lookup.batch_lookup import RequestSlice
    from thinrow.errors import ThinRowError
    from thinrow.materialization.config import ServerConfig
    from thinrow.materialization.in_process import StoreReader
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["LocalStore", "load_store_libraries"]

T = TypeVar("T")

THREADS = "thinrow-store"


class LocalStore:
    """The transport to a store in this process: a pool of threads looks up, ahead of its consumer.

    Nothing is encoded but the responses' narrow columns, which are widened where they lie.

    Raises:
        UsageError: Libraries to read a store are missing.
        StoreError: There is no store, or it cannot be opened.
    """

    current = 0

    def __init__(self, path: Path, config: ClientConfig) -> None:
        self.targets: tuple[str, ...] = (str(path),)
        limits = config.store
        self.config = replace(config, examples_per_request=limits.examples_per_lookup)
        self._reader = open_reader(path, self.config)
        self._pool = ThreadPoolExecutor(limits.lookup_threads, thread_name_prefix=THREADS)
        self._process = os.getpid()
        # Also runs if the client is dropped, and at the end of the interpreter.
        self._close = weakref.finalize(self, close, self._reader, self._pool, self._process)

    def materialize(self, piece: RequestSlice, deadline_s: float) -> Response:
        """Returns the response about some examples."""
        return self.send(piece).receive(deadline_s, deadline_s)

    def open_stream(self) -> LocalStream:
        """Returns a stream."""
        return LocalStream(self)

    def send(self, piece: RequestSlice) -> PendingLookup[Response]:
        """Looks up some examples in the pool; returns at once."""
        return self._submit(look_up, self._reader, piece)

    def inspect(self, request: wire.InspectRequest, deadline_s: float) -> wire.InspectResponse:
        """Returns one history, readable."""
        return self._submit(self._reader.inspect, request).receive(deadline_s, deadline_s)

    def describe_store(self, deadline_s: float) -> wire.DescribeStoreResponse:
        """Returns a description of the store."""
        return self._submit(self._reader.describe_store).receive(deadline_s, deadline_s)

    def look_up_codes(
        self, request: wire.LookUpCodesRequest, deadline_s: float
    ) -> wire.LookUpCodesResponse:
        """Returns the codes of values in a vocabulary."""
        return self._submit(self._reader.look_up_codes, request).receive(deadline_s, deadline_s)

    def fail_over(self, failed: int) -> None:
        """Does nothing: a store in this process has no replica."""

    def is_elsewhere(self, failure: ThinRowError) -> bool:  # noqa: ARG002 - as servers have it
        """Returns False: a store in this process has all shards."""
        return False

    def in_use(self) -> AbstractContextManager[None]:
        """Does nothing: only `close` closes a store."""
        return nullcontext()

    @property
    def closed(self) -> bool:
        """True once it was closed, and in a process forked since it was opened."""
        return not self._close.alive or os.getpid() != self._process

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""
        if not self._close.alive:
            raise UnavailableError(CLOSED)

    def interrupt(self) -> None:
        """Does nothing: what is in flight ends soon, and the store stays open for what comes."""

    def close(self) -> None:
        """Ends the lookups, and closes the store."""
        self._close()

    def _submit(self, work: Callable[..., T], *arguments: object) -> PendingLookup[T]:
        """Runs work in the pool.

        Raises:
            UsageError: A process that this one has forked from opened the store.
        """
        if os.getpid() != self._process:
            # A fork has neither the threads of the pool nor those of the database.
            raise UsageError(
                f"The store {self.targets[0]} was opened before this process was forked; open it "
                f"here, with a client of its own."
            )
        try:
            # Spans of the work belong to the caller's.
            future = self._pool.submit(copy_context().run, work, *arguments)
            return PendingLookup(self, future)
        except RuntimeError:  # the pool is shut down
            self.check_open()
            raise


class LocalStream:
    """Lookups in flight."""

    replica = 0

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._in_flight: deque[PendingLookup[Response]] = deque()

    def send(self, piece: RequestSlice) -> PendingLookup[Response]:
        """Looks up some examples in the pool; returns at once."""
        while self._in_flight and self._in_flight[0].has_answered():
            self._in_flight.popleft()
        self._in_flight.append(self._store.send(piece))
        return self._in_flight[-1]

    def end(self) -> None:
        """Does nothing: there is no server."""

    def finish(self) -> None:
        """Does nothing: every lookup is done."""

    def close(self) -> None:
        """Cancels lookups that have not begun."""
        for pending in self._in_flight:
            pending.cancel()


class PendingLookup(Generic[T]):
    """Work in the pool."""

    def __init__(self, store: LocalStore, future: Future[T]) -> None:
        self._store = store
        self._future = future

    def has_answered(self) -> bool:
        """Returns True if `receive` would return, or raise, at once."""
        return self._future.done()

    def receive(self, timeout_s: float, deadline_s: float) -> T:
        """Waits for the result, or raises the error in its place."""
        try:
            return self._future.result(timeout_s)
        except CancelledError:
            self._store.check_open()
            raise
        except TimeoutError:
            self.cancel()
            raise DeadlineError(
                f"{self._store.targets[0]} was not read in {deadline_s:g} s; allow more time, or "
                f"request less."
            ) from None

    def cancel(self) -> None:
        """Ends the work if it has not begun."""
        self._future.cancel()


def load_store_libraries(path: Path) -> tuple[type[ServerConfig], type[StoreReader]]:
    """Returns the classes that read a store; the one place that loads the server's half.

    Raises:
        UsageError: Its libraries are missing.
    """
    try:
        from thinrow.materialization.config import ServerConfig
        from thinrow.materialization.in_process import StoreReader
    except ImportError as error:
        raise UsageError(
            f"To read {path} in this process, pip install 'thinrow[server]' ({error}); or connect "
            f"to a server."
        ) from error
    return ServerConfig, StoreReader


def open_reader(path: Path, config: ClientConfig) -> StoreReader:
    """Opens the store.

    Raises:
        UsageError: Libraries to read it are missing.
        StoreError: There is no store, or it cannot be opened.
    """
    new_config, new_reader = load_store_libraries(path)
    limits = config.store
    return new_reader(
        new_config(
            store=path,
            metrics=None,
            tenants=limits.tenants,
            examples_max=config.examples_per_request,
            response_bytes_max=config.response_bytes_max,
            cache_bytes_max=limits.cache_bytes_max,
            work_bytes_max=limits.work_bytes_max,
            work_max=limits.lookup_threads,
        )
    )


def look_up(reader: StoreReader, piece: RequestSlice) -> Response:
    """Reads the histories of some examples."""
    spans = tracing("thinrow-client")
    attributes = span_attributes(piece.lookup.tenant, len(piece.examples))
    with UNTRACED if spans is None else spans.span("thinrow.request", attributes):
        message = reader.materialize(piece.pointers, piece.mutable_lengths, piece.lookup.projection)
        return Response.read(message)


def close(reader: StoreReader, pool: ThreadPoolExecutor, process: int) -> None:
    """Ends the lookups, and closes the store, in the process that opened it."""
    if os.getpid() != process:
        return
    if threading.current_thread().name.startswith("thinrow-"):
        # The garbage collector dropped a client within one of the threads that end here.
        threading.Thread(target=close, args=(reader, pool, process), name="thinrow-close").start()
        return
    pool.shutdown(cancel_futures=True)
    reader.close()
