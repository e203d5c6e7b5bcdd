"""Peak memory of Python code, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from support.paths import TESTS

MIB = 1 << 20
STATUS = Path("/proc/self/status")
MEASURE = """
import json, os, sys
sys.path.insert(0, {tests!r})
from support.peak import forget_peak, peak_bytes
{prelude}
forget_peak()
before = peak_bytes()
try:
    outcome = repr(eval({call!r}))
except Exception as error:
    outcome = type(error).__name__ + ": " + str(error)
print(json.dumps([peak_bytes() - before, outcome]), flush=True)
os._exit(0)  # servers and clients of the prelude are not waited for
"""


class Peak(NamedTuple):
    """One call, after everything that it needs was imported and made."""

    grown_bytes: int
    """Increase of the process's peak memory by the call."""
    outcome: str
    """The repr of its result, or the name and text of its exception."""


def peak_bytes() -> int:
    """Returns the most memory that this process has had.

    The `ru_maxrss` of getrusage will not do: it begins at the peak of the process that started
    this one.
    """
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Sets the peak back to the memory that this process has now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_of(call: str, prelude: str, stdin: str | None = None) -> Peak:
    """Evaluates `call` behind `prelude`, Python source both; tests/ can be imported from."""
    source = MEASURE.format(tests=str(TESTS), prelude=prelude, call=call)
    ended = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, input=stdin
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return Peak(*json.loads(ended.stdout.splitlines()[-1]))
