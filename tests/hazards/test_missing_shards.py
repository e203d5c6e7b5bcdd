"""A reader that lacks a shard says so: its users never look unknown."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.worlds import (
    World,
    days,
    new_world,
    pointers_to,
    read_store,
    some_events,
    thinrow,
)
from thinrow.client import ClientConfig, Projection, connect
from thinrow.core.shards import shard_of
from thinrow.errors import (
    ShardMissingError,
    StoreCorruptError,
    StoreMissingError,
    UnavailableError,
    UsageError,
)
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.store.generation import Generation
from thinrow.store.generations import problem_of
from thinrow.store.history import digests_at
from thinrow.store.manifest import (
    Manifest,
    ShardSummary,
    read_manifest,
    shard_manifest,
    write_manifest,
)
from thinrow.store.shard_manifest import ShardManifest, write_shard_manifest
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

USERS = range(1, 41)
SHARDS = 4


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two generations of four shards."""
    world = new_world(tmp_path_factory.mktemp("built"))
    world.compact(some_events(600, users=40), 3, shards=SHARDS)
    world.compact(some_events(100, users=40, days=1, first_day=3, seed=1), 4, shards=None)
    return world


@pytest.fixture
def world(built: World, tmp_path: Path) -> World:
    shutil.copytree(built.folder, tmp_path / "world")
    return World(tmp_path / "world")


def serving(world: World) -> Path:
    return world.store / "generation-000002"


def edit(world: World, shards: list[ShardSummary]) -> None:
    """Writes another manifest, with a right checksum, as a faulty tool would."""
    after = read_manifest_of_first(world).model_copy(update={"number": 2, "shards": shards})
    write_manifest(serving(world), after)


def read_manifest_of_first(world: World) -> Manifest:
    return read_manifest(world.store / "generation-000001")


def online_config(world: World) -> OnlineConfig:
    return OnlineConfig(store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None)


def check_refused(world: World, match: str, *, is_listed: bool = True) -> None:
    """Every way to open the store names the fault, and none answers."""
    pointers = pointers_to(days(4), USERS)
    with pytest.raises(StoreCorruptError, match=match):
        read_store(world.store, pointers)
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    for opens in (lambda: Server(config), lambda: OnlineServer(online_config(world))):
        with pytest.raises(StoreCorruptError, match=match), opens():
            pass
    with pytest.raises(StoreCorruptError, match=match), connect(world.store) as client:
        client.describe_store()
    with pytest.raises(StoreCorruptError, match=match):
        world.compact(some_events(9, users=40, days=1, first_day=4), 5, shards=None)
    if not is_listed:  # only opening a shard shows it
        return
    problem = problem_of(serving(world))
    assert problem is not None
    assert re.search(match, problem)


# Manifests


@pytest.mark.parametrize("kept", [[0, 1], [1], []])
def test_a_manifest_that_lists_some_of_the_shards(world: World, kept: list[int]) -> None:
    shards = read_manifest(serving(world)).shards
    edit(world, [shards[number] for number in kept])
    check_refused(world, f"it lists {len(kept)} of 4 shards")
    lacking = {"shards": [shards[number] for number in kept], "shard_count": max(len(kept), 1)}
    second = read_manifest_of_first(world).model_copy(update={"number": 2, **lacking})
    write_manifest(serving(world), second)
    check_refused(world, "shard-000. is no shard of|where shard-000. belongs|lists 0 of 1")


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 1, 2, 2]])
def test_a_manifest_that_lists_shards_in_another_order(world: World, order: list[int]) -> None:
    shards = read_manifest(serving(world)).shards
    edit(world, [shards[number] for number in order])
    check_refused(world, "where shard-000. belongs")


def test_a_manifest_whose_shard_lost_its_tables(world: World) -> None:
    """An empty shard has neither keys nor tables; one that was lost has keys."""
    manifest = read_manifest(serving(world))
    shards = manifest.shards
    files = shard_manifest(serving(world), manifest, 2).files
    lost = ShardManifest(
        name="shard-0002", files=[file for file in files if not file.name.endswith(".sst")]
    )
    xxh3 = write_shard_manifest(serving(world), 2, lost)
    check_refused(world, "shard-0002.json is damaged .its checksum does not fit")
    without = shards[2].model_copy(update={"manifest_xxh3": xxh3})
    edit(world, [*shards[:2], without, shards[3]])
    check_refused(world, "shard-0002.*no tables")
    emptied = without.model_copy(update={"keys": 0})
    edit(world, [*shards[:2], emptied, shards[3]])
    check_refused(world, "shard-0002.*no keys")
    emptied = emptied.model_copy(update={"users": 0, "events": 0})
    edit(world, [*shards[:2], emptied, shards[3]])
    check_refused(world, "shard-0002 has other tables", is_listed=False)


# Folders


def test_a_shard_that_is_gone(world: World) -> None:
    users = read_manifest(serving(world)).shards[1].users
    (serving(world) / "shard-0001").rename(world.folder / "away")
    check_refused(world, f"shard-0001 is missing, with the histories of {users} users")
    shown = thinrow("store", "list", "--store", world.store)
    assert "shard-0001 is missing" in " ".join(shown.stdout.split())
    inspected = thinrow("inspect", "--server", world.store, "--user", 1)
    assert inspected.returncode != 0
    assert "shard-0001 is missing" in " ".join(inspected.stderr.split())


def test_a_shard_that_was_emptied(world: World) -> None:
    """An empty shard put in the place of a lost one, with its tables or without."""
    empty = new_world(world.folder / "empty")
    empty.compact(some_events(1, users=1), 4, shards=SHARDS)
    manifest = read_manifest(empty.store / "generation-000001")
    number = next(n for n, shard in enumerate(manifest.shards) if not shard.keys)
    folder = serving(world) / f"shard-{number:04d}"
    shutil.rmtree(folder)
    folder.mkdir()
    check_refused(world, folder.name)
    shutil.rmtree(folder)
    shutil.copytree(empty.store / "generation-000001" / folder.name, folder)
    check_refused(world, folder.name)


def test_a_shard_more_than_the_manifest_lists(world: World) -> None:
    shutil.copytree(serving(world) / "shard-0000", serving(world) / "shard-0004")
    check_refused(world, "shard-0004 is no shard of this generation")


def test_a_shard_of_another_number_of_shards(world: World) -> None:
    """A shard whose files and counts are right, but to which other users belong."""
    other = new_world(world.folder / "other")
    other.compact(some_events(600, users=40), 4, shards=2)
    shutil.rmtree(serving(world) / "shard-0001")
    shutil.copytree(other.store / "generation-000001" / "shard-0001", serving(world) / "shard-0001")
    shutil.copyfile(
        other.store / "generation-000001" / "shard-0001.json", serving(world) / "shard-0001.json"
    )
    shards = list(read_manifest(serving(world)).shards)
    shards[1] = read_manifest(other.store / "generation-000001").shards[1]
    edit(world, shards)
    match = "shard-0001 holds users of another shard than 1 of 4"
    check_refused(world, match, is_listed=False)


# Some of the shards


def held(numbers: set[int]) -> tuple[list[int], list[int]]:
    """Users whose shards are among these, and the others."""
    users = np.array(USERS)
    mine = np.isin(shard_of(users, SHARDS), sorted(numbers))
    return users[mine].tolist(), users[~mine].tolist()


@pytest.mark.parametrize("numbers", [{0}, {1, 3}, set()])
def test_some_of_the_shards_opened(world: World, numbers: set[int]) -> None:
    here, elsewhere = held(numbers)
    folder = serving(world)
    with Generation(folder) as whole, Generation(folder, numbers=numbers) as part:
        end_ts = np.full(len(USERS), whole.watermark_ts)
        expected = digests_at(whole, np.array(here, np.int64), end_ts[: len(here)])
        found = digests_at(part, np.array(here, np.int64), end_ts[: len(here)])
        assert found.tolist() == expected.tolist()
        assert expected.all()
        for user in elsewhere:
            with pytest.raises(ShardMissingError, match=r"without shard . of 4"):
                part.directories(np.array([user]))
        if elsewhere:
            with pytest.raises(ShardMissingError):
                part.directories(np.array(USERS))
    with pytest.raises(UsageError, match="shards 0 to 3"):
        Generation(folder, numbers={4})


def test_some_of_the_shards_copied(world: World) -> None:
    """A copy of two shards opens as those, and as nothing else."""
    shutil.rmtree(serving(world) / "shard-0000")
    shutil.rmtree(serving(world) / "shard-0002")
    check_refused(world, "shard-0000 is missing")
    with Generation(serving(world), numbers={1, 3}) as part:
        assert part.shard_count == SHARDS
        assert sorted(part.shards) == [1, 3]


def test_a_server_of_some_of_the_shards(world: World) -> None:
    """A request for one user that it lacks fails whole: another replica may answer it."""
    here, elsewhere = held({1, 3})
    opened_whole = Generation.__init__

    def opened_part(
        self: Generation, folder: Path, cache_bytes_max: int = 1 << 20, *_: object
    ) -> None:
        opened_whole(self, folder, cache_bytes_max, {1, 3})

    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "__init__", opened_part)
        once = ClientConfig(retry_deadline_s=0.01)
        with Server(config) as server, connect(server.address, once) as client:
            known = client.materialize(pointers_to(days(4), here), Projection())
            assert known.statuses.tolist() == [wire.STATUS_OK] * len(here)
            assert (np.diff(known.offsets) > 0).all()
            for users in (elsewhere[:1], [*here, elsewhere[0]]):
                with pytest.raises(UnavailableError, match="without shard"):
                    client.materialize(pointers_to(days(4), users), Projection())
            with pytest.raises(UnavailableError, match="without shard"):
                client.inspect(elsewhere[0], days(4)[0])
            assert client.describe_store().shards == SHARDS
        requests = world.write(
            "requests.parquet",
            some_events(9, users=40)
            .select(["user_id", "event_ts"])
            .rename_columns(["user_id", "request_ts"]),
        )
        events = world.write("all.parquet", some_events(600, users=40))
        with pytest.raises(ShardMissingError):
            backfill(
                BackfillConfig(
                    requests=requests,
                    store=world.store,
                    events=[events],
                    rows=world.folder / "rows",
                )
            )
        with pytest.raises(ShardMissingError):
            world.compact(some_events(9, users=40, days=1, first_day=4), 5, shards=None)


# Stores that are gone


@pytest.mark.parametrize("has_highest", [True, False])
def test_a_copy_without_current_is_no_empty_store(world: World, has_highest: bool) -> None:
    """Before the first generation there is no history; a lost CURRENT is not that."""
    (world.store / "CURRENT").unlink()
    if not has_highest:
        (world.store / "HIGHEST").unlink()
    for opens in (
        lambda: OnlineServer(online_config(world)),
        lambda: Generation.open_current(world.store),
    ):
        with pytest.raises(StoreCorruptError, match=r"CURRENT is damaged .*rollback"), opens():
            pass


def test_a_store_that_is_not_mounted_is_no_empty_store(world: World) -> None:
    """The tier knows that it served from a generation, also one of events that it never had."""
    config = online_config(world)
    with OnlineServer(config):
        pass
    world.store.rename(world.folder / "away")
    for _ in range(2):
        with (
            pytest.raises(StoreMissingError, match=r"served from one of watermark .*mount"),
            OnlineServer(config),
        ):
            pass
        world.store.mkdir(exist_ok=True)
    world.store.rmdir()
    (world.folder / "away").rename(world.store)
    with OnlineServer(config) as server:
        assert server.published.number == 2
