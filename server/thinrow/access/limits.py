"""Who may have how much at once: places that are refused when taken, and turns that are waited for.

Both are shared by tenants, so that one that floods the server leaves the others theirs.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    TenantLimitError,
    TooManyCallsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RETRY_AFTER_MS = 200
"""What whoever is refused is asked to wait: many requests long, and no pause that hurts."""
LATELY_S = 1.0
"""How long a tenant that asked counts as one that will ask again."""
SENDING_S = 0.02
"""How long an answer on its way counts as work: what a reader leaves unread after that is its own
affair, and must hold up nothing."""


class ConcurrencyLimit:
    """Calls at once of each tenant; a call beyond its tenant's limit is refused."""

    def __init__(self, name: str) -> None:
        """name: The setting that bounds them, for messages."""
        self._name = name
        self._by_tenant: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def acquire_tenant(self, tenant: str, limit: int) -> Iterator[None]:
        """Counts a call as this tenant's until the block ends. Raises TenantLimitError."""
        with self._lock:
            if self._by_tenant[tenant] >= limit:
                raise refusal(
                    TenantLimitError,
                    f"The tenant {tenant!r} is at its limit of {limit} ({self._name}); ask again "
                    f"later, or with fewer callers.",
                )
            self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._by_tenant[tenant] -= 1
                # Callers choose names: those that hold nothing must not pile up.
                self._by_tenant += Counter()


def full(limit: str) -> TooManyCallsError:
    """The refusal of a server that is at a limit, by its name."""
    return refusal(
        TooManyCallsError,
        f"This server is at its limit ({limit}); ask again later, or another replica.",
    )


def refusal(kind: type[TooManyCallsError], message: str) -> TooManyCallsError:
    """One that asks its caller to come back."""
    error = kind(message)
    error.retry_after_ms = RETRY_AFTER_MS
    return error


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that waits, or holds what it waited for."""

    tenant: str
    amount: int
    tenant_max: int
    changed: threading.Condition
    """Told when it is granted, and when it is its tenant's next."""
    granted: bool = False


class FairScheduler:
    """An amount that requests in work hold together; tenants take turns at what is free.

    Of one tenant's requests the first comes first, and a large one is not starved by small ones.
    While others ask, an answer on its way counts against its tenant, for sending is work as well.
    """

    def __init__(self, limit: int, spare: int = 0) -> None:
        """spare: what one tenant leaves free while others ask, for they would wait for its end."""
        self._limit = limit
        self._spare = min(spare, limit - 1)
        self._free = limit
        # All by tenant; the names are those of tenants that there are.
        self._held: Counter[str] = Counter()
        self._sending: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._waiting: dict[str, deque[Ticket]] = defaultdict(deque)
        self._served: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> dict[str, int]:
        """Number of requests that wait for their turn, by tenant."""
        with self._lock:
            return {tenant: len(queue) for tenant, queue in self._waiting.items() if queue}

    @contextmanager
    def hold(
        self, amount: int, timeout_s: float | None, tenant: str = "", tenant_max: int | None = None
    ) -> Iterator[Callable[[int], bool]]:
        """Waits for its turn and for room, and holds it until the block ends.

        tenant_max: the most that the tenant's requests hold together.

        Yields:
            A function that adds an amount to what is held; False if that would have to wait.

        Raises:
            AnswerTooLargeError: there never will be room.
            DeadlineError: there was none in time.
        """
        most = self._limit if tenant_max is None else min(tenant_max, self._limit)
        if amount > most:
            raise AnswerTooLargeError(
                f"The batch's histories take {amount:,} bytes decoded and the server decodes "
                f"{most:,} at once (work_bytes_max); ask for fewer examples at once, shorter "
                f"sequences or fewer traits."
            )
        turn = Ticket(tenant, amount, most, threading.Condition(self._lock))
        with self._lock:
            if tenant not in self._served:
                self._served[tenant] = 0.0
                self._served.move_to_end(tenant, last=False)
            self._waiting[tenant].append(turn)
            self._wait(turn, timeout_s)
        try:
            yield partial(self._extend, turn)
        finally:
            with self._lock:
                self._free += turn.amount
                self._held[tenant] -= turn.amount
                self._served[tenant] = time.monotonic()
                self._grant()

    @contextmanager
    def sending(self, amount: int, tenant: str) -> Iterator[None]:
        """Counts what is being sent, to be entered while the work is still held."""
        sent = (time.monotonic() + SENDING_S, amount)
        with self._lock:
            self._sending[tenant].append(sent)
        try:
            yield
        finally:
            with self._lock:
                self._sending[tenant].remove(sent)
                self._grant()

    def _extend(self, turn: Ticket, amount: int) -> bool:
        """Adds to what a turn holds, unless another request waits for it or it is not free."""
        with self._lock:
            if amount > self._free or any(self._waiting.values()):
                return False
            if self._held[turn.tenant] + amount > self._most(turn):
                return False
            turn.amount += amount
            self._free -= amount
            self._held[turn.tenant] += amount
            return True

    def _wait(self, turn: Ticket, timeout_s: float | None) -> None:
        """Waits until it is granted; a turn that is not in time leaves its queue."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        queue = self._waiting[turn.tenant]
        self._grant()
        while not turn.granted:
            left_s = math.inf if end_s is None else end_s - time.monotonic()
            if left_s <= 0:
                queue.remove(turn)
                self._grant()
                self._tell_next(queue)
                raise DeadlineError("The deadline passed while the request waited for room.")
            # That an answer on its way counts no more is told by nobody: the next one looks.
            wait_s = min(left_s, SENDING_S) if queue[0] is turn else left_s
            turn.changed.wait(None if wait_s == math.inf else wait_s)
            self._grant()

    @staticmethod
    def _tell_next(queue: deque[Ticket]) -> None:
        if queue:
            queue[0].changed.notify()

    def _grant(self) -> None:
        """Gives out what is free, to the tenant served the longest ago first."""
        while True:
            for tenant in self._served:
                turn = self._waiting[tenant][0] if self._waiting[tenant] else None
                if turn is None or self._held[tenant] + turn.amount > self._most(turn):
                    continue
                if turn.amount > self._free:
                    return
                self._waiting[tenant].popleft()
                self._free -= turn.amount
                self._held[tenant] += turn.amount
                self._served[tenant] = time.monotonic()
                self._served.move_to_end(tenant)
                turn.granted = True
                turn.changed.notify()
                self._tell_next(self._waiting[tenant])
                break
            else:
                return

    def _most(self, turn: Ticket) -> int:
        """What the tenant may hold now."""
        if not self._spare or turn.amount > self._limit - self._spare:
            return turn.tenant_max
        lately_s = time.monotonic() - LATELY_S
        alone = all(
            served_s < lately_s and not self._waiting[tenant]
            for tenant, served_s in self._served.items()
            if tenant != turn.tenant
        )
        if alone:
            return turn.tenant_max
        now_s = time.monotonic()
        sending = sum(amount for until_s, amount in self._sending[turn.tenant] if until_s > now_s)
        return min(turn.tenant_max, self._limit - self._spare) - sending
