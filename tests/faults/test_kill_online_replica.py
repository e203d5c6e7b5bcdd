"""Replicas of a topic killed and paused under requests: the client's other replica answers."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest
from support.cluster import free_port
from support.kafka_broker import needs_broker, running_broker
from support.kafka_topics import wait_for
from support.online_replicas import ALL, connected, contents, new_online, running_replica
from support.topic_replicas import EVENT, PARTITIONS, SCHEMA, USERS, act
from support.tried import SEED, Tried, times
from support.worlds import OWN_HOST, freeze
from thinrow.client import ClientConfig
from thinrow.client.online import connect_online
from thinrow.errors import DeadlineError, ThinRowError, UnavailableError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.client.online import OnlineClient

pytestmark = [needs_broker, pytest.mark.timeout(3600)]
CALLERS = 4
TRAITS = {"item_id": [5], "brand": ["z"], "taste": [[1.0, 2.0]]}


class Load:
    """Callers that request all users again and again until they are stopped."""

    def __init__(self, client: OnlineClient) -> None:
        self.client = client
        self.answers = 0
        self.failures: list[ThinRowError] = []
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(CALLERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                if rng.random() < 0.2:
                    self.client.snapshot_batch(USERS, ALL)
                else:
                    self.client.snapshot(rng.choice(USERS), ALL)
            except ThinRowError as error:
                self.failures.append(error)
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            self.answers += 1

    def wait(self, more: int) -> None:
        """Waits for more answers."""
        until = self.answers + more
        wait_for(lambda: self.answers >= until)


def test_replicas_killed_and_paused_under_requests(tmp_path: Path) -> None:
    kills, rng = times(2, 60), random.Random(SEED)
    addresses = [f"{OWN_HOST}:{free_port()}" for _ in range(2)]
    with running_broker(in_memory=True) as broker, ExitStack() as stack:
        online = new_online(broker, tmp_path, SCHEMA, PARTITIONS)
        stack.callback(online.close)
        holders = [stack.enter_context(ExitStack()) for _ in addresses]

        def start(number: int) -> None:
            listen = ("--listen", addresses[number])
            running = running_replica(online, f"replica-{number}", *listen)
            processes[number] = holders[number].enter_context(running).process

        processes: dict[int, subprocess.Popen[bytes]] = {}
        for number in range(2):
            start(number)
        client = stack.enter_context(connected(*addresses))
        online.client = client
        act(online, rng, 10)
        appended = [100]

        def append() -> None:
            appended.append(appended[-1] + 1)
            client.append([EVENT.user_id], [EVENT.event_ts], TRAITS, [appended[-1]])

        longest_s = 0.0
        with Load(client) as load:
            load.wait(50)
            for kill in range(kills):
                number = kill % 2
                processes[number].kill()
                append()  # goes to the other one, whose ids make it safe
                load.wait(100)
                holders[number].close()
                start(number)
                reads = client.routing
                freeze(processes[1 - number].pid)
                load.wait(100)
                append()
                processes[1 - number].send_signal(signal.SIGCONT)
                load.wait(50)
                assert client.routing.failovers >= reads.failovers
                longest_s = max(longest_s, load.longest_s)
        assert load.failures == []
        # What was acknowledged counts once at both, wherever it was appended.
        for address in addresses:
            with connect_online(address) as one:
                wait_for(partial(has_events, one, set(appended[1:])))
        assert client.routing.failovers > 0
        Tried(
            fault="A replica of a topic killed or paused under requests",
            times=2 * kills,
            promised="No request fails after the client's retries",
            seen=f"{load.answers:,} requests, 0 failed; the longest took {longest_s:.2f} s",
        ).keep()


def has_events(client: OnlineClient, ids: set[int]) -> bool:
    seen = client.snapshot(EVENT.user_id, ALL).thin_row.mutable
    found = [event["event_id"] for event in seen if event["event_id"] in ids]
    return sorted(found) == sorted(ids)


def test_a_paused_replica_is_hedged_and_found_again(tmp_path: Path) -> None:
    with running_broker(in_memory=True) as broker, ExitStack() as stack:
        online = new_online(broker, tmp_path, SCHEMA, PARTITIONS)
        stack.callback(online.close)
        replicas = [stack.enter_context(running_replica(online, name)) for name in ("one", "two")]
        addresses = [one.address for one in replicas]
        client = stack.enter_context(connected(*addresses))
        plain = stack.enter_context(connected(*addresses, config=ClientConfig(hedged_share=0)))
        online.client = client
        act(online, random.Random(1), 10)
        for _ in range(40):  # whose times are then known
            for user in USERS:
                client.snapshot(user, ALL)
                plain.snapshot(user, ALL)
        expected = {user: contents(client.snapshot(user, ALL, request_ts=1)) for user in USERS}
        freeze(replicas[0].process.pid)
        for user in USERS:
            for one in (client, plain):
                assert contents(one.snapshot(user, ALL, request_ts=1)) == expected[user]
        assert plain.routing.hedges == 0 < plain.routing.failovers
        assert client.routing.hedges > 0
        # An append to a silent server goes to the other one, if its events have ids.
        silence = ClientConfig(silence_timeout_s=0.5, retry_deadline_s=0)
        for _ in range(4):  # whichever server comes first
            with connected(*addresses, config=silence) as appending:
                appending.traits  # noqa: B018
                appending.append([7], [EVENT.event_ts], TRAITS, [1])
        freeze(replicas[1].process.pid)
        for call in (
            partial(client.snapshot, USERS[0], ALL, deadline_s=0.5),
            partial(client.snapshot_batch, USERS, ALL, deadline_s=0.5),
        ):
            with pytest.raises((DeadlineError, UnavailableError)):
                call()
        for one in replicas:
            one.process.send_signal(signal.SIGCONT)
        wait_for(partial(both_answer, client, [one.scrape for one in replicas]))


def both_answer(client: OnlineClient, scrapes: list[Callable[[], dict[str, float]]]) -> bool:
    before = [scrape()["thinrow_online_snapshots_total"] for scrape in scrapes]
    for user in USERS:
        client.snapshot(user, ALL)
    after = [scrape()["thinrow_online_snapshots_total"] for scrape in scrapes]
    return all(now > then for now, then in zip(after, before, strict=True))
