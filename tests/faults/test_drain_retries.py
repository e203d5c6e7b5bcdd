"""Servers stopped under calls and idle streams that gRPC itself tries again."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.idle_streams import BATCH, SNAPSHOT, Idle, check_unavailable, streams_of
from support.tried import Tried, times
from support.worlds import built_world, running_online, running_server
from thinrow.v1 import online_pb2_grpc
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALLERS = 4
BETWEEN = 20
"""Answers of each caller before the server is stopped."""
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(RETRIES)),
]
NAMED = "by name"
LONG = "1h"
"""A drain that no test waits for."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("command", "stops"), [("serve", 25), ("online", 10)])
def test_calls_tried_again_by_a_stopped_server(command: str, stops: int, tmp_path: Path) -> None:
    world, tries = built_world(tmp_path), times(1, stops)
    ended: Counter[str] = Counter()
    for number in range(tries):
        with ExitStack() as stack:
            running = stack.enter_context(
                running_server(world.store, "--drain", LONG)
                if command == "serve"
                else running_online(world, "--data", tmp_path / f"{number}", "--drain", LONG)
            )
            channels = [
                stack.enter_context(grpc.insecure_channel(running.address, OPTIONS))
                for _ in range(CALLERS)
            ]
            service = "materialization" if command == "serve" else "online"
            idle = [
                (Idle(method, [message] * answered), answered)
                for method, message in streams_of(channels[0], service).values()
                for answered in (0, 2)
            ]
            callers = [Caller(call_of(channel, command)) for channel in channels]
            for caller in callers:
                caller.thread.start()
            for caller in callers:
                assert caller.is_under_way.wait(60)
            assert running.stop() == 0
            for stream, answered in idle:
                if answered:  # gRPC tries no stream again that has had an answer
                    stream.check_ended_by_drain()
                    ended[NAMED] += 1
                else:
                    ended[ending_of(stream.given_up())] += 1
            for caller in callers:
                caller.thread.join()
                assert caller.error is not None
                ended[ending_of(caller.error)] += 1
    Tried(
        fault=f"SIGTERM to `thinrow {command}` under calls and idle streams that gRPC tries again",
        times=ended.total(),
        promised="UNAVAILABLE and its name; for what is tried again too late, a status that gRPC "
        "gives by itself, as operations.md says",
        seen=f"{tries} stops: " + ", ".join(f"{ended[one]} {one}" for one in sorted(ended)),
    ).keep()


def call_of(channel: grpc.Channel, command: str) -> Callable[[], Any]:
    """A call of the service without a stream, which the channel's policy tries again."""
    if command == "serve":
        materialize = MaterializationServiceStub(channel).Materialize  # type: ignore[no-untyped-call]
        return lambda: materialize(BATCH.request, timeout=60)
    snapshot = online_pb2_grpc.OnlineServiceStub(channel).Snapshot  # type: ignore[no-untyped-call]
    return lambda: snapshot(SNAPSHOT.requests[0].request, timeout=60)


def ending_of(error: grpc.RpcError) -> str:
    """Says how a call ended; fails for a status that the server or gRPC must not give then."""
    assert isinstance(error, grpc.Call)
    details = error.details() or ""
    if error.code() is grpc.StatusCode.CANCELLED:
        assert not error.trailing_metadata() and details == "CANCELLED"
        return "CANCELLED by gRPC, as they crossed a GOAWAY"
    if "failed to connect" in details:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return "that no caller waited for"
    check_unavailable(error)
    return NAMED


class Caller:
    """Calls in a thread until one fails."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._ask = call
        self.is_under_way = threading.Event()
        self.thread = threading.Thread(target=self._call)
        self.error: grpc.RpcError | None = None

    def _call(self) -> None:
        answered = 0
        while self.error is None:
            try:
                self._ask()
            except grpc.RpcError as error:
                self.error = error
            answered += 1
            if answered >= BETWEEN:
                self.is_under_way.set()
