"""A session of Spark for one job: its properties, its progress, and failures in one sentence."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from thinrow.core.files.io_errors import first_line
from thinrow.engines.spark.tasks import failure_of
from thinrow.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from thinrow.events.split import Progress

__all__ = ["ARROW_BATCH_BYTES", "POLL_S", "Spark", "session_properties"]

ARROW_BATCH_BYTES = 32 << 20
"""Bytes of the batches in which Spark gives rows to Python, about: rows have large values here."""
POLL_S = 0.5
"""Interval at which the progress of a job is read."""
TASKS_END_S = 10.0
"""Longest wait for running tasks of a job that failed."""
_DEFAULTS = {
    "spark.app.name": "thinrow",
    # An error of a task is shown in one sentence; Spark would log it as well, with its stack.
    "spark.log.level": "FATAL",
    "spark.ui.showConsoleProgress": "false",
}
_RUNTIME = {
    "spark.sql.execution.arrow.maxBytesPerBatch": str(ARROW_BATCH_BYTES),
    # Rows have up to a MB each, so that the default of 10,000 would not fit into memory.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "128",
}
_SHOWN = "org.apache.spark.scheduler.TaskSchedulerImpl"
"""Logger that warns while no executor takes tasks; otherwise a job would wait in silence."""
_PYTHON = "spark.pyspark.python"
_JAVA = "spark.driver.extraJavaOptions"
_JAVA_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""Options of Java where tasks run in this process: there it only moves messages, so a second
compiler and threads of a collector take a fifth of the processor time and give nothing."""
_PROPERTY = re.compile(r"\s*(spark\.[^\s=:]+)[\s=:]+(.*)")
"""Line of a file of properties of Java."""
_NO_THINROW = "ModuleNotFoundError: No module named 'thinrow"
_CAUSE = re.compile(r"^(?:: )?((?:\w+\.)*\w*(?:Error|Exception): .+)", re.MULTILINE)


class Spark:
    """The user's session, or one that is opened here and stopped at the end. A context manager.

    In a notebook the active session is used. Otherwise properties come from `properties`, from
    spark-submit, or from spark-defaults.conf; with none, Spark runs in this process.

    Args:
        properties: Properties of Spark by name.
        progress: Receives a stage, tasks done, and all of its tasks.

    Raises, when entered:
        UsageError: pyspark is not installed, or is too old.
        EngineError: No session can be opened.
    """

    def __init__(self, properties: Mapping[str, str], progress: Progress = lambda *_: None) -> None:
        self._properties = properties
        self._progress = progress
        self._interrupted = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.session = stack.enter_context(_session(self._properties, self._interrupted))
            stack.enter_context(_runtime_properties(self.session))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def numbers(self, count: int) -> Any:  # noqa: ANN401 - pyspark may not be installed
        """Returns a frame of the numbers below `count` in a column `id`, each in its own task."""
        return self.session.range(0, count, 1, count)

    @contextmanager
    def kept(self, frame: Any) -> Iterator[Any]:  # noqa: ANN401
        """Yields a frame whose rows stay on the executors' disks until the block ends."""
        from pyspark import StorageLevel

        kept = frame.persist(StorageLevel.DISK_ONLY)
        try:
            yield kept
        finally:
            with suppress(Exception):  # the session may be gone
                kept.unpersist()

    def rows(self, frame: Any, stage: str) -> list[Any]:  # noqa: ANN401
        """Returns the rows of a frame, which its tasks make.

        Args:
            frame: The frame.
            stage: Description of the work, as the progress and Spark's pages show it.

        Raises:
            ThinRowError: What a task raised of ours.
            EngineError: Spark could not finish the tasks.
        """
        with _described(self.session, stage, self._progress):
            try:
                rows: list[Any] = frame.collect()
            except Exception as error:
                if self._interrupted.is_set():
                    # py4j may end a call for which it was waiting by an error of its own.
                    raise KeyboardInterrupt from error
                raise failure_of(str(error)) or _failure(error, stage) from error
            return rows


@contextmanager
def _session(properties: Mapping[str, str], interrupted: threading.Event) -> Iterator[Any]:
    try:
        # Only Arrow data passes between Spark and Python here.
        warnings.filterwarnings(
            "ignore", "PySpark does not yet fully support pandas", FutureWarning
        )
        import pyspark
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UsageError(
            f"--engine spark needs {error.name}; pip install 'thinrow[spark]'."
        ) from error
    if tuple(map(int, pyspark.__version__.split(".")[:2])) < (4, 1):
        raise UsageError(
            f"--engine spark needs pyspark 4.1 or later, and {pyspark.__version__} is installed; "
            f"pip install 'thinrow[spark]'."
        )
    active = SparkSession.getActiveSession()
    if active is not None:
        yield _opened(SparkSession.builder, properties, properties)
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    with _interrupts_not_logged():
        wanted = session_properties(properties)
        session = _opened(SparkSession.builder, wanted, properties)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            # pyspark's own handler calls Java while a call to Java waits, which fails.
            is_default = before is signal.default_int_handler
            signal.signal(signal.SIGINT, interrupt if is_default else before)
        try:
            if "spark.log.level" not in properties:
                _show_waiting(session)
            yield session
        finally:
            session.stop()
            if is_main:
                signal.signal(signal.SIGINT, before)


def _opened(builder: Any, wanted: Mapping[str, str], properties: Mapping[str, str]) -> Any:  # noqa: ANN401
    """Opens a session with properties, of which some are the user's. Raises EngineError."""
    for key, value in wanted.items():
        builder = builder.remote(value) if key == "spark.remote" else builder.config(key, value)
    try:
        with _python_of_tasks(wanted.get(_PYTHON)), warnings.catch_warnings():
            # A server of Spark Connect keeps its own.
            for key in wanted.keys() - properties.keys():
                warnings.filterwarnings("ignore", f"Failed to set {re.escape(key)} ", UserWarning)
            return builder.getOrCreate()
    except Exception as error:
        raise EngineError(
            f"No session of Spark can be opened: {_cause(error)}; check that spark.master answers, "
            f"the other properties of --spark-conf, and that Java 17 or later is installed."
        ) from error


@contextmanager
def _interrupts_not_logged() -> Iterator[None]:
    """Drops py4j's tracebacks of calls that an interrupt ended; others are raised besides.

    Some of them go to py4j's own loggers, and some to the root.
    """
    root, own = logging.getLogger(), logging.getLogger("py4j")
    propagates, own.propagate = own.propagate, False
    root.addFilter(_is_worth_logging)
    try:
        yield
    finally:
        root.removeFilter(_is_worth_logging)
        own.propagate = propagates


def _is_worth_logging(record: logging.LogRecord) -> bool:
    return "py4j" not in Path(record.pathname).parts


def session_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """Returns what a new session is opened with, beside the configuration of Spark.

    Args:
        properties: Properties of the user, which come first.
    """
    configured = _configured()
    wanted = {key: value for key, value in _DEFAULTS.items() if key not in configured}
    wanted |= properties
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has set master and Python
    if _PYTHON in configured:
        wanted.setdefault(_PYTHON, configured[_PYTHON])
    master = wanted.get("spark.master", configured.get("spark.master", "local"))
    if master.startswith("local") and not is_submitted:
        # Else the first python3 of the path is taken, which may lack everything.
        wanted.setdefault(_PYTHON, os.environ.get("PYSPARK_PYTHON", sys.executable))
        if _JAVA not in configured:
            wanted.setdefault(_JAVA, _JAVA_OPTIONS)
    return wanted


def _configured() -> dict[str, str]:
    """Reads spark-defaults.conf where Spark does."""
    home = os.environ.get("SPARK_HOME")
    folder = os.environ.get("SPARK_CONF_DIR", home and f"{home}/conf")
    path = Path(folder or "", "spark-defaults.conf")
    if folder is None or not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line[1]: line[2].strip() for line in map(_PROPERTY.match, lines) if line}


def _show_waiting(session: Any) -> None:  # noqa: ANN401
    """Shows Spark's warning that no executor takes tasks, beside its errors."""
    jvm = getattr(session, "_jvm", None)
    if jvm is not None:  # not Spark Connect
        log4j = jvm.org.apache.logging.log4j
        log4j.core.config.Configurator.setLevel(_SHOWN, log4j.Level.WARN)


@contextmanager
def _python_of_tasks(path: str | None) -> Iterator[None]:
    """Sets the variable that pyspark reads where spark-submit reads a property."""
    before = os.environ.get("PYSPARK_PYTHON")
    if path is not None:
        os.environ["PYSPARK_PYTHON"] = path
    try:
        yield
    finally:
        if path is not None:
            os.environ.pop("PYSPARK_PYTHON")
        if before is not None:
            os.environ["PYSPARK_PYTHON"] = before


@contextmanager
def _runtime_properties(session: Any) -> Iterator[None]:  # noqa: ANN401
    """Sets what jobs here need, and what was set before at the end.

    Raises:
        UsageError: A property of the session has a value that Spark cannot read.
    """
    try:
        before = {key: session.conf.get(key, None) for key in _RUNTIME}
        for key, value in _RUNTIME.items():
            session.conf.set(key, value)
    except Exception as error:  # the first use of properties of Spark SQL reads all of them
        raise UsageError(
            f"Spark cannot use its properties: {_cause(error)}; correct --spark-conf, or the "
            f"configuration of Spark."
        ) from error
    try:
        yield
    finally:
        with suppress(Exception):  # the session may be gone
            for key, value in before.items():
                if value is None:
                    session.conf.unset(key)
                else:
                    session.conf.set(key, value)


@contextmanager
def _described(session: Any, stage: str, progress: Progress) -> Iterator[None]:  # noqa: ANN401
    """Names the jobs of the block, shows their progress, and cancels them if it is interrupted."""
    context = getattr(session, "_sc", None)
    if context is None:  # Spark Connect
        session.addTag(_tag(stage))
        try:
            yield
        finally:
            session.removeTag(_tag(stage))
        return
    group = uuid4().hex
    context.setJobGroup(group, stage, interruptOnCancel=True)
    ended = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(context.statusTracker(), group, stage, progress, ended), daemon=True
    )
    watcher.start()
    try:
        yield
    except BaseException:
        with suppress(Exception):
            context.cancelJobGroup(group)
            _await_tasks(context.statusTracker(), group)
        raise
    finally:
        ended.set()
        watcher.join()
        with suppress(Exception):
            context.setLocalProperty("spark.jobGroup.id", None)
            context.setLocalProperty("spark.job.description", None)


def _await_tasks(tracker: Any, group: str) -> None:  # noqa: ANN401
    """Waits a while for the tasks of jobs that have ended: Spark reports those that a session which
    stops has left, with a stack."""
    end_s = time.monotonic() + TASKS_END_S
    while time.monotonic() < end_s:
        if not any(info.numActiveTasks for info in _stages(tracker, group)):
            return
        time.sleep(POLL_S)


def _stages(tracker: Any, group: str) -> list[Any]:  # noqa: ANN401
    """Returns the stages of a group of jobs."""
    jobs = map(tracker.getJobInfo, tracker.getJobIdsForGroup(group))
    numbers = {number for job in jobs if job is not None for number in job.stageIds}
    return [info for info in map(tracker.getStageInfo, sorted(numbers)) if info]


def _tag(stage: str) -> str:
    return re.sub(r"[^\w-]+", "-", stage)


def _watch(
    tracker: Any,  # noqa: ANN401
    group: str,
    stage: str,
    progress: Progress,
    ended: threading.Event,
) -> None:
    """Reports the tasks of a group of jobs until it ends."""
    while not ended.wait(POLL_S):
        with suppress(Exception):  # a tracker of a session that is going away
            stages = _stages(tracker, group)
            done = sum(info.numCompletedTasks for info in stages)
            if stages:
                progress(stage, done, sum(info.numTasks for info in stages))


def _failure(error: Exception, stage: str) -> EngineError:
    """Returns the error of a job that ended by none of ours."""
    if _NO_THINROW in str(error):
        return EngineError(
            "Python on the executors has no thinrow; run them from the driver's image, or name "
            "a Python there that has it: --spark-conf spark.pyspark.python=PATH."
        )
    return EngineError(
        f"Spark did not finish: {stage[0].lower()}{stage[1:]}: {_cause(error)}; its pages and the "
        f"executors' logs have more."
    )


def _cause(error: Exception) -> str:
    """Returns the line of Spark's report that names the cause."""
    found = _CAUSE.findall(str(error))
    return (found[-1] if found else first_line(error)).rstrip(". ")
