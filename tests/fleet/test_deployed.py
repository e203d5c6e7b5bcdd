"""deploy/kubernetes-spark and the entry of its image, tried on Spark itself."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import yaml
from support.deployment import DEPLOY, read_manifests
from support.paths import ROOT
from support.spark_cluster import Sparked, spark_home
from support.task_hooks import VARIABLE
from support.worlds import some_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]
FOLDER = DEPLOY / "kubernetes-spark"
HOST, POD = "127.0.0.4", "thinrow-executor-77"
START_S = 120


def test_properties_are_known_to_spark(cluster_spark: Sparked) -> None:
    """Spark ignores a property that it does not know."""
    text = read_manifests(FOLDER)["ConfigMap", "spark"]["data"]["spark-defaults.conf"]
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    application = yaml.safe_load(
        (FOLDER.with_name("kubernetes-spark-operator") / "compact.yaml").read_text(encoding="utf-8")
    )
    keys = {line.split()[0] for line in lines} | set(application["spec"]["template"]["sparkConf"])
    jvm = cluster_spark.session._jvm
    # Spark knows the entries of an object once it is loaded.
    assert getattr(getattr(jvm.org.apache.spark.deploy.k8s, "Config$"), "MODULE$") is not None
    find = jvm.org.apache.spark.internal.config.ConfigEntry.findEntry
    assert find("spark.no.such.thing") is None
    unknown = {key for key in keys if find(key) is None}
    # The first has no entry, and the second's is a prefix.
    assert unknown == {
        "spark.master",
        "spark.kubernetes.executor.label.app.kubernetes.io/name",
    }


def test_entry_runs_the_daily_program(tmp_path: Path) -> None:
    """Spark's operator lets the driver's pod do so: by spark-submit, with a file of properties."""
    pq.write_table(some_events(40), tmp_path / "events.parquet")
    properties = tmp_path / "properties"
    properties.write_text("spark.master=local[1]\nspark.ui.enabled=false\n", encoding="utf-8")
    program = DEPLOY / "spark-daily.py"
    done = subprocess.run(
        [DEPLOY / "thinrow-spark", "driver", "--properties-file", properties, program],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SPARK_HOME": str(spark_home()),
            "SPARK_LOCAL_DIRS": str(tmp_path / "local"),
            "SPARK_DRIVER_BIND_ADDRESS": "127.0.0.1",
            "EVENTS": str(tmp_path / "events.parquet"),
            "STORE": f"file://{tmp_path}/store",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Generation 1: 40 events added" in done.stdout


def test_entry_starts_an_executor(cluster_spark: Sparked, tmp_path: Path) -> None:
    """The driver takes it for one of its own, and it runs tasks in the image's Python."""

    def named(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Functions of this module are not on executors; this one is carried there.
        import os
        import time

        import pyarrow as pa

        for _ in batches:
            time.sleep(0.5)
            pod = os.environ.get("SPARK_EXECUTOR_POD_NAME", "")
            yield pa.RecordBatch.from_pydict({"pod": [pod]})

    context = cluster_spark.session.sparkContext
    configuration = dict(context.getConf().getAll())
    driver = f"{configuration['spark.driver.host']}:{configuration['spark.driver.port']}"
    options = [*shlex.split(configuration["spark.executor.extraJavaOptions"]), "-Dnothing=x y"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SPARK_HOME": str(spark_home()),
        "SPARK_LOCAL_DIRS": str(tmp_path / "local"),
        "SPARK_DRIVER_URL": f"spark://CoarseGrainedScheduler@{driver}",
        "SPARK_EXECUTOR_ID": "77",
        "SPARK_EXECUTOR_CORES": "1",
        "SPARK_EXECUTOR_MEMORY": "500m",
        "SPARK_EXECUTOR_POD_IP": HOST,
        "SPARK_EXECUTOR_POD_NAME": POD,
        "SPARK_APPLICATION_ID": context.applicationId,
        "SPARK_RESOURCE_PROFILE_ID": "0",
        # Spark adds options of its own, without which its Arrow does not work.
        **{f"SPARK_JAVA_OPT_{number}": option for number, option in enumerate(options)},
        # Other executors of this test's session have these from its properties.
        "PYTHONPATH": str(ROOT / "tests"),
        VARIABLE: str(cluster_spark.hooks),
    }
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [DEPLOY / "thinrow-spark", "executor"],
            cwd=tmp_path,
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        end_s = time.monotonic() + START_S
        frame = cluster_spark.session.range(0, 12, 1, 12).mapInArrow(named, "pod string")
        while POD not in {row.pod for row in frame.collect()}:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < end_s, log.read_text(encoding="utf-8")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=START_S) in (0, 143)
    finally:
        process.kill()
        process.wait()
