"""A store whose files are lost, cut short or altered says so, and never answers wrongly."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import grpc
import pytest
import xxhash
from support.worlds import (
    ALL,
    DAY_MS,
    REPEATS,
    Answers,
    World,
    as_of,
    built_world,
    days,
    flipped,
    pointers_to,
    random_bits,
    read_store,
    running_server,
    shown,
    some_events,
    store_files,
    thinrow,
)
from thinrow.client import Pointers, connect
from thinrow.compaction import shards
from thinrow.compaction.compact import compact
from thinrow.compaction.shards import WHOLE_EVERY, previous_shard
from thinrow.errors import StoreCorruptError, StoreError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.store.shard import block_cache
from thinrow.store.stored_files import StoredFile, file_summary
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from thinrow.compaction.pair_writer import PreviousShard
    from thinrow.store.generation import Generation

USERS = range(1, 41)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A generation built on another, in several blocks of several shards."""
    world = built_world(tmp_path_factory.mktemp("world"), count=6000, users=40)
    world.compact(some_events(4000, users=40, days=1, first_day=3, seed=1), 4, keep=1)
    return world


@pytest.fixture(scope="module")
def requested(world: World) -> Pointers:
    """Everything, with digests, so that every check that there is takes part."""
    pointers = pointers_to(days(2, 3, 4), USERS)
    with served(world) as address, connect(address) as client:
        found = [
            client.inspect(user, end_ts).digest
            for user, end_ts in zip(
                pointers.user_ids.tolist(), pointers.end_ts.tolist(), strict=True
            )
        ]
    pointers = pointers_to(days(3, 4), USERS, found[len(USERS) :])
    assert all(found[len(USERS) :])
    return pointers


@pytest.fixture(scope="module")
def right(world: World, requested: Pointers) -> Answers:
    answers = read_store(world.store, requested)
    assert {status for status, _ in answers} == {wire.STATUS_OK}
    return answers


@contextmanager
def served(world: World) -> Iterator[str]:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, poll_s=0.01)
    with Server(config) as server:
        yield server.address


@contextmanager
def altered(path: Path, content: bytes | None) -> Iterator[None]:
    """Another content, or none, for a while. A new file: nothing still open sees it change."""
    saved = path.with_name(path.name + ".saved")
    path.rename(saved)
    block_cache.cache_clear()  # what was read before would hide it
    try:
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        saved.replace(path)


def outcome(world: World, requested: Pointers, right: Answers) -> StoreError | None:
    """Error of reading everything; None for the right answer."""
    try:
        answers = read_store(world.store, requested)
    except StoreError as error:
        return error
    assert answers == right
    return None


def check_named(error: StoreError | None, path: Path, world: World) -> None:
    assert error is not None
    result = str(error)
    # The file, or where RocksDB does not say which, its shard's or generation's folder.
    assert any(str(place) in result for place in (path, path.parent, *world.store.glob("gen*")))
    assert result.endswith(".")
    assert "\n" not in result


def test_every_file_missing_in_turn(world: World, requested: Pointers, right: Answers) -> None:
    for path in store_files(world):
        with altered(path, None):
            error = outcome(world, requested, right)
        assert isinstance(error, StoreCorruptError), path
        assert str(path) in str(error)
    assert outcome(world, requested, right) is None


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0])
def test_every_file_cut_short_in_turn(
    world: World, requested: Pointers, right: Answers, left: float
) -> None:
    for path in store_files(world):
        data = path.read_bytes()
        if not data:
            continue
        with altered(path, data[: min(int(left * len(data)), len(data) - 2)]):
            error = outcome(world, requested, right)
        assert isinstance(error, StoreCorruptError), path
        assert str(path) in str(error)


def test_every_file_longer_in_turn(world: World, requested: Pointers, right: Answers) -> None:
    for path in store_files(world):
        with altered(path, path.read_bytes() + b"\n"):
            error = outcome(world, requested, right)
        # White space at the end of JSON says nothing.
        if path.name != "manifest.json":
            check_named(error, path, world)


def test_single_bits_flipped(world: World, requested: Pointers, right: Answers) -> None:
    files = store_files(world)
    tables = [path for path in files if path.suffix == ".sst"]
    noticed = dict.fromkeys(files, 0)
    places = [*random_bits(files, 100 * REPEATS, 1), *random_bits(tables, 100 * REPEATS, 2)]
    for path, bit in places:
        data = path.read_bytes()
        with altered(path, data):
            flipped(path, bit)
            error = outcome(world, requested, right)
        if error is not None:
            check_named(error, path, world)
            noticed[path] += 1
        else:
            # Only where nothing is read: padding, statistics, a filter's bits.
            assert path.suffix == ".sst", (path, bit)
    assert all(noticed[path] for path in tables)
    assert outcome(world, requested, right) is None


def test_every_bit_of_a_footer(world: World, requested: Pointers, right: Answers) -> None:
    """The one part of a table that carries no checksum of its own."""
    path = next(path for path in store_files(world) if path.suffix == ".sst")
    data = path.read_bytes()
    for bit in range(8 * (len(data) - 53), 8 * len(data), max(1, 4 // REPEATS)):
        with altered(path, data):
            flipped(path, bit)
            error = outcome(world, requested, right)
        if error is not None:
            check_named(error, path, world)


@pytest.mark.parametrize(
    "content", [b"", b"generation-1\n", b"\xff\xfe\n", b"../generation-000002\n", b"\0" * 18]
)
def test_current_damaged(world: World, requested: Pointers, right: Answers, content: bytes) -> None:
    path = world.store / "CURRENT"
    with altered(path, content):
        error = outcome(world, requested, right)
        assert isinstance(error, StoreCorruptError)
        assert str(path) in str(error)


def test_current_names_another_generation(
    world: World, requested: Pointers, right: Answers
) -> None:
    with altered(world.store / "CURRENT", b"generation-000003\n"):
        error = outcome(world, requested, right)
    assert isinstance(error, StoreCorruptError)
    assert "generation-000003" in str(error)


def test_current_missing_or_unreadable(world: World, requested: Pointers, right: Answers) -> None:
    path = world.store / "CURRENT"
    with altered(path, None):
        assert isinstance(outcome(world, requested, right), StoreCorruptError)
        path.mkdir()
        try:
            error = outcome(world, requested, right)
        finally:
            path.rmdir()
    assert error is not None
    assert str(path) in str(error)


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        body = json.loads(data)
        change(body)
        return json.dumps(body).encode()

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda _: b"",
        lambda _: b"null",
        lambda _: b"[]",
        lambda _: b"7",
        lambda _: b'"text"',
        lambda _: b"{}",
        lambda _: b'{"xxh3": 7}',
        lambda _: b"[" * 100_000,
        lambda data: data[:-2],
        lambda data: b"\xff" + data,
        edited(lambda body: body.pop("xxh3")),
        edited(lambda body: body.update(number=7)),
        edited(lambda body: body.update(format=1)),
        edited(lambda body: body.update(watermarks=[1, as_of(4)])),
        edited(lambda body: body.update(shards=[])),
    ],
)
def test_manifest_altered(
    world: World, requested: Pointers, right: Answers, edit: Callable[[bytes], bytes]
) -> None:
    (path,) = (path for path in store_files(world) if path.name == "manifest.json")
    with altered(path, edit(path.read_bytes())):
        error = outcome(world, requested, right)
    assert isinstance(error, StoreCorruptError)
    assert str(path) in str(error)
    assert "\n" not in str(error)


def test_shards_swapped(world: World, requested: Pointers, right: Answers) -> None:
    one = next(path for path in store_files(world) if path.suffix == ".sst")
    (two,) = (path for path in store_files(world) if path.name == one.name and path != one)
    first, second = one.read_bytes(), two.read_bytes()
    with altered(one, second), altered(two, first):
        assert outcome(world, requested, right) is not None


# Through compaction.


def test_compaction_does_not_build_on_damage(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.folder, tmp_path / "world")
    hurt = World(tmp_path / "world")
    path = max(store_files(hurt), key=lambda path: path.stat().st_size)
    flipped(path, 8 * 5000)
    refuses_to_compact(hurt, 5, path)


def refuses_to_compact(world: World, day: int, path: Path) -> None:
    """Compacts a day of a few events, which ends with an error that names a damaged file."""
    serving = (world.store / "CURRENT").read_text(encoding="utf-8")
    block_cache.cache_clear()
    events = [world.write("next.parquet", some_events(3, users=1, days=1, first_day=day))]
    with pytest.raises(StoreCorruptError) as raised:
        compact(world.compaction(events, day + 1))
    assert str(path.parent) in str(raised.value)
    assert (world.store / "CURRENT").read_text(encoding="utf-8") == serving
    assert not (world.store / "building").exists()


@pytest.fixture
def layered(world: World, tmp_path: Path) -> tuple[World, Path]:
    """A world whose next days are layers over a whole writing, and its largest table."""
    shutil.copytree(world.folder, tmp_path / "world")
    made = World(tmp_path / "world")
    made.compact(some_events(3, users=1, days=1, first_day=4), 5, lookback_ms=100 * DAY_MS)
    return made, max(store_files(made), key=lambda path: path.stat().st_size)


def test_damage_that_generations_share_is_found_before_it_is_served(
    layered: tuple[World, Path], requested: Pointers
) -> None:
    """No run reads what it only shares, so the next one publishes it; no reader gets it."""
    world, path = layered
    fine = read_store(world.store, requested)
    flipped(path, 8 * 5000)
    block_cache.cache_clear()
    world.compact(some_events(3, users=1, days=1, first_day=5), 6)
    block_cache.cache_clear()
    (shared,) = (file for file in store_files(world) if file.samefile(path))
    assert shared != path
    check_named(outcome(world, requested, fine), shared, world)
    verified = thinrow("store", "verify", "--store", world.store)
    assert verified.returncode == 1
    assert str(shared) in verified.stdout
    # The run that would write it again finds it, too.
    for day in range(6, 6 + WHOLE_EVERY):
        events = [world.write("next.parquet", some_events(3, users=1, days=1, first_day=day))]
        block_cache.cache_clear()
        try:
            compact(world.compaction(events, day + 1))
        except StoreCorruptError as error:
            assert path.parent.name in str(error)
            return
    raise AssertionError("damage was written as if it were whole")


def test_a_shared_table_of_another_size_ends_compaction(layered: tuple[World, Path]) -> None:
    world, path = layered
    longer = path.with_name("longer")
    longer.write_bytes(path.read_bytes() + b"x")
    longer.replace(path)
    refuses_to_compact(world, 5, path)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_shared_table_that_is_not_in_the_manifest_ends_compaction(
    layered: tuple[World, Path], monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    """RocksDB refuses a table of a wrong size itself; here it has none to refuse."""
    world, path = layered

    def altered_manifest(previous: Generation | None, number: int) -> PreviousShard | None:
        shard = previous_shard(previous, number)
        assert shard is not None
        if shard.shard.path != path.parent:
            return shard
        files = [
            file.model_copy(update={"bytes": file.bytes - (file.name == path.name)})
            for file in shard.manifest.files
            if is_known or file.name != path.name
        ]
        return replace(shard, manifest=shard.manifest.model_copy(update={"files": files}))

    monkeypatch.setattr(shards, "previous_shard", altered_manifest)
    refuses_to_compact(world, 5, path)


def test_compaction_reads_no_table_that_it_shares(
    layered: tuple[World, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, path = layered
    read: list[str] = []

    def counted(file: Path) -> StoredFile:
        read.append(file.name)
        return file_summary(file)

    monkeypatch.setattr(shards, "file_summary", counted)
    world.compact(some_events(3, users=1, days=1, first_day=5), 6)
    own = [file for file in store_files(world) if file.stat().st_nlink == 1]
    assert sorted(read) == sorted(file.name for file in own if "shard" in file.parent.name)
    # Without hard links the copies are read, since they are new.
    monkeypatch.setattr("os.link", Mock(side_effect=OSError))
    block_cache.cache_clear()
    world.compact(some_events(3, users=1, days=1, first_day=6), 7)
    assert path.name in read
    assert thinrow("store", "verify", "--store", world.store).returncode == 0


# Through a server.


def test_a_server_names_the_file_and_serves_the_others(
    world: World, right: Answers, requested: Pointers
) -> None:
    path = max(store_files(world), key=lambda path: path.stat().st_size)
    with altered(path, path.read_bytes()):
        flipped(path, 8 * 5000)
        lost, fine = [], 0
        with served(world) as address, connect(address) as client:
            for n in range(len(requested)):
                try:
                    batch = client.materialize(requested[n : n + 1], ALL)
                except StoreCorruptError as error:
                    assert str(path) in str(error)
                    assert isinstance(error.__cause__, grpc.RpcError)
                    assert error.__cause__.code() is grpc.StatusCode.DATA_LOSS
                    lost.append(int(requested.user_ids[n]))
                else:
                    assert shown(batch) == right[n : n + 1]
                    fine += 1
            with pytest.raises(StoreCorruptError, match=path.parent.parent.name):
                client.inspect(lost[0])
            with pytest.raises(StoreCorruptError, match=path.parent.parent.name):
                list(client.stream([requested], ALL))
        assert fine > len(requested) / 3


def test_a_damaged_new_generation_is_not_taken_up(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    old = pointers_to(days(3))
    right = read_store(world.store, old)
    with running_server(world.store) as server, connect(server.address) as client:
        # Damaged before it is published: the name of a scratch folder, by hand.
        (world.store / "CURRENT").rename(world.store / "kept")
        shutil.copytree(world.store, tmp_path / "other" / "store")
        (tmp_path / "other" / "store" / "kept").rename(tmp_path / "other" / "store" / "CURRENT")
        other = World(tmp_path / "other")
        shutil.copy(world.schema, other.schema)
        other.compact(some_events(days=1, first_day=3), 4)
        folder = world.store / "generation-000002"
        shutil.copytree(other.store / "generation-000002", folder)
        table = next(folder.rglob("*.sst"))
        whole = table.read_bytes()
        table.write_bytes(whole[:-1])

        def publish(content: bytes) -> None:
            (world.store / "CURRENT.new").write_bytes(content)
            (world.store / "CURRENT.new").replace(world.store / "CURRENT")

        for content in (b"\xff\xfe", b"generation-000009\n", b"generation-000002\n"):
            failures = server.scrape()["thinrow_generation_open_failures_total"]
            publish(content)
            end_s = time.monotonic() + 60
            while server.scrape()["thinrow_generation_open_failures_total"] == failures:
                assert time.monotonic() < end_s, "the server does not look any more"
                time.sleep(0.05)
            batch = client.materialize(old, ALL)
            assert (batch.generation, shown(batch)) == (1, right)
        result = server.wait_for("new generation cannot be opened")
        assert "CURRENT" in result["reason"]
        assert any(str(table) in line.get("reason", "") for line in server.events())

        table.write_bytes(whole)
        server.wait_for("generation opened", generation=2)
        batch = client.materialize(old, ALL)
        assert (batch.generation, shown(batch)) == (2, right)
        assert server.stop() == 0


def test_a_manifest_of_another_format_is_not_called_damaged(tmp_path: Path) -> None:
    other = built_world(tmp_path)
    path = next(other.store.glob("generation-*")) / "manifest.json"
    body = json.loads(path.read_text(encoding="utf-8")) | {"format": 6, "new": 1}
    del body["xxh3"]
    body["xxh3"] = xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
    path.write_text(json.dumps(body), encoding="utf-8")
    reads = "has format 6, and this ThinRow reads formats 2, 3, 4 and 5"
    with pytest.raises(StoreError, match=reads):
        read_store(other.store, pointers_to(days(3)))
