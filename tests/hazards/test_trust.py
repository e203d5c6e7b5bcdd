"""Trust of a server: TLS both ways, what is switched off, and input that must cost nothing."""

from __future__ import annotations

import random
import shutil
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.certificates import Authority
from support.worlds import (
    ALL,
    World,
    built_world,
    days,
    pointers_to,
    read_store,
    running_server,
    shown,
)
from thinrow.cli.app import app
from thinrow.client import Client, ClientConfig, connect, tls_credentials
from thinrow.errors import PermissionDeniedError, UnavailableError, UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.worlds import Running

MIB = 1 << 20
POINTERS = pointers_to(days(3))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"), count=40_000, users=400)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def serving(world: World, **options: Any) -> Iterator[str]:  # noqa: ANN401
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, **options)
    with Server(config) as server:
        yield server.address


def over_tls(**files: Path) -> ClientConfig:
    return ClientConfig(credentials=tls_credentials(**files), retry_deadline_s=0)


def generation(address: str, config: ClientConfig) -> int | None:
    """Certificate of a new connection; None for a failed one."""
    with connect(address, config) as client:
        try:
            return client.describe_store().generation
        except UnavailableError:
            return None


def soon(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def request_twice(client: Client, world: World) -> None:
    right = read_store(world.store, POINTERS)
    assert shown(client.materialize(POINTERS, ALL)) == right
    assert [shown(batch) for batch in client.stream([POINTERS] * 2, ALL)] == [right] * 2


def test_tls(world: World, authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    stranger = Authority(tmp_path)
    with serving(world, tls_cert=cert, tls_key=key) as address:
        with connect(address, over_tls(ca=authority.ca)) as client:
            request_twice(client, world)
        assert generation(address, over_tls(ca=stranger.ca)) is None, "a stranger's server"
        assert generation(address, over_tls()) is None, "nobody's"
        assert generation(address, ClientConfig(retry_deadline_s=0)) is None, "in the clear"
        assert generation(address, over_tls(ca=authority.ca)) == 1


def test_mutual_tls(world: World, authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    mine, my_key = authority.issue("trainer")
    theirs, their_key = Authority(tmp_path).issue("stranger")
    with serving(world, tls_cert=cert, tls_key=key, tls_client_ca=authority.ca) as address:
        with connect(address, over_tls(ca=authority.ca, cert=mine, key=my_key)) as client:
            request_twice(client, world)
        assert generation(address, over_tls(ca=authority.ca)) is None
        assert generation(address, over_tls(ca=authority.ca, cert=theirs, key=their_key)) is None


def test_certificates_change_under_a_live_server(
    world: World, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    successor = Authority(tmp_path)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(source: tuple[Path, Path]) -> None:
        for path, content in zip((cert, key), source, strict=True):
            shutil.copy(content, path)

    old, new = over_tls(ca=authority.ca), over_tls(ca=successor.ca)
    put(authority.issue("old"))
    with serving(world, tls_cert=cert, tls_key=key) as address, connect(address, old) as client:
        request_twice(client, world)
        stream = client.stream([POINTERS] * 3, ALL)
        next(stream)
        assert generation(address, new) is None
        # A certificate without its key, and no certificate at all: the old pair serves on.
        shutil.copy(successor.issue("half")[0], cert)
        assert generation(address, old) == 1
        cert.write_text("nothing", encoding="utf-8")
        assert generation(address, old) == 1
        assert caplog.messages.count("certificates cannot be used") == 2
        put(successor.issue("new"))
        assert generation(address, new) == 1
        assert generation(address, old) is None
        # Connections that were open stay so.
        assert len(list(stream)) == 2
        request_twice(client, world)


def test_the_commands_prove_who_they_are(
    world: World, authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue("server")
    mine, my_key = authority.issue("auditor")
    token, hashed = CliRunner().invoke(app, ["token"]).stdout.splitlines()
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(f'[audit]\nprojections = "any"\n{hashed}\n', encoding="utf-8")
    token_file = tmp_path / "token"
    token_file.write_text(token.removeprefix("token: ") + "\n", encoding="utf-8")
    options = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", authority.ca)
    with running_server(world.store, *options, "--tenants", tenants) as server:
        requested = ["inspect", "--server", server.address, "--user", 1, "--ca", authority.ca]
        shows = ["--cert", mine, "--key", my_key]
        result = CliRunner().invoke(
            app, [*map(str, [*requested, *shows, "--token-file", token_file])]
        )
        assert result.exit_code == 0, result.stderr
        for missing, says in (
            ([*requested, *shows], "wants a token"),
            ([*requested, *shows, "--token-file", tmp_path / "none"], "Cannot read the token"),
            ([*requested, "--cert", mine], "cert and key"),
            ([*requested[:5], "--cert", mine, "--key", my_key], "--ca"),
            ([*requested[:5], "--ca", tmp_path / "none"], "Cannot read"),
        ):
            result = CliRunner().invoke(app, [*map(str, missing)])
            assert result.exit_code, missing
            assert result.stderr.startswith("Error: "), result.stderr
            assert says in result.stderr
        # Those that request a server by the way get through the door, too.
        rows = ["--rows", tmp_path / "none.parquet", "--out", tmp_path / "out"]
        for command in ("wall", "ladder"):
            requested = [command, *rows, "--server", server.address, "--ca", authority.ca, *shows]
            result = CliRunner().invoke(app, [*map(str, requested)])
            assert "wants a token" in result.stderr
            result = CliRunner().invoke(app, [*map(str, [*requested, "--token-file", token_file])])
            assert result.exit_code
            assert "none.parquet" in f"{result.exception}{result.stderr}"


@pytest.mark.parametrize("broken", ["cert", "key", "client_ca", "swapped"])
def test_files_of_tls_that_do_not_serve(
    world: World, authority: Authority, tmp_path: Path, broken: str
) -> None:
    cert, key = authority.issue("server")
    none = tmp_path / "none.pem"
    files = {"tls_cert": cert, "tls_key": key, "tls_client_ca": authority.ca}
    if broken == "swapped":
        files["tls_key"] = authority.issue("other")[1]
    else:
        files[f"tls_{broken}"] = none
    with pytest.raises(UsageError, match=r"TLS cannot use .*\.$"), serving(world, **files):
        pass


def test_tls_takes_both_files(world: World, tmp_path: Path) -> None:
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        given: dict[str, Any] = {name: tmp_path}
        with pytest.raises(UsageError, match="tls_key"):
            ServerConfig(store=world.store, **given)
    with pytest.raises(UsageError, match="cert and key"):
        tls_credentials(cert=tmp_path)


def reflected(channel: grpc.Channel) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requested = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = stub.ServerReflectionInfo(iter([requested]), timeout=60)
    return [service.name for service in answer.list_services_response.service]


def test_reflection_and_inspect_can_be_switched_off(world: World) -> None:
    with running_server(world.store, "--no-reflection", "--no-inspect") as server:
        with grpc.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.RpcError) as raised:
                reflected(channel)
            assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
            health = health_pb2_grpc.HealthStub(channel)
            requested = health_pb2.HealthCheckRequest()
            assert (
                health.Check(requested, timeout=60).status == health_pb2.HealthCheckResponse.SERVING
            )
        with connect(server.address, ClientConfig(retry_deadline_s=0)) as client:
            with pytest.raises(PermissionDeniedError, match="switched off"):
                client.inspect(1)
            request_twice(client, world)
    with serving(world) as address, grpc.insecure_channel(address) as channel:
        assert "thinrow.v1.MaterializationService" in reflected(channel)


# Memory that callers may not take.


def grown(server: Running, before: int) -> int:
    return server.resident_bytes() - before


def raw_stub(channel: grpc.Channel) -> MaterializationServiceStub:
    return MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]


UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def test_a_request_too_large_is_refused_before_it_costs_memory(world: World) -> None:
    # Of small numbers, which take eight times as much memory as on the wire.
    huge = wire.MaterializeRequest(user_ids=bytes(32 * MIB))
    with running_server(world.store) as server:
        with connect(server.address) as client:
            request_twice(client, world)
        before = most = server.resident_bytes()
        refused = []

        def send_request() -> None:
            with grpc.insecure_channel(server.address, options=UNBOUNDED) as channel:
                with pytest.raises(grpc.RpcError) as raised:
                    raw_stub(channel).Materialize(huge, timeout=60)
                refused.append(raised.value.code())

        callers = [threading.Thread(target=send_request) for _ in range(4)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            most = max(most, server.resident_bytes())
            time.sleep(0.005)
        assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * len(callers)
        assert most - before < 16 * MIB, f"{most - before:,} bytes for 4 x 32 MiB"
        with connect(server.address) as client:
            request_twice(client, world)


def test_a_slow_reader_holds_bounded_memory(world: World) -> None:
    """Readers that never read: the server makes no more answers than the wire takes."""
    request = wire.MaterializeRequest(user_ids=range(1, 401), end_ts=days(3) * 400)
    requested = 300
    with running_server(world.store) as server:
        with grpc.insecure_channel(server.address, options=UNBOUNDED) as channel:
            size = len(raw_stub(channel).Materialize(request, timeout=60).SerializeToString())
        assert size > 0.5 * MIB
        channels = [
            grpc.insecure_channel(
                server.address, options=[*UNBOUNDED, ("grpc.use_local_subchannel_pool", 1)]
            )
            for _ in range(4)
        ]
        before = server.resident_bytes()
        requests = [
            wire.MaterializeStreamRequest(cursor=cursor, request=request)
            for cursor in range(requested)
        ]
        calls = [raw_stub(channel).MaterializeStream(iter(requests)) for channel in channels]
        end_s = time.monotonic() + 4
        most = 0
        while time.monotonic() < end_s:
            most = max(most, grown(server, before))
            time.sleep(0.02)
        sent = server.scrape()["thinrow_sent_bytes_total"]
        assert server.scrape()["thinrow_in_flight_requests"] == 0, "none is worked on unread"
        # What is requested in all would be hundreds of times as much.
        assert sent < 0.1 * len(calls) * requested * size
        assert most < 100 * MIB, f"{most:,} bytes for 4 readers that do not read"
        # It goes on as soon as they do.
        assert sum(1 for _ in calls[0]) == requested
        for call in calls:
            call.cancel()
        for channel in channels:
            channel.close()
        soon(lambda: server.scrape()["thinrow_streams"] == 0)
        with connect(server.address) as client:
            request_twice(client, world)


def test_random_bytes_are_refused_and_cost_nothing(world: World) -> None:
    """Random bytes, and requests with some bytes changed: an answer or a refusal, always."""
    rng = random.Random(0)
    right = wire.MaterializeRequest(user_ids=range(1, 40), end_ts=days(3) * 39).SerializeToString()
    with running_server(world.store) as server:
        with grpc.insecure_channel(server.address) as channel:
            send_request: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/thinrow.v1.MaterializationService/Materialize"
            )
            before, codes = server.resident_bytes(), set()
            for number in range(2000):
                requested = bytearray(right)
                if number % 2:
                    requested = bytearray(rng.randbytes(rng.randrange(2000)))
                for _ in range(rng.randrange(5)):
                    if requested:
                        requested[rng.randrange(len(requested))] = rng.randrange(256)
                try:
                    send_request(bytes(requested), timeout=60)
                    codes.add(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.add(error.code())
        assert grpc.StatusCode.OK in codes
        assert codes <= {
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        }
        assert grown(server, before) < 32 * MIB
        assert not [line for line in server.events() if line["event"] == "call failed"]
        with connect(server.address) as client:
            request_twice(client, world)
