"""A server under all kinds of callers at once, for minutes: right to the end, and flat."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest
from support.load import Histories, Load, growth_per_minute, open_files
from support.tried import FULL, SEED, Tried, times
from support.worlds import DAY_MS, new_world, running_server, some_events

if TYPE_CHECKING:
    from pathlib import Path

    from support.worlds import Running

pytestmark = pytest.mark.timeout(1800)
KINDS = ("stream", "stream", "unary", "unary", "cancelling", "wrong", "disconnecting")
SAMPLE_S = 0.25
GROWTH_BYTES_PER_MINUTE_MAX = 2 << 20
"""Growth of the server's memory after warm-up; a leak of 100 bytes per request would be more."""
GROWTH_BYTES_MAX = 64 << 20
"""The same in a run too short for a slope."""
SETTLE_S = 30.0
OPEN_FILES_LEFT_MAX = 4
"""More than before, once everyone has gone."""
CALLS_MAX, STREAMS_MAX = 16, 16
LIMITS = ("--drain", "2s", "--calls-max", CALLS_MAX, "--streams-max", STREAMS_MAX)
OWN_THREADS_MAX = 40
"""Those that are no call's: gRPC's, RocksDB's, the server's own."""


def files_left(server: Running, before: int) -> int:
    """Open files more than before, once no call is under way and closed connections are gone."""
    end_s = time.monotonic() + SETTLE_S
    while time.monotonic() < end_s:
        series = server.scrape()
        left = open_files(server) - before
        if left <= OPEN_FILES_LEFT_MAX and not series["thinrow_in_flight_requests"]:
            assert not series["thinrow_streams"]
            return left
        time.sleep(0.1)
    raise AssertionError(f"{left} files more than before are open, in flight {series}")


def test_a_mixed_load(tmp_path: Path) -> None:
    seconds = times(2, 300)
    world = new_world(tmp_path)
    events = some_events(20_000, 200, 3, SEED)
    world.compact(events, 3, cadence_ms=DAY_MS)
    samples: list[tuple[float, float]] = []
    with running_server(world.store, *LIMITS) as server:
        load = Load(server, Histories(events), SEED)
        load.published = 3
        load.publishing(3)
        load.unary(random.Random(SEED))  # opens what stays open
        before = open_files(server)
        with load.running(*KINDS):
            time.sleep(seconds / 4)
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                samples.append((time.monotonic(), server.resident_bytes()))
                load.check()
                time.sleep(SAMPLE_S)
        left, threads = files_left(server, before), server.threads()
        assert threads <= CALLS_MAX + STREAMS_MAX + OWN_THREADS_MAX
        assert not [line for line in server.events() if line["event"] == "call failed"]
        assert server.stop() == 0
    slope = growth_per_minute(samples)
    if FULL:
        assert slope < GROWTH_BYTES_PER_MINUTE_MAX, f"{slope:,.0f} bytes a minute"
    grown = samples[-1][1] - samples[0][1]
    assert grown < GROWTH_BYTES_MAX
    seen = load.seen
    Tried(
        "A soak: streams, calls, cancellations, nonsense and broken connections at once",
        seconds,
        f"right answers, memory within {GROWTH_BYTES_PER_MINUTE_MAX >> 20} MiB a minute, "
        "open files flat, and no more threads than calls may be",
        f"{seconds} s: {seen['right']:,} examples right, 0 wrong; {seen['cancelled']:,} calls "
        f"cancelled, {seen['refused']:,} refused, {seen['disconnected']:,} connections broken; "
        f"open files {left:+d}, {threads} threads"
        + (f", memory {slope / 2**20:+.2f} MiB a minute" if FULL else ""),
    ).keep()
