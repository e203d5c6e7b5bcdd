"""Small disks of their own, by mounts, and commands that fill them."""

from __future__ import annotations

import gc
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.worlds import (
    World,
    compact_command,
)
from thinrow.cli.app import app
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result


ROOMY = 64 << 20


@dataclass(frozen=True)
class Disk:
    """A small file system in memory."""

    path: Path

    def used(self) -> int:
        """Bytes of whole pages, as the file system counts."""
        gc.collect()  # an error that was reported may still hold on to files of its run
        reported = os.statvfs(self.path)
        return (reported.f_blocks - reported.f_bfree) * reported.f_frsize

    def resize(self, size: int) -> None:
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(self.path)], check=True)

    def leave(self, room: int) -> None:
        """Leaves that many bytes free, also where somebody is writing meanwhile."""
        for attempts_left in reversed(range(10)):
            used = self.used()
            try:
                self.resize(used + room)
                return
            except subprocess.CalledProcessError:
                if not attempts_left or self.used() <= used + room:
                    raise


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "thinrow-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs, which root has on a machine of its own")
    try:
        yield Disk(folder)
    finally:
        gc.collect()  # errors that were reported still hold on to the files of their runs
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def run(*command: object) -> Result:
    return CliRunner().invoke(app, list(map(str, command)))


def check_full(result: Result | subprocess.CompletedProcess[str], disk: Disk) -> None:
    code = (
        result.returncode if isinstance(result, subprocess.CompletedProcess) else result.exit_code
    )
    reported = result.stderr.strip()
    assert code == 1, reported
    assert reported.startswith(f"Error: The disk that holds {disk.path}"), reported
    assert "is full; free some space and run again" in reported
    assert "\n" not in reported


def compacting(world: World, store: Path, name: str, day: int) -> list[str]:
    command = compact_command(world, [world.folder / f"{name}.parquet"], day)[3:]
    command[command.index(str(world.store))] = str(store)
    return [*command, "--shards", "2", "--cadence", "1d"]
