"""Both services in this process, with calls that must be answered whatever their peers do."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.worlds import World, days
from thinrow.access.tenants import sha256
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MATERIALIZATION, ONLINE = "/thinrow.v1.MaterializationService/", "/thinrow.v1.OnlineService/"
TENANTS = f"""
[greedy]
token_sha256 = ["{sha256("greedy")}"]
online = ["append"]

[steady]
token_sha256 = ["{sha256("steady")}"]
"""
GREEDY = (("authorization", "Bearer greedy"),)
STEADY = (("authorization", "Bearer steady"),)
DEADLINE_S = 60.0


class Running(NamedTuple):
    """A server, and a call that must be answered whatever its peers do."""

    address: str
    method: str
    request: bytes
    unary: str
    stream: str
    metrics: Callable[[str], float | None]


@contextmanager
def running(
    kind: str, world: World, folder: Path, *, tokens: bool = False, **settings: float
) -> Iterator[Running]:
    tenants = None
    if tokens:
        tenants = folder / "tenants.toml"
        tenants.write_text(TENANTS, encoding="utf-8")
    common = {
        "store": world.store,
        "listen": "127.0.0.1:0",
        "metrics": None,
        "tenants": tenants,
        "calls_max": 8,
        "streams_max": 8,
        **settings,
    }
    if kind == "serve":
        with Server(ServerConfig(**common)) as server:  # type: ignore[arg-type]
            tenant = "steady" if tokens else ""
            request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3), tenant=tenant)
            yield Running(
                server.address,
                MATERIALIZATION + "Materialize",
                request.SerializeToString(),
                MATERIALIZATION + "Materialize",
                MATERIALIZATION + "MaterializeStream",
                server.metrics.registry.get_sample_value,
            )
        return
    with OnlineServer(OnlineConfig(data=folder / "data", **common)) as online:  # type: ignore[arg-type]
        snapshot = online_pb2.SnapshotRequest(user_id=1, tenant="steady" if tokens else "")
        yield Running(
            online.address,
            ONLINE + "Snapshot",
            snapshot.SerializeToString(),
            ONLINE + "Snapshot",
            ONLINE + "AppendEvents",
            online.metrics.registry.get_sample_value,
        )


def check_answers(server: Running, metadata: tuple[tuple[str, str], ...] = ()) -> None:
    """Requests health and the service; refused for a moment, retries."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        checked = stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(server.method)
        end_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                assert method(server.request, timeout=DEADLINE_S, metadata=metadata)
            except grpc.RpcError as error:
                call: grpc.Call = error  # type: ignore[assignment]
                assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, call.details()
                assert time.monotonic() < end_s
            else:
                return


def soon(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)
