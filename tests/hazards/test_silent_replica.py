"""Replicas that take calls and never answer, beside one that does; and clients that were closed."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest
from support.fake_server import Fake, assert_no_thread_left, inputs, serving, users
from support.silent_replicas import CONFIG, PROJECTION, accepting, silent
from support.worlds import as_of, built_world, freeze, running_server
from thinrow.client import Pointers, Projection, connect
from thinrow.client.online import connect_online
from thinrow.errors import DeadlineError, UnavailableError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.client import Client


@pytest.mark.parametrize("answers", [0, 1, 4])
def test_a_stream_leaves_a_silent_replica(answers: int) -> None:
    """Each batch once, whatever had been answered before."""
    with (
        silent(answers) as hung,
        serving(Fake()) as (_, healthy),
        connect([hung, healthy], CONFIG) as client,
    ):
        assert users(list(client.stream(inputs(9), PROJECTION))) == list(range(27))
        # It stays with the one that answers.
        assert users(list(client.stream(inputs(9), PROJECTION))) == list(range(27))
    assert_no_thread_left()


def test_a_port_that_says_nothing_is_left() -> None:
    with (
        accepting() as hung,
        serving(Fake()) as (_, healthy),
    ):
        with connect([hung, healthy], CONFIG) as client:
            assert users([client.materialize(next(inputs(1)), PROJECTION)]) == [0, 1, 2]
        with connect([hung, healthy], CONFIG) as client:
            assert users(list(client.stream(inputs(9), PROJECTION))) == list(range(27))
        with connect([hung, healthy], CONFIG) as client:
            assert client.inspect(7).event_count == 7
        with connect([hung, hung, healthy], CONFIG) as client:
            assert client.describe_store().generation == 7


def test_silence_everywhere_is_a_deadline_error() -> None:
    with (
        silent(0) as one,
        silent(0) as other,
        connect([one, other], CONFIG) as client,
        pytest.raises(DeadlineError, match=r"in 1\.5 s"),
    ):
        list(client.stream(inputs(2), PROJECTION, deadline_s=1.5))
    assert_no_thread_left()


def test_a_server_that_stands_still_is_left(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    pointers = Pointers(user_ids=range(1, 6), end_ts=[as_of(3)] * 5)
    with (
        running_server(world.store) as first,
        running_server(world.store) as second,
        connect([first.address, second.address], CONFIG) as client,
    ):
        expected = client.materialize(pointers, Projection()).to_lists("item_id")
        batches = client.stream((pointers for _ in range(40)), Projection())
        seen = [next(batches).to_lists("item_id")]
        freeze(first.process.pid)
        try:
            seen += [batch.to_lists("item_id") for batch in batches]
            assert seen == [expected] * 40
            # Calls have each to find out, as long as the client has not.
            client._transport.current = 0
            assert client.materialize(pointers, Projection()).to_lists("item_id") == expected
            client._transport.current = 0
            assert client.inspect(1).event_count > 0
            client._transport.current = 0
            assert client.describe_store().user_count == 5
        finally:
            first.process.send_signal(signal.SIGCONT)


USES: dict[str, Callable[[Client], object]] = {
    "materialize": lambda client: client.materialize(next(inputs(1)), PROJECTION),
    "stream": lambda client: list(client.stream(inputs(2), PROJECTION)),
    "answers": lambda client: list(client.answers(inputs(2), PROJECTION)),
    "inspect": lambda client: client.inspect(1),
    "describe_store": lambda client: client.describe_store(),
    "stub": lambda client: client.stub,
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_client_says_so(use: str) -> None:
    with serving(Fake()) as (_, target):
        client = connect(target, CONFIG)
        client.describe_store()
        client.close()
        client.close()
        with pytest.raises(UnavailableError, match="was closed"):
            USES[use](client)


def test_a_stub_that_outlives_its_client_says_so() -> None:
    with serving(Fake()) as (_, target):
        client = connect(target, CONFIG)
        stub = client.stub
        assert stub.DescribeStore(wire.DescribeStoreRequest(), timeout=60).generation == 7
        client.close()
        for call in (
            stub.DescribeStore,
            stub.DescribeStore.with_call,
            stub.DescribeStore.future,
            lambda _: stub.MaterializeStream(iter(())),
        ):
            with pytest.raises(UnavailableError, match="was closed"):
                call(wire.DescribeStoreRequest())


@pytest.mark.parametrize("use", ["materialize", "stream"])
def test_closing_ends_a_call_under_way(use: str) -> None:
    fake = Fake()
    fake.pause_s = 1.0
    with serving(fake) as (_, target):
        client = connect(target, CONFIG)
        closer = threading.Timer(0.2, client.close)
        closer.start()
        with pytest.raises(UnavailableError, match="was closed"):
            USES[use](client)
        closer.join()
    assert_no_thread_left()


def test_a_closed_online_client_says_so() -> None:
    client = connect_online("127.0.0.1:1")
    client.close()
    client.close()
    for use in (
        client.describe,
        lambda: client.snapshot(1, PROJECTION),
        lambda: client.snapshot_batch([1], PROJECTION),
        lambda: list(client.append_all([])),
        lambda: client.append([1], [1], {}),
        lambda: client.stub,
    ):
        with pytest.raises(UnavailableError, match="was closed"):
            use()
