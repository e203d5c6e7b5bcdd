"""Bytes of users who are erased, after hand-overs and compactions that were killed before."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.erasures import config, found_bytes, publish, wait_until
from support.paths import SUPPORT
from support.tried import SEED, Tried, times
from support.worlds import START_TS, World, new_world
from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.jobs.export import export_events
from thinrow.online.server import OnlineServer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.client.online import OnlineClient

    Vector = NDArray[np.float64]

SIZE = 32
SCHEMA = f'[a]\nv = {{ type = "float64", size = {SIZE} }}\n'
KILLED_STEPS = range(40, 100)
"""Steps of a compaction on the file system at which it is killed, which has about 160."""
KEPT, USERS, EVENTS_MAX = 1, range(2, 12), 8
"""A user who is never erased, and those of whom each round erases some."""
STEP_MS = 10_000


@pytest.mark.timeout(3600)
def test_bytes_of_erased_users(tmp_path: Path) -> None:
    rng, rounds, now = random.Random(SEED), times(1, 15), [START_TS]
    drawn = np.random.default_rng(SEED)
    world = new_world(tmp_path, SCHEMA)
    vectors: dict[int, list[Vector]] = {user: [] for user in (KEPT, *USERS)}
    gone = users = left = appended = 0

    def append(client: OnlineClient) -> None:
        nonlocal appended
        for user in (KEPT, *rng.choices(USERS, k=rng.randint(1, EVENTS_MAX))):
            vectors[user].append(marked(drawn))
            client.append([user], [START_TS + appended], {"v": vectors[user][-1:]}, [appended])
            appended += 1
        now[0] += STEP_MS

    with OnlineServer(config(world, now)) as server, connect_online(server.address) as client:
        for _ in range(rounds):
            append(client)
            publish(world, client, now[0])
            remove_inputs(world)
            erased = rng.sample([user for user in USERS if vectors[user]], 1)
            parts = parts_of(vectors, erased)
            assert found_bytes(world.store, parts), "the store holds them word for word"
            append(client)
            killed_compaction(world, client, now[0], rng)
            parts = parts_of(vectors, erased)
            left += bool(found_bytes(world.store / "building", parts))
            now[0] += STEP_MS
            publish(world, client, now[0], "".join(f"{user}\n" for user in erased))
            remove_inputs(world)
            server.published.refresh()
            wait_until(lambda parts=parts: not found_bytes(world.folder, parts))  # type: ignore[misc]
            gone, users = gone + len(parts), users + len(erased)
            vectors |= {user: [] for user in erased}
        assert found_bytes(world.store, parts_of(vectors, [KEPT]))
        now[0] += STEP_MS
        [seen] = client.snapshot(KEPT, Projection()).batch.to_lists("v")
        assert seen == [vector.tolist() for vector in vectors[KEPT]]
    Tried(
        fault="Users erased, after hand-overs, and compactions of their events that were killed",
        times=users,
        promised="No file of the store, the tier or a scratch folder holds their bytes",
        seen=f"{gone:,} events found before, in no file after; {left} of {rounds} killed runs had "
        f"left some of them; {len(vectors[KEPT])} events of another user there",
    ).keep()


def marked(drawn: np.random.Generator) -> Vector:
    """Values whose bits no compression changes; words are distances from the least, which is 0."""
    bits = drawn.integers(0, 0x7FE0 << 48, SIZE, np.int64)
    bits[0] = 0
    return bits.view(np.float64)


def parts_of(vectors: dict[int, list[Vector]], users: list[int]) -> list[bytes]:
    return [vector[8:12].tobytes() for user in users for vector in vectors[user]]


def remove_inputs(world: World) -> None:
    """Removes what the operator keeps: events that were exported, for `compact` to read."""
    for path in world.folder.glob("*.parquet"):
        path.unlink()


def killed_compaction(
    world: World, client: OnlineClient, watermark_ts: int, rng: random.Random
) -> None:
    """Leaves a compaction of the same events in the middle."""
    exported = world.folder / f"{watermark_ts}.parquet"
    export_events(client, watermark_ts, exported)
    command: list[Any] = [sys.executable, SUPPORT / "steps.py", rng.choice(KILLED_STEPS)]
    command += [world.store, "compact", exported, "--store", world.store]
    command += ["--schema", world.schema, "--watermark", watermark_ts, "--keep=1"]
    ended = subprocess.run([*map(str, command)], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
