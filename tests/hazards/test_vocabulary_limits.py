"""Vocabularies: large, at their limit, damaged, and built while something else goes wrong."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tried import FULL
from support.worlds import (
    DAY_MS,
    START_TS,
    World,
    days,
    flipped,
    leftovers,
    new_world,
    pointers_to,
    read_store,
)
from thinrow.client import connect
from thinrow.compaction import compact as compaction
from thinrow.compaction import vocabularies
from thinrow.errors import StoreCorruptError, StoreLockedError, ThinRowError
from thinrow.schema import TraitType
from thinrow.store.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

MANY = 1_000_000 if FULL else 100_000
SCHEMA = f'[item]\nbrand = {{ type = "string", codes = "vocabulary", values_max = {MANY} }}\n'


def events(brands: list[str] | pa.Array, day: int) -> pa.Table:
    times = START_TS + day * DAY_MS + np.arange(len(brands)) % DAY_MS
    return pa.table(
        {
            "user_id": np.arange(len(brands)) % 1000,
            "event_ts": times,
            "brand": pa.array(brands, pa.string()),
        }
    )


def files(world: World, number: int) -> dict[str, bytes]:
    folder = world.store / f"generation-{number:06d}" / "vocabularies"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_large_vocabulary(tmp_path: Path) -> None:
    """Each has a code of its own, and one more is refused by name."""
    world = new_world(tmp_path, SCHEMA)
    numbers = np.random.default_rng(0).permutation(MANY)
    texts = pa.array(np.char.mod("item-%07d", numbers).astype(object), pa.string())
    world.compact(events(texts, 0), 1)
    answers = read_store(world.store, pointers_to(days(1), users=range(0, 1000, 50)))
    for user, (_, columns) in zip(range(0, 1000, 50), answers, strict=True):
        assert columns is not None
        # Codes are in the order of texts.
        assert columns["brand"] == (numbers[user::1000] + 2).tolist()
    with connect(world.store) as client:
        assert client.codes("brand", ["item-0000007", f"item-{MANY:07d}"]) == [9, 1]
    with pytest.raises(
        ThinRowError, match=rf"brand would have {MANY + 1:,} .* values_max = {MANY}"
    ):
        world.compact(events(["item-0000000", "one more"], 1), 2)
    world.compact(events(["item-0000000"], 1), 2)
    assert files(world, 1) == files(world, 2)
    paths = [*world.store.rglob("*.parquet")]
    assert len({path.stat().st_ino for path in paths}) == 1 and len(paths) == 2


def test_values_of_many_batches_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that wait for their duplicates to be dropped are bounded."""
    monkeypatch.setattr(vocabularies, "PENDING_MAX", 3)
    monkeypatch.setattr("thinrow.events.canonical.BATCH_ROWS", 2)
    world = new_world(tmp_path, SCHEMA)
    report = world.compact(events(list("abcdefgabcxyz"), 0), 1)
    assert report.vocabularies[0].values == 10


def test_values_that_share_a_hash_have_their_own_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "thinrow.store.vocabulary._hashes",
        lambda values, _: np.array([len(text) for text in values.to_pylist()], np.uint64),
    )
    vocabulary = Vocabulary(pa.array(["a", "b", "cc", "d", "ee"], pa.large_string()))
    wanted = pa.array(["ee", "x", "d", None, "", "cc", "a", "ff"], pa.large_string())
    assert vocabulary.codes(wanted).tolist() == [6, 1, 5, 0, 1, 4, 2, 1]


def test_what_is_not_published_gives_no_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails just before it is published leaves nothing; its retry has the same codes."""
    world, other = (new_world(tmp_path / name, SCHEMA) for name in "ab")
    for each in (world, other):
        each.compact(events(["b", "d"], 0), 1)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(compaction, "publish_built", fail)
        world.compact(events(["z", "a"], 1), 2)
    assert leftovers(world.store) == []
    for each in (world, other):
        each.compact(events(["c", "a"], 1), 2)
    assert files(world, 2) == files(other, 2)
    [table] = map(pq.read_table, (world.store / "generation-000002").rglob("*.parquet"))
    assert table.column("value").to_pylist() == ["b", "d", "a", "c"]


def test_a_second_compaction_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    world.compact(events(["b"], 0), 1)
    with (world.store / "LOCK").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError):
            world.compact(events(["a"], 1), 2)
    world.compact(events(["c"], 1), 2)
    assert read_store(world.store, pointers_to(days(2), users=[0]))[0][1]["brand"] == [2, 3]


def test_a_damaged_vocabulary_is_named(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    world.compact(events(["b", "c"], 0), 1)
    [path] = world.store.rglob("*.parquet")
    flipped(path, 8 * 20)
    with connect(world.store) as client, pytest.raises(StoreCorruptError, match=path.name):
        client.codes("brand", ["b"])
    with pytest.raises(StoreCorruptError, match=path.name):
        world.compact(events(["d"], 1), 2)
    path.unlink()
    with pytest.raises(StoreCorruptError, match=path.name):
        connect(world.store)


@pytest.mark.parametrize("kind", [TraitType.STRING, TraitType.INT64])
def test_an_empty_vocabulary_knows_nothing(tmp_path: Path, kind: TraitType) -> None:
    line = f'brand = {{ type = "{kind.label}", sparse = true, codes = "vocabulary" }}'
    world = new_world(tmp_path, f"[item]\n{line}\n")
    world.compact(events(["x"], 0).drop_columns(["brand"]), 1)
    with connect(world.store) as client:
        assert client.codes("brand", ["b" if kind is TraitType.STRING else 5]) == [1]
        assert client.describe_store().feature_groups[0].traits[0].vocabulary.codes_end == 2
