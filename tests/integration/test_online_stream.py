"""Snapshots on a stream equal those of calls, with any callers and whatever goes wrong."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.worlds import OWN_HOST, freeze, new_world, running_online, some_events
from thinrow.client import Projection, online_stream, snapshots
from thinrow.client.online import OnlineClient, connect_online
from thinrow.core.wire.request import to_wire_projection
from thinrow.errors import (
    DeadlineError,
    RequestError,
    ThinRowError,
    UnavailableError,
    UnknownTenantError,
)
from thinrow.online.streamed import REQUESTS_MAX
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from pathlib import Path

ALL = Projection(traits=("event_id", "item_id", "brand", "rating"))
USERS = range(1, 7)  # the last is not known


def request(user_id: int, **reported: Any) -> online_pb2.SnapshotRequest:  # noqa: ANN401
    return online_pb2.SnapshotRequest(
        user_id=user_id, projection=to_wire_projection(ALL), **reported
    )


def streamed(
    client: OnlineClient, *messages: list[online_pb2.SnapshotRequest]
) -> list[list[online_pb2.StreamedAnswer]]:
    """Answers of the generated stub to messages of requests, their cursors from 1."""
    requested = [
        online_pb2.SnapshotStreamRequest(
            requests=[
                online_pb2.StreamedRequest(cursor=number, request=each)
                for number, each in enumerate(requests, 1)
            ]
        )
        for requests in messages
    ]
    return [list(answer.answers) for answer in client.stub.SnapshotStream(iter(requested))]


def timeless(response: online_pb2.SnapshotResponse) -> bytes:
    response.immutable.server_us = 0
    return response.SerializeToString()


def fill(client: OnlineClient, events: int) -> int:
    """Appends, and returns a moment from which on all of it is seen."""
    rows = some_events(events, seed=7).to_pydict()
    traits = {name: rows[name] for name in ("item_id", "brand", "rating", "price")}
    ids = [1 << 40 | number for number in range(events)]
    reported = client.append(rows["user_id"], rows["event_ts"], traits, ids)
    return reported.arrival_ts + 1


def test_a_stream_answers_as_calls_and_batches_do(tmp_path: Path) -> None:
    """Answers are equal for cached histories and read ones, for every bound."""
    world = new_world(tmp_path)
    world.compact(some_events(3000), 3)
    with running_online(world) as server, connect_online(server.address) as client:
        moment_ts = fill(client, 60)
        for lookback_ms, max_length in ((0, 0), (0, 7), (1, 0), (400 * 86_400_000, 0)):
            bounds = {"lookback_ms": lookback_ms, "max_length": max_length}
            requested = [request(user, request_ts=moment_ts, **bounds) for user in USERS]
            for _ in range(2):
                (answers,) = streamed(client, requested)
                assert [one.cursor for one in answers] == list(range(1, len(requested) + 1))
                calls = [client.stub.Snapshot(one) for one in requested]
                assert [timeless(one.response) for one in answers] == [*map(timeless, calls)]
                alone = [
                    client.snapshot(user, ALL, request_ts=moment_ts, **bounds) for user in USERS
                ]
                # Through the plan of a batch, which goes another way.
                together = client.snapshot_batch(USERS, ALL, request_ts=moment_ts, **bounds)
                assert tuple(one.thin_row for one in alone) == together.thin_rows
                for name in ALL.traits:
                    shown = [one.batch.to_lists(name)[0] for one in alone]
                    assert shown == together.batch.to_lists(name)
                assert any(row.mutable for row in together.thin_rows)


def test_what_is_wrong_with_a_request_is_reported_in_its_own_answer(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    with running_online(world) as server, connect_online(server.address) as client:
        good = request(1)
        bad = [
            online_pb2.SnapshotRequest(user_id=1, tenant="nobody"),
            request(1, max_length=-1),
            request(1, request_ts=1 << 60),
        ]
        first, second = streamed(client, [good, *bad, good], [good])
        assert [one.WhichOneof("outcome") for one in first] == [
            "response",
            *["error"] * len(bad),
            "response",
        ]
        assert [one.error.name for one in first[1:4]] == [
            "UNKNOWN_TENANT",
            *["INVALID_REQUEST"] * 2,
        ]
        assert second[0].HasField("response")
        with pytest.raises(UnknownTenantError, match="nobody"):
            client.snapshot(1, "nobody")
        with pytest.raises(RequestError, match="max_length"):
            client.snapshot(1, ALL, max_length=-1)
        assert server.scrape()["thinrow_online_snapshots_total"] == 3
        with pytest.raises(grpc.RpcError, match="so send several"):
            streamed(client, [good] * (REQUESTS_MAX + 1))


def test_threads_share_a_stream_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.compact(some_events(2000, users=40), 3)
    users = [1 + number % 45 for number in range(900)]
    with running_online(world) as server, connect_online(server.address) as client:
        together = client.snapshot_batch(range(46), ALL)
        expected = together.batch.to_lists("event_id")
        with ThreadPoolExecutor(24) as pool:
            seen = list(pool.map(lambda user: client.snapshot(user, ALL), users))
        for user, one in zip(users, seen, strict=True):
            assert one.batch.to_lists("event_id")[0] == expected[user]
        scraped = server.scrape()
        assert scraped["thinrow_online_snapshots_total"] == len(users) + 46


def test_a_server_that_stands_still_and_one_that_dies(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    listen = ("--listen", f"{OWN_HOST}:0")
    with running_online(world, *listen) as server, connect_online(server.address) as client:
        assert client.snapshot(1, ALL).thin_row.user_id == 1
        freeze(server.process.pid)
        with pytest.raises(DeadlineError, match=r"0\.2 s"):
            client.snapshot(2, ALL, deadline_s=0.2)
        server.process.send_signal(signal.SIGCONT)
        assert client.snapshot(3, ALL).batch.statuses.tolist() == [1]
        freeze(server.process.pid)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(client.snapshot, user, ALL) for user in range(4)]
            time.sleep(0.1)
            server.process.kill()
            for one in waiting:
                with pytest.raises(UnavailableError):
                    one.result()
        server.process.wait()
        with pytest.raises(UnavailableError):
            client.snapshot(1, ALL)
        with running_online(world, "--listen", server.address):
            deadline_s = time.monotonic() + 60
            while True:
                try:
                    assert client.snapshot(1, ALL).batch.statuses.tolist() == [1]
                    break
                except UnavailableError:  # the connection is tried again after a pause
                    assert time.monotonic() < deadline_s
                    time.sleep(0.05)


def test_a_stream_that_no_one_uses_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(tmp_path)
    with running_online(world) as server, connect_online(server.address) as client:
        monkeypatch.setattr(online_stream, "IDLE_S", 0.05)
        client.snapshot(1, ALL)
        deadline_s = time.monotonic() + 60
        while any(thread.name == "thinrow-snapshots" for thread in threading.enumerate()):
            assert time.monotonic() < deadline_s, "the stream was not ended"
            time.sleep(0.02)
        monkeypatch.undo()
        client.snapshot(1, ALL)
        assert server.stop() == 0
        with pytest.raises(ThinRowError):
            client.snapshot(1, ALL)


def test_a_closed_client_says_so(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    with running_online(world) as server:
        with connect_online(server.address) as client:
            client.snapshot(1, ALL)
        with pytest.raises(UnavailableError, match="closed"):
            client.snapshot(1, ALL)


def test_the_classes_of_answers_are_never_freed() -> None:
    """A class that is made when it is first read, and freed with its last message, is no thread's.

    Threads that read the first message within another at once used to crash now and then.
    """
    answer = online_pb2.StreamedAnswer(cursor=1)
    answer.response.mutable.columns.add(trait="x")
    encoded = online_pb2.SnapshotStreamResponse(answers=[answer]).SerializeToString()
    [read] = snapshots.decode_stream(encoded).answers
    for message in (read, read.response, read.response.mutable, read.response.mutable.columns[0]):
        assert type(message) in snapshots.CLASSES
        assert type(message) is not type(answer)
