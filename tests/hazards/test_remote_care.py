"""Care of stores in object stores: gc, verify, rollback and list, beside runs and readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.remote_stores import RemoteWorld, remote_world
from support.worlds import thinrow
from thinrow.errors import (
    StoreCorruptError,
    StoreLockedError,
    StoreMissingError,
    StoreUnavailableError,
)
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill
from thinrow.remote import gc, publication
from thinrow.remote.current import require_current, swap_current
from thinrow.remote.gc import GcReport, collect_garbage
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.rollback import roll_back
from thinrow.remote.verification import verify_remote

if TYPE_CHECKING:
    from pathlib import Path

    from support.object_storage import ObjectStorage

HOUR_MS = 3_600_000


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    (tmp_path / "bucket").mkdir()
    return remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")


def collected(world: RemoteWorld, hours: int = 0, **options: Any) -> GcReport:  # noqa: ANN401
    """Runs gc with an hour of grace, as if some hours later."""
    real = gc._time_ts

    def later(store: ObjectStore, **rest: bool) -> int:
        return real(store, **rest) + hours * HOUR_MS

    given: dict[str, Any] = {"keep": None, "withdrawn": False, "grace_ms": HOUR_MS}
    with mock.patch.object(gc, "_time_ts", later):
        return collect_garbage(world.objects, **{**given, **options})


def abandon(world: RemoteWorld, day: int) -> set[str]:
    """Leaves what a run leaves that is killed before CURRENT; returns its keys."""
    before = world.keys()
    with (
        mock.patch.object(publication, "_swap", side_effect=StoreUnavailableError("killed")),
        pytest.raises(StoreUnavailableError),
    ):
        world.compact(day)
    return world.keys() - before


def test_gc_removes_what_nothing_needs_after_its_grace_period(world: RemoteWorld) -> None:
    world.compact_both(3)
    left = abandon(world, 4)
    world.compact_both(5)
    kept = world.current().keys
    early = collected(world, keep=1)
    assert early.object_count == 0 and early.generations_kept_by_grace == [1]
    assert world.keys() >= left
    trial = collected(world, 2, is_trial=True)
    assert world.keys() >= left
    report = collected(world, 2)
    assert report.generations == trial.generations == [2]
    assert report.object_count == trial.object_count == len(left)
    assert not world.keys() & left
    assert kept <= world.keys()
    assert world.answers(3, 5) == world.local_answers(3, 5)
    # The number of a removed generation is not given out again.
    assert world.compact(6).generation == 4


def test_gc_keeps_what_newer_generations_share(world: RemoteWorld) -> None:
    world.compact_both(3, 4, 5)
    shared = set(world.tables())
    report = collected(world, 2, keep=1)
    assert report.generations == [1, 2]
    assert require_current(world.objects).record.history == [3]
    assert {one.key for one in world.objects.listed("runs")} == world.current().keys >= shared
    assert world.answers(3, 4, 5) == world.local_answers(3, 4, 5)
    assert not verify_remote(world.objects).problems
    with pytest.raises(StoreMissingError, match=r"no generation 2 .* those it has: 3"):
        roll_back(world.objects, 2)


def test_gc_does_not_touch_a_run_that_uploads(world: RemoteWorld) -> None:
    """The run's first objects are older than the grace period, its last one is not."""
    world.compact_both(3)
    real = publication._create_root

    def collect(*arguments: Any) -> None:  # noqa: ANN401
        store: ObjectStore = arguments[0]
        old = {one.key: one for one in store.listed("runs")}
        assert collected(world).object_count == 0
        assert old == {one.key: one for one in store.listed("runs")}
        real(*arguments)

    with mock.patch.object(publication, "_create_root", collect):
        world.compact(4)
    world.compact_locally(4)
    assert world.answers(3, 4) == world.local_answers(3, 4)


def test_a_run_publishes_though_gc_ran_beside_it(world: RemoteWorld) -> None:
    """gc replaces CURRENT too, which is no reason to build again."""
    world.compact_both(3, 4)
    real = publication._swap

    def collect(*arguments: Any) -> None:  # noqa: ANN401
        doomed = mock.patch.object(gc, "_doomed", lambda *_, **__: {1})
        with doomed:
            collected(world)
        real(*arguments)

    with mock.patch.object(publication, "_swap", collect):
        world.compact(5)
    world.compact_locally(5)
    assert require_current(world.objects).record.history == [2, 3]
    assert world.answers(4, 5) == world.local_answers(4, 5)


def test_a_run_whose_manifest_gc_removed_does_not_publish(world: RemoteWorld) -> None:
    """It was paused for longer than the grace period."""
    world.compact_both(3)
    real = publication._swap

    def collect(*arguments: Any) -> None:  # noqa: ANN401
        assert collected(world, 2).generations == [2]
        real(*arguments)

    with mock.patch.object(publication, "_swap", collect), pytest.raises(StoreLockedError):
        world.compact(4)
    assert world.answers(3) == world.local_answers(3)


def test_gc_and_rollback_do_not_cross(world: RemoteWorld) -> None:
    world.compact_both(3, 4)
    real = swap_current

    def roll(*arguments: Any) -> None:  # noqa: ANN401
        roll_back(world.objects, 1)
        real(*arguments)

    before = world.keys()
    with mock.patch("thinrow.remote.gc.swap_current", roll), pytest.raises(StoreLockedError):
        collected(world, 2, keep=1)
    assert world.keys() == before | {"GC"}
    assert world.answers(3) == world.local_answers(3)


def test_a_pull_starts_again_where_gc_removed_its_generation(
    world: RemoteWorld, tmp_path: Path
) -> None:
    world.compact_both(3)
    real = ObjectStore.download
    removed: list[str] = []

    def cross(store: ObjectStore, key: str, *rest: Any) -> None:  # noqa: ANN401
        if not removed and key.endswith("-CURRENT"):
            removed.append(key)
            world.compact_both(4)
            assert collected(world, 2, keep=1).generations == [1]
            assert store.find(key) is None
        real(store, key, *rest)

    with Mirror(world.objects, tmp_path / "mirror") as mirror:
        with mock.patch.object(ObjectStore, "download", cross):
            assert mirror.pull()
        assert removed and mirror.current is not None
        assert mirror.current.record.number == 2
    assert world.answers(3, 4) == world.local_answers(3, 4)


def test_a_rollback_serves_the_past_and_comes_back(world: RemoteWorld, tmp_path: Path) -> None:
    world.compact_both(3, 4)
    with Mirror(world.objects, tmp_path / "mirror") as mirror:
        mirror.pull()
        report = roll_back(world.objects, 1)
        assert report.withdrawn == [2]
        assert mirror.pull() and (mirror.folder / "CURRENT").read_text() == "generation-000001\n"
        statuses = {status for status, _ in world.answers(4)}
        assert statuses == {2}, "the past does not know the present"
        assert roll_back(world.objects, 2).withdrawn == []
        assert mirror.pull()
    assert world.answers(3, 4) == world.local_answers(3, 4)
    roll_back(world.objects, 1)
    assert world.compact(5).generation == 3
    record = require_current(world.objects).record
    assert (record.history, record.withdrawn) == ([1, 3], [2])
    assert collected(world, 2, keep=2).generations == []
    assert collected(world, 2, keep=2, withdrawn=True).generations == [2]


def world_of_codes(folder: Path) -> RemoteWorld:
    """A store in a folder, whose brands have codes of a vocabulary."""
    (folder / "bucket").mkdir()
    world = remote_world(folder / "world", f"file://{folder}/bucket/store")
    text = world.local.schema.read_text(encoding="utf-8")
    world.local.schema.write_text(
        text.replace('brand = "string"', 'brand = { type = "string", codes = "vocabulary" }'),
        encoding="utf-8",
    )
    return world


def test_codes_of_withdrawn_generations_are_never_given_out_again(tmp_path: Path) -> None:
    world = world_of_codes(tmp_path)
    world.compact(3)
    second = world.compact(4)
    roll_back(world.objects, 1)
    assert collected(world, 2, withdrawn=True).generations == [2]
    third = world.compact(4)
    (before,), (after,) = second.vocabularies, third.vocabularies
    assert after.values >= before.values
    assert not verify_remote(world.objects).problems


@pytest.mark.parametrize("kind", ["truncated", "flipped", "lost"])
def test_verify_names_a_vocabulary_that_only_current_keeps(tmp_path: Path, kind: str) -> None:
    """The next run counts codes on from it, though its generation is gone."""
    world = world_of_codes(tmp_path)
    world.compact(3)
    later = pq.read_table(world.events(4))
    brand = later.column_names.index("brand")
    world.local.write("events-4.parquet", later.set_column(brand, "brand", pa.array(["new"] * 20)))
    world.compact(4)
    roll_back(world.objects, 1)
    assert collected(world, 2, withdrawn=True).generations == [2]
    (kept,) = require_current(world.objects).record.vocabularies
    key = kept.file.object
    assert key is not None and key not in world.current().keys
    world.damage(key, kind)
    (problem,) = verify_remote(world.objects).problems
    assert f"{world.url}/{key} is damaged" in problem
    found = verify_remote(world.objects, sizes_only=True).problems
    assert found == ([] if kind == "flipped" else [problem])


def test_a_lost_manifest_of_a_newer_generation_stops_a_rollback(world: RemoteWorld) -> None:
    world.compact_both(3, 4)
    key = "generations/generation-000002.json"
    world.damage(key, "lost")
    with pytest.raises(StoreCorruptError, match=rf"{world.url}/{key} is damaged \(it is gone\)"):
        roll_back(world.objects, 1)


def test_a_fill_is_published_as_a_compaction_is(world: RemoteWorld) -> None:
    world.compact_both(3)
    events = pq.read_table(world.events(3))
    table = events.select(["user_id", "event_id"]).append_column("price", pa.array([2.5] * 300))
    values = world.local.write("prices.parquet", table)
    for store in (world.url, world.local.store):
        report = fill(FillConfig(group="feedback", values=values, store=store))
        assert report.record.generation == 2 and report.record.events == 300
    assert world.answers(3) == world.local_answers(3)
    assert {2.5} == {price for _, traits in world.answers(3) for price in traits["price"] or ()}
    again = fill(FillConfig(group="feedback", values=values, store=world.url))
    assert again.already_published


@pytest.mark.parametrize("kind", ["truncated", "flipped", "lost", "swapped"])
def test_verify_names_every_damaged_object(world: RemoteWorld, kind: str) -> None:
    world.compact(3)
    assert not verify_remote(world.objects).problems
    (key,) = {key for key in world.tables() if "shard-0000" in key}
    world.damage(key, kind)
    (problem,) = verify_remote(world.objects).problems
    assert f"{world.url}/{key} is damaged" in problem
    found = verify_remote(world.objects, sizes_only=True).problems
    assert found == ([problem] if kind in ("lost", "truncated") else found)
    if kind in ("lost", "truncated"):
        world.compact_locally(3)
        with pytest.raises(StoreCorruptError):
            roll_back(world.objects, 1)


def test_a_damaged_manifest_stops_gc(world: RemoteWorld) -> None:
    world.compact_both(3, 4)
    abandon(world, 5)
    before = world.keys()
    world.damage("generations/generation-000001.json", "flipped")
    with pytest.raises(StoreCorruptError, match=r"generation-000001.json is damaged"):
        collected(world, 2)
    assert world.keys() == before | {"GC"}


def test_commands_of_care(object_storage: ObjectStorage, tmp_path: Path) -> None:
    world = remote_world(tmp_path / "world", object_storage.new_url())
    world.compact(3)
    world.compact(4)
    listed = thinrow("store", "list", "--store", world.url)
    assert listed.returncode == 0, listed.stderr
    assert "complete, current" in listed.stdout
    rolled = thinrow("store", "rollback", "--store", world.url, "--to", 1, "--newer", "keep")
    assert rolled.returncode == 0 and "Kept aside: 2" in rolled.stdout
    verified = thinrow("store", "verify", "--store", world.url)
    assert verified.returncode == 0 and "0 problems" in verified.stdout
    kept = thinrow("store", "gc", "--store", world.url, "--withdrawn", "--dry-run")
    assert "Kept generation 2 until the grace period" in kept.stdout
    arguments = ("store", "gc", "--store", world.url, "--withdrawn", "--grace", "0s")
    assert "Removed generation 2 and" in thinrow(*arguments).stdout
    world.damage(world.tables()[0], "flipped")
    verified = thinrow("store", "verify", "--store", world.url)
    assert verified.returncode == 1 and "checksum differs" in verified.stdout
    secret = object_storage.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in listed.stdout + verified.stdout + verified.stderr


def test_commands_of_care_in_a_folder(tmp_path: Path) -> None:
    world = remote_world(tmp_path / "world", "").local
    for day in (3, 4):
        RemoteWorld(world, "").compact_locally(day)
    verified = thinrow("store", "verify", "--store", world.store)
    assert verified.returncode == 0 and "0 problems" in verified.stdout
    removed = thinrow("store", "gc", "--store", world.store, "--keep", 1)
    assert removed.stdout == "Removed generation 1.\n"
    (table, *_) = (world.store / "generation-000002" / "shard-0000").glob("*.sst")
    content = bytearray(table.read_bytes())
    content[100] ^= 1
    table.write_bytes(content)
    verified = thinrow("store", "verify", "--store", world.store)
    assert verified.returncode == 1 and f"{table.name} is damaged" in verified.stdout
    refused = thinrow("store", "gc", "--store", world.store, "--dry-run")
    assert refused.returncode == 2 and "are for stores at a URL" in refused.stderr
