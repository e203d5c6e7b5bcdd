"""The root manifest and the manifests of shards."""

from __future__ import annotations

import json
import platform
import re
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
import xxhash
from pydantic import ValidationError
from support.worlds import World, new_world, some_events, thinrow
from thinrow.compaction.config import EMBEDDED_SHARDS_MAX
from thinrow.core.shards import SHARDS_MAX
from thinrow.errors import StoreCorruptError, UsageError
from thinrow.store.current import require_current_folder
from thinrow.store.generation import Generation
from thinrow.store.kv_digest import stream_digest
from thinrow.store.layout import shard_manifest_name, shard_name
from thinrow.store.manifest import (
    MANIFEST_BYTES_MAX,
    Manifest,
    ShardSummary,
    TopicSeal,
    encode_manifest,
    parse_manifest,
    read_manifest,
    shard_manifest,
    write_manifest,
)
from thinrow.store.shard_manifest import (
    ShardManifest,
    encode_shard_manifest,
    parse_shard_manifest,
    write_shard_manifest,
)
from thinrow.store.stored_files import StoredFile, file_summary

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One generation of eight shards."""
    world = new_world(tmp_path_factory.mktemp("built"))
    world.compact(some_events(600, users=60), 3, shards=8)
    return world


@pytest.fixture
def folder(built: World, tmp_path: Path) -> Path:
    """A generation that may be changed."""
    return shutil.copytree(require_current_folder(built.store), tmp_path / "generation-000001")


def wide(manifest: Manifest, shards: int) -> Manifest:
    """The same manifest with many shards, each as large as they become."""
    summaries = [
        ShardSummary(
            name=shard_name(number),
            keys=600_000_000 + number,
            events=600_000_000_000 + number,
            users=60_000 + number,
            value_bytes_max=1_234_567 + number,
            stored_bytes=600_000_000_000 + number,
            kv_xxh3_128=f"{number:032x}",
            manifest_xxh3=f"{number:016x}",
        )
        for number in range(shards)
    ]
    return manifest.model_copy(update={"shards": summaries, "shard_count": shards})


def test_the_root_says_who_wrote_what(built: World) -> None:
    folder = require_current_folder(built.store)
    body = json.loads((folder / "manifest.json").read_text())
    assert body["format"] == 4
    assert (body["shard_count"], body["part_function"]) == (8, "xxh3_64_le_mod")
    assert body["engine"] == "embedded"
    assert body["versions"] == {
        "thinrow": version("thinrow"),
        "rocksdict": version("rocksdict"),
        "python": platform.python_version(),
    }
    assert UUID(body["run_id"]).version == 4
    with Generation(folder) as generation:
        assert generation.manifest.run_id == UUID(body["run_id"])
        for number, shard in enumerate(body["shards"]):
            pairs = generation.shards[number].items(shard["keys"])
            assert shard["kv_xxh3_128"] == stream_digest(pairs)
            files = sorted((folder / shard["name"]).iterdir())
            assert shard["stored_bytes"] == sum(file.stat().st_size for file in files)
            listed = json.loads((folder / f"{shard['name']}.json").read_text())
            assert listed == {
                "name": shard["name"],
                "files": [
                    {"name": file.name, "bytes": file.stat().st_size, "xxh3": _xxh3(file)}
                    for file in files
                ],
            }
    assert generation.manifest.stored_bytes == sum(each["stored_bytes"] for each in body["shards"])


def _xxh3(file: Path) -> str:
    return file_summary(file).xxh3


def test_every_run_has_an_id_of_its_own(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    for day in (1, 2):
        world.compact(some_events(20, days=1, first_day=day - 1), day, shards=None)
    ids = [read_manifest(world.store / f"generation-00000{n}").run_id for n in (1, 2)]
    assert ids[0] != ids[1]


def test_a_shard_without_changes_keeps_its_digest(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.compact(some_events(400, users=40), 3, shards=4)
    world.compact(some_events(1, users=1, days=1, first_day=3), 4, shards=None)
    before, after = (read_manifest(world.store / f"generation-00000{n}").shards for n in (1, 2))
    # Those written whole in this generation have the same pairs, and thus the same digest, too.
    same = [one.kv_xxh3_128 == two.kv_xxh3_128 for one, two in zip(before, after, strict=True)]
    assert sorted(same) == [False, True, True, True]


def test_opening_some_shards_reads_no_other_manifest(folder: Path) -> None:
    kept = {2, 5}
    for number in set(range(8)) - kept:
        (folder / shard_manifest_name(number)).write_text("{")
        shutil.rmtree(folder / shard_name(number))
    with Generation(folder, numbers=kept) as generation:
        assert (list(generation.shards), generation.shard_count) == ([2, 5], 8)
        assert generation.manifest.event_count == 600
    with pytest.raises(StoreCorruptError, match=r"shard-0000 is missing"):
        Generation(folder)


@pytest.mark.parametrize("fault", ["gone", "altered", "another", "another shard's"])
def test_a_manifest_of_a_shard_at_fault(folder: Path, fault: str) -> None:
    path, manifest = folder / shard_manifest_name(3), read_manifest(folder)
    if fault == "gone":
        path.unlink()
    elif fault == "altered":
        path.write_text(path.read_text().replace('"bytes": 16', '"bytes": 17'))
    elif fault == "another":
        shutil.copyfile(folder / shard_manifest_name(4), path)
    else:
        foreign = ShardManifest(name="shard-0004", files=shard_manifest(folder, manifest, 4).files)
        shards = list(manifest.shards)
        xxh3 = write_shard_manifest(folder, 3, foreign)
        shards[3] = shards[3].model_copy(update={"manifest_xxh3": xxh3})
        write_manifest(folder, manifest.model_copy(update={"shards": shards}))
    with pytest.raises(StoreCorruptError, match=re.escape(str(path))):
        Generation(folder)
    with Generation(folder, numbers=[0, 4]):
        pass


@pytest.mark.parametrize(
    "edit",
    [
        {"shard_count": 9},
        {"shard_count": 0},
        {"part_function": "xxhash64"},
        {"run_id": None},
        {"engine": None},
    ],
)
def test_a_root_manifest_that_says_less_or_other(folder: Path, edit: dict[str, object]) -> None:
    manifest = read_manifest(folder)
    text = encode_manifest(manifest.model_copy(update=edit))
    with pytest.raises(StoreCorruptError, match="root is damaged"):
        parse_manifest(text, "root")
    without = [shard.model_copy(update={"kv_xxh3_128": None}) for shard in manifest.shards]
    text = encode_manifest(manifest.model_copy(update={"shards": without}))
    with pytest.raises(StoreCorruptError, match="of shard-0000 it lacks a digest"):
        parse_manifest(text, "root")


def with_topic(manifest: Manifest, topic: TopicSeal) -> Manifest:
    return manifest.model_copy(update={"format": 5, "topic": topic})


def test_a_root_with_offsets_of_a_topic_has_a_format_of_its_own(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert '"topic"' not in encode_manifest(manifest)
    topic = TopicSeal(name="events", offsets=[7, 0, 1 << 62])
    text = encode_manifest(with_topic(manifest, topic))
    assert json.loads(text)["topic"] == {"name": "events", "offsets": [7, 0, 1 << 62]}
    found = parse_manifest(text, "root")
    assert (found.format, found.topic) == (5, topic)
    body = json.loads(text)
    for edit in ({"format": 4}, {"topic": None}):
        altered = {name: value for name, value in (body | edit).items() if name != "xxh3"}
        altered["xxh3"] = xxhash.xxh3_64_hexdigest(json.dumps(altered, sort_keys=True).encode())
        with pytest.raises(StoreCorruptError, match="its format does not fit its topic"):
            parse_manifest(json.dumps(altered), "root")
    for offsets in ([], [-1], [1 << 63]):
        with pytest.raises(ValidationError):
            TopicSeal(name="events", offsets=offsets)


def test_the_list_shows_the_offsets_of_a_topic(folder: Path) -> None:
    manifest = read_manifest(folder)
    store = folder.parent
    for count, said in ((2, "7, 8"), (40, "37, 38, and 8 more")):
        topic = TopicSeal(name="events", offsets=[7 + number for number in range(count)])
        write_manifest(folder, with_topic(manifest, topic))
        (store / "CURRENT").write_text(f"{folder.name}\n")
        shown = thinrow("store", "list", "--store", store)
        assert shown.returncode == 0, shown.stderr
        assert f"Topic events: {count} partitions, sealed at offsets 7, 8" in shown.stdout
        assert f"{said}\n" in shown.stdout


def test_a_root_of_very_many_shards_is_small(folder: Path) -> None:
    manifest = wide(read_manifest(folder), 16_384)
    text = encode_manifest(manifest)
    assert len(text) < 5 << 20
    assert parse_manifest(text, "root") == manifest
    assert len(text) / 16_384 * SHARDS_MAX < MANIFEST_BYTES_MAX / 2
    assert text.count("\n") < 16_384 + 200, "not one line for each shard"
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        Manifest.model_validate(wide(manifest, 1).model_dump() | {"shard_count": SHARDS_MAX + 1})


def test_files_may_be_objects() -> None:
    run = uuid4()
    file = StoredFile(name="000008.sst", bytes=7, xxh3="0" * 16, object=f"objects/{run}/8.sst")
    local = StoredFile(name="000008.sst", bytes=7, xxh3="0" * 16)
    text, xxh3 = encode_shard_manifest(ShardManifest(name="shard-0001", files=[file]))
    found = parse_shard_manifest(text, 1, xxh3)
    assert found.files == [file]
    assert found.files != [local]
    assert local.has_content_of(file)
    assert not local.has_content_of(file.model_copy(update={"bytes": 8}))
    for name in ("", "a/b", "..", ".", "../CURRENT", "a" * 256):
        with pytest.raises(ValidationError):
            StoredFile(name=name, bytes=7, xxh3="0" * 16)
    for number, checksum in ((2, xxh3), (1, "0" * 16)):
        with pytest.raises(ValueError, match=r"it is that of shard-0001|checksum does not fit"):
            parse_shard_manifest(text, number, checksum)


@pytest.mark.parametrize(("shards", "says"), [(3, "2 or 4"), (5, "4 or 8"), (511, "256 or 512")])
def test_a_new_store_has_a_power_of_two(tmp_path: Path, shards: int, says: str) -> None:
    world = new_world(tmp_path)
    with pytest.raises(UsageError, match=f"--shards is {shards}; .* such as {says}"):
        world.compact(some_events(9), 3, shards=shards)
    assert not (world.store / "CURRENT").exists()
    assert EMBEDDED_SHARDS_MAX == 512


def test_the_list_names_the_run(built: World) -> None:
    shown = thinrow("store", "list", "--store", built.store)
    assert shown.returncode == 0, shown.stderr
    run_id = read_manifest(require_current_folder(built.store)).run_id
    written = f"8 shards, manifest format 4, written by run {run_id} of the embedded engine ("
    assert f"Generation 1: {written}" in shown.stdout
    assert f"rocksdict {version('rocksdict')}" in shown.stdout
