"""Files that the operating system refuses: the error says so, and is not called damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import SUPPORT
from support.tried import Tried

CODES = ("EACCES", "EMFILE", "ENFILE", "EIO", "ESTALE")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to let the operating system refuse files")
    made = tmp_path_factory.mktemp("library") / "failing_files.so"
    source = SUPPORT / "failing_files.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


def test_refused_files_of_a_store(library: Path, tmp_path: Path) -> None:
    """Each file in turn, for Python, RocksDB and Arrow alike."""
    ended = subprocess.run(
        [sys.executable, str(SUPPORT / "access_tries.py"), str(library), str(tmp_path / "world")],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    met, harmless = found["met"], found["met"].pop("harmless", 0)
    assert not found["wrong"], found["wrong"]
    assert all(any(name.startswith(code) and met[name] for name in met) for code in CODES), met
    tried = sum(met.values())
    counted = ", ".join(f"{count} {name}" for name, count in met.items())
    Tried(
        fault="A file of a store that the operating system refuses: each in turn",
        times=tried,
        promised="An error that names the file or its shard, the reason and the remedy; not damage",
        seen=f"{counted}; {tried - harmless} named so, {harmless} harmless, 0 wrong",
    ).keep()
