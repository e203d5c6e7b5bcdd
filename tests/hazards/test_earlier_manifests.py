"""Stores of earlier versions, which have one manifest for all shards: read, and continued."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xxhash
from support.small_history import build, compact_day, fill_prices
from support.worlds import thinrow
from thinrow.errors import StoreCorruptError
from thinrow.schema import to_stored
from thinrow.store.current import require_current_folder
from thinrow.store.generation import Generation
from thinrow.store.generations import problem_of, stored_generations
from thinrow.store.kv_digest import KeyValueDigest, stream_digest
from thinrow.store.manifest import read_manifest, shard_manifest
from thinrow.store.rollback import rollback
from thinrow.store.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHIVE = Path(__file__).parents[1] / "compat" / "single-manifest.tar.xz"
GENERATIONS = {"int64": 3, "string": 2}


@pytest.fixture(params=["int64", "string"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, kind: str) -> Path:
    """A store that the ThinRow of before wrote, with three shards."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / kind


def everything(store: Path) -> tuple[object, ...]:
    """All that a store holds, however many shards it has."""
    with Generation.open_current(store) as generation:
        pairs: dict[bytes, bytes] = {}
        for number, shard in enumerate(generation.manifest.shards):
            pairs.update(generation.shards[number].items(shard.keys))
        fills = [record.model_dump(exclude={"filled_ts"}) for record in generation.manifest.fills]
        schema = to_stored(generation.schema)
        return pairs, schema, generation.watermarks.tolist(), generation.manifest.run, fills


def test_an_earlier_store_has_what_a_new_one_has(store: Path, kind: str, tmp_path: Path) -> None:
    assert read_manifest(require_current_folder(store)).format == (2 if kind == "int64" else 3)
    build(tmp_path / "new", kind, shards=4)
    assert everything(store) == everything(tmp_path / "new")


def test_an_earlier_store_goes_on(store: Path, kind: str, tmp_path: Path) -> None:
    build(tmp_path / "new", kind, shards=4)
    old = Generation.open_current(store)
    below = [
        stream_digest(old.shards[number].items(shard.keys))
        for number, shard in enumerate(old.manifest.shards)
    ]
    for place in (store, tmp_path / "new"):
        compact_day(place, 2, kind)
    assert everything(store) == everything(tmp_path / "new")
    manifest = read_manifest(require_current_folder(store))
    assert (manifest.format, manifest.shard_count) == (4, 3)
    with Generation.open_current(store) as now:
        layered = 0
        for number, shard in enumerate(manifest.shards):
            pairs = dict(now.shards[number].items(shard.keys))
            before = dict(old.shards[number].items(old.manifest.shards[number].keys))
            is_layer = any(
                path.samefile(old.folder / shard.name / path.name)
                for path in (now.folder / shard.name).glob("*.sst")
                if (old.folder / shard.name / path.name).exists()
            )
            digest = KeyValueDigest(below[number] if is_layer else None)
            for key in sorted({*pairs, *before}):
                if not is_layer or pairs.get(key) != before.get(key):
                    digest.add(key, pairs.get(key))
            assert shard.kv_xxh3_128 == digest.hexdigest()
            layered += is_layer and pairs != before
        assert layered
    old.close()
    last = GENERATIONS[kind]
    report = rollback(store, last, "keep")
    assert report.withdrawn == [last + 1]
    assert [(found.problem, found.is_withdrawn) for found in stored_generations(store)] == [
        *[(None, False)] * last,
        (None, True),
    ]


@pytest.mark.parametrize("kind", ["int64"], indirect=True)
def test_an_earlier_store_is_filled(store: Path, tmp_path: Path) -> None:
    rollback(store, 2, "remove")
    fill_prices(store)
    build(tmp_path / "new", "int64", shards=4)
    pairs, schema, *_ = everything(store)
    expected_pairs, expected_schema, *_ = everything(tmp_path / "new")
    assert (pairs, schema) == (expected_pairs, expected_schema)
    manifest = read_manifest(require_current_folder(store))
    assert manifest.format == 4
    assert all(shard.kv_xxh3_128 for shard in manifest.shards)


def swapped(body: dict[str, list[dict[str, object]]]) -> None:
    body["shards"].reverse()


def without_tables(body: dict[str, list[dict[str, list[dict[str, str]]]]]) -> None:
    files = body["shards"][1]["files"]
    body["shards"][1]["files"] = [file for file in files if not file["name"].endswith(".sst")]


def of_another_size(body: dict[str, list[dict[str, list[dict[str, int]]]]]) -> None:
    body["shards"][1]["files"][1]["bytes"] += 1


def without_files(body: dict[str, list[dict[str, object]]]) -> None:
    del body["shards"][1]["files"]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (swapped, "it lists shard-0002 where shard-0000 belongs"),
        (without_tables, "of shard-0001 it lists no tables"),
        (of_another_size, "its size differs"),
        (without_files, "files"),
    ],
)
def test_a_faulty_manifest_of_before(
    store: Path, edit: Callable[[dict[str, object]], None], says: str
) -> None:
    folder = require_current_folder(store)
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    del body["xxh3"]
    edit(body)
    text = json.dumps(body, sort_keys=True)
    path.write_text(json.dumps(body | {"xxh3": xxhash.xxh3_64_hexdigest(text.encode())}))
    with pytest.raises(StoreCorruptError, match=says):
        Generation(folder)
    problem = problem_of(folder)
    assert problem is not None
    assert says in problem


def test_the_list_shows_an_earlier_store(store: Path, kind: str) -> None:
    shown = thinrow("store", "list", "--store", store)
    assert shown.returncode == 0, shown.stderr
    number, manifest_format = GENERATIONS[kind], 2 if kind == "int64" else 3
    line = f"Generation {number}: 3 shards, manifest format {manifest_format}"
    assert line in shown.stdout.splitlines()


def test_some_shards_of_an_earlier_store(store: Path) -> None:
    folder = require_current_folder(store)
    shutil.rmtree(folder / "shard-0000")
    with Generation(folder, numbers=[1, 2]) as generation:
        assert list(generation.shards) == [1, 2]
        manifest = generation.manifest
        for number in (1, 2):
            names = {file.name for file in shard_manifest(folder, manifest, number).files}
            assert names == {path.name for path in (folder / f"shard-{number:04d}").iterdir()}
    assert np.all([shard.stored_bytes for shard in manifest.shards])
    with Shard(folder / "shard-0001") as shard:
        assert shard.tables()
