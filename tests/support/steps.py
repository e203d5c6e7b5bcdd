"""Runs a command that kills itself at the N-th thing it requests of the file system below a folder.

    python steps.py N FOLDER COMMAND...

Where there is no N-th it ends as the command does, and shows on stderr how many there were.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from thinrow.cli.entry import main

if TYPE_CHECKING:
    from types import BuiltinFunctionType, FrameType

count = 0
lock = threading.Lock()


def step() -> None:
    """One more thing is requested; the last is not done any more."""
    global count
    with lock:
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)


def watch_names(event: str, arguments: tuple[object, ...]) -> None:
    """Files opened, renamed, linked, removed: what Python shows of by itself."""
    if event.startswith(("open", "os.", "shutil.")) and any(
        folder in str(given) for given in arguments
    ):
        step()


def watch_contents(_: FrameType, event: str, function: BuiltinFunctionType) -> None:
    """Between opened and closed: what was not flushed yet is lost with the process."""
    if event == "c_call" and (
        function.__name__ == "fsync"
        or (
            function.__name__ in ("write", "flush")
            and folder in str(getattr(function.__self__, "name", ""))
        )
    ):
        step()


last, folder = int(sys.argv[1]), sys.argv[2]
sys.argv = ["thinrow", *sys.argv[3:]]
sys.addaudithook(watch_names)
threading.setprofile(watch_contents)
sys.setprofile(watch_contents)
try:
    main()
finally:
    sys.setprofile(None)
    print(f"steps: {count}", file=sys.stderr)
