"""The online servers of one topic: which of them read a partition, and which of those are well."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.client.closable import CLOSED
from thinrow.client.online_replica import OnlineReplica
from thinrow.client.polling import start_polling
from thinrow.client.retries import Retries
from thinrow.client.server_addresses import resolve
from thinrow.errors import (
    DeadlineError,
    StoreError,
    ThinRowError,
    UnavailableError,
    UsageError,
)
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from thinrow.client.config import ClientConfig
    from thinrow.client.server_addresses import ServerAddress

__all__ = ["Topology", "silent"]

log = logging.getLogger("thinrow.client")

POLL_PAUSE_S = 2.0
"""Pause between two polls of all servers. A failure is followed by one at once."""
POLL_DEADLINE_S = 2.0
RESOLVE_PAUSE_S = 10.0
"""Pause before names are resolved again."""
SETTLE_S = 0.1
"""Time that the first poll waits for further servers once each partition has one."""
SERVERS_MAX = 256
"""Limit on the servers of one client."""
DROPPED_S = 5.0
"""Time for which a server stays connected after its name has lost its address."""
LAG_SPREAD_MS = 3_000
"""A replica that lags so much more than another one of a partition is requested last. At rest lags
differ by 2 s at most: they were reported at different times between two heartbeats."""


class Topology:
    """Discovers the servers at the first use, then polls them in a thread. Thread-safe.

    Args:
        addresses: The addresses given.
        servers: What they resolve to now.
        config: Limits, deadlines and credentials.
        chance: Chooses which replica of a partition is the first one of this client.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        servers: Sequence[ServerAddress],
        config: ClientConfig,
        chance: random.Random | None = None,
    ) -> None:
        self.config = config
        self._addresses = addresses
        self._first = (chance or random.Random()).randrange(SERVERS_MAX)
        self._lock = threading.Lock()
        self._servers: dict[str, OnlineReplica] = {}
        self._dropped: list[tuple[float, OnlineReplica]] = []
        self._use(servers)
        self._resolved_s = time.monotonic()
        self._described: online_pb2.DescribeTierResponse | None = None
        self._closed = False
        self._discovering = threading.Lock()
        self._poll_now = threading.Event()
        weakref.finalize(self, self._poll_now.set)

    @property
    def is_closed(self) -> bool:
        """True once the client was closed."""
        return self._closed

    @property
    def poll_pause_s(self) -> float:
        """Pause before the next poll."""
        return POLL_PAUSE_S

    @property
    def servers(self) -> list[OnlineReplica]:
        """All servers, in the order of their addresses."""
        self.check_open()
        return list(self._servers.values())

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""
        if self._closed:
            raise UnavailableError(CLOSED)

    def close(self) -> None:
        """Closes all connections; calls in flight fail."""
        self._closed = True
        self._poll_now.set()
        with self._lock:
            servers = [*self._servers.values(), *(server for _, server in self._dropped)]
        for server in servers:
            server.close()

    def described(self) -> online_pb2.DescribeTierResponse:
        """Returns the description of a server; discovers all servers, unless they are known.

        Raises:
            UsageError: The servers are not all of one topic.
            ThinRowError: None answers.
        """
        self.check_open()
        if self._described is None:
            with self._discovering:
                if self._described is None:
                    self._discover()
        assert self._described is not None
        return self._described

    def refresh_soon(self) -> None:
        """Polls the servers in the background, at once."""
        self._poll_now.set()

    def replicas(self, partitions: Collection[int] = ()) -> list[OnlineReplica]:
        """Returns the servers that read all of some partitions, the best one first.

        Those that failed recently come last, then those that lag behind others.
        """
        servers = self.servers
        start = (self._first + next(iter(partitions), 0)) % len(servers)
        ordered = servers[start:] + servers[:start]
        if not partitions:
            return sorted(ordered, key=lambda server: server.health.has_failed)
        found = []
        for server in ordered:
            lags_ms = server.lags_ms
            if all(number in lags_ms for number in partitions):
                lag_ms = max(lags_ms[number] for number in partitions)
                found.append((server.health.has_failed, lag_ms, server))
        if len(found) < 2:
            return [server for _, _, server in found]
        far_ms = min(lag_ms for has_failed, lag_ms, _ in found) + LAG_SPREAD_MS
        found.sort(key=lambda one: (one[0], one[1] > far_ms))
        return [server for _, _, server in found]

    def assign(self, partitions: Collection[int]) -> list[tuple[int, ...]]:
        """Divides partitions among as few servers as read them, those that are well if possible.

        Returns:
            The partitions of each request; those that no server reads together with none else.
        """
        left = set(partitions)
        assigned = []
        for servers in (
            [server for server in self.replicas() if not server.health.has_failed],
            self.servers,
        ):
            while left:
                parts = [left & server.lags_ms.keys() for server in servers]
                most = max(parts, key=len, default=set())
                if not most:
                    break
                assigned.append(tuple(sorted(most)))
                left -= most
        if left:
            assigned.append(tuple(sorted(left)))
        return assigned

    def failed(self, server: OnlineReplica, failure: ThinRowError) -> None:
        """Records that a server is not to be requested first, and looks at all of them."""
        server.health.failed()
        log.info("%s Other servers are requested first.", failure)
        self.refresh_soon()

    def poll(self) -> None:
        """Describes each server, and resolves names again if that is due."""
        if time.monotonic() - self._resolved_s > RESOLVE_PAUSE_S:
            self._resolved_s = time.monotonic()
            try:
                self._use(resolve(self._addresses, self._known))
            except UsageError as error:
                log.warning("%s", error)
        self._close_dropped()
        with suppress(UsageError):  # which the log has, and the server is left out
            self._poll()

    def _poll(self, settle_s: float = POLL_DEADLINE_S) -> ThinRowError | None:
        """Describes each server; returns an error of one that did not answer.

        Args:
            settle_s: Time to wait for others once each partition has a server.

        Raises:
            UsageError: A server is not of the same topic as the others.
        """
        done: queue.SimpleQueue[tuple[OnlineReplica, Any]] = queue.SimpleQueue()
        waiting = set()
        for server in self.servers:
            call = server.start("DescribeTier", online_pb2.DescribeTierRequest(), POLL_DEADLINE_S)
            call.add_done_callback(lambda call, server=server: done.put((server, call)))
            waiting.add(server)
        wrong: UsageError | None = None
        failure: ThinRowError | None = None
        until_s = time.monotonic() + 2 * POLL_DEADLINE_S
        while waiting:
            try:
                server, call = done.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(server)
            try:
                described = call.result()
                self._check(server, described)
                server.take(described)
            except grpc.RpcError as error:
                failure = server.failure(error)
                if isinstance(failure, UnavailableError | DeadlineError | StoreError):
                    server.health.failed()
                if isinstance(failure, DeadlineError):  # whose requests would wait, too
                    server.stream.abandon(silent(server))
            except grpc.FutureCancelledError:
                self.check_open()
            except UsageError as error:
                log.warning("%s", error)
                server.lags_ms, wrong = {}, error
            if self._is_covered():
                until_s = min(until_s, time.monotonic() + settle_s)
        for server in waiting:
            server.health.failed()
        if wrong is not None:
            raise wrong
        return failure

    def _check(self, server: OnlineReplica, described: online_pb2.DescribeTierResponse) -> None:
        """Keeps a server's description, if it is of the same topic as those of others.

        Raises:
            UsageError: It is not.
        """
        if not described.topic:
            raise UsageError(
                f"The server at {server.target} has a log of its own, so it lacks the events of "
                f"the others; name it alone, or start it with --events kafka:TOPIC."
            )
        known = self._described
        own = (described.topic, described.partition_count)
        if known is not None and own != (known.topic, known.partition_count):
            raise UsageError(
                f"The server at {server.target} reads topic {own[0]} of {own[1]} partitions, and "
                f"others {known.topic} of {known.partition_count}; name servers of one topic."
            )
        self._described = described

    def _is_covered(self) -> bool:
        if self._described is None:
            return False
        read = {number for server in self._servers.values() for number in server.lags_ms}
        return len(read) == self._described.partition_count

    def _discover(self) -> None:
        retries = Retries(self.config)
        while True:
            failure = self._poll(SETTLE_S)
            if self._described is not None:
                break
            names = ", ".join(server.target for server in self.servers)
            failure = failure or UnavailableError("")
            if isinstance(failure, UnavailableError):
                failure = UnavailableError(
                    f"No server answers at {names}; check the addresses, and that `thinrow "
                    f"online` runs there."
                )
            if not retries.pause(failure):
                raise failure
        start_polling(weakref.ref(self), self._poll_now)

    def _use(self, servers: Sequence[ServerAddress]) -> None:
        """Connects to new servers, and leaves those that are no longer there.

        Raises:
            UsageError: There are too many.
        """
        if len(servers) > SERVERS_MAX:
            raise UsageError(f"There are {len(servers)} servers; name at most {SERVERS_MAX}.")
        self._known = servers
        with self._lock:
            known = self._servers
            self._servers = {
                each.target: known.get(each.target) or OnlineReplica(each, self.config)
                for each in servers
            }
            now_s = time.monotonic()
            self._dropped += [
                (now_s, server) for target, server in known.items() if target not in self._servers
            ]

    def _close_dropped(self) -> None:
        with self._lock:
            ended_s = time.monotonic() - DROPPED_S
            ended = [server for since_s, server in self._dropped if since_s < ended_s]
            self._dropped = [one for one in self._dropped if one[0] >= ended_s]
        for server in ended:
            server.close()


def silent(server: OnlineReplica) -> UnavailableError:
    """Returns the error of requests to a server that does not answer."""
    return UnavailableError(f"The server at {server.target} is silent; look at it and its network.")
