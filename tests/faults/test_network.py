"""Connections that are slow, lossy, cut and healed: every example once and right, or one error."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.paths import SUPPORT
from support.tried import FULL, SEED, Tried, times
from support.wire import ADDRESSES, CLIENT, SERVER, Wire, inside, namespaces
from support.worlds import THINROW, Running, World, built_world, days, pointers_to, read_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.timeout(1800)
USERS, PER_BATCH, DIFFERENT = range(1, 41), 8, 6
"""Batches are of whole histories of some users; no two alike follow one another."""
KINDS = ("stream", "unary")
ENDED = -1
ADDRESS = f"{ADDRESSES[SERVER]}:7878"
SLACK_S = 60.0
"""A process's start and end, on a busy machine, beyond the deadlines that a client was given."""
GROWTH_BYTES_MAX = 24 << 20
"""Memory of either side while the reader is slow: 32 of 600 answers of 100 kB, and windows."""
WEATHERS: dict[str, dict[str, float]] = {
    "slow": {"delay_ms": 20, "bytes_per_s": 400_000},
    "lossy": {"delay_ms": 3, "lost": 0.03},
    "reordering": {"delay_ms": 2, "jitter_ms": 15, "doubled": 0.05},
    "corrupting": {"delay_ms": 2, "corrupted": 0.03},
    "all at once": {
        "delay_ms": 5,
        "jitter_ms": 10,
        "bytes_per_s": 1_000_000,
        "lost": 0.01,
        "doubled": 0.01,
        "corrupted": 0.01,
    },
}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with namespaces(SEED) as wire:
        yield wire


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = built_world(tmp_path_factory.mktemp("world"), count=16_000, users=40)
    questions = []
    for number in range(DIFFERENT):
        pointers = pointers_to(days(1 + number % 3), USERS[3 * number : 3 * number + PER_BATCH])
        users, end_ts = pointers.user_ids.tolist(), pointers.end_ts.tolist()
        questions.append((users, end_ts, read_store(world.store, pointers)))
    (world.folder / "questions").write_bytes(pickle.dumps(questions))
    return world


@pytest.fixture(scope="module")
def server(world: World, wire: Wire) -> Iterator[Running]:  # noqa: ARG001 - its namespace
    """`thinrow serve` in its namespace."""
    log = world.folder / "server.log"
    command = [*THINROW, "serve", "--store", str(world.store), "--listen", ADDRESS]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            inside(SERVER, [*command, "--metrics", "127.0.0.1:0"]), stderr=sink
        )
    try:
        running = Running(process, ADDRESS, "", log)
        running.wait_for("serving")
        yield running
        assert not [line for line in running.events() if line["event"] == "call failed"]
        assert running.stop() == 0
    finally:
        process.kill()
        process.wait()


def client(
    world: World,
    runs: Sequence[dict[str, Any]],
    within_s: float,
    at: dict[tuple[int, int], Callable[[], object]] | None = None,
) -> list[dict[str, Any]]:
    """Makes the runs in one process, whose end must come in time; what each reported last.

    at: what to do when that many batches of a run have come; ENDED when the run is over.
    """
    here = SUPPORT / "network_client.py"
    questions = str(world.folder / "questions")
    command = [sys.executable, str(here), questions, ADDRESS, json.dumps(runs)]
    ends: list[dict[str, Any]] = []
    with subprocess.Popen(inside(CLIENT, command), stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(within_s + SLACK_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                result = json.loads(line)
                ended = "error" in result
                if ended:
                    ends.append(result)
                (at or {}).get((result["run"], ENDED if ended else result["came"]), int)()
            assert process.wait() == 0, "it failed, or hung and was killed"
        finally:
            watchdog.cancel()
            process.kill()
    assert len(ends) == len(runs) and not any(result["wrong"] for result in ends), ends
    return ends


def whole(run: dict[str, Any], result: dict[str, Any]) -> int:
    """Examples of a run that came, which must be all."""
    assert (result["came"], result["error"]) == (run["batches"], None), result
    return PER_BATCH * int(result["came"])


@pytest.mark.usefixtures("server")
def test_a_bad_wire(wire: Wire, world: World) -> None:
    """It takes longer, and that is all."""
    rounds, each, harmed, right = times(1, 6), times(3, 30), wire.harmed, 0
    config = {"request_deadline_s": 60, "retry_deadline_s": 60, "requests_in_flight": 4}
    count = each * len(WEATHERS)
    runs = [{"kind": kind, "batches": count, "config": config} for kind in KINDS]
    turns: dict[tuple[int, int], Callable[[], object]] = {
        (run, each * turn): lambda name=name: wire.be(**WEATHERS[name])  # type: ignore[misc]
        for run in range(len(runs))
        for turn, name in enumerate(WEATHERS)
    }
    for _ in range(rounds):
        wire.be(**WEATHERS["slow"])
        ends = client(world, runs, 240, turns)
        right += sum(whole(run, result) for run, result in zip(runs, ends, strict=True))
    wire.be()
    Tried(
        "A network that delays, loses, doubles, reorders and corrupts packets",
        rounds * len(turns),
        "every example once, as the oracle has it",
        f"{right:,} examples right, 0 lost, doubled or wrong; "
        f"{wire.harmed - harmed:,} packets lost or corrupted",
    ).keep()


@pytest.mark.usefixtures("server")
def test_cut_and_healed(wire: Wire, world: World) -> None:
    """Cuts in the middle of a call, for less than its deadline."""
    rng = random.Random(SEED)
    rounds, right = times(1, 20), 0
    config = {"request_deadline_s": 30, "retry_deadline_s": 30, "requests_in_flight": 4}
    runs = [{"kind": kind, "batches": 16, "config": config} for kind in KINDS]
    for _ in range(rounds):
        wire.be(delay_ms=rng.choice((0, 2, 10)))
        cut_s = rng.uniform(0.1, 2.5) if FULL else 0.3
        cuts: dict[tuple[int, int], Callable[[], object]] = {
            (run, rng.randrange(1, 16)): lambda cut_s=cut_s: cut_for(wire, cut_s)  # type: ignore[misc]
            for run in range(len(runs))
        }
        ends = client(world, runs, 60, cuts)
        right += sum(whole(run, result) for run, result in zip(runs, ends, strict=True))
    wire.be()
    Tried(
        "A connection cut in the middle of calls, and healed within their deadline",
        rounds * len(runs),
        "every example once, as the oracle has it",
        f"{right:,} examples right, 0 lost, doubled or wrong",
    ).keep()


@pytest.mark.usefixtures("server")
def test_dropped(wire: Wire, world: World) -> None:
    """Reset in the middle of calls, again and again: retried, and nothing twice."""
    rng, rounds, right, dropped = random.Random(SEED + 2), times(1, 15), 0, wire.dropped
    config = {"request_deadline_s": 30, "retry_deadline_s": 30, "requests_in_flight": 4}
    runs = [{"kind": kind, "batches": 30, "config": config} for kind in KINDS]
    for _ in range(rounds):
        wire.be(delay_ms=rng.choice((0, 2, 10)))
        drops: dict[tuple[int, int], Callable[[], object]] = {
            (run, came): wire.drop
            for run in range(len(runs))
            for came in rng.sample(range(1, 29), 4)
        }
        ends = client(world, runs, 60, drops)
        right += sum(whole(run, result) for run, result in zip(runs, ends, strict=True))
    wire.be()
    assert wire.dropped > dropped
    Tried(
        "A connection reset in the middle of calls",
        wire.dropped - dropped,
        "every example once, as the oracle has it",
        f"{right:,} examples right, 0 lost, doubled or wrong",
    ).keep()


def cut_for(wire: Wire, seconds: float) -> None:
    wire.cut()
    threading.Timer(seconds, wire.be).start()


@pytest.mark.usefixtures("server")
def test_cut_permanently(wire: Wire, world: World) -> None:
    """One error, within the deadline; what came before is right; the next is served again."""
    rng = random.Random(SEED + 1)
    rounds, deadline_s = times(1, 10), times(1, 2) / 2
    longest_s, unreached_s = 0.0, 0.0
    errors: Counter[str] = Counter()
    config = {
        "request_deadline_s": deadline_s,
        "retry_deadline_s": 1.0,
        "connect_timeout_s": 1.0,
        "requests_in_flight": 4,
    }
    no_one = {"request_deadline_s": 30, "retry_deadline_s": 0.5, "connect_timeout_s": 0.3}
    runs = [
        *({"kind": kind, "batches": 400, "config": config} for kind in KINDS),
        {"kind": "stream", "batches": 4, "config": {}},
        *({"kind": kind, "batches": 4, "config": no_one} for kind in KINDS),
    ]
    cut_at_s = [0.0]

    def cut() -> None:
        wire.cut()
        cut_at_s[0] = time.monotonic()

    def heal() -> None:
        nonlocal longest_s
        longest_s = max(longest_s, time.monotonic() - cut_at_s[0])
        wire.be()

    for _ in range(rounds):
        wire.be()
        acts: dict[tuple[int, int], Callable[[], object]] = {}
        for run in range(len(KINDS)):
            acts |= {(run, rng.randrange(1, 6)): cut, (run, ENDED): heal}
        acts[len(KINDS), ENDED] = wire.cut
        ends = client(world, runs, 40, acts)
        for result in ends[: len(KINDS)]:
            assert result["error"] is not None and result["error"].endswith("."), result
            errors[result["error"].split(":")[0]] += 1
        whole(runs[len(KINDS)], ends[len(KINDS)])
        for result in ends[len(KINDS) + 1 :]:
            assert not result["came"] and result["error"].startswith("UnavailableError"), result
            unreached_s = max(unreached_s, result["seconds"])
    wire.be()
    assert set(errors) <= {"DeadlineError", "UnavailableError"}, errors
    Tried(
        "A connection cut permanently in the middle of calls",
        rounds * len(KINDS),
        "one error within the client's deadlines, nothing wrong before, and the next is served",
        f"{sum(errors.values())} ended by {' or '.join(sorted(errors))}, "
        f"at most {longest_s:.1f} s after the cut",
    ).keep()
    Tried(
        "A server that no packet reaches",
        rounds * len(KINDS),
        "UnavailableError once the time for retries is over",
        f"{rounds * len(KINDS)} ended by it, at most {unreached_s:.1f} s after the call "
        "with half a second for retries",
    ).keep()


@contextmanager
def watched(server: Running) -> Iterator[list[int]]:
    """The most memory that the server has until the block ends, as its one item."""
    most, stop = [server.resident_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            most[0] = max(most[0], server.resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def test_a_slow_reader(wire: Wire, server: Running, world: World) -> None:
    """Answers wait where they are bounded."""
    wire.be()
    config = {"answer_bytes_wanted": 1 << 20}
    count, pause_s = times(50, 750), times(15, 40) / 1000
    runs: list[dict[str, Any]] = [
        {"kind": "stream", "batches": 40, "config": config},
        {"kind": "stream", "batches": count, "config": config, "pause_s": pause_s},
    ]
    warm: list[int] = []
    with watched(server) as most:
        ends = client(
            world,
            runs,
            60 + 4 * count * pause_s,
            {(0, ENDED): lambda: warm.append(server.resident_bytes())},
        )
    for run, result in zip(runs, ends, strict=True):
        whole(run, result)
    grew = (most[0] - warm[0], ends[1]["peak_bytes"] - ends[0]["peak_bytes"])
    assert max(grew) < GROWTH_BYTES_MAX, grew
    Tried(
        "A reader slower than the server",
        count,
        f"neither side grows by more than {GROWTH_BYTES_MAX >> 20} MiB",
        f"{count * PER_BATCH:,} examples right; the server grew by {grew[0] / 2**20:.1f} MiB, "
        f"the client by {grew[1] / 2**20:.1f} MiB",
    ).keep()
