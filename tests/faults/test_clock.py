"""Clocks on the wall jump by hours, days and years, and to the epoch: nothing moves with them."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.hand_overs import SCHEMA, Follower, HandOvers, Killed, hand_overs, serving
from support.online_worlds import some_events
from support.paths import SUPPORT
from support.scenarios import schema_toml
from support.tiers import append, in_threads
from support.tiers import opened as tier_opened
from support.tried import FULL, SEED, Tried, times
from support.worlds import DAY_MS, START_TS, new_world, running_online, running_server
from thinrow.client import Projection, connect
from thinrow.client.online import connect_online
from thinrow.errors import RequestError
from thinrow.online.clock import AHEAD_MS_MAX, HybridClock
from thinrow.online.config import OnlineConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.online.tier import MutableTier

pytestmark = pytest.mark.timeout(1800)
HOUR_MS = 3_600_000
YEAR_MS = 365 * DAY_MS
EPOCH_TS = 10_000
"""Seconds after 1970, as of a machine whose battery is empty."""
JUMPS_MS = (HOUR_MS, -HOUR_MS, DAY_MS, -DAY_MS, 30 * DAY_MS, -40 * DAY_MS, YEAR_MS, -2 * YEAR_MS)
READS = 20


def jumped(rng: random.Random, now_ts: int) -> int:
    """Clock after a jump."""
    if rng.random() < 0.15:
        return EPOCH_TS
    if rng.random() < 0.2:
        return START_TS
    return max(EPOCH_TS, now_ts + rng.choice(JUMPS_MS))


def test_the_clock_of_the_tier_never_goes_back() -> None:
    rng, now = random.Random(SEED), [START_TS]
    clock = HybridClock(lambda: now[0], START_TS - DAY_MS)
    steps, last_ts, floor_ts, promised_ts = times(5000, 1_000_000), 0, 0, 0
    for _ in range(steps):
        act = rng.random()
        if act < 0.1:
            now[0] = jumped(rng, now[0])
        elif act < 0.5:
            now[0] += rng.choice((0, 1, 7))
        elif act < 0.7:
            promised_ts = clock.now_ts() + rng.randrange(AHEAD_MS_MAX)
            clock.promise(promised_ts)
        elif act < 0.85:
            arrival_ts = clock.arrival_ts(rng.choice((0, 5)))
            assert arrival_ts >= max(last_ts, floor_ts, promised_ts)
        assert clock.now_ts() >= max(last_ts, now[0]) and clock.floor_ts >= floor_ts
        last_ts, floor_ts = clock.now_ts(), clock.floor_ts
    Tried(
        "The clock on the wall jumps by hours to years, and to the epoch",
        steps,
        "the tier's clock never goes back, and nothing arrives before a moment that was answered",
        f"{steps:,} steps, each later than the one before",
    ).keep()


def test_the_ceiling_on_disk_after_kills(tmp_path: Path) -> None:
    """Commits, requests and seals at once; then killed, on a machine whose clock went back."""
    rng, kills, moments = random.Random(SEED), times(3, 100), 0
    for number in range(kills):
        now, given = [START_TS], [START_TS]
        folder = tmp_path / str(number) / "tier"
        with tier_opened(folder, now) as tier:

            def commits(tier: MutableTier = tier, given: list[int] = given) -> None:
                given.extend(append(tier, 1, "x", event_id) for event_id in range(10))

            def promises(
                tier: MutableTier = tier, given: list[int] = given, now: list[int] = now
            ) -> None:
                for _ in range(30):
                    now[0] += rng.choice((0, 7, 400, 5000))
                    given.append(tier.begin(tier.now_ts + rng.randrange(AHEAD_MS_MAX)).request_ts)

            def seals(tier: MutableTier = tier, now: list[int] = now) -> None:
                for _ in range(5):
                    tier.seal(now[0])

            in_threads(commits, promises, seals)
            shutil.copytree(folder, tmp_path / f"{number}-killed" / "tier")
            sealed_ts = tier.sealed_ts
        with tier_opened(tmp_path / f"{number}-killed" / "tier", [START_TS]) as again:
            assert again.sealed_ts == sealed_ts
            assert append(again, 1, "y", 999) >= max(given)
        moments += len(given)
    Tried(
        "Commits, requests and seals at once, a SIGKILL, and a start with the clock set back",
        kills,
        "nothing arrives before a moment that was answered, a seal or an earlier arrival",
        f"{moments:,} moments, 0 passed again",
    ).keep()


class Patient(random.Random):
    """Lets hand-overs cut at no cadence: years have more cuts of 50 ms than compaction takes."""

    def choice(self, seq: Any) -> Any:  # noqa: ANN401 - as the library has it
        return None if seq == (None, None, 50) else super().choice(seq)


class Jumping:
    """Steps of a hand-over with jumps between any two; counts what was refused and should be."""

    def __init__(self, online: HandOvers, jump: Callable[[], object]) -> None:
        self.online, self._jump = online, jump
        online.rng = Patient(online.seed)
        self.jumps = 0
        self._last_ts = 0

    def step(self) -> None:
        online, act = self.online, self.online.rng.random()
        if act < 0.15:
            self._jump()
            self.jumps += 1
        elif act < 0.35:
            self.append()
        elif act < 0.43:
            online.export()
        elif act < 0.5:
            online.publish()
        elif act < 0.55:
            online.accept_generation()
        else:
            online.look_about()
        now_ts = online.now_ts()
        assert now_ts >= self._last_ts, "the tier's clock went back"
        self._last_ts = now_ts
        self.refuse_what_lies_ahead(now_ts)

    def append(self) -> None:
        online = self.online
        before = len(online.arrived)
        if isinstance(online, Killed):
            online.append(online.some())
        else:
            # Events have their sender's time, which may jump too.
            rng = online.rng
            online.append(some_events(rng, SCHEMA, rng.choice((online.now[0], START_TS))))
        assert all(event.arrival_ts >= self._last_ts for event in online.arrived[before:])

    def refuse_what_lies_ahead(self, now_ts: int) -> None:
        if self.online.rng.random() < 0.1:
            ahead_ts = now_ts + AHEAD_MS_MAX + 60_000
            with pytest.raises(RequestError, match="ahead"):
                self.online.client.snapshot(1, Projection(), request_ts=ahead_ts)
            self.online.counts["refused as ahead"] += 1


def test_hand_overs_while_the_clock_jumps(tmp_path: Path) -> None:
    rounds, counts, jumps = times(1, 16), Counter[str](), 0
    for number in range(rounds):
        world = new_world(tmp_path / str(number), schema_toml(SCHEMA))
        online = hand_overs(
            world,
            SEED + number,
            retention_ms=(DAY_MS, 300, 400 * DAY_MS)[number % 3],
            commit_lead_ms=number % 2 * 5,
            dedup_window_ms=1000 * YEAR_MS,  # else ids are forgotten, rightly, over a jump
        )
        if number % 4 == 3:
            online.now[0] = EPOCH_TS

        def jump(online: HandOvers = online) -> None:
            online.now[0] = jumped(online.rng, online.now[0])

        jumping = Jumping(online, jump)
        for _ in range(2):  # the second on the same files, whatever its clock says
            with online.running():
                for _ in range(times(25, 120)):
                    jumping.step()
                    online.now[0] += online.rng.choice((0, 1, 7, 30))
            jump()
        with online.running(), ExitStack() as stack:
            online.export()
            online.publish()
            online.accept_generation()
            if online.opened:
                client = stack.enter_context(connect(stack.enter_context(serving(world))))
                online.put_all_back(client)
        jumps += jumping.jumps
        counts += online.counts
    Tried(
        "The online service's clock jumps between the steps of hand-overs",
        jumps,
        "snapshots as the oracle has them, and put back equal from the last generation",
        f"{counts['snapshots']:,} snapshots, {counts['hand-overs']} hand-overs, "
        f"{counts['put back']:,} put back, 0 wrong; "
        f"{counts['refused as ahead']} refused as ahead",
    ).keep()


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """A library that moves a process's clock; skips where no compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to make a process's clock jump")
    library = tmp_path / "jumping_clock.so"
    source = SUPPORT / "jumping_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def test_real_processes_while_the_clock_jumps(
    tmp_path: Path, shim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both servers, whose clocks on the wall jump together, also in the middle of calls."""
    world, offset = new_world(tmp_path / "world", schema_toml(SCHEMA)), tmp_path / "offset"
    offset.write_bytes(bytes(8))
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("THINROW_CLOCK", str(offset))
    online = Killed(world, SCHEMA, OnlineConfig(store=world.store), [], seed=SEED)
    online.server = Follower(online)  # type: ignore[assignment]

    def jump() -> None:
        machine_ts = time.time_ns() // 1_000_000
        ahead_ms = jumped(online.rng, machine_ts) - machine_ts
        with offset.open("r+b") as file:  # in place: the processes have it in their memory
            file.write(struct.pack("<q", ahead_ms))

    jumping, began_ts = Jumping(online, jump), time.time_ns() // 1_000_000
    for _ in range(times(1, 4)):  # each on the files that the one before has left
        with (
            running_online(world, "--retention", "30d") as running,
            connect_online(running.address) as online.client,
        ):
            for _ in range(times(15, 250)):
                jumping.step()
            online.export()
            online.publish()
            online.accept_generation()
            if FULL:
                with running_server(world.store) as server, connect(server.address) as client:
                    for _ in range(READS):
                        jump()
                        online.put_all_back(client)
                    jump()
                    assert server.stop() == 0
                    jumping.jumps += READS + 1
            assert online.now_ts() > began_ts + HOUR_MS / 2, "the clock has not jumped"
            assert running.stop() == 0
    counts = online.counts
    Tried(
        "The clocks of the server processes jump",
        jumping.jumps,
        "as above; both go on, and end when they are stopped",
        f"{counts['snapshots']:,} snapshots, {counts['put back']:,} put back, 0 wrong",
    ).keep()
