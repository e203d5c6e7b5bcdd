"""Servers of several processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from thinrow.client import ClientConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.worlds import Running


AT_ONCE = ClientConfig(retry_deadline_s=0)


TWO = ("--processes", 2)


def until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def pids(server: Running) -> list[int]:
    """Each worker's newest process."""
    started = [line for line in server.events() if line["event"] == "worker serving"]
    return [pid for _, pid in sorted({line["worker"]: line["pid"] for line in started}.items())]
