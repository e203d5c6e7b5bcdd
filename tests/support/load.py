"""Clients that call a server all the time, each in a thread, and check every example."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from support.worlds import as_of
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.errors import RequestError
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from support.worlds import Running
    from thinrow.client import Batch

TRAITS = ("event_id", "visible_ts", "item_id", "brand")
PER_BATCH = 16
METHOD = "/thinrow.v1.MaterializationService/"


class Histories:
    """Meaning of every pointer: events that arrive as they happen, in plain Python."""

    def __init__(self, events: pa.Table) -> None:
        self._by_user: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
        names = ("user_id", "event_ts", "event_id", "event_ts", "item_id", "brand")
        columns = [events.column(name).to_pylist() for name in names]
        for user_id, *event in zip(*columns, strict=True):
            self._by_user[user_id].append(tuple(event))
        for history in self._by_user.values():
            history.sort()
        self.users = sorted(self._by_user)

    def before(self, user_id: int, end_ts: int, length: int) -> list[tuple[Any, ...]]:
        """The newest events, as TRAITS say them."""
        history = [event[1:] for event in self._by_user[user_id] if event[0] < end_ts]
        return history[-length:] if length else history


class Load:
    """Clients of several kinds at one server."""

    def __init__(self, server: Running, histories: Histories, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self.published = 0
        """The newest day that the server has for certain."""
        self.digests: dict[tuple[int, int], int] = {}
        """Pointers that a thin row may carry, by user and day."""
        self._about = 0
        self._server, self._histories, self._seed = server, histories, seed
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []

    def publishing(self, day: int) -> None:
        """Allows answers that include this day."""
        self._about = max(self._about, day)

    @contextmanager
    def running(self, *kinds: str) -> Iterator[None]:
        """One client of each kind, until the block ends. Raises what a client found wrong."""
        threads = [
            threading.Thread(target=self._run, args=(getattr(self, kind), number), name=kind)
            for number, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(120)
            hanging = [thread.name for thread in threads if thread.is_alive()]
        assert not hanging, f"hangs: {hanging}"
        self.check()

    def check(self) -> None:
        """Raises what a client has found wrong so far."""
        if self._failures:
            raise self._failures[0]

    def _run(self, client: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(self._seed + number)
        try:
            while not self._stopping.is_set():
                client(rng)
        except BaseException as error:
            self._failures.append(error)
            self._stopping.set()

    def _requested(self, rng: random.Random) -> tuple[Pointers, list[int]]:
        """Pointers as of any day that is or will be, and the days."""
        days = [rng.randint(1, max(1, self._about) + 1) for _ in range(PER_BATCH)]
        users = rng.choices(self._histories.users, k=PER_BATCH)
        found = zip(users, days, strict=True)
        digests = [rng.choice((0, self.digests.get(key, 0))) for key in found]
        return Pointers(user_ids=users, end_ts=[as_of(d) for d in days], digests=digests), days

    def _check(
        self, batch: Batch, requested: tuple[Pointers, list[int]], length: int, before: int
    ) -> None:
        pointers, days = requested
        after = max(self._about, self.published)
        lists = [batch.to_lists(name) for name in TRAITS]
        for place, (user_id, day) in enumerate(zip(pointers.user_ids.tolist(), days, strict=True)):
            status = int(batch.statuses[place])
            if status == wire.STATUS_NOT_READY:
                assert day > before, f"day {day} was published"
                self.seen["NOT_READY"] += 1
                continue
            assert status == wire.STATUS_OK and day <= after, (status, day, after)
            shown = [column[place] for column in lists]
            rows = list(zip(*(values or [] for values in shown), strict=True))
            right = self._histories.before(user_id, as_of(day), length)
            assert rows == right, (user_id, day, len(rows), len(right))
            self.seen["right"] += 1

    # The kinds of clients: each method requests a while.

    def stream(self, rng: random.Random) -> None:
        """A trainer, that now and then leaves in the middle."""
        length = rng.choice((0, 5, 50))
        requested: list[tuple[tuple[Pointers, list[int]], int]] = []

        def pointers() -> Iterator[Pointers]:
            for _ in range(rng.choice((3, 40))):
                if self._stopping.is_set():
                    return
                requested.append((self._requested(rng), self.published))
                yield requested[-1][0][0]

        leaves = rng.random() < 0.2
        with connect(self._server.address, ClientConfig(requests_in_flight=4)) as client:
            batches = client.stream(pointers(), Projection(length, traits=TRAITS))
            number = -1  # a load that stops before the first batch requests none
            for number, batch in enumerate(batches):
                self._check(batch, requested[number][0], length, requested[number][1])
                if leaves and number == 2:
                    break
            else:
                assert number + 1 == len(requested), "not as many as were requested"
            batches.close()
        self.seen["streams left" if leaves else "streams"] += 1

    def unary(self, rng: random.Random) -> None:
        """Calls, one after the other."""
        length = rng.choice((0, 5))
        with connect(self._server.address) as client:
            for _ in range(20):
                requested, before = self._requested(rng), self.published
                batch = client.materialize(requested[0], Projection(length, traits=TRAITS))
                self._check(batch, requested, length, before)
        self.seen["calls"] += 20

    def cancelling(self, rng: random.Random) -> None:
        """Calls and streams that no one waits for."""
        with grpc.insecure_channel(
            self._server.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
            for _ in range(5):
                pointers = self._requested(rng)[0]
                request = wire.MaterializeRequest(
                    user_ids=pointers.user_ids.tolist(), end_ts=pointers.end_ts.tolist()
                )
                messages = [
                    wire.MaterializeStreamRequest(cursor=n, request=request) for n in (1, 2)
                ]
                calls = [stub.Materialize.future(request), stub.MaterializeStream(iter(messages))]
                time.sleep(rng.choice((0, 0.001, 0.01)))
                for call in calls:
                    call.cancel()
                self.seen["cancelled"] += 2
        time.sleep(0.01)

    def wrong(self, rng: random.Random) -> None:
        """Requests that make no sense: each its own status."""
        with connect(self._server.address) as client:
            for projection in (Projection(traits=("colour",)), "nobody"):
                try:
                    client.materialize(self._requested(rng)[0], projection)
                except RequestError:
                    self.seen["refused"] += 1
                else:
                    raise AssertionError("a request that makes no sense was answered")
        with grpc.insecure_channel(
            self._server.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            for method in ("Materialize", "Inspect", "Nothing"):
                try:
                    call: Any = channel.unary_unary(METHOD + method)
                    call(rng.randbytes(40), timeout=60)
                except grpc.RpcError:
                    self.seen["refused"] += 1
        time.sleep(0.01)

    def disconnecting(self, rng: random.Random) -> None:
        """Sockets that say nothing, or nothing sensible, and go away in whatever way."""
        host, port = self._server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            begin = rng.choice(
                (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n")
            )
            connection.sendall(begin + rng.randbytes(rng.choice((0, 9, 300))))
            if rng.random() < 0.5:  # a reset instead of a farewell
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.seen["disconnected"] += 1
        time.sleep(0.02)


def open_files(server: Running) -> int:
    """File descriptors of a server, now."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def growth_per_minute(samples: list[tuple[float, float]]) -> float:
    """The slope of (seconds, amount) by least squares, per minute."""
    mean_s = sum(s for s, _ in samples) / len(samples)
    mean = sum(amount for _, amount in samples) / len(samples)
    spread = sum((s - mean_s) ** 2 for s, _ in samples)
    return 60 * sum((s - mean_s) * (amount - mean) for s, amount in samples) / spread


def pauses(period_s: float) -> Iterator[int]:
    """Counts, at most one each period."""
    next_s = time.monotonic()
    for number in itertools.count(1):
        time.sleep(max(0.0, next_s - time.monotonic()))
        next_s = max(next_s + period_s, time.monotonic())
        yield number
