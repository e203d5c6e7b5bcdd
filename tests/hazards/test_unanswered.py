"""Streams that end with answers missing: an error on both sides, never a quiet end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.online_events import ALL, batch, item
from support.unanswered import failing_at, online_config, quiet
from support.worlds import START_TS, new_world
from thinrow.client.online import Appended, OnlineClient, connect_online
from thinrow.errors import ThinRowError, UnavailableError
from thinrow.online.append_stream import AppendStreams
from thinrow.online.clock import TierClock
from thinrow.online.ids import IdIndex
from thinrow.online.server import OnlineServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def online_client(folder: Path) -> Iterator[OnlineClient]:
    with (
        OnlineServer(online_config(new_world(folder))) as server,
        connect_online(server.address) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (AppendStreams, "decode"),  # in the stream's reading thread
        (TierClock, "_lead_ms"),  # in the thread that commits, which all streams share
        (IdIndex, "rows_to_store"),
    ],
)
def test_a_failing_thread_of_the_server_fails_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    with online_client(tmp_path) as client:
        batches = [batch(client, first, 1) for first in range(5)]
        failing_at(monkeypatch, owner, method, 3)
        acknowledged: list[Appended] = []
        with pytest.raises(ThinRowError):
            for batch_ in batches:
                acknowledged += client.append_all([batch_], deadline_s=60)
        assert len(acknowledged) == 2
        monkeypatch.undo()
        if method != "rows_to_store":  # a failing disk, after which the tier refuses all
            assert client.append([1], [START_TS], item(9), [1 << 40]).appended == 1


def test_a_stream_of_many_batches_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with online_client(tmp_path) as client:
        batches = [batch(client, first, 1) for first in range(5)]
        failing_at(monkeypatch, AppendStreams, "decode", 3)
        with pytest.raises(ThinRowError, match="MemoryError"):
            list(client.append_all(batches, deadline_s=60))


@pytest.mark.parametrize(
    ("cursors", "error", "answered"),
    [
        ([], UnavailableError, 0),
        ([0], UnavailableError, 1),
        ([1], ThinRowError, 0),
        ([0, 0], ThinRowError, 1),
    ],
)
def test_the_client_counts_answers_to_appends(
    cursors: Sequence[int], error: type[ThinRowError], answered: int
) -> None:
    with quiet(cursors) as client:
        batches = [client.events([1], [START_TS], {"item_id": [n]}) for n in range(2)]
        acknowledged = []
        with pytest.raises(error):
            for result in client.append_all(batches, deadline_s=60):
                acknowledged.append(result)  # noqa: PERF402 - what came before the error counts
        assert len(acknowledged) == answered
        if not answered:
            with pytest.raises(ThinRowError):
                client.append([1], [START_TS], {"item_id": [1]}, deadline_s=60)


def test_the_client_counts_answers_to_surplus() -> None:
    with quiet([0, 1, 2]) as client, pytest.raises(ThinRowError, match="malformed"):
        list(client.append_all([client.events([1], [START_TS], {"item_id": [1]})], deadline_s=60))


@pytest.mark.parametrize("cursors", [[], [7], [1, 2]])
def test_the_client_compares_answers_with_snapshots(cursors: Sequence[int]) -> None:
    with quiet(cursors) as client, pytest.raises(ThinRowError, match=r"malformed|before it had"):
        client.snapshot(1, ALL, deadline_s=60)
