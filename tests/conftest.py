"""Settings of the test run: examples of property tests, and marks of tests that start servers.

THINROW_EXAMPLES multiplies the examples of property tests (see scenarios.py).
"""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any
from unittest import mock

import grpc
import pytest
from hypothesis import HealthCheck, settings
from support.fake_server import ignore_threads_of_others
from support.object_storage import ObjectStorage, found_by_clients, running_storage

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

COMMON: dict[str, Any] = {
    # Each example builds stores on disk: slow by nature.
    "deadline": None,
    # What a failure needs to come back is printed.
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# A change is judged by the same examples each time; people and long runs look further.
settings.register_profile("same", derandomize=True, database=None, **COMMON)
settings.register_profile("random", **COMMON)
settings.load_profile("same" if "CI" in os.environ else "random")

STARTERS = frozenset(
    {"subprocess", "Popen", "Server", "OnlineServer", "Processes", "Producer", "grpc.server"}
    | {"run_demo"}
)
"""Names by which tests and their helpers start servers and processes."""

TESTS = str(Path(__file__).parent)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector from modules, which stay: each worker loads over a thousand."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that start a server or a process; `make test-fast` leaves them out."""
    known: dict[object, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = [
                one.func for found in item._fixtureinfo.name2fixturedefs.values() for one in found
            ]
            if "faults" in item.path.parts or any(
                starts_server(function, known) for function in (item.function, *fixtures)
            ):
                item.add_marker("server")


def starts_server(found: Any, known: dict[object, bool]) -> bool:  # noqa: ANN401
    """Returns whether a function or class, or anything of the tests it names, starts a server."""
    found = inspect.unwrap(getattr(found, "__func__", found))
    # Hypothesis keeps the test that it repeats beside the one that pytest calls.
    found = getattr(getattr(found, "hypothesis", None), "inner_test", found)
    if isinstance(found, type):
        parts = [inspect.unwrap(part) for part in vars(found).values() if callable(part)]
    else:
        parts = [found]
    functions = [part for part in parts if isinstance(part, FunctionType)]
    files = {function.__code__.co_filename for function in functions}
    if not any(file.startswith(TESTS) and file != __file__ for file in files):
        return False
    if found not in known:
        known[found] = False
        for function in functions:
            names = names_in(function.__code__)
            if "grpc" in names and "server" in names:
                names.add("grpc.server")
            if names & STARTERS or any(
                starts_server(function.__globals__.get(name), known) for name in names
            ):
                known[found] = True
    return known[found]


def names_in(code: CodeType) -> set[str]:
    """Returns the names of globals and attributes that code uses, with its inner functions."""
    inner = (names_in(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


@pytest.fixture(scope="module")
def no_pause_before_goaway() -> Iterator[None]:
    """Closes servers of this process at once, where no client is left that could cross a GOAWAY."""
    with mock.patch("thinrow.access.grpc_server.GOAWAY_DELAY_S", 0):
        yield


@pytest.fixture(autouse=True)
def threads_of_others() -> None:
    """Lets tests that look for threads see their own only."""
    ignore_threads_of_others()


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tests fail in `make test-fast` that start a server or a process unseen."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError(
            "mark this test with @pytest.mark.server: it starts a server or process"
        )

    if "not server" in request.config.option.markexpr:
        monkeypatch.setattr(grpc, "server", refuse)
        monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture(scope="session")
def storage_process() -> Iterator[ObjectStorage]:
    """An S3 server, which one worker's tests share."""
    with running_storage() as storage:
        yield storage


@pytest.fixture
def object_storage(storage_process: ObjectStorage) -> Iterator[ObjectStorage]:
    """An S3 server that does what it should, found by way of the environment."""
    storage_process.fail("refused", "GET", 0)
    with found_by_clients(storage_process):
        yield storage_process
