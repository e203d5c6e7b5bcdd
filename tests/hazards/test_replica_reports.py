"""Commands of a cluster where replicas are down, hang, reject them, or never get their shards."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from concurrent import futures
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import thinrow as package
from support.certificates import Authority
from support.remote_stores import remote_world
from support.worlds import OWN_HOST, THINROW, thinrow
from thinrow.cluster.desired import DesiredCluster, read_desired
from thinrow.cluster.map_objects import read_map
from thinrow.core.cluster_map import STATE_BYTES_MAX
from thinrow.errors import InputError, UnavailableError, UsageError
from thinrow.jobs import cluster as jobs
from thinrow.jobs import replicas
from thinrow.jobs.connecting import Access
from thinrow.jobs.replicas import replica_reports
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.remote_stores import RemoteWorld

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
BEARER = "correct"


def described(_: bytes, context: grpc.ServicerContext) -> bytes:
    if dict(context.invocation_metadata()).get("authorization") != f"Bearer {BEARER}":
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "send it as ClientConfig(token=…)")
    return wire.DescribeClusterResponse(map_version=3).SerializeToString()


@contextmanager
def described_at(
    credentials: grpc.ServerCredentials | None,
    host: str,
    described: Callable[[bytes, grpc.ServicerContext], bytes] = described,
) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    handler: Any = grpc.unary_unary_rpc_method_handler(described)
    server.add_registered_method_handlers(SERVICE, {"DescribeCluster": handler})
    address = f"{host}:0"
    port = (
        server.add_insecure_port(address)
        if credentials is None
        else server.add_secure_port(address, credentials)
    )
    server.start()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop(None).wait()


def test_why_a_replica_gives_no_report_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent ones are waited for side by side."""
    monkeypatch.setattr(replicas, "REPORT_TIMEOUT_S", 2.0)
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    cert, key = authority.issue("server")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text(f"{BEARER}\n", encoding="ascii")
    wrong.write_text("wrong\n", encoding="ascii")
    with (
        socket.create_server((OWN_HOST, 0)) as silent,
        socket.create_server((OWN_HOST, 0)) as mute,
        described_at(credentials, "127.0.0.1") as safe,
        described_at(credentials, OWN_HOST) as misnamed,
        described_at(None, "127.0.0.1") as clear,
    ):
        with socket.create_server((OWN_HOST, 0)) as ended:
            down = f"{OWN_HOST}:{ended.getsockname()[1]}"
        hung = [f"{OWN_HOST}:{each.getsockname()[1]}" for each in (silent, mute)]

        def problem(target: str, access: Access) -> str | None:
            return replica_reports([target], access)[target].problem

        started_s = time.monotonic()
        found = replica_reports([down, *hung], Access())
        waited_s = time.monotonic() - started_s
        assert [found[each].problem for each in (down, *hung)] == [
            "connection refused",
            *["nothing came within 2 s"] * 2,
        ]
        assert 2 <= waited_s < 2 * 2, "side by side"
        ca = authority.ca
        assert problem(safe, Access(ca=ca, token_file=token)) is None
        assert problem(clear, Access(token_file=token)) is None
        for target, access, reason in (
            (safe, Access(token_file=token), "give --ca if it serves over TLS"),
            (safe, Access(ca=ca), "rejects the token; give one of its tenants' with --token-file"),
            (safe, Access(ca=ca, token_file=wrong), "rejects the token"),
            (safe, Access(ca=other.ca, token_file=token), "no authority in the file of --ca"),
            (misnamed, Access(ca=ca, token_file=token), "its certificate is for other addresses"),
            (clear, Access(ca=ca, token_file=token), "it serves without TLS; leave --ca out"),
        ):
            shown = problem(target, access)
            assert shown is not None and reason in shown, shown


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (wire.DescribeClusterResponse(group="a\x1b[2J"), "its group has no such name"),
        (wire.DescribeClusterResponse(group="a" * 1000), "its group has no such name"),
        (wire.DescribeClusterResponse(open_shards=[1 << 31]), "it has a shard beyond 65,536"),
        (b"\x00" * (STATE_BYTES_MAX + 1), r"its map has .* bytes"),
        (b"\xff", "its map cannot be decoded|malformed"),
    ],
)
def test_a_report_that_no_server_gives_is_none(
    message: wire.DescribeClusterResponse | bytes, reason: str
) -> None:
    """Such as one that fills the memory, or that controls the terminal of an operator."""
    encoded = message if isinstance(message, bytes) else message.SerializeToString()
    with described_at(None, OWN_HOST, lambda *_: encoded) as target:
        report = replica_reports([target], Access())[target]
    assert report.problem is not None and re.search(reason, report.problem), report.problem
    assert (report.group, report.open_shards) == ("", frozenset())


def test_an_error_of_a_replica_has_no_control_characters() -> None:
    def failing(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.INTERNAL, "no\x1b[2J\nidea")

    with described_at(None, OWN_HOST, failing) as target:
        assert replica_reports([target], Access())[target].problem == "INTERNAL: no [2J idea"


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    world = remote_world(tmp_path, f"file://{tmp_path}/bucket")
    world.compact(3)
    return world


def test_apply_says_why_it_waits(world: RemoteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of the new group were not started."""
    monkeypatch.setattr(jobs, "QUIET_S", 0.1)
    monkeypatch.setattr(jobs, "POLL_S", 0.05)
    dead: dict[str, tuple[str, ...]] = {"0": ("127.0.0.1:1",), "1": ("127.0.0.1:2",)}
    one = DesiredCluster(1000, {"0": dead["0"]})
    jobs.apply_cluster(world.objects, one, Access(), wait_s=1)
    reasons: list[str] = []
    with pytest.raises(UnavailableError, match="No replica of group 1 answers"):
        jobs.apply_cluster(
            world.objects,
            DesiredCluster(1000, dead),
            Access(),
            wait_s=1,
            waiting=reasons.extend,
        )
    assert reasons == [
        "No replica of group 1 answers.",
        "127.0.0.1:2 does not answer (connection refused).",
    ]


def test_apply_shows_no_moves_where_there_are_none_and_stops_in_one_sentence(
    world: RemoteWorld, tmp_path: Path
) -> None:
    file = tmp_path / "cluster.toml"
    command = ("cluster", "apply", file, "--store", world.url)
    pattern = 'groups = {}\ntargets = ["127.0.0.1:{{group}}1"]\n'
    file.write_text(pattern.format(1).replace("{group}1", "1"), encoding="utf-8")
    first = thinrow(*command)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Version 1 of the map: ")
    assert "shards in 1 group, " in first.stdout and " to " not in first.stdout
    assert first.stderr == ""
    file.write_text(pattern.format(2), encoding="utf-8")
    process = subprocess.Popen(
        [*THINROW, *map(str, command)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    with closing(process.stderr):
        assert process.stderr.readline().startswith("Version 2 of the map: ")
        process.send_signal(signal.SIGINT)
        last = process.stderr.read().splitlines()[-1]
    assert process.wait(60) == 130
    assert last == (
        "Stopped. Version 2 of the map serves as it is; run the command again to go on."
    )
    stored = read_map(world.objects)
    assert stored is not None and stored.map.version == 2
    folder = thinrow("cluster", "status", "--store", tmp_path / "bucket")
    assert folder.returncode == 2
    assert f"give file://{tmp_path}/bucket if all servers share its file system" in folder.stderr


def test_the_commands_from_python(world: RemoteWorld, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('groups = 1\ntargets = ["127.0.0.1:1"]\n', encoding="utf-8")
    [plan] = package.cluster_plan(file, store=world.url)
    assert (plan.before, plan.arriving) == (0, plan.after)
    first = package.cluster_apply(str(file), store=world.url, wait="1s")
    assert first.version == 1
    page = tmp_path / "page.html"
    state = package.cluster_status(store=world.url, html=page)
    assert state.reports["127.0.0.1:1"].problem == "connection refused"
    assert len(state.unserved) == plan.after
    assert "connection refused" in page.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="is the only group that has shards"):
        package.cluster_drain("0", store=world.url)
    with pytest.raises(UsageError, match="wait is 0; it must be above 0"):
        package.cluster_apply(file, store=world.url, wait="0s")


MISTAKES: dict[str, str] = {
    "groups = 3": "names no groups; write groups = NUMBER and targets",
    'groups = 0\ntargets = ["a:1"]': "groups is 0; it should be greater than or equal to 1.",
    'groups = "x"': "groups is 'x'; it should be a valid integer",
    'groups = 2\ntargets = "a{group}:1"': "targets is 'a{group}:1'; it should be a valid list.",
    'groups = 2\ntarget = ["a{group}:1"]': "target is no key of this file; it has lifetime_s,",
    'groups = 1\ntargets = ["a"]': "'a' is not HOST:PORT.",
    'groups = 1\ntargets = ["a:99999"]': "a:99999 has no port from 1 to 65535.",
    'groups = 1\ntargets = ["a:1", "a:1"]': "a target is named twice.",
    'groups = 2\ntargets = ["a:1"]': "a:1 is the same address for all groups",
    '[group."a/b"]\ntargets = ["a:1"]': "'a/b' is no name of a group; write letters, digits",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_desired(file)
    assert MISTAKES[text] in str(raised.value)
    assert "Input should" not in str(raised.value)
