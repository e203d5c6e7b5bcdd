"""Hooks on tasks of Spark: other limits, and faults at a call of a function.

Workers are processes that Spark starts, so a test can patch nothing there. It writes hooks to the
file that THINROW_TASK_HOOKS names, and tests/support/spark_daemon.py applies them in each task.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Protocol
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

VARIABLE = "THINROW_TASK_HOOKS"
WAIT_S = 60
POLL_S = 0.02


class Hook(Protocol):
    """A change to tasks."""

    def applied(self) -> AbstractContextManager[object]:
        """Makes the change until the block ends."""
        ...


@dataclass(frozen=True)
class Patch:
    """Another value of a name, such as `thinrow.engines.spark.shuffled.MESSAGE_BYTES`."""

    name: str
    value: object

    def applied(self) -> AbstractContextManager[object]:
        return mock.patch(self.name, self.value)


@dataclass(frozen=True)
class Fault:
    """A fault at some calls of a function.

    Args:
        name: The function.
        act: What happens; see `ACTS`.
        folder: Folder for traces: each call that has the fault leaves one.
        at_most: Number of calls that have the fault, in all workers together.
        when: Before the call, or after it.
        argument: What `act` needs.
        only: Text that the arguments of the calls contain.
    """

    name: str
    act: str
    folder: Path
    at_most: int = 1
    when: Literal["before", "after"] = "before"
    argument: Any = None
    only: str = ""

    def applied(self) -> AbstractContextManager[object]:
        place, _, name = self.name.rpartition(".")
        holder = resolve_name(place)
        real: Callable[..., object] = getattr(holder, name)

        def changed(*arguments: Any, **named: Any) -> object:  # noqa: ANN401
            result = None
            if self.when == "after":
                result = real(*arguments, **named)
            if self.only in str(arguments) and self._is_chosen():
                ACTS[self.act](self)
            return result if self.when == "after" else real(*arguments, **named)

        return mock.patch.object(holder, name, changed)

    def _is_chosen(self) -> bool:
        """Returns True for the first calls; each leaves a trace, which one worker can create."""
        for number in range(self.at_most):
            with suppress(FileExistsError):
                (self.folder / f"{self.act}-{number}").touch(exist_ok=False)
                return True
        return False

    @property
    def count(self) -> int:
        """Number of calls that had the fault so far."""
        return len(list(self.folder.glob(f"{self.act}-*")))


def parent_of(pid: int) -> int:
    """Returns the parent of a process."""
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(status.rpartition(") ")[2].split()[1])


def kill_executor(_: Fault) -> None:
    """Kills the executor of this task: the worker's daemon is its child."""
    executor = parent_of(os.getppid())
    command = Path(f"/proc/{executor}/cmdline").read_bytes()
    assert b"CoarseGrainedExecutorBackend" in command, command
    os.kill(executor, signal.SIGKILL)
    time.sleep(WAIT_S)  # this worker ends with its daemon
    raise AssertionError("the executor was killed, and its worker lives on")


def kill_worker(_: Fault) -> None:
    """Kills the process that runs Python for this task."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_driver(_: Fault) -> None:
    """Kills the program that started Spark in its process: the executor is its child."""
    driver = parent_of(parent_of(os.getppid()))
    command = Path(f"/proc/{driver}/cmdline").read_bytes()
    assert b"compact" in command, command
    os.kill(driver, signal.SIGKILL)
    time.sleep(WAIT_S)  # this worker ends with the driver
    raise AssertionError("the driver was killed, and its worker lives on")


def lose_shuffle(fault: Fault) -> None:
    """Removes the output of all maps, as a lost disk does; the argument is a folder."""
    lost = [path for path in Path(fault.argument).rglob("shuffle_*") if path.is_file()]
    assert lost
    for path in lost:
        path.unlink()


def wait_for_twin(fault: Fault) -> None:
    """Lets an attempt wait until another one came here, which is then its twin."""
    end_s = time.monotonic() + WAIT_S
    while fault.count < fault.at_most and time.monotonic() < end_s:
        time.sleep(POLL_S)


def note(_: Fault) -> None:
    """Only leaves its trace, so that calls are counted."""


def other_version(_: str) -> str:
    """Stands for `importlib.metadata.version` of another image."""
    return "0.0.9"


def full_disk(_: Fault) -> None:
    """Raises what the operating system says of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTS: dict[str, Callable[[Fault], None]] = {
    "kill_driver": kill_driver,
    "kill_executor": kill_executor,
    "kill_worker": kill_worker,
    "lose_shuffle": lose_shuffle,
    "wait_for_twin": wait_for_twin,
    "note": note,
    "full_disk": full_disk,
}


def new_traces(folder: Path) -> Path:
    """Makes the folder for the traces of a fault."""
    folder.mkdir()
    return folder


def write_hooks(path: Path, hooks: Sequence[Hook]) -> None:
    """Replaces the hooks that tasks apply from now on."""
    beside = path.with_suffix(".new")
    beside.write_bytes(pickle.dumps(list(hooks)))
    beside.replace(path)


@contextmanager
def hooked(path: Path, *hooks: Hook) -> Iterator[None]:
    """Lets tasks apply hooks until the block ends."""
    write_hooks(path, hooks)
    try:
        yield
    finally:
        write_hooks(path, [])


@contextmanager
def hooks_of_task() -> Iterator[None]:
    """Applies the hooks in a task."""
    path = Path(os.environ[VARIABLE])
    with ExitStack() as stack:
        if path.exists():
            for hook in pickle.loads(path.read_bytes()):  # noqa: S301 - this test wrote it
                stack.enter_context(hook.applied())
        yield
