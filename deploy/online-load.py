"""The load of docker-compose-online.yaml: appends events, and takes snapshots of users.

It ends at SIGTERM, or after --seconds, and exits with status 1 if the client raised an error.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from threading import Event

from thinrow.client import Projection
from thinrow.client.config import ClientConfig
from thinrow.client.online import connect_online
from thinrow.errors import ThinRowError

USERS = 1000
BATCH_EVENTS_MAX = 1000
REPORT_S = 5.0
STEP_S = 0.1

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("servers", metavar="HOST:PORT,…", help="the online servers, or a name of all")
parser.add_argument("--events-per-second", type=int, default=200)
parser.add_argument("--snapshots-per-second", type=int, default=50)
parser.add_argument("--seconds", type=float, default=float("inf"))


def main() -> int:
    """Runs until it is stopped; returns the exit status."""
    given = parser.parse_args()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    rng = random.Random()
    appended = taken = failed = lag_ms_max = 0
    start_s = reported_s = time.monotonic()
    first_id = time.time_ns()
    config = ClientConfig(retry_deadline_s=30)
    with connect_online(given.servers, config) as online:
        while not stop.wait(STEP_S) and (run_s := time.monotonic() - start_s) < given.seconds:
            try:
                due = min(int(run_s * given.events_per_second) - appended, BATCH_EVENTS_MAX)
                if due > 0:
                    online.append(
                        [rng.randrange(USERS) for _ in range(due)],
                        event_ts=[time.time_ns() // 1_000_000] * due,
                        event_ids=[first_id + appended + n for n in range(due)],
                        traits={
                            "item_id": [rng.randrange(10_000) for _ in range(due)],
                            "watch_ms": [rng.randrange(60_000) for _ in range(due)],
                        },
                    )
                    appended += due
                for _ in range(int(run_s * given.snapshots_per_second) - taken):
                    seen = online.snapshot(rng.randrange(USERS), Projection(sequence_length=100))
                    lag_ms_max = max(lag_ms_max, seen.lag_ms or 0)
                    taken += 1
            except ThinRowError as error:
                failed += 1
                print(f"failed: {error}", flush=True)
            if time.monotonic() - reported_s >= REPORT_S:
                reported_s = time.monotonic()
                print(
                    f"{appended} events, {taken} snapshots, {failed} failed, lag ≤ {lag_ms_max} ms",
                    flush=True,
                )
                lag_ms_max = 0
        routing = online.routing
        print(
            f"{appended} events, {taken} snapshots, {failed} failed, "
            f"{routing.failovers} failovers, {routing.hedges} hedges",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
