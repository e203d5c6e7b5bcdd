"""Tasks on executors: the software there, folders for their files, and errors for the driver."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

import pyarrow as pa
import thinrow.errors
from thinrow.errors import EngineError, ThinRowError
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = [
    "RESULT_COLUMNS",
    "Software",
    "attempt_name",
    "check_numbers",
    "disk_remedy",
    "failure_of",
    "lost_rows",
    "numbers_in",
    "result_row",
    "software",
    "task",
]

RESULT_COLUMNS = "number int, body string"
"""Rows of results: what they are about, and JSON."""
_RESULT = pa.schema([("number", pa.int32()), ("body", pa.large_string())])
Software = dict[str, str]
"""Versions of what writes a store."""
_FAILURE = re.compile(r'THINROW_TASK (?=\{")')


def software() -> Software:
    """Returns the versions in this process that the driver and all executors must share."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version(name) for name in ("thinrow", "rocksdict", "polars", "pyarrow")},
    }


@contextmanager
def task(expected: Software) -> Iterator[Path]:
    """Yields a folder for the files of a task; it is removed at the end.

    An error of ours, or of the executor's disk, reaches the driver as what it is (`failure_of`).

    Args:
        expected: Versions that the driver has.

    Raises:
        RuntimeError: Carries an error of ours through Spark.
    """
    # One of the executor's disks for such files, as Spark's own; its working folder may be small.
    parents = [one for one in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if one]
    parent = random.choice(parents or [tempfile.gettempdir()])
    try:
        for name, here in software().items():
            if here != expected[name]:
                raise EngineError(
                    f"An executor has {name} {here}, and the driver {expected[name]}; run both "
                    f"from one image."
                )
        with tempfile.TemporaryDirectory(prefix="thinrow-", dir=parent) as folder:
            yield Path(folder)
    except (ThinRowError, OSError) as error:
        ours = error
        if isinstance(error, OSError):
            ours = storage_error(error, Path(f"{gethostname()}:{parent}"))
        text = json.dumps({"kind": type(ours).__name__, "message": str(ours)})
        raise RuntimeError(f"THINROW_TASK {text}") from error


def disk_remedy() -> str:
    """Returns what to do where this executor's disk has no room."""
    return f"give executors on {gethostname()} a larger disk (spark.local.dir)"


def attempt_name() -> str:
    """Returns a name of the running attempt of a task, for the keys of its objects.

    Attempts are numbered from 0 again in a stage that runs once more, so a key has a UUID besides.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    return f"stage-{context.stageId()}-task-{context.taskAttemptId()}"


def failure_of(report: str) -> ThinRowError | None:
    """Returns the error of ours that ended a task; None if it was another.

    Args:
        report: Text of Spark's exception.
    """
    # The report has the lines of the source as well, in its traceback.
    found = _FAILURE.search(report)
    if found is None:
        return None
    failure, _ = json.JSONDecoder().raw_decode(report, found.end())
    kind: type[ThinRowError] = getattr(thinrow.errors, failure["kind"])
    return kind(failure["message"])


def check_numbers(name: str, found: list[int], count: int) -> None:
    """Checks that each number below `count` came once.

    Raises:
        EngineError: One is missing, or came twice.
    """
    if sorted(found) != list(range(count)):
        raise EngineError(
            f"Spark returned results of {len(set(found)):,} of {count:,} {name}, {len(found):,} in "
            f"all; nothing was published, so run it again, and report this."
        )


def lost_rows() -> EngineError:
    """Returns the error for rows that did not arrive once each."""
    return EngineError(
        "Rows were lost between tasks or came twice; nothing was published, so run it again, and "
        "report this."
    )


def numbers_in(found: Iterable[pa.RecordBatch]) -> Iterator[int]:
    """Yields the numbers of the work of a task: see `Spark.numbers`."""
    for batch in found:
        yield from batch.column("id").to_pylist()


def result_row(number: int, body: dict[str, Any]) -> pa.RecordBatch:
    """Returns a row of RESULT_COLUMNS."""
    columns = {"number": [number], "body": [json.dumps(body)]}
    return pa.RecordBatch.from_pydict(columns, schema=_RESULT)
