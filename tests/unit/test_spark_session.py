"""Properties of a session, and failures of Spark in one sentence; no Spark is needed."""

from __future__ import annotations

import ast
import re
import sys
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from support.paths import DOCS, ROOT
from thinrow.engines.spark.session import (
    _cause,
    _failure,
    _runtime_properties,
    session_properties,
)
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

PYTHON_OF_TASKS = "spark.pyspark.python"
JAVA = """An error occurred while calling None.org.apache.spark.sql.classic.SparkSession.
: java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.
This stopped SparkContext was created at:

org.apache.spark.api.java.JavaSparkContext.<init>(JavaSparkContext.scala:59)
"""
PYTHON = """Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times. Traceback (most \
recent call last):
  File "/opt/spark/python/lib/pyspark.zip/pyspark/serializers.py", line 458, in loads
    return cloudpickle.loads(obj, encoding=encoding)
ModuleNotFoundError: No module named 'thinrow'

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException
"""


def test_causes_are_found_below_the_line_of_py4j() -> None:
    wanted = "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext"
    assert _cause(RuntimeError(JAVA)) == wanted
    assert _cause(RuntimeError(PYTHON)) == "ModuleNotFoundError: No module named 'thinrow'"
    assert _cause(RuntimeError("Connection refused.\nat x")) == "Connection refused"


def test_executors_without_thinrow_are_named() -> None:
    assert "spark.pyspark.python=PATH" in str(_failure(RuntimeError(PYTHON), "Building shards"))
    other = PYTHON.replace("thinrow", "s3fs")
    sentence = str(_failure(RuntimeError(other), "Building shards"))
    assert sentence.startswith("Spark did not finish: building shards: ModuleNotFoundError: No m")


def test_a_property_that_spark_cannot_read_is_one_sentence() -> None:
    """Spark reads all of them at the first use of one."""
    session = mock.Mock()
    cause = "[INVALID_CONF_VALUE.TYPE_MISMATCH] The value 'abc' in the config is invalid"
    session.conf.get.side_effect = RuntimeError(f"{cause}. It should be an int.\n\tat java")
    with (
        pytest.raises(UsageError, match=r"The value 'abc' .*; correct --spark-conf") as raised,
        _runtime_properties(session),
    ):
        pass
    assert "\n" not in str(raised.value)


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of properties that Spark finds."""
    for name in ("SPARK_HOME", "PYSPARK_PYTHON", "PYSPARK_GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    return tmp_path / "spark-defaults.conf"


def test_tasks_of_this_process_have_its_python(defaults: Path) -> None:
    assert session_properties({})[PYTHON_OF_TASKS] == sys.executable
    assert session_properties({"spark.master": "local[2]"})[PYTHON_OF_TASKS] == sys.executable
    assert PYTHON_OF_TASKS not in session_properties({"spark.master": "spark://host:7077"})
    assert not defaults.exists()


def test_properties_of_a_file_stay_as_they_are(defaults: Path) -> None:
    defaults.write_text(
        "# as a team has it\nspark.master\tspark://host:7077\nspark.log.level=INFO\n", "utf-8"
    )
    wanted = session_properties({"spark.executor.memory": "4g"})
    assert PYTHON_OF_TASKS not in wanted, "the cluster's machines may have it elsewhere"
    assert not wanted.keys() & {"spark.master", "spark.log.level"}
    assert wanted["spark.executor.memory"] == "4g"
    assert wanted["spark.app.name"] == "thinrow"
    assert session_properties({"spark.master": "local"})[PYTHON_OF_TASKS] == sys.executable


def test_python_of_a_file_is_used(defaults: Path) -> None:
    """pyspark itself takes it from spark-submit alone."""
    defaults.write_text(f"{PYTHON_OF_TASKS}  /opt/thinrow/bin/python\n", encoding="utf-8")
    assert session_properties({})[PYTHON_OF_TASKS] == "/opt/thinrow/bin/python"
    given = {PYTHON_OF_TASKS: "/usr/bin/python3"}
    assert session_properties(given)[PYTHON_OF_TASKS] == "/usr/bin/python3"


def test_spark_submit_chooses_python(defaults: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert PYTHON_OF_TASKS not in session_properties({})
    assert not defaults.exists()


OF_SPARK = {
    "Initial job has not accepted any resources",
    "ExecutorLostFailure",
    "exit code 137",
    "exited unexpectedly",
    "java.lang.OutOfMemoryError: Java heap space",
    "No space left on device",
    ": No such file or directory",
}
"""Sentences in the guide that Spark and the system write."""


def messages() -> str:
    """All texts of the server's code, with an ellipsis for each value in them."""
    found = []
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_sentences_of_the_guide_are_those_of_the_code() -> None:
    page = (DOCS / "guides/fleet.md").read_text(encoding="utf-8")
    [table] = re.findall(r"\| the command says \| do \|\n.*?\n\n", page, re.DOTALL)
    rows = [line.split(" | ")[0] for line in table.splitlines()[2:] if line]
    sentences = [sentence for row in rows for sentence in re.findall("`([^`]+)`", row)]
    assert len(sentences) > 10
    ours = messages()
    for sentence in sentences:
        for part in map(str.strip, re.split("…|s3://|1\\.[23]", sentence)):
            known = part in ours or any(part in one or one in part for one in OF_SPARK)
            assert known or len(part) < 3, f"no message has {part!r}"
