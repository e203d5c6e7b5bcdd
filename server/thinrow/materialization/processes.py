"""Several server processes on one port, started again when they die.

Each is a fresh interpreter: a process that has used gRPC must not fork. The kernel deals new
connections out to them (SO_REUSEPORT), so a connection stays with one process.
"""

from __future__ import annotations

import errno
import logging
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, Self

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.registry import Collector
from thinrow.access.address import split_address
from thinrow.access.metrics_endpoint import MetricsEndpoint
from thinrow.errors import ThinRowError, UsageError
from thinrow.materialization.merged_metrics import merged
from thinrow.materialization.mirroring import mirror_follower
from thinrow.remote.limits import COPY_MEMORY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric
    from thinrow.materialization.config import ServerConfig

__all__ = [
    "BEAT_S",
    "HANG_S",
    "RESTART_PAUSE_S_MAX",
    "RESTART_PAUSE_S_MIN",
    "SCRAPE_S",
    "STEADY_S",
    "STOP_S",
    "Merged",
    "Processes",
    "Worker",
    "held_port",
    "hold",
]

log = logging.getLogger("thinrow.materialization")

RESTART_PAUSE_S_MIN, RESTART_PAUSE_S_MAX = 0.1, 30.0
"""Between a death and the next start; doubles with each death."""
STEADY_S = 60.0
"""A process that lived so long starts over with the shortest pause."""
SCRAPE_S = 2.0
"""Time that a scrape waits for a process that does not answer."""
BEAT_S = 5.0
"""Interval of the heartbeats that the parent requests; a scrape is one, too."""
HANG_S = 30.0
"""Without a sign of life for so long, a process is killed."""
STOP_S = 4.0
"""Time that a process has to end beyond its drain before it is killed.

With the default drain of 10 s this is shorter than the 15 s that deploy/ allows a container.
"""


class Processes:
    """Serves a store by `config.processes` processes until it is closed; a context manager.

    Raises, when entered: as Server, and ThinRowError where a process ends before it serves.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self.address = config.listen
        """HOST:PORT where gRPC is served, once entered."""
        self.metrics_address: str | None = config.metrics
        """HOST:PORT of the metrics, once entered."""
        self.workers: list[Worker] = []
        self.is_copying = False
        """True while a store at a URL is copied before it can be served."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        config = self._config
        self.address = self._stack.enter_context(held_port(config.listen))
        # Together no more at once than one process would have.
        work_max = max(2, config.work_max // config.processes)
        own = replace(
            config,
            listen=self.address,
            metrics=None,
            work_max=work_max,
        )
        registry = CollectorRegistry()
        deaths = Counter(
            "thinrow_process_deaths",
            "Processes that ended unexpectedly.",
            registry=registry,
        )
        self.workers = [Worker(number, own, deaths) for number in range(config.processes)]
        workers = self.workers
        registry.register(Merged(workers))
        alive = Gauge("thinrow_processes", "Processes that serve.", registry=registry)
        alive.set_function(lambda: sum(worker.serves for worker in workers))
        if config.metrics is not None:
            endpoint = MetricsEndpoint(registry, config.metrics)
            self._stack.callback(endpoint.close)
            self.metrics_address = endpoint.address
        if config.mirror is not None:
            self.is_copying = True
            self._stack.enter_context(mirror_follower(config, registry))
            self.is_copying = False
        for worker in workers:
            worker.start()
            self._stack.callback(worker.join)
        for worker in workers:
            self._stack.callback(worker.stop)
        for worker in workers:
            worker.ready.result()
        log.info(
            "serving",
            extra={
                "address": self.address,
                "metrics": self.metrics_address,
                "processes": config.processes,
                "memory_bound_bytes": config.processes * config.memory_bound_bytes
                + (COPY_MEMORY_BYTES if config.mirror is not None else 0),
            },
        )


class Worker:
    """One process after the other, and the thread that starts them and reads their messages."""

    def __init__(self, number: int, config: ServerConfig, deaths: Counter) -> None:
        self.ready: Future[None] = Future()
        """Done when the first process serves, or cannot."""
        self.serves = False
        self._number = number
        self._config = config
        self._deaths = deaths
        self._stopping = threading.Event()
        self._end_s = 0.0
        self._heard_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._answered.set()
        self._metrics: list[Metric] = []
        self._counted: list[Metric] = []
        self._thread = threading.Thread(target=self._run, name=f"thinrow-worker-{number}")

    @property
    def process_id(self) -> int:
        """Id of the newest process; 0 before the first."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the first process."""
        self._thread.start()

    def stop(self) -> None:
        """Makes the process drain."""
        self._stopping.set()
        self._end_s = time.monotonic() + self._config.drain_s + STOP_S
        self._send(False)

    def join(self) -> None:
        """Waits until the draining process has ended; kills one that does not."""
        self._thread.join(max(0.0, self._end_s - time.monotonic()))
        if self._thread.is_alive() and self._process is not None:
            log.error("worker killed: it did not end", extra={"worker": self._number})
            self._process.kill()
        self._thread.join()

    def request_metrics(self) -> None:
        """Requests the metrics, unless it has not answered the last time."""
        if self.serves and self._answered.is_set():
            self._answered.clear()
            self._send(True)

    def metrics(self, timeout_s: float) -> list[Metric]:
        """Metrics of the process, with the counts of earlier processes.

        The last metrics stand in for a process that does not answer in time.
        """
        self._answered.wait(timeout_s)
        with self._lock:
            return merged([self._counted, self._metrics])

    def _send(self, message: object) -> None:
        with self._lock, suppress(OSError):
            if self._connection is not None:
                self._connection.send(message)

    def _run(self) -> None:
        pause_s = RESTART_PAUSE_S_MIN
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                end = f"status {self._run_once()}"
            except OSError as error:
                end = str(error)
            if not self.ready.done():
                self.ready.set_exception(
                    ThinRowError(f"A server process ended before it served ({end}).")
                )
            if self._stopping.is_set() or self.ready.exception():
                return
            self._deaths.inc()
            if time.monotonic() - started_s > STEADY_S:
                pause_s = RESTART_PAUSE_S_MIN
            log.error(
                "worker died",
                extra={"worker": self._number, "end": end, "restart_s": pause_s},
            )
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, RESTART_PAUSE_S_MAX)

    def _run_once(self) -> int:
        """One process, from its start to its end; returns its status, negative for a signal."""
        connection, theirs = Pipe()
        with connection:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-m", "thinrow.materialization.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C is for the parent, which then stops its workers.
                    process_group=0,
                )
            with self._lock, suppress(OSError):
                connection.send((self._number, self._config))
                self._connection = connection
            if self._stopping.is_set():
                self._send(False)
            self._heard_s = time.monotonic()
            ended = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(self._process, ended))
            watcher.start()
            with suppress(EOFError, OSError):
                self._listen(connection)
            ended.set()
            watcher.join()
            self.serves = False
            with self._lock:
                self._connection = None
                # A process ends with its gauges; what it counted stays.
                counted = [family for family in self._metrics if family.type != "gauge"]
                self._counted, self._metrics = merged([self._counted, counted]), []
            self._answered.set()
        return self._process.wait()

    def _listen(self, connection: Connection[Any, Any]) -> None:
        """Reads the worker's messages until it ends."""
        while True:
            self._hear(connection.recv())
            self._heard_s = time.monotonic()

    def _watch(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        """Requests heartbeats, and kills a worker that stops sending them.

        In a thread of its own, since a worker may stop in the middle of a message.
        """
        while not ended.wait(BEAT_S):
            if not self.serves or self._stopping.is_set():
                continue
            if time.monotonic() - self._heard_s > HANG_S:
                log.error("worker killed: it hangs", extra={"worker": self._number})
                process.kill()
                return
            self.request_metrics()

    def _hear(self, message: object) -> None:
        if message is False:  # it drains, and sends nothing until it ends
            self.serves = False
        elif message is None:
            self._answered.set()
            self.serves = True
            if not self.ready.done():
                self.ready.set_result(None)
        elif isinstance(message, ThinRowError):
            if not self.ready.done():
                self.ready.set_exception(message)
            else:
                log.error(
                    "worker cannot serve", extra={"worker": self._number, "reason": str(message)}
                )
        else:
            assert isinstance(message, list)
            self._metrics = message
            self._answered.set()


class Merged(Collector):
    """The metrics of all workers, requested at each scrape."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._one_scrape = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Collects the families, for the library."""
        with self._one_scrape:
            for worker in self._workers:
                worker.request_metrics()
            end_s = time.monotonic() + SCRAPE_S
            return merged(
                worker.metrics(max(0.0, end_s - time.monotonic())) for worker in self._workers
            )


@contextmanager
def held_port(listen: str) -> Iterator[str]:
    """Keeps a port for processes that share it, and from all others; yields HOST:PORT.

    Raises:
        UsageError: it cannot be had.
    """
    host, port = split_address(listen)
    with ExitStack() as stack:
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                try:
                    holder = hold(family, (address[0], port, *address[2:]))
                except OSError as error:
                    # A name may stand for an address that this machine lacks.
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                else:
                    port = stack.enter_context(holder).getsockname()[1]
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {listen}; choose another --listen HOST:PORT."
            ) from error
        yield f"{host}:{port}"


def hold(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A bound socket that does not listen. Raises OSError where others have the port.

    Sockets that share a port are bound beside each other without a word, also those of different
    servers; so the first one does not share, and listens, which finds all others.
    """
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        alone.listen(1)
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(alone.getsockname())
        # From here on it is in the way of those who do not share.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return holder
