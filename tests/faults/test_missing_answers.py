"""Threads of the online service that fail, and servers that leave answers out: an error."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.online_events import ALL, batch, ids_seen
from support.tried import SEED, Tried, times
from support.unanswered import failing_at, online_config, quiet
from support.worlds import START_TS, new_world
from thinrow.client.online import connect_online
from thinrow.errors import ThinRowError
from thinrow.online.append_stream import AppendStreams
from thinrow.online.clock import TierClock
from thinrow.online.ids import IdIndex
from thinrow.online.server import OnlineServer
from thinrow.online.snapshots import Snapshots
from thinrow.online.streamed import StreamedSnapshots

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(1800)
BATCHES = 12
APPENDING = (
    (AppendStreams, "decode"),
    (TierClock, "_lead_ms"),
    (IdIndex, "rows_to_store"),
)
"""Failures in the thread that reads a stream, and twice in the one that commits for all streams."""
SNAPSHOTS = ((Snapshots, "take"), (StreamedSnapshots, "answer"))
"""For one request of a message, and for the message."""


def test_failing_threads_of_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures at a call drawn by chance; the service is started again after each failure."""
    world, rng = new_world(tmp_path), random.Random(SEED)
    failures, acknowledged = times(3, 60), 0
    for number in range(failures):
        owner, method = APPENDING[number % len(APPENDING)]
        with (
            OnlineServer(online_config(world)) as server,
            connect_online(server.address) as client,
        ):
            first = number * BATCHES
            batches = [batch(client, first + place, 1) for place in range(BATCHES)]
            # Each batch is read and committed by itself.
            failing_at(monkeypatch, owner, method, rng.randint(1, BATCHES))
            answered = 0
            with pytest.raises(ThinRowError):
                for one in batches:
                    answered += len(list(client.append_all([one], deadline_s=60)))
            monkeypatch.undo()
            acknowledged += answered
        with (
            OnlineServer(online_config(world)) as server,
            connect_online(server.address) as client,
        ):
            assert ids_seen(client) >= set(range(first, first + answered))
            again = list(client.append_all(batches, deadline_s=60))
            assert len(again) == BATCHES
            assert ids_seen(client, again[-1].arrival_ts) == set(range(first + BATCHES))
    Tried(
        fault="An exception in a thread that reads or commits appends",
        times=failures,
        promised="The stream ends with an error; what was acknowledged is there, once",
        seen=f"{failures} ended with an error, 0 quietly; {acknowledged} batches acknowledged "
        f"before, each there once, and all {failures * BATCHES} once they were sent again",
    ).keep()


def test_failing_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, right = times(2, 60), 0
    with (
        OnlineServer(online_config(new_world(tmp_path))) as server,
        connect_online(server.address) as client,
    ):
        [appended] = client.append_all([batch(client, 0, 50)], deadline_s=60)
        seen_ts = appended.arrival_ts + 1

        def mutable_of(user_id: int) -> object:
            return client.snapshot(user_id, ALL, request_ts=seen_ts).thin_row.mutable

        expected = {user_id: mutable_of(user_id) for user_id in range(5)}
        for number in range(failures):
            failing_at(monkeypatch, *SNAPSHOTS[number % len(SNAPSHOTS)], 1)  # type: ignore[call-arg]
            with pytest.raises(ThinRowError, match="MemoryError"):
                client.snapshot(1, ALL, deadline_s=60)
            monkeypatch.undo()
            for user_id, mutable in expected.items():
                assert mutable_of(user_id) == mutable
                right += 1
    Tried(
        fault="An exception in a thread that answers a stream of snapshots",
        times=failures,
        promised="The request ends with an error, and others are answered",
        seen=f"{failures} ended with an error, 0 quietly; {right} snapshots after them right",
    ).keep()


def test_answers_left_out() -> None:
    """A stream that the server ends well, with answers that are too few, too many, or another's."""
    rng, tries = random.Random(SEED), times(10, 400)
    for _ in range(tries):
        sent = rng.randint(1, 5)
        cursors = list(range(sent))
        while cursors == list(range(sent)):
            cursors = [rng.randrange(sent + 1) for _ in range(rng.randint(0, sent + 1))]
            if rng.random() < 0.5:
                cursors = list(range(len(cursors)))
        with ExitStack() as stack:
            client = stack.enter_context(quiet(cursors))
            batches = [client.events([1], [START_TS], {"item_id": [n]}) for n in range(sent)]
            with pytest.raises(ThinRowError):
                list(client.append_all(batches, deadline_s=60))
            # A snapshot's cursor is 1; what it misses is always missing.
            if cursors != [1]:
                with pytest.raises(ThinRowError):
                    client.snapshot(1, ALL, deadline_s=60)
    Tried(
        fault="A stream of appends or snapshots ended with OK and wrong or missing answers",
        times=tries,
        promised="An error at the client, which compares answers with its requests",
        seen=f"{tries} refused by the client, 0 taken",
    ).keep()
