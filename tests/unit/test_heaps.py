"""The memory of a process: heaps, and what is garbage."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from thinrow.access.memory import loading

if TYPE_CHECKING:
    from pathlib import Path

HEAPS = """
import ctypes, sys, threading
from thinrow.access.memory import set_up_memory

if sys.argv[1] == "set up":
    set_up_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
together = threading.Barrier(16)


def allocate():
    together.wait()
    c.malloc(100_000)
    together.wait()


threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.flush()
c.malloc_info(0, ctypes.c_void_p.in_dll(c, "stdout"))
c.fflush(None)
"""


BEGIN = """
import os, sys
from thinrow.access import memory
from thinrow.cli import entry

LIBRARIES = {"grpc", "obstore", "polars", "pyarrow", "rocksdict", "thinrow._native"}

def begin():
    print(*sorted(LIBRARIES & sys.modules.keys()), flush=True)
    os._exit(0)

memory.set_up_memory = begin
entry.main()
"""


def heaps(argument: str) -> int:
    command = [sys.executable, "-c", HEAPS, argument]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.count("<heap nr=")


@pytest.mark.parametrize("command", ["serve", "online"])
def test_no_library_is_loaded_before_the_heap_is_made(command: str, tmp_path: Path) -> None:
    """Threads of libraries would have heaps of their own, which keep memory beyond the bound."""
    begun = [sys.executable, "-c", BEGIN, command, "--store", str(tmp_path)]
    run = subprocess.run(begun, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "\n"), run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="heaps of the GNU C library")
def test_threads_share_one_heap() -> None:
    assert heaps("as it comes") > 2
    assert heaps("set up") == 1


def test_what_is_loaded_is_never_garbage() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), loading():
        assert not gc.isenabled()
        made: list[list[int]] = [[] for _ in range(1000)]
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)
