"""Two builds from the same events have the same digest of keys and values in every shard."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, new_folder
from support.scenarios import World, bulk, examples, worlds
from thinrow.store.generation import Generation
from thinrow.store.kv_digest import KeyValueDigest, stream_digest

if TYPE_CHECKING:
    from pathlib import Path

    from support.oracle import Run


def compact_shuffled(built: Built, run: Run, rng: random.Random) -> None:
    """Compacts the events of a run in another order, and spread over several files."""
    events = rng.sample(run.events, len(run.events))
    cuts = sorted(rng.randrange(len(events) + 1) for _ in range(rng.randrange(3)))
    parts = [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    files = [built.write_events(part) for part in parts]
    rng.shuffle(files)
    built.compact(replace(run, events=events), files)


def digests(store: Path) -> list[str | None]:
    """Digests of all shards; checks those of whole ones against what is stored."""
    with Generation.open_current(store) as generation:
        for number, shard in enumerate(generation.manifest.shards):
            tables = generation.shards[number].tables()
            if len(tables) < 2:
                pairs = generation.shards[number].items(shard.keys)
                written_whole = stream_digest(pairs) == shard.kv_xxh3_128
                assert written_whole or generation.number > 1
        return [shard.kv_xxh3_128 for shard in generation.manifest.shards]


@given(worlds(coded=True), st.randoms(use_true_random=False))
@examples(20)
def test_whatever_the_order_of_the_input(world: World, rng: random.Random) -> None:
    with new_folder() as folder:
        one, other = Built(folder / "one", world), Built(folder / "other", world)
        for run in world.runs:
            one.compact(run)
            compact_shuffled(other, run, rng)
            assert digests(one.store) == digests(other.store)


@given(worlds(most_runs=3, coded=True), st.integers(0, 2**32))
@examples(3)
def test_with_long_histories(world: World, seed: int) -> None:
    world, rng = bulk(world, seed, 6000), random.Random(seed)
    with new_folder() as folder:
        one, other = Built(folder / "one", world), Built(folder / "other", world)
        for run in world.runs:
            one.compact(run)
            compact_shuffled(other, run, rng)
            assert digests(one.store) == digests(other.store)


pairs = st.lists(
    st.tuples(st.binary(min_size=13, max_size=13), st.none() | st.binary(max_size=9)),
    max_size=4,
    unique_by=lambda pair: pair[0],
)
below = st.none() | st.sampled_from(("0" * 32, "f" * 32))


@given(pairs, pairs, below, below)
def test_other_pairs_have_another_digest(
    one: list[tuple[bytes, bytes | None]],
    other: list[tuple[bytes, bytes | None]],
    one_below: str | None,
    other_below: str | None,
) -> None:
    found = []
    for changes, under in ((one, one_below), (other, other_below)):
        digest = KeyValueDigest(under)
        for key, value in changes:
            digest.add(key, value)
        found.append(digest.hexdigest())
    assert (found[0] == found[1]) == ((one, one_below) == (other, other_below))
