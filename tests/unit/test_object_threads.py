"""Threads that do requests to object stores: order, errors, and ends that wait for none."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from thinrow.remote.threads import map_in_threads


def test_results_come_in_order_from_several_threads() -> None:
    meet = threading.Barrier(3, timeout=60)

    def work(number: int) -> int:
        if number < 3:
            meet.wait()
        return -number

    assert list(map_in_threads(work, range(50), 3)) == [-number for number in range(50)]
    assert list(map_in_threads(work, [], 3)) == []


def test_the_first_error_ends_all_and_waits_for_calls_in_flight() -> None:
    started, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            started.set()
            assert go_on.wait(60)
            done.append(number)
            return
        assert started.wait(60)
        threading.Timer(0.05, go_on.set).start()
        raise KeyError(number)

    with pytest.raises(KeyError, match="1"):
        list(map_in_threads(work, range(1000), 2))
    assert done == [0]


def test_an_error_waits_for_no_call_once_it_is_to_stop() -> None:
    started, never, stopping = threading.Event(), threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 0:
            started.set()
            never.wait()
        assert started.wait(60)
        stopping.set()
        raise KeyError(number)

    with pytest.raises(KeyError):
        list(map_in_threads(work, range(2), 2, stopping))
    assert not never.is_set()
    never.set()


def test_the_interpreter_ends_though_a_call_never_returns() -> None:
    code = (
        "import threading, sys\n"
        "from thinrow.remote.threads import map_in_threads\n"
        "started = threading.Event()\n"
        "def work(number):\n"
        "    if number: started.wait(); sys.exit(7)\n"
        "    started.set(); threading.Event().wait()\n"
        "list(map_in_threads(work, range(2), 2))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert ended.returncode == 7
