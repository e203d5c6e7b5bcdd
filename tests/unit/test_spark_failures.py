"""Reports of Spark become one sentence that says what to do; no Spark is needed."""

from __future__ import annotations

from thinrow.engines.spark.session import _cause, _failure

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
