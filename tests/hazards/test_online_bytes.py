"""All bytes of the online half's answers count, those of mutable events among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.worlds import START_TS, built_world
from thinrow.client import Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.errors import AnswerTooLargeError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.online.tier import MutableTier
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESPONSE_BYTES_MAX = 64 * 1024
EVENTS, TEXT_BYTES, USER = 20, 1000, 777_777


@pytest.fixture
def requested(tmp_path: Path) -> Iterator[tuple[OnlineClient, int]]:
    """A client, and a moment at which its events are mutable."""
    world = built_world(tmp_path)
    config = OnlineConfig(
        store=world.store,
        data=tmp_path / "online",
        listen="127.0.0.1:0",
        metrics=None,
        response_bytes_max=RESPONSE_BYTES_MAX,
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        texts = [f"{number:03}" * (TEXT_BYTES // 3) for number in range(EVENTS)]
        traits = {"item_id": [1] * EVENTS, "brand": texts, "price": [1.0] * EVENTS}
        appended = client.append([USER] * EVENTS, [START_TS] * EVENTS, traits, list(range(EVENTS)))
        yield client, appended.arrival_ts + 1


def test_a_batch_of_one_user_many_times_is_refused_before_it_is_read(
    requested: tuple[OnlineClient, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, request_ts = requested
    read, records = MutableTier.read, list[int]()

    def counted(*arguments: int) -> tuple[list[int], list[bytes]]:
        found = read(*arguments)  # type: ignore[arg-type]
        records.append(len(found[1]))
        return found

    monkeypatch.setattr(MutableTier, "read", counted)
    with pytest.raises(AnswerTooLargeError, match="response_bytes_max"):
        client.snapshot_batch([USER] * 1000, Projection(), request_ts=request_ts)
    assert not records, "the read stopped at its bound"
    seen = client.snapshot_batch([USER, 5, USER], Projection(), request_ts=request_ts)
    assert records == [EVENTS, 0], "one read for each user"
    assert [len(row.mutable) for row in seen.thin_rows] == [EVENTS, 0, EVENTS]


def test_the_answers_of_one_message_share_the_bound(requested: tuple[OnlineClient, int]) -> None:
    client, request_ts = requested
    request = online_pb2.SnapshotRequest(user_id=USER, request_ts=request_ts)
    message = online_pb2.SnapshotStreamRequest(
        requests=[online_pb2.StreamedRequest(cursor=n, request=request) for n in range(1, 11)]
    )
    [answer] = client.stub.SnapshotStream(iter([message]))
    names = [each.error.name for each in answer.answers]
    assert names == [""] * 3 + ["ANSWER_TOO_LARGE"] * 7
    assert answer.ByteSize() < RESPONSE_BYTES_MAX + 10 * 1024
