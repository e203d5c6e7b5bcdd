"""Errors of tasks reach the driver as they were, through whatever Spark reports around them."""

from __future__ import annotations

import errno
import traceback
from socket import gethostname
from typing import TYPE_CHECKING

import pytest
from thinrow.engines.spark.tasks import failure_of, software, task
from thinrow.errors import EngineError, InputError, StoreFullError, ThinRowError

if TYPE_CHECKING:
    from pathlib import Path


def report_of(error: Exception) -> str:
    """The text of Spark's exception: Python's traceback, which quotes lines of the source."""
    try:
        with task(software()):
            raise error
    except RuntimeError as carried:
        return "Job aborted.\n" + "".join(traceback.format_exception(carried)) + "\tat java.Main\n"


@pytest.mark.parametrize(
    "error",
    [
        InputError('a.parquet: "user_id" {is} text} END; write\nit {"as": 1}.'),
        StoreFullError("The disk that holds /tmp/é is full."),
        EngineError("An executor has other software."),
    ],
)
def test_an_error_of_ours_is_found_in_a_report(error: ThinRowError) -> None:
    found = failure_of(report_of(error))
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_a_full_disk_has_its_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    found = failure_of(report_of(OSError(errno.ENOSPC, "No space left on device")))
    assert isinstance(found, StoreFullError)
    assert f"The disk that holds {gethostname()}:{tmp_path} is full; free" in str(found)


def test_a_report_of_another_error_has_none_of_ours() -> None:
    assert failure_of("Job aborted: OutOfMemoryError: Java heap space") is None


def test_tasks_share_the_disks_of_an_executor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk in disks:
        disk.mkdir()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", ",".join(map(str, disks)))
    used = set()
    for _ in range(40):
        with task(software()) as folder:
            used.add(folder.parent)
        assert not folder.exists()
    assert used == set(disks)
