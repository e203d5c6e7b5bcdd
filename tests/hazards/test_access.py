"""Access to the online service: tokens, rights, limits and TLS, for every method."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.certificates import Authority
from support.deployment import HEALTH
from support.tenants_files import File, hashed, soon
from support.worlds import START_TS, built_world, new_world
from thinrow.access.authorization import tenant_paths
from thinrow.access.status_page import Look, rendered
from thinrow.cli.app import app
from thinrow.client import ClientConfig, Projection, tls_credentials
from thinrow.client.online import OnlineClient, connect_online
from thinrow.errors import (
    InputError,
    PermissionDeniedError,
    TenantLimitError,
    UnauthenticatedError,
    UnavailableError,
)
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.online.service import RIGHTS
from thinrow.v1 import online_pb2
from thinrow.v1.online_pb2_grpc import OnlineServiceStub
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOGGER, RANKER, AUDIT, NEXT = "a logger's", "a ranker's", "an auditor's", "the next"
GUARDED = f"""
[logger]
online = ["append"]
{hashed(LOGGER)}

[ranker]
traits = ["brand"]
calls_max = 8
streams_max = 1
{hashed(RANKER)}

[audit]
projections = "any"
online = ["export"]
{hashed(AUDIT)}
"""
BRAND = Projection(traits=("brand",))
TRAITS = {"item_id": [1], "brand": ["a"], "rating": [5], "price": [0.5]}
SERVICE = online_pb2.DESCRIPTOR.services_by_name["OnlineService"]


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "tenants.toml", GUARDED)


@contextmanager
def online(folder: Path, **options: Any) -> Iterator[OnlineServer]:  # noqa: ANN401
    world = new_world(folder / "world")
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=0.02,
        **options,
    )
    with OnlineServer(config) as server:
        yield server


def carrying(server: OnlineServer, token: str | Callable[[], str] | None) -> OnlineClient:
    return connect_online(server.address, ClientConfig(token=token))


def append(client: OnlineClient, number: int) -> int:
    result = client.append([1], event_ts=[START_TS], event_ids=[number], traits=TRAITS)
    return result.appended


def export(client: OnlineClient) -> int:
    watermark_ts = client.describe().now_ts - 1
    return len(list(client.export(online_pb2.ExportEventsRequest(watermark_ts=watermark_ts))))


def test_a_token_does_what_it_may_and_nothing_else(tmp_path: Path, file: File) -> None:
    calls: dict[str, Callable[[OnlineClient], object]] = {
        "append": lambda client: append(client, 1),
        "export": export,
        "own": lambda client: client.snapshot(1, "ranker"),
        "own of several": lambda client: client.snapshot_batch([1, 2], "ranker"),
        "any": lambda client: client.snapshot(1, BRAND),
        "any of several": lambda client: client.snapshot_batch([1], BRAND),
        "describe": lambda client: client.describe(),
    }
    may = {
        LOGGER: {"append", "describe"},
        RANKER: {"own", "own of several", "describe"},
        AUDIT: {"export", "any", "any of several", "describe"},
        "unknown": set(),
        None: set(),
    }
    with online(tmp_path, tenants=file.path) as server:
        for token, allowed in may.items():
            for name, send_request in calls.items():
                with carrying(server, token) as client:
                    if name in allowed:
                        assert send_request(client), (token, name)
                        continue
                    known = token in (LOGGER, RANKER, AUDIT)
                    wanted = PermissionDeniedError if known else UnauthenticatedError
                    with pytest.raises(wanted, match=r"\.$"):
                        send_request(client)


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_no_method_answers_without_a_token(tmp_path: Path, file: File, method: str) -> None:
    """Nor any that the service gets later."""
    found = SERVICE.methods_by_name[method]
    assert (method in RIGHTS) != bool(tenant_paths(found.input_type))
    request = getattr(online_pb2, found.input_type.name)()
    with (
        online(tmp_path, tenants=file.path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = getattr(OnlineServiceStub(channel), method)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as raised:
            answers = call(iter([request]) if found.client_streaming else request, timeout=60)
            list(answers)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        errors = server.metrics.registry.get_sample_value(
            "thinrow_tenant_errors_total", {"tenant": "", "name": "UNAUTHENTICATED"}
        )
        assert errors == 1


def test_a_withdrawn_token_ends_a_stream_after_what_was_taken(tmp_path: Path, file: File) -> None:
    sent, go_on = threading.Event(), threading.Event()
    with online(tmp_path, tenants=file.path) as server, carrying(server, LOGGER) as client:
        first = client.events([1], [START_TS], TRAITS, [1])

        def requests() -> Iterator[online_pb2.AppendEventsRequest]:
            yield online_pb2.AppendEventsRequest(cursor=1, events=first)
            sent.set()
            go_on.wait(120)
            yield online_pb2.AppendEventsRequest(cursor=2, events=first)

        metadata = [("authorization", f"Bearer {LOGGER}")]
        answers = client.stub.AppendEvents(requests(), metadata=metadata, timeout=60)
        assert next(answers).appended == 1
        file.becomes(GUARDED.replace(hashed(LOGGER), hashed(NEXT)))

        def withdrawn() -> bool:
            with carrying(server, LOGGER) as late:
                try:
                    late.describe()
                except UnauthenticatedError:
                    return True
            return False

        soon(withdrawn)
        go_on.set()
        with pytest.raises(grpc.RpcError) as raised:
            list(answers)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with carrying(server, NEXT) as renewed:
            assert append(renewed, 2) == 1


def test_a_tenant_has_its_own_limit(tmp_path: Path, file: File) -> None:
    """Rejections are delayed, so a caller that retries at once has waited."""
    file.becomes(GUARDED.replace('online = ["append"]', 'online = ["append"]\nstreams_max = 1'))
    with online(tmp_path, tenants=file.path) as server, carrying(server, LOGGER) as client:
        held = threading.Event()
        metadata = [("authorization", f"Bearer {LOGGER}")]

        def nothing() -> Iterator[online_pb2.AppendEventsRequest]:
            held.wait(120)
            yield from ()

        stream = client.stub.AppendEvents(nothing(), metadata=metadata)
        samples = server.metrics.registry.get_sample_value
        soon(lambda: samples("thinrow_tenant_streams", {"tenant": "logger"}) == 1)
        started_s = time.monotonic()
        with pytest.raises(TenantLimitError) as refused:
            append(client, 1)
        assert time.monotonic() - started_s > 0.2
        assert refused.value.retry_after_ms
        assert samples("thinrow_streams") == 1
        held.set()
        assert not list(stream)
        soon(lambda: samples("thinrow_streams") == 0)
        assert append(client, 1) == 1
        errors = {"tenant": "logger", "name": "TENANT_LIMIT"}
        assert samples("thinrow_tenant_errors_total", errors) == 1


def test_without_tenants_all_is_open(tmp_path: Path) -> None:
    with online(tmp_path) as server, carrying(server, None) as client:
        assert append(client, 1) == 1
        now_ts = client.describe().now_ts + 50
        seen = client.snapshot(1, BRAND, request_ts=now_ts)
        assert seen.batch.to_lists("brand") == [["a"]]
        assert export(client)
        samples = server.metrics.registry.get_sample_value
        assert samples("thinrow_streams") == 1, "that of the snapshots"


def test_a_file_that_does_not_fit_is_refused_at_the_start(tmp_path: Path, file: File) -> None:
    file.becomes(GUARDED.replace('"brand"', '"colour"'))
    with pytest.raises(InputError, match="colour"), online(tmp_path, tenants=file.path):
        pass


def test_mutual_tls_and_its_probe(tmp_path: Path, file: File) -> None:
    authority = Authority(tmp_path)
    (cert, key), (mine, my_key) = authority.issue("server"), authority.issue("caller")
    tls: dict[str, Any] = {"tls_cert": cert, "tls_key": key, "tls_client_ca": authority.ca}
    shown = tls_credentials(ca=authority.ca, cert=mine, key=my_key)
    stranger = tls_credentials(ca=authority.ca)
    world = built_world(tmp_path / "served")
    served = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, **tls)
    with (
        online(tmp_path, tenants=file.path, reflection=False, **tls) as server,
        Server(served) as serving,
    ):
        config = ClientConfig(token=LOGGER, credentials=shown)
        with connect_online(server.address, config) as client:
            assert append(client, 1) == 1
        for wrong in (stranger, None):
            config = ClientConfig(token=LOGGER, credentials=wrong, retry_deadline_s=0)
            with connect_online(server.address, config) as client, pytest.raises(UnavailableError):
                client.describe()
        for address in (server.address, serving.address):
            options = ("--ca", authority.ca, "--cert", mine, "--key", my_key)
            assert probed(*options, address) == 0
            assert probed(*options, "--name", "localhost", address) == 0
            assert probed(*options, "--name", "elsewhere", address) == 1
            assert probed("--ca", authority.ca, address) == 1
            assert probed(address) == 1
        method = ("--service", "thinrow.v1.MaterializationService")
        assert probed(*options, *method, serving.address) == 0
        assert probed(*options, *method, server.address) == 1
        assert probed("--cert", mine, serving.address) == 2
        # The certificates' end is reported, and files that do not go together are.
        samples = serving.metrics.registry.get_sample_value
        ends_s = samples("thinrow_certificate_expiry_timestamp_seconds")
        assert ends_s is not None
        assert abs(ends_s - time.time() - 2 * 86400) < 600
        assert samples("thinrow_certificates_usable") == 1
        cert.write_bytes(mine.read_bytes())
        assert samples("thinrow_certificates_usable") == 0
        shown_page = rendered(Look.of(serving.metrics.registry.collect()), None)
        assert "certificate ends in" in shown_page
        assert shown_page.count("not usable") == 1
        assert samples("thinrow_certificate_expiry_timestamp_seconds") == ends_s


def probed(*arguments: object) -> int:
    command = [sys.executable, str(HEALTH), *map(str, arguments)]
    return subprocess.run(command, timeout=120, check=False, capture_output=True).returncode


def test_export_proves_who_it_is(tmp_path: Path, file: File) -> None:
    token = tmp_path / "token"
    token.write_text(AUDIT, encoding="ascii")
    out = tmp_path / "events.parquet"
    with online(tmp_path, tenants=file.path) as server:
        with carrying(server, LOGGER) as client:
            append(client, 1)
            watermark_ts = client.describe().now_ts
        requested = ["export", "--online", server.address, "--out", str(out)]
        requested += ["--watermark", str(watermark_ts)]
        refused = CliRunner().invoke(app, requested)
        assert refused.exit_code
        assert "wants a token" in refused.stderr
        result = CliRunner().invoke(app, [*requested, "--token-file", str(token)])
        assert result.exit_code == 0, result.stderr
    assert out.exists()
