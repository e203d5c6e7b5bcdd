"""Tenants: who may request what, and how much of the server one may have while others request."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest
from support.tenants_files import File, hashed, soon
from support.worlds import ALL, World, built_world, days, pointers_to, read_store, shown
from thinrow.access import fair_scheduler
from thinrow.access.concurrency_limit import RETRY_AFTER_MS, ConcurrencyLimit
from thinrow.access.fair_scheduler import FairScheduler
from thinrow.access.tenants import Tenants
from thinrow.cli.app import app
from thinrow.client import ClientConfig, Projection, connect
from thinrow.client.channel import is_local
from thinrow.client.online import connect_online
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    InputError,
    PermissionDeniedError,
    TenantLimitError,
    TooManyCallsError,
    UnauthenticatedError,
    UsageError,
)
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.schema import read_schema
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ONE, OTHER, NEXT = "a token", "another token", "the next token"
POINTERS = pointers_to(days(3))
BRAND = Projection(traits=("brand",))


GUARDED = f"""
[ranker]
traits = ["brand"]
{hashed(ONE)}

[analyst]
projections = "any"
{hashed(OTHER)}

[forgotten]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "tenants.toml", GUARDED)


@contextmanager
def serving(world: World, file: File, **options: object) -> Iterator[str]:
    config = ServerConfig(
        store=world.store,
        listen="127.0.0.1:0",
        metrics=None,
        tenants=file.path,
        poll_s=0.02,
        **options,  # type: ignore[arg-type]
    )
    with Server(config) as server:
        yield server.address


def carrying(token: str | Callable[[], str] | None, **options: object) -> ClientConfig:
    return ClientConfig(token=token, **{"retry_deadline_s": 0, **options})  # type: ignore[arg-type]


def refusal(address: str, token: str) -> str | None:
    """The name of the error of a call that carries this token; None where it is answered."""
    with connect(address, carrying(token)) as client:
        try:
            client.describe_store()
        except UnauthenticatedError as error:
            return error.name
    return None


def test_a_call_without_a_known_token_is_refused(world: World, file: File) -> None:
    wrong = [None, "", "A token", ONE + " ", hashlib.sha256(ONE.encode()).hexdigest()]
    with serving(world, file) as address:
        for token in wrong:
            with connect(address, carrying(token)) as client:
                for call in (
                    lambda: client.materialize(POINTERS, "ranker"),
                    lambda: list(client.stream([POINTERS], "ranker")),
                    lambda: client.inspect(1),
                    client.describe_store,
                ):
                    with pytest.raises(UnauthenticatedError, match=r"token.*\.$"):
                        call()
        metadata = [("authorization", f"Basic {ONE}")]
        with grpc.insecure_channel(address) as channel:
            stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError) as raised:
                stub.DescribeStore(wire.DescribeStoreRequest(), metadata=metadata, timeout=60)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        trailing: dict[str, object] = {
            item.key: item.value for item in raised.value.trailing_metadata()
        }
        assert trailing["thinrow-error"] == "UNAUTHENTICATED"


def test_a_token_is_good_for_its_own_tenant(world: World, file: File) -> None:
    with serving(world, file) as address:
        with connect(address, carrying(ONE)) as client:
            right = read_store(world.store, POINTERS, BRAND)
            assert shown(client.materialize(POINTERS, "ranker")) == right
            [streamed] = client.stream([POINTERS], "ranker")
            assert shown(streamed) == right
            assert list(client.describe_store().tenants) == ["ranker"]
            for projection in ("analyst", "forgotten", "nobody", ALL, BRAND):
                for call in (
                    lambda requested=projection: client.materialize(POINTERS, requested),
                    lambda requested=projection: list(client.stream([POINTERS], requested)),
                ):
                    with pytest.raises(PermissionDeniedError, match=r"'ranker'.*\.$"):
                        call()
            with pytest.raises(PermissionDeniedError, match="own projection"):
                client.inspect(1)
        with connect(address, carrying(OTHER)) as client:
            assert shown(client.materialize(POINTERS, ALL)) == read_store(world.store, POINTERS)
            assert client.inspect(1).event_count
            with pytest.raises(PermissionDeniedError, match="'analyst'"):
                client.materialize(POINTERS, "ranker")


def test_without_any_token_all_is_open(world: World, file: File) -> None:
    file.becomes("[ranker]\n[analyst]\n")
    with serving(world, file) as address, connect(address, carrying(None)) as client:
        assert len(client.materialize(POINTERS, ALL)) == len(POINTERS)
        assert client.inspect(1).event_count
        assert list(client.describe_store().tenants) == ["analyst", "ranker"]


def test_tokens_take_each_others_place_under_a_live_server(world: World, file: File) -> None:
    """Both count for a while; then the old one is withdrawn, from open streams, too."""
    carried = ONE
    with serving(world, file) as address, ExitStack() as stack:
        rotating, stuck = (
            stack.enter_context(connect(address, carrying(token, requests_in_flight=1)))
            for token in (lambda: carried, ONE)
        )
        streams = [client.stream([POINTERS] * 3, "ranker") for client in (rotating, stuck)]
        first = [shown(next(stream)) for stream in streams]
        file.becomes(GUARDED.replace(hashed(ONE), hashed(ONE, NEXT)))
        soon(lambda: refusal(address, NEXT) is None)
        assert refusal(address, ONE) is None
        carried = NEXT
        file.becomes(GUARDED.replace(hashed(ONE), hashed(NEXT)))
        soon(lambda: refusal(address, ONE) == "UNAUTHENTICATED")
        assert refusal(address, NEXT) is None
        rest = [shown(batch) for batch in streams[0]]
        assert [first[0], *rest] == [first[0]] * 3
        with pytest.raises(UnauthenticatedError):
            list(streams[1])
        # One that is wrong again and again is not tried for ever.
        carried = "wrong"
        with pytest.raises(UnauthenticatedError):
            list(rotating.stream([POINTERS], "ranker"))


@pytest.mark.parametrize(
    "bad",
    ["", "[ranker", "[ranker]\n", GUARDED.replace('"brand"', '"colour"'), '[x]\nname = "y"', None],
)
def test_a_bad_file_leaves_the_old_one(
    world: World, file: File, bad: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Above all, one that was emptied must not open the server."""
    with serving(world, file) as address:
        if bad is None:
            file.path.unlink()
        else:
            file.becomes(bad)
        soon(lambda: any("tenants file" in line for line in caplog.messages))
        assert refusal(address, "") == "UNAUTHENTICATED"
        assert refusal(address, ONE) is None
        assert caplog.messages.count("tenants file cannot be used") == 1
        file.becomes(GUARDED.replace(hashed(ONE), hashed(NEXT)))
        soon(lambda: refusal(address, NEXT) is None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[a]\ntoken_sha256 = ["a token"]', r"a.token_sha256.0"),
        (f"[a]\n{hashed(*map(str, range(17)))}", "a.token_sha256"),
        (f"[a]\n{hashed(ONE)}\n[b]\n{hashed(OTHER, ONE)}", "a and b have the same token"),
        ("[a]\ncalls_max = 0", "a.calls_max"),
        ('[a]\nprojections = "all"', "a.projections"),
    ],
)
def test_what_a_tenants_file_cannot_say(world: World, file: File, text: str, says: str) -> None:
    file.becomes(text)
    with pytest.raises(InputError, match=says) as raised, serving(world, file):
        pass
    assert ONE not in str(raised.value)


def test_the_command_makes_tokens_that_work(world: World, file: File) -> None:
    result = CliRunner().invoke(app, ["token"]).stdout.splitlines()
    token = result[0].removeprefix("token: ")
    file.becomes(f"[ranker]\n{result[1]}")
    assert token not in result[1]
    assert CliRunner().invoke(app, ["token"]).stdout.splitlines() != result
    with serving(world, file) as address:
        assert refusal(address, token) is None
        assert refusal(address, token + "x") == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "target",
    ["example.org:1", "10.0.0.1:1", "127.0.0.1.example.org:1", "dns:///example.org:1", "0.0.0.0:1"],
)
def test_a_token_is_not_sent_in_the_clear(target: str) -> None:
    for connecting in (connect, connect_online):
        with pytest.raises(UsageError, match="in the clear"):
            connecting(target, ClientConfig(token=ONE))
        connecting(target, ClientConfig(token=ONE, allow_clear_token=True)).close()
        connecting(
            target, ClientConfig(token=ONE, credentials=grpc.ssl_channel_credentials())
        ).close()
        connecting(target, ClientConfig()).close()


def test_what_stays_on_this_machine() -> None:
    here = [
        "localhost:1",
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "unix:/run/x",
        "ipv4:127.0.0.1:1",
    ]
    assert all(map(is_local, [*here, "ipv6:[::1]:1", "dns:///localhost:1", "unix-abstract:x"]))


# How much of the server one tenant may have.

LIMITED = """
[small]
calls_max = 1
streams_max = 1

[other]
"""


def test_a_tenant_at_its_limit_is_refused_and_others_are_not(world: World, file: File) -> None:
    file.becomes(LIMITED)
    with serving(world, file) as address, ExitStack() as stack:
        one, two = (stack.enter_context(connect(address, carrying(None))) for _ in range(2))
        held = one.stream([POINTERS] * 100, "small")
        next(held)
        with pytest.raises(TenantLimitError, match="streams_max") as refused:
            list(two.stream([POINTERS], "small"))
        assert refused.value.retry_after_ms == RETRY_AFTER_MS
        assert isinstance(refused.value, TooManyCallsError)
        # Single calls have a limit of their own, and others have theirs.
        assert len(two.materialize(POINTERS, "small")) == len(POINTERS)
        assert len(list(two.stream([POINTERS], "other"))) == 1
        assert len(list(two.stream([POINTERS], ALL))) == 1
        held.close()
        patient = stack.enter_context(connect(address, carrying(None, retry_deadline_s=10)))
        assert len(list(patient.stream([POINTERS], "small"))) == 1


def test_the_client_waits_as_the_hint_says_and_not_for_ever(world: World, file: File) -> None:
    file.becomes(LIMITED)
    with serving(world, file) as address, ExitStack() as stack:
        one = stack.enter_context(connect(address))
        two = stack.enter_context(connect(address, carrying(None, retry_deadline_s=0.7)))
        three = stack.enter_context(connect(address, carrying(None, retry_deadline_s=30)))
        held = one.stream([POINTERS] * 100, "small")
        next(held)
        started_s = time.monotonic()
        with pytest.raises(TenantLimitError):
            list(two.stream([POINTERS], "small"))
        assert time.monotonic() - started_s > RETRY_AFTER_MS / 1000
        timer = threading.Timer(0.3, held.close)
        timer.start()
        batches = [shown(batch) for batch in three.stream([POINTERS] * 3, "small")]
        timer.join()
    assert batches == [read_store(world.store, POINTERS)] * 3


def test_a_stream_takes_the_place_of_the_tenant_it_belongs_to(world: World, file: File) -> None:
    file.becomes(LIMITED)

    def requests() -> Iterator[wire.MaterializeStreamRequest]:
        for cursor, tenant in enumerate(["small", "other", "small", "small"]):
            request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3), tenant=tenant)
            yield wire.MaterializeStreamRequest(cursor=cursor, request=request)

    with serving(world, file) as address:
        for _ in range(3):
            with grpc.insecure_channel(address) as channel:
                stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
                assert len(list(stub.MaterializeStream(requests(), timeout=60))) == 4


def test_a_tenant_has_half_unless_its_table_says_otherwise(world: World, file: File) -> None:
    file.becomes("[half]\n[own]\ncalls_max = 3\nwork_bytes_max = 1_000\nstreams_max = 99")
    config = ServerConfig(
        store=world.store, tenants=file.path, calls_max=7, streams_max=1, work_bytes_max=10_000
    )
    schema = read_schema(world.schema)
    with Tenants(config, lambda: schema) as tenants:
        limits = {
            name: (tenants.calls_max(name), tenants.streams_max(name), tenants.work_bytes_max(name))
            for name in ("half", "own", "")
        }
    assert limits == {"half": (3, 1, 5_000), "own": (3, 1, 1_000), "": (3, 1, 5_000)}
    with Tenants(replace(config, tenants=None), lambda: schema) as tenants:
        assert (tenants.calls_max(""), tenants.work_bytes_max("")) == (7, 10_000)
    with serving(world, file) as address, connect(address, carrying(None)) as client:
        assert len(client.materialize(POINTERS, "half")) == len(POINTERS)
        with pytest.raises(AnswerTooLargeError, match="work_bytes_max"):
            client.materialize(POINTERS, "own")


def test_places_are_given_back_however_a_call_ends() -> None:
    places = ConcurrencyLimit("calls_max")
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), places.acquire_tenant("a", 1):
            raise ZeroDivisionError
    with places.acquire_tenant("a", 1):
        with pytest.raises(TenantLimitError), places.acquire_tenant("a", 1):
            pass
        with places.acquire_tenant("b", 1):
            pass
    assert not places._by_tenant


def order_of(turns: FairScheduler, requested: list[tuple[str, int]]) -> list[str]:
    """The order in which requests are let in, one at a time, that requested while none was."""
    entered: list[str] = []
    threads = []

    def call(tenant: str, amount: int) -> None:
        with turns.hold(amount, 10, tenant):
            entered.append(tenant)

    with turns.hold(turns._capacity, None, "holder"):
        for tenant, amount in requested:
            thread = threading.Thread(target=call, args=(tenant, amount))
            thread.start()
            threads.append(thread)
            waiting = len(threads)
            soon(lambda n=waiting: sum(turns.waiting.values()) == n)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    return entered


def test_tenants_take_turns() -> None:
    """However much one requests before, and in whatever order they come."""
    entered = order_of(FairScheduler(1), [*[("flood", 1)] * 20, *[("a", 1)] * 5, ("b", 1)])
    assert sorted(entered[:3]) == ["a", "b", "flood"], entered
    assert sorted(entered[3:11]) == ["a"] * 4 + ["flood"] * 4, entered
    assert all(one != other for one, other in itertools.pairwise(entered[:11])), entered
    assert len(entered) == 26


def test_the_last_place_is_left_to_others_while_they_request() -> None:
    turns = FairScheduler(2, reserve=1)
    with turns.hold(1, 1, "flood"), turns.hold(1, 1, "flood"):  # no one else requests
        pass
    with turns.hold(1, 1, "a"):
        pass
    with turns.hold(1, 1, "flood"):
        with pytest.raises(DeadlineError), turns.hold(1, 0.05, "flood"):
            pass
        with turns.hold(1, 0.05, "a"):
            pass


def test_an_answer_on_its_way_counts_against_its_tenant_while_others_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answered(tenant: str) -> ExitStack:
        sending = ExitStack()
        with turns.hold(1, 5, tenant):
            sending.enter_context(turns.sending(1, tenant))
        return sending

    def may_work(tenant: str, timeout_s: float) -> bool:
        try:
            with turns.hold(1, timeout_s, tenant):
                return True
        except DeadlineError:
            return False

    monkeypatch.setattr(fair_scheduler, "SEND_RESERVATION_S", 3600)
    turns = FairScheduler(2, reserve=1)
    with answered("flood"), answered("flood"):  # no one else requests
        assert may_work("flood", 0)
    answered("a").close()
    with answered("flood"):
        assert not may_work("flood", 0.1)
        assert may_work("a", 0)
    assert may_work("flood", 0)
    monkeypatch.setattr(fair_scheduler, "SEND_RESERVATION_S", 0.2)
    begin_s = time.monotonic()
    with answered("flood"):  # no one reads it, and no other thread notifies the waiting one
        assert may_work("flood", 3600)
        assert time.monotonic() - begin_s >= 0.2
    assert not any(turns._sending.values())


def test_one_at_its_own_limit_does_not_hold_up_others() -> None:
    turns = FairScheduler(100)
    with turns.hold(50, None, "flood", 50):
        waiting = threading.Thread(target=lambda: turns.hold(10, 10, "flood", 50).__enter__())
        waiting.start()
        soon(lambda: "flood" in turns.waiting)
        with turns.hold(50, 0.5, "a", 50):
            pass
    waiting.join()
    with pytest.raises(AnswerTooLargeError), turns.hold(51, None, "flood", 50):
        pass


def test_a_waiter_that_gives_up_frees_those_after_it() -> None:
    turns, entered = FairScheduler(100), threading.Event()

    def large() -> None:
        with pytest.raises(DeadlineError), turns.hold(100, 0.3):
            pass

    def small() -> None:
        with turns.hold(10, 10):
            entered.set()

    with turns.hold(50, None):
        threads = [threading.Thread(target=call) for call in (large, small)]
        for number, thread in enumerate(threads):
            thread.start()
            soon(lambda n=number: turns.waiting.get("", 0) > n)  # type: ignore[misc]
        assert entered.wait(120)
    for thread in threads:
        thread.join()


def test_turns_add_up_after_a_storm() -> None:
    """Many tenants, amounts and deadlines: never more than the limit, and all comes back."""
    turns, most, lock = FairScheduler(10, reserve=2), 0, threading.Lock()
    held = 0

    def call(seed: int) -> None:
        nonlocal held, most
        for n in range(200):
            amount = 1 + (seed * 7 + n) % 8
            try:
                with (
                    ExitStack() as sending,
                    turns.hold(amount, 0.000_1 * (n % 5), f"tenant {seed % 3}"),
                ):
                    sending.enter_context(turns.sending(amount, f"tenant {seed % 3}"))
                    with lock:
                        held += amount
                        most = max(most, held)
                    with lock:
                        held -= amount
            except DeadlineError:
                pass

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 10
    with turns.hold(10, 0, "all that there is"):
        assert not turns.waiting
    assert not any(turns._held.values())
    assert not any(turns._sending.values())
