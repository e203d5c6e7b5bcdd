"""Files that ThinRow creates are private to its user, whatever the umask of the shell is."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.worlds import (
    START_TS,
    THINROW,
    World,
    built_world,
    compact_command,
    new_world,
    some_events,
)
from thinrow.client.logger.journal import Journal
from thinrow.client.logger.outputs import make_folder, write_part
from thinrow.online.tier import MutableTier, TierConfig
from thinrow.store.scratch import scratch_beside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(*folders: Path) -> set[str]:
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {oct(path.stat().st_mode & 0o777) for path in paths}


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def built_by_commands(folder: Path, **variables: str) -> World:
    """A store of two generations, an old one pruned, and thin rows of it."""
    world = new_world(folder)
    for day, first in ((3, 0), (4, 3)):
        events = world.write(f"{day}.parquet", some_events(30, days=day - first, first_day=first))
        done = run(*compact_command(world, [events], day), "--keep", 1, **variables)
        assert done.returncode == 0, done.stderr
    requests = pa.table({"user_id": [1], "request_ts": [START_TS + 4 * 86_400_000]})
    requested = world.write("requests.parquet", requests)
    rows = world.folder / "out" / "rows.parquet"
    done = run(
        *(*THINROW, "backfill", requested, "--store", world.store, "--out", rows),
        *("--events", world.folder / "3.parquet", "--events", world.folder / "4.parquet"),
        **variables,
    )
    assert done.returncode == 0, done.stderr
    return world


def test_commands_make_private_files(tmp_path: Path) -> None:
    world = built_by_commands(tmp_path / "world")
    assert modes(world.store, world.folder / "out") == {"0o700", "0o600"}


def test_a_group_reads_where_the_operator_says_so(tmp_path: Path) -> None:
    world = built_by_commands(tmp_path / "world", THINROW_UMASK="027")
    assert modes(world.store, world.folder / "out") == {"0o750", "0o640"}


@pytest.mark.parametrize("text", ["", "rw", "1777", "777", "277", "100", "-7", "0x7"])
def test_an_umask_that_is_none(text: str) -> None:
    done = run(*THINROW, "--version", THINROW_UMASK=text)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: THINROW_UMASK is {text!r}; give an octal number")


def test_what_programs_make_lies_in_private_folders(tmp_path: Path) -> None:
    """A program that uses ThinRow keeps its own umask; others do not get into the folders."""
    world = built_world(tmp_path / "world")
    tier = MutableTier(TierConfig(folder=tmp_path / "a" / "tier"))
    tier.close()
    schema = pa.schema({"a": pa.int64()})
    journal = Journal(tmp_path / "journal", (schema, schema))
    list(journal.replay())
    journal.roll({})
    for folder in (world.store, tmp_path / "a" / "tier", tmp_path / "journal"):
        assert modes(folder) >= {"0o700"} and oct(folder.stat().st_mode & 0o777) == "0o700"
    assert modes(tmp_path / "journal") == {"0o700", "0o600"}
    part = tmp_path / "rows" / "hour" / "part.parquet"
    make_folder(part.parent)
    write_part(pa.table({"a": [1]}), part)
    assert modes(tmp_path / "rows") == {"0o700", "0o600"}
    assert pq.read_table(part).num_rows == 1


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    world = new_world(tmp_path / "world")
    world.store.mkdir(mode=0o755)
    world.compact(some_events(), 3)
    assert oct(world.store.stat().st_mode & 0o777) == "0o755"
    generation = world.store / "generation-000001"
    assert oct(generation.stat().st_mode & 0o777) == "0o700"


def test_scratch_of_killed_runs_is_removed_and_no_other(tmp_path: Path) -> None:
    output = tmp_path / "rows.parquet"
    left, theirs = tmp_path / ".rows.parquet-abcd", tmp_path / ".rows.parquet-mine"
    for folder in (left, theirs):
        folder.mkdir()
        (folder / "events").mkdir()
        (folder / "events" / "0000.arrow").write_bytes(b"x")
    (left / "THINROW_SCRATCH").touch()
    other = shutil.copytree(left, tmp_path / ".yesterday.parquet-abcd")
    with scratch_beside(output) as first, scratch_beside(tmp_path / "b.parquet") as second:
        assert not other.exists()
        assert first != second and first.exists() and modes(first) == {"0o700", "0o600"}
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [theirs.name]
    assert (theirs / "events" / "0000.arrow").exists()
