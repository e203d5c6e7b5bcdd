"""Files that declare sizes which they do not have are refused before the memory is taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import xxhash
from support.declared_arrow import MAKE, thin_rows
from support.peak import MIB, peak_of
from support.worlds import World, built_world
from thinrow.client import read_thin_rows
from thinrow.client.torch import RowFiles
from thinrow.core.files import parquet_sizes
from thinrow.core.files.parquet_sizes import GROUP_BYTES_MAX
from thinrow.errors import StoreCorruptError
from thinrow.store.current import CURRENT_BYTES_MAX, current_folder
from thinrow.store.manifest import MANIFEST_BYTES_MAX, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

REFUSED_BYTES_MAX = 48 * MIB

WRITE = (
    MAKE
    + """
import pyarrow.parquet as pq
def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, compression="zstd", **options)
"""
)
READ = """
from thinrow.core.files.arrow import load_pyarrow
load_pyarrow()  # whose libraries take more memory than what reads a file
from thinrow.core.files import parquet_sizes
parquet_sizes.GROUP_BYTES_MAX = 64 << 20  # so that the files of this test need not be larger
"""
BY_CLIENT = """
from thinrow.client import read_thin_rows
def by_client(path):
    return sum(len(rows) for rows, _ in read_thin_rows(path, examples=100))
"""
BY_LOADER = """
from thinrow.client.torch import RowFiles
def by_loader(path, **chosen):
    source = RowFiles([path], order="files", rank=0, world_size=1).source(**chosen)
    return sum(len(chunk.rows) for chunk in source.chunks(100))
"""
BOMBS = {
    "a list of runs": """
write(path, rows() | {"mutable": mutable({"event_ts": times(15_000_000)}, [15_000_000])})
""",
    "pages of zeros": """
write(path, rows() | {"mutable": mutable({"event_ts": times(10_000_000)}, [10_000_000])},
      use_dictionary=False)
""",
    "a text of zeros": """
write(path, rows() | {"mutable": mutable({"event_ts": times(1)}, [1]),
    "label": pa.array([bytes(80_000_000)])}, use_dictionary=False)
""",
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_a_file_of_thin_rows_that_would_take_gigabytes(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "rows.parquet")
    exec(WRITE + make, {"path": path})
    for call, read in (("by_client", BY_CLIENT), ("by_loader", BY_LOADER)):
        peak = peak_of(f"{call}({path!r})", READ + read)
        assert peak.outcome.startswith("InputError: ") and "row group 0" in peak.outcome, peak
        assert peak.grown_bytes < REFUSED_BYTES_MAX, peak
    if "label" in make:  # no one requested that column
        monkeypatch.setattr(parquet_sizes, "GROUP_BYTES_MAX", 64 << 20)
        source = RowFiles([path], order="files", rank=0, world_size=1).source(columns=[])
        assert sum(len(chunk.rows) for chunk in source.chunks(100)) == 1


def test_honest_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for compression in ("snappy", "zstd", "gzip", "none"):
        pq.write_table(thin_rows(2000), path, compression=compression)
        [(rows, _)] = read_thin_rows(path, examples=10)
        assert rows.mutable is not None and len(rows.mutable.arrival_ts) == 6000
    # A flat column of equal values takes next to nothing, and is read some rows at a time.
    table = thin_rows(1).take([0] * 120_000)
    pq.write_table(table, path)
    assert sum(len(rows) for rows, _ in read_thin_rows(path, examples=4096)) == 120_000
    files = RowFiles([path], order="files", rank=0, world_size=1)
    assert sum(len(chunk.rows) for chunk in files.source().chunks(4096)) == 120_000
    # Documents of 700 MiB compress to next to nothing where they repeat themselves, and are read.
    assert GROUP_BYTES_MAX == 1024 * MIB


@pytest.fixture
def world(tmp_path: Path) -> World:
    return built_world(tmp_path)


def test_a_manifest_that_is_huge(world: World) -> None:
    folder = current_folder(world.store)
    assert folder is not None
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(20 * MANIFEST_BYTES_MAX)
    read = f"""
from pathlib import Path
from thinrow.store.manifest import read_manifest
folder = Path({str(folder)!r})
"""
    peak = peak_of("read_manifest(folder)", read)
    assert peak.outcome.startswith("StoreCorruptError") and "has more than" in peak.outcome
    assert peak.grown_bytes < 2 * MANIFEST_BYTES_MAX


def test_a_current_that_is_huge(world: World) -> None:
    (world.store / "CURRENT").write_bytes(b"generation-000001\n".ljust(CURRENT_BYTES_MAX))
    assert current_folder(world.store) is not None
    (world.store / "CURRENT").write_bytes(b"generation-000001\n".ljust(CURRENT_BYTES_MAX + 1))
    with pytest.raises(StoreCorruptError, match="has more than 1,024 bytes"):
        current_folder(world.store)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("watermarks", []),
        ("watermarks", [2**63]),
        ("watermarks", [-(2**63) - 1]),
        ("number", -1),
        ("events", -1),
        ("users", 2**63),
        ("keys", 2**64),
    ],
)
def test_numbers_in_a_manifest_that_nothing_can_have(world: World, field: str, value: Any) -> None:  # noqa: ANN401
    folder = current_folder(world.store)
    assert folder is not None
    path = folder / "manifest.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    del body["xxh3"]
    (body if field in body else body["shards"][0])[field] = value
    text = json.dumps(body, sort_keys=True)
    body["xxh3"] = xxhash.xxh3_64_hexdigest(text.encode())
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(StoreCorruptError, match="validation error"):
        read_manifest(folder)
