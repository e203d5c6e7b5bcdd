"""Histories on disk: full stripes, then shorter ones, in layers, and nothing left over."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.numpy_stripes import StripeSet
from support.worlds import DAY_MS, as_of, new_world, running_server, some_events
from thinrow.client import Pointers, Projection, connect
from thinrow.compaction.compact import compact
from thinrow.compaction.shards import is_whole_due
from thinrow.compaction.trait_values import to_series
from thinrow.errors import StoreCorruptError
from thinrow.schema import DIRECTORY_GROUP, FIRST_NUMBER, Trait, TraitType, parse_schema
from thinrow.store.generation import Generation
from thinrow.store.keys import USER_BYTES, group_and_stripe
from thinrow.store.shard import LAYERS_MAX
from thinrow.store.stripe import (
    COLUMN,
    HEADER,
    STRIPE_EVENTS_MAX,
    TraitValues,
    decode_stripes,
    encode_stripes,
)
from thinrow.store.striping import HALVINGS

if TYPE_CHECKING:
    from pathlib import Path

USERS = 4
SHORTER = [STRIPE_EVENTS_MAX >> halving for halving in range(1, HALVINGS + 1)]


def stripe_sizes(generation: Generation, user_id: int) -> list[int]:
    directories = generation.directories(np.array([user_id]))
    sizes: list[int] = (directories.stripe_ends - directories.stripe_ordinals).tolist()
    return sizes


@pytest.mark.parametrize("lookback_ms", [None, 3 * DAY_MS])
def test_stripes_grow_shorter_and_no_old_one_stays(tmp_path: Path, lookback_ms: int | None) -> None:
    rng = random.Random(7)
    world = new_world(tmp_path)
    for day in range(8):
        count = rng.choice((3, 300, 2000, 6000))
        events = world.write(f"{day}.parquet", some_events(count, USERS, 1, day, first_day=day))
        compact(world.compaction([events], day + 1, lookback_ms=lookback_ms))
        with Generation.open_current(world.store) as generation:
            kept: Counter[tuple[int, int]] = Counter()
            for shard, summary in zip(
                generation.shards.values(), generation.manifest.shards, strict=True
            ):
                for key, _ in shard.items(summary.keys):
                    user_id = int.from_bytes(key[:USER_BYTES], "big")
                    group, _ = group_and_stripe(key)
                    kept[user_id, group] += group != DIRECTORY_GROUP
            for user_id in range(1, USERS + 1):
                sizes = stripe_sizes(generation, user_id)
                # Retention may leave one that is not full in front.
                behind = sizes[1:] if lookback_ms else sizes
                full = behind.count(STRIPE_EVENTS_MAX)
                assert behind[:full] == [STRIPE_EVENTS_MAX] * full
                shorter = behind[full:]
                assert shorter == sorted(shorter, reverse=True)
                numbers = [shorter.count(size) for size in SHORTER]
                assert len(shorter) - sum(numbers) <= 1  # what is left
                # Once or twice each, from the longest that there is on.
                first = 0 if full else next((n for n, number in enumerate(numbers) if number), 0)
                assert set(numbers[first:]) <= {1, 2} or not sum(numbers)
                if not sum(numbers):
                    assert not full
                    assert sum(shorter) < SHORTER[-1]
                for group in {group for _, group in kept} - {DIRECTORY_GROUP}:
                    assert kept[user_id, group] == len(sizes)


def test_only_what_grows_into_a_longer_stripe_is_written_again(tmp_path: Path) -> None:
    """However a history came in, it lies the same; and most of it is shared, not copied."""
    world, at_once = new_world(tmp_path / "by day"), new_world(tmp_path / "at once")
    shared, files = [], []
    for day in range(16):
        count = 400 if day else 12_000
        events = some_events(count, USERS, 1, day, first_day=day)
        files.append(world.write(f"{day}.parquet", events))
        compact(world.compaction(files[-1:], day + 1, shards=1))
        compact(replace(at_once.compaction(files, day + 1, shards=1), store=tmp_path / str(day)))
        with (
            Generation.open_current(world.store) as generation,
            Generation.open_current(tmp_path / str(day)) as whole,
        ):
            for user_id in range(1, USERS + 1):
                assert stripe_sizes(generation, user_id) == stripe_sizes(whole, user_id)
            assert generation.manifest.shards[0].keys == whole.manifest.shards[0].keys
            pairs = list(generation.shards[0].items(whole.manifest.shards[0].keys))
            assert pairs == list(whole.shards[0].items(whole.manifest.shards[0].keys))
            tables = list(generation.folder.rglob("*.sst"))
            assert len(tables) <= 1 + LAYERS_MAX
            shared.append(sum(table.stat().st_nlink > 1 for table in tables))
    assert max(shared) > 1
    assert 0 in shared[5:], "it was never written whole again"


def test_shards_are_written_whole_in_turn(tmp_path: Path) -> None:
    """One in seven each time, by its number, so that no day rewrites the whole store."""
    world = new_world(tmp_path)
    world.compact(some_events(3000, USERS), 3, shards=4)
    for number in range(2, 9):
        day = number + 2
        event = some_events(1, USERS, 1, day, first_day=day - 1)
        world.compact(event, day, shards=None)
        for shard in range(4):
            folder = world.store / f"generation-{number:06d}" / f"shard-{shard:04d}"
            shared = sum(table.stat().st_nlink > 1 for table in folder.glob("*.sst"))
            assert (shared == 0) == is_whole_due(number, shard), (number, shard)
            assert is_whole_due(number, shard) == ((number + shard) % 7 == 0)


@pytest.mark.parametrize("gone", [None, "erasure", "retention"])
def test_what_must_be_gone_is_not_in_a_shared_file(tmp_path: Path, gone: str | None) -> None:
    world = new_world(tmp_path)
    world.compact(some_events(12_000, USERS, 1), 1, shards=1)
    options: dict[str, Any] = {}
    if gone == "erasure":
        options["erase_users"] = tmp_path / "users.txt"
        options["erase_users"].write_text("1\n")
    elif gone == "retention":
        options["lookback_ms"] = DAY_MS
    world.compact(some_events(3, USERS, 1, 1, first_day=1), 2, shards=1, **options)
    tables = list((world.store / "generation-000002").rglob("*.sst"))
    assert [table.stat().st_nlink for table in tables if table.stat().st_nlink > 1] == (
        [] if gone else [2]
    )
    assert len(tables) == (1 if gone else 2)


def test_categories_are_stored_in_the_fewest_bytes_and_read_the_same() -> None:
    """Small ones as they are, wide ones that repeat as a dictionary; an answer may hold both."""
    trait = Trait(name="shelf", type=TraitType.CATEGORICAL, number=FIRST_NUMBER)
    rng = np.random.default_rng(3)
    hashes = rng.integers(-(1 << 62), 1 << 62, 40)
    kinds = {
        "small": rng.integers(-100, 100, 1000),
        "wide, repeating": rng.choice(hashes, 1000),
        "wide, all different": rng.integers(-(1 << 62), 1 << 62, 1000),
        "one": np.full(1000, hashes[0]),
        "small again": rng.integers(0, 60_000, 1000),
    }
    words = np.concatenate(list(kinds.values()))
    counts = np.full(len(kinds), 1000)
    encoded = encode_stripes([TraitValues(trait, words.view(np.uint64))], counts)
    head = HEADER.itemsize + COLUMN.itemsize
    assert [len(stripe) - head for stripe in encoded] == [1000, 8 * 40 + 1000, 8000, 0, 2000]
    stripes = StripeSet(encoded)
    which, first = np.array([1, 0, 4, 2, 1, 3]), np.array([7, 0, 990, 5, 500, 1])
    count = np.array([100, 1000, 10, 0, 300, 2])
    read = stripes.words(trait, which, first, count).words.view(np.int64)
    wanted = [words[1000 * w + f :][:c] for w, f, c in zip(which, first, count, strict=True)]
    np.testing.assert_array_equal(read, np.concatenate(wanted))
    native = parse_schema('[a]\nshelf = "categorical"\n').native_traits["shelf"]
    whole = decode_stripes(encoded, counts, trait, native)
    np.testing.assert_array_equal(whole.words.view(np.int64), words)


KINDS = {
    "number": 'number = "int16"',
    "shelf": 'shelf = "categorical"',
    "text": 'text = { type = "string", sparse = true }',
    "rating": 'rating = { type = "float32", sparse = true }',
    "vector": 'vector = { type = "float16", size = 3, sparse = true }',
    "kind": 'kind = { type = "string", sparse = true, default = "a" }',
    "liked": 'liked = { type = "bool", sparse = true, default = true }',
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_stripes_are_decoded_natively_as_with_numpy(name: str, seed: int) -> None:
    """Among them stripes from before the trait was added."""
    schema = parse_schema(f"[a]\n{KINDS[name]}\n")
    trait, rng = schema.by_name[name], np.random.default_rng(seed)
    counts = rng.integers(1, 300, 9)
    events = int(counts.sum())
    texts = None
    if trait.type is TraitType.STRING:
        texts = pa.array([f"é{n}" for n in range(20)], pa.large_string())
    present = rng.random(events) < 0.7 if trait.nullable else None
    there = events if present is None else int(present.sum())
    most = 20 if texts is not None else int(rng.choice([1, 2, 200, 1 << 40]))
    words = rng.integers(0, most, there * trait.size).astype(np.uint64)
    stripes = encode_stripes([TraitValues(trait, words, present, texts)], counts)
    stripes += encode_stripes([], counts)
    counts = np.concatenate([counts, counts])
    every = np.arange(len(counts))
    wanted = StripeSet(stripes).words(trait, every, np.zeros_like(every), counts)
    decoded = decode_stripes(stripes, counts, trait, schema.native_traits[name])
    events = int(counts.sum())
    assert to_series(decoded, events).to_list() == to_series(wanted, events).to_list()
    with pytest.raises(StoreCorruptError, match="another number of events"):
        decode_stripes(stripes, counts + 1, trait, schema.native_traits[name])


def test_an_answer_may_hold_categories_as_they_are_and_by_dictionary(tmp_path: Path) -> None:
    schema = '[item]\nshelf = "categorical"\nkey = { type = "int64", key = true }\n'
    world = new_world(tmp_path, schema)
    hashes = np.random.default_rng(3).integers(-(1 << 62), 1 << 62, 40)
    shelves = [*hashes[np.arange(300) % 40].tolist(), *range(300)]
    world.compact(
        pa.table(
            {
                "user_id": [1] * 600,
                "event_ts": range(600),
                "shelf": shelves,
                "key": range(600),
            }
        ),
        1,
        shards=1,
        time_unit="ms",
    )
    with running_server(world.store) as server, connect(server.address) as client:
        for length in (0, 100, 450):
            batch = client.materialize(
                Pointers(user_ids=[1], end_ts=[as_of(1)]),
                Projection(sequence_length=length, traits=("shelf",)),
            )
            assert batch.values["shelf"].tolist() == shelves[-length:]
