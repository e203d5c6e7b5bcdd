"""Fair scheduling of a fixed capacity among tenants."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.errors import AnswerTooLargeError, DeadlineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["FairScheduler", "Held", "Ticket"]

ACTIVE_TENANT_WINDOW_S = 1.0
"""A tenant that sent a request within this window counts as active."""
SEND_RESERVATION_S = 0.02
"""Upper bound on how long an unsent response counts against its tenant's quota.

A client that reads slowly must not block its tenant for longer than this.
"""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that waits for units of the capacity, or holds them."""

    tenant: str
    amount: int
    tenant_max: int
    changed: threading.Condition
    """Notified when the ticket is granted, and when it becomes its tenant's next."""
    granted: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Units that a request holds."""

    scheduler: FairScheduler
    ticket: Ticket

    def __call__(self, amount: int) -> bool:
        """Adds units; returns False if that would have to wait."""
        return self.scheduler.extend(self.ticket, amount)

    def part(self, amount: int) -> AbstractContextManager[None]:
        """Separates units, which are held until the block ends."""
        return self.scheduler.part(self.ticket, amount)


class FairScheduler:
    """Divides a fixed capacity among concurrent requests, round-robin by tenant. Thread-safe.

    Within a tenant, requests are admitted in FIFO order, so small requests cannot starve a large
    one. While other tenants are active, responses being sent count against the sender's quota,
    because sending uses CPU time as well.

    Args:
        capacity: Total units, for example bytes, that admitted requests may hold.
        reserve: Units that a single tenant must leave free while other tenants are active, so
            that a newly arriving tenant does not wait for a large request to finish.
    """

    def __init__(self, capacity: int, reserve: int = 0) -> None:
        self._capacity = capacity
        self._reserve = min(reserve, capacity - 1)
        self._free = capacity
        # By tenant; requests of unknown tenants are refused before they wait.
        self._held: Counter[str] = Counter()
        self._sending: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._waiting: dict[str, deque[Ticket]] = defaultdict(deque)
        self._served: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> dict[str, int]:
        """The number of requests that wait, by tenant."""
        with self._lock:
            return {tenant: len(queue) for tenant, queue in self._waiting.items() if queue}

    @contextmanager
    def hold(
        self, amount: int, timeout_s: float | None, tenant: str = "", tenant_max: int | None = None
    ) -> Iterator[Held]:
        """Waits for units of the capacity, and holds them until the block ends.

        Args:
            amount: The units.
            timeout_s: Upper bound on the wait; None for none.
            tenant: The tenant that makes the request.
            tenant_max: Most units that the tenant's requests may hold together; None for no quota.

        Yields:
            The units held, to which more can be added.

        Raises:
            AnswerTooLargeError: The request needs more units than the tenant may ever hold.
            DeadlineError: The timeout passed first.
        """
        most = self._capacity if tenant_max is None else min(tenant_max, self._capacity)
        if amount > most:
            raise AnswerTooLargeError(
                f"The batch's histories take {amount:,} bytes decoded and the server decodes "
                f"{most:,} at once (work_bytes_max); request fewer examples at once, shorter "
                f"sequences or fewer traits."
            )
        ticket = Ticket(tenant, amount, most, threading.Condition(self._lock))
        with self._lock:
            if tenant not in self._served:
                self._served[tenant] = 0.0
                self._served.move_to_end(tenant, last=False)
            self._waiting[tenant].append(ticket)
            self._wait_for_grant(ticket, timeout_s)
        try:
            yield Held(self, ticket)
        finally:
            self._release(ticket)

    @contextmanager
    def sending(self, amount: int, tenant: str) -> Iterator[None]:
        """Counts a response being sent until the block ends; entered while units are still held."""
        sent = (time.monotonic() + SEND_RESERVATION_S, amount)
        with self._lock:
            self._sending[tenant].append(sent)
        try:
            yield
        finally:
            with self._lock:
                self._sending[tenant].remove(sent)
                self._grant()

    def extend(self, ticket: Ticket, amount: int) -> bool:
        """Adds units to a ticket; returns False if they are not free or another request waits."""
        with self._lock:
            if amount > self._free or any(self._waiting.values()):
                return False
            if self._held[ticket.tenant] + amount > self._allowed(ticket):
                return False
            ticket.amount += amount
            self._free -= amount
            self._held[ticket.tenant] += amount
            return True

    @contextmanager
    def part(self, ticket: Ticket, amount: int) -> Iterator[None]:
        """Separates units from a ticket, which are held until the block ends."""
        with self._lock:
            part = Ticket(
                ticket.tenant, min(amount, ticket.amount), ticket.tenant_max, ticket.changed
            )
            ticket.amount -= part.amount
        try:
            yield
        finally:
            self._release(part)

    def _release(self, ticket: Ticket) -> None:
        with self._lock:
            self._free += ticket.amount
            self._held[ticket.tenant] -= ticket.amount
            self._served[ticket.tenant] = time.monotonic()
            self._grant()

    def _wait_for_grant(self, ticket: Ticket, timeout_s: float | None) -> None:
        """Blocks until the ticket is granted.

        Raises:
            DeadlineError: The timeout passed first; the ticket is removed from its queue.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        queue = self._waiting[ticket.tenant]
        self._grant()
        while not ticket.granted:
            left_s = math.inf if end_s is None else end_s - time.monotonic()
            if left_s <= 0:
                queue.remove(ticket)
                self._grant()
                self._notify_next(queue)
                raise DeadlineError("The deadline passed while the request waited for room.")
            # No one is notified when a send reservation expires, so the head ticket polls.
            wait_s = min(left_s, SEND_RESERVATION_S) if queue[0] is ticket else left_s
            ticket.changed.wait(None if wait_s == math.inf else wait_s)
            self._grant()

    @staticmethod
    def _notify_next(queue: deque[Ticket]) -> None:
        if queue:
            queue[0].changed.notify()

    def _grant(self) -> None:
        """Grants free units, to the least recently served tenant first."""
        while True:
            for tenant in self._served:
                ticket = self._waiting[tenant][0] if self._waiting[tenant] else None
                if ticket is None or self._held[tenant] + ticket.amount > self._allowed(ticket):
                    continue
                if ticket.amount > self._free:
                    return
                self._waiting[tenant].popleft()
                self._free -= ticket.amount
                self._held[tenant] += ticket.amount
                self._served[tenant] = time.monotonic()
                self._served.move_to_end(tenant)
                ticket.granted = True
                ticket.changed.notify()
                self._notify_next(self._waiting[tenant])
                break
            else:
                return

    def _allowed(self, ticket: Ticket) -> int:
        """Returns the units that the ticket's tenant may hold now."""
        if not self._reserve or ticket.amount > self._capacity - self._reserve:
            return ticket.tenant_max
        active_since_s = time.monotonic() - ACTIVE_TENANT_WINDOW_S
        is_alone = all(
            served_s < active_since_s and not self._waiting[tenant]
            for tenant, served_s in self._served.items()
            if tenant != ticket.tenant
        )
        if is_alone:
            return ticket.tenant_max
        now_s = time.monotonic()
        sending = sum(amount for until_s, amount in self._sending[ticket.tenant] if until_s > now_s)
        return min(ticket.tenant_max, self._capacity - self._reserve) - sending
