"""The actor that looks rows up. This module imports no PyTorch, so that actors start quickly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from ray.data import ReadTask

__all__ = ["LookupActor"]


class LookupActor:
    """Runs tasks of a datasource."""

    def ready(self) -> None:
        """Returns once the actor runs."""

    def look_up(self, task: ReadTask) -> tuple[pa.Table | None, float]:
        """Returns a task's answers, None if all of its rows are done, and the seconds it took."""
        start_s = time.perf_counter()
        tables = list(task())
        answers = pa.concat_tables(tables) if tables else None
        return answers, time.perf_counter() - start_s
