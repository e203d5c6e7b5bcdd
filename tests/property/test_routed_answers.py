"""The answers of a cluster, whatever its map and whatever moves, against those of one server."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from support.id_kinds import id_array, known_id
from support.mapped_groups import MappedGroups, mapped_groups
from support.thin_rows import shown as tensors
from support.thin_rows import write_rows
from support.worlds import (
    ALL,
    DAY_MS,
    REPEATS,
    SCHEMA,
    START_TS,
    World,
    days,
    new_world,
    shown,
    some_events,
)
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARDS = 16
USERS = 60
KINDS = ("int64", "uint64", "string", "uuid")
CONFIG = ClientConfig(examples_per_request=16, requests_in_flight=6)


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    kind = request.param
    schema = SCHEMA if kind == "int64" else f'[user]\nid = "{kind}"\n{SCHEMA}'
    world = new_world(tmp_path_factory.mktemp(kind), schema)
    events = some_events(2_000, users=USERS)
    ids = id_array(events["user_id"].to_pylist(), kind)
    events = events.set_column(0, "user_id", ids)
    world.compact(events, 3, shards=SHARDS)
    return world


def batches(rng: random.Random, kind: str, count: int) -> list[Pointers]:
    """Batches of 0 to 80 examples, some users repeatedly and some unknown."""
    drawn = []
    for _ in range(count):
        users = [known_id(rng.randint(1, USERS + 5), kind) for _ in range(rng.randint(1, 80))]
        ends = [START_TS + rng.randint(1, 3 * DAY_MS) for _ in users]
        drawn.append(Pointers(user_ids=users, end_ts=ends, request_ts=[days(3)[0]] * len(users)))
    return drawn


def moving(cluster: MappedGroups, rng: random.Random) -> None:
    """Takes one step of a move, or moves shards at once."""
    names = list(cluster.serving)
    step, shard = rng.randrange(4), rng.randrange(SHARDS)
    owners = [name for name in names if shard in cluster.serving[name]]
    if step == 0:
        cluster.move(rng.sample(range(SHARDS), 3), rng.choice(names))
        for name in names:
            cluster.loading[name] -= cluster.serving[name]
            cluster.leaving[name] &= cluster.serving[name]
        return
    to = rng.choice(names)
    if to not in owners:
        cluster.loading[to].discard(shard)
        cluster.serving[to].add(shard)
        cluster.leaving[owners[0]].add(shard)
    elif len(owners) > 1:
        gone = next(name for name in owners if name != to)
        cluster.serving[gone].discard(shard)
        cluster.leaving[gone].discard(shard)
        cluster.leaving[to].discard(shard)
    cluster.version += 1


@pytest.mark.parametrize("seed", range(REPEATS))
def test_a_cluster_answers_as_one_server(world: World, seed: int) -> None:
    kind = world.folder.name.rstrip("0123456789")
    rng = random.Random(f"{seed}{kind}")
    drawn = batches(rng, kind, 12)
    with connect(world.store) as client:
        right = [shown(client.materialize(rows, ALL)) for rows in drawn]
    groups = rng.randint(1, 5)
    owners = [rng.randrange(groups) for _ in range(SHARDS)]
    copies = rng.randint(1, 2)
    with mapped_groups(world.store, owners, copies, number=groups) as cluster:
        start = rng.choice([r.address for r in cluster.all_replicas])

        def moved() -> Iterator[Pointers]:
            for rows in drawn:
                moving(cluster, rng)
                yield rows

        with connect(start, CONFIG) as client:
            assert [shown(client.materialize(rows, ALL)) for rows in drawn[:2]] == right[:2]
            assert client.routing.elsewhere == 0, "a user was requested from another group"
            assert [shown(batch) for batch in client.stream(moved(), ALL)] == right
            assert [shown(client.materialize(rows, ALL)) for rows in moved()] == right
            assert client.routing.map_version > 0


def test_rows_resumed_after_a_change_of_groups_give_identical_batches(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.compact(some_events(2_000, users=USERS), 3, shards=SHARDS)
    paths = write_rows(tmp_path, [200, 150])

    def loader(target: str) -> ThinRowLoader:
        config = LoaderConfig(batch_examples=16, lookup_examples=40)
        return ThinRowLoader(RowFiles(paths, seed=7), target, Projection(20), config)

    with mapped_groups(world.store, [0] * SHARDS) as one, loader(one.address) as whole:
        right = [tensors(batch) for batch in whole]
    owners = [shard * 7 % 4 for shard in range(SHARDS)]
    with mapped_groups(world.store, owners, number=4) as cluster:
        with loader(cluster.address) as first:
            taken = []
            for number, batch in enumerate(first):
                taken.append(tensors(batch))
                state = first.state_dict()
                if number == 5:
                    break
        cluster.move(range(0, SHARDS, 3), "2")
        with loader(cluster.address) as second:
            second.load_state_dict(state)
            for batch in second:
                taken.append(tensors(batch))
                if len(taken) == 9:
                    cluster.move(range(1, SHARDS, 3), "1")
    assert taken == right
