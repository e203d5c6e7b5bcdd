"""deploy/kubernetes-spark compared with the code and with the overlay that it stands on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from support.deployment import (
    ALERTS,
    DEPLOY,
    DOCKERFILE,
    KUBERNETES_VERSION,
    locked,
    parsed,
    read_manifests,
    read_yaml,
)
from thinrow.cli.app import app
from thinrow.engines.spark.slices import RANGE_EVENTS
from thinrow.store.place import is_url

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "kubernetes-spark"
BASE = DEPLOY / "kubernetes-object-store"
OPERATOR = DEPLOY / "kubernetes-spark-operator"
KUSTOMIZATION = read_yaml(FOLDER / "kustomization.yaml")
ADDED = read_manifests(FOLDER)
BELOW = read_manifests(BASE)
JOB = ADDED["CronJob", "compact-spark"]["spec"]
DRIVER = JOB["jobTemplate"]["spec"]["template"]
[CONTAINER] = DRIVER["spec"]["containers"]
ENVIRONMENT: dict[str, str] = ADDED["ConfigMap", "spark-environment"]["data"]
FILES: dict[str, str] = ADDED["ConfigMap", "spark"]["data"]
EXECUTOR: dict[str, Any] = yaml.safe_load(FILES["executor.yaml"])
PROPERTIES = dict(
    line.split(maxsplit=1)
    for line in FILES["spark-defaults.conf"].splitlines()
    if line and line[0] != "#"
)
APPLICATION = yaml.safe_load((OPERATOR / "compact.yaml").read_text(encoding="utf-8"))
TEMPLATE: dict[str, Any] = APPLICATION["spec"]["template"]
STORE = BELOW["ConfigMap", "object-store"]["data"]["STORE"]
EVENT_BYTES = 512
"""Memory of a task for each event of its range of users, at most: docs/guides/fleet.md."""


def gibibytes(text: str) -> int:
    """A size that Spark or Kubernetes knows."""
    return int(re.fullmatch(r"(\d+)(?:g|Gi)", text)[1])  # type: ignore[index]


def command() -> list[str]:
    """Words of the driver's command, as the shell replaces what is in them."""
    shell, flag, script = CONTAINER["command"]
    assert (shell, flag) == ("/bin/sh", "-c")
    names = {"STORE": STORE, **ENVIRONMENT}
    names |= {each["name"]: each.get("value", "127.0.0.1") for each in CONTAINER["env"]}
    for name, value in names.items():
        script = script.replace(f'"${name}"', value)
    script = script.replace('"$(date --utc +%F)"', "2026-01-31")
    assert "$" not in script
    replaces, program, *arguments = shlex.split(script)
    assert (replaces, program) == ("exec", "thinrow"), "SIGTERM reaches the command"
    return arguments


@pytest.mark.parametrize("kind", ADDED, ids="-".join)
def test_manifests_fit_their_schema(kind: tuple[str, str]) -> None:
    kubernetes_validate.validate(ADDED[kind], KUBERNETES_VERSION, strict=True)


def test_executors_fit_their_schema() -> None:
    """Spark names the container's image, and gives the pod a name."""
    [container] = EXECUTOR["spec"]["containers"]
    assert "image" not in container
    kubernetes_validate.validate(EXECUTOR, KUBERNETES_VERSION, strict=True)


def test_application_has_only_fields_of_the_operator() -> None:
    # Its hundreds of models would otherwise be imported by every worker.
    from kubeflow_spark_api.models import SparkV1beta2ScheduledSparkApplication

    read = SparkV1beta2ScheduledSparkApplication.from_dict(APPLICATION)
    assert read is not None
    assert read.to_dict() == APPLICATION


def test_overlays_list_every_manifest_and_their_base() -> None:
    names = {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == names | {"../kubernetes-object-store"}
    assert not ADDED.keys() & BELOW.keys()
    base = read_yaml(BASE / "kustomization.yaml")
    for key in ("namespace", "labels"):
        assert KUSTOMIZATION[key] == base[key]
    assert all(image in KUSTOMIZATION["images"] for image in base["images"])
    operator = read_yaml(OPERATOR / "kustomization.yaml")
    assert set(operator["resources"]) == {"../kubernetes-spark", "compact.yaml"}
    for patches, below in ((KUSTOMIZATION, BELOW), (operator, ADDED)):
        for each in patches["patches"]:
            patch = yaml.safe_load(each["patch"])
            assert patch["$patch"] == "delete"
            kind = each["target"]["kind"], each["target"]["name"]
            assert (patch["kind"], patch["metadata"]["name"]) == kind
            assert patch["apiVersion"] == below[kind]["apiVersion"]


def test_only_one_job_compacts() -> None:
    """The claims of the job that is replaced go with it."""
    removed = {
        (each["target"]["kind"], each["target"]["name"]) for each in KUSTOMIZATION["patches"]
    }
    assert ("CronJob", "compact") in removed
    kept = BELOW.keys() - removed
    assert {name for kind, name in kept if kind == "CronJob"} == {"gc"}
    assert not [name for kind, name in kept if kind == "PersistentVolumeClaim"]


def test_driver_runs_compact_on_spark() -> None:
    name, options = parsed(app, command())
    assert name == "compact"
    assert options["engine"] == "spark"
    assert options["store"] == STORE
    assert is_url(options["store"])
    given = dict(each.split("=", 1) for each in options["spark_conf"])
    assert given["spark.kubernetes.container.image"] == ENVIRONMENT["SPARK_IMAGE"]
    assert not given.keys() & PROPERTIES.keys()
    [configured] = [each["value"] for each in CONTAINER["env"] if each["name"] == "SPARK_CONF_DIR"]
    assert {"name": "spark", "mountPath": configured, "readOnly": True} in CONTAINER["volumeMounts"]
    assert PROPERTIES["spark.kubernetes.executor.podTemplateFile"] == f"{configured}/executor.yaml"
    assert PROPERTIES["spark.master"].startswith("k8s://https://")


def test_driver_and_executors_have_one_image() -> None:
    [image] = [each for each in KUSTOMIZATION["images"] if each["name"] == CONTAINER["image"]]
    assert ENVIRONMENT["SPARK_IMAGE"] == f"{image['name']}:{image['newTag']}"
    assert TEMPLATE["image"] == ENVIRONMENT["SPARK_IMAGE"]
    assert TEMPLATE["sparkVersion"] == locked("spark")["pyspark"]


def test_jobs_end_and_never_overlap_gc() -> None:
    old = BELOW["CronJob", "compact"]["spec"]
    for key in ("schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds"):
        assert JOB[key] == old[key], "test_deploy_object_store.py checks these"
    new_job, old_job = JOB["jobTemplate"]["spec"], old["jobTemplate"]["spec"]
    for key in ("backoffLimit", "activeDeadlineSeconds"):
        assert new_job[key] == old_job[key]
    assert DRIVER["spec"]["restartPolicy"] == "Never"
    spec = APPLICATION["spec"]
    assert [spec[key] for key in ("schedule", "timeZone", "concurrencyPolicy")] == [
        JOB[key] for key in ("schedule", "timeZone", "concurrencyPolicy")
    ]


def test_memory_fits_a_range_of_users_in_each_task() -> None:
    cores = int(PROPERTIES["spark.executor.cores"])
    needed_bytes = cores * RANGE_EVENTS * EVENT_BYTES
    assert gibibytes(PROPERTIES["spark.executor.memoryOverhead"]) << 30 >= needed_bytes
    assert gibibytes(PROPERTIES["spark.executor.memory"]) >= cores, "1 GiB of heap for each task"
    limit = gibibytes(CONTAINER["resources"]["limits"]["memory"])
    assert gibibytes(PROPERTIES["spark.driver.memory"]) < limit
    assert gibibytes(CONTAINER["resources"]["requests"]["memory"]) == limit


def test_operator_sets_what_the_other_job_does() -> None:
    settings = TEMPLATE["sparkConf"]
    executor, driver = TEMPLATE["executor"], TEMPLATE["driver"]
    for key, place in (("instances", "instances"), ("cores", "cores"), ("memory", "memory")):
        assert str(executor[place]) == PROPERTIES[f"spark.executor.{key}"]
    assert executor["memoryOverhead"] == PROPERTIES["spark.executor.memoryOverhead"]
    assert driver["memory"] == PROPERTIES["spark.driver.memory"]
    assert settings.items() <= PROPERTIES.items()
    left = {key for key in PROPERTIES.keys() - settings.keys() if key.startswith("spark.spec")}
    assert not left
    label = executor["labels"]["app.kubernetes.io/name"]
    assert label == PROPERTIES["spark.kubernetes.executor.label.app.kubernetes.io/name"]
    assert driver["labels"] == DRIVER["metadata"]["labels"]
    assert driver["serviceAccount"] == DRIVER["spec"]["serviceAccountName"]
    program = TEMPLATE["mainApplicationFile"].removeprefix("local:///opt/thinrow/bin/")
    assert re.search(rf"^COPY .*\bdeploy/{program} .*/opt/thinrow/bin/$", DOCKERFILE, re.MULTILINE)


def pods() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Security of each pod and of its container."""
    [executor] = EXECUTOR["spec"]["containers"]
    driven = {
        f"operator's {role}": (
            TEMPLATE[role]["podSecurityContext"],
            TEMPLATE[role]["securityContext"],
        )
        for role in ("driver", "executor")
    }
    return driven | {
        "driver": (DRIVER["spec"]["securityContext"], CONTAINER["securityContext"]),
        "executor": (EXECUTOR["spec"]["securityContext"], executor["securityContext"]),
    }


@pytest.mark.parametrize("name", pods())
def test_pods_are_restricted(name: str) -> None:
    pod, container = pods()[name]
    assert pod["runAsNonRoot"] is True
    assert f"\nUSER {pod['runAsUser']}:{pod['runAsGroup']}\n" in DOCKERFILE
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_only_the_driver_has_rights_in_the_cluster() -> None:
    binding, role = ADDED["RoleBinding", "spark-driver"], ADDED["Role", "spark-driver"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    [subject] = binding["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": DRIVER["spec"]["serviceAccountName"]}
    assert ("ServiceAccount", subject["name"]) in ADDED
    resources = [resource for rule in role["rules"] for resource in rule["resources"]]
    assert resources == ["pods", "persistentvolumeclaims"], "no secrets, nothing cluster-wide"
    executor = PROPERTIES["spark.kubernetes.authenticate.executor.serviceAccountName"]
    assert ("ServiceAccount", executor) in BELOW
    assert EXECUTOR["spec"]["automountServiceAccountToken"] is False


def test_credentials_are_in_no_manifest() -> None:
    [executor] = EXECUTOR["spec"]["containers"]
    secret = {"secretRef": {"name": "object-store-write", "optional": True}}
    for sources in (CONTAINER, executor, TEMPLATE["driver"], TEMPLATE["executor"]):
        assert secret in sources["envFrom"]
        assert {"configMapRef": {"name": "object-store"}} in sources["envFrom"]
    assert "Secret" not in {kind for kind, _ in ADDED}
    assert not [
        key for key in [*PROPERTIES, *ENVIRONMENT] if re.search("(?i)key|token|secret", key)
    ]


def test_driver_and_executors_reach_each_other_and_the_object_store() -> None:
    policy = ADDED["NetworkPolicy", "spark"]["spec"]
    [selected] = policy["podSelector"]["matchExpressions"]
    labels = {
        DRIVER["metadata"]["labels"][selected["key"]],
        PROPERTIES[f"spark.kubernetes.executor.label.{selected['key']}"],
    }
    assert (selected["operator"], set(selected["values"])) == ("In", labels)
    [inside] = policy["ingress"]
    peers, names, https = policy["egress"]
    assert peers == {"to": inside["from"], "ports": inside["ports"]}
    assert inside["from"] == [{"podSelector": policy["podSelector"]}]
    keys = ("spark.driver.port", "spark.driver.blockManager.port", "spark.blockManager.port")
    assert {str(each["port"]) for each in inside["ports"]} == {PROPERTIES[key] for key in keys}
    assert [names, https] == BELOW["NetworkPolicy", "object-store"]["spec"]["egress"]
    interface = ADDED["NetworkPolicy", "spark-driver"]["spec"]
    assert interface["podSelector"]["matchLabels"] == DRIVER["metadata"]["labels"]
    assert interface["policyTypes"] == ["Egress"]


@pytest.mark.parametrize("alert", ["ThinRowJobFailed", "ThinRowJobOverdue"])
def test_alerts_watch_every_job(alert: str) -> None:
    [query] = [each["expr"] for each in ALERTS if each["alert"] == alert]
    [pattern] = re.findall(r'(?:job_name|cronjob)=~"([^"]+)"', query)
    for kind, name in ADDED.keys() | BELOW.keys():
        if kind == "CronJob":
            # Kubernetes adds the minute of the schedule to the name of a CronJob's job.
            assert re.fullmatch(pattern, name if alert == "ThinRowJobOverdue" else f"{name}-29876")


# The image


def test_images_of_spark_and_of_servers_have_one_software() -> None:
    server, spark = locked("server"), locked("spark")
    assert server.items() <= spark.items()
    assert {"pyspark", "pandas", "s3fs"} <= spark.keys()
    assert "setuptools" in locked("build"), "pyspark comes as source"
    assert "pyspark" not in server


def stage(name: str) -> str:
    """Lines of a stage of the Dockerfile."""
    [found] = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.S | re.M)
    return str(found)


def test_image_has_java_and_a_name_for_its_user() -> None:
    text = stage("spark")
    assert "openjdk-17-jre-headless" in text
    assert "useradd --uid 10001 --gid 10001" in text
    assert text.rindex("USER 10001:10001") > text.rindex("USER root")
    assert "ENV SPARK_HOME=/opt/spark" in text
    assert '"thinrow-spark"' in text
    assert re.search(r"^COPY .*deploy/thinrow-spark .*/opt/thinrow/bin/$", DOCKERFILE, re.M)


def test_entry_runs_drivers_executors_and_commands(tmp_path: Path) -> None:
    """Java receives all that Spark sets; programs that print their arguments stand in."""
    for name in ("java", "thinrow", "spark-submit"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SPARK_HOME": str(tmp_path),
        "SPARK_DRIVER_BIND_ADDRESS": "10.0.0.1",
        "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@10.0.0.1:7078",
        "SPARK_EXECUTOR_ID": "3",
        "SPARK_EXECUTOR_CORES": "4",
        "SPARK_EXECUTOR_MEMORY": "4g",
        "SPARK_EXECUTOR_POD_IP": "10.0.0.2",
        "SPARK_EXECUTOR_POD_NAME": "executor-3",
        "SPARK_APPLICATION_ID": "app-1",
        "SPARK_RESOURCE_PROFILE_ID": "0",
        "SPARK_CONF_DIR": "/opt/spark/conf",
        **{f"SPARK_JAVA_OPT_{number}": f"-Dn={number} x" for number in range(11)},
    }

    def printed(*arguments: str) -> list[str]:
        ran = subprocess.run(
            [DEPLOY / "thinrow-spark", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return ran.stdout.splitlines()

    assert printed("compact", "a b") == ["thinrow", "compact", "a b"]
    words = printed("driver", "--properties-file", "x", "local:///y.py")
    assert words[0] == "spark-submit"
    assert "spark.driver.bindAddress=10.0.0.1" in words
    assert words[-3:] == ["--properties-file", "x", "local:///y.py"]
    started, *options = printed("executor")
    assert started == "java"
    assert options[:13] == [*(f"-Dn={number} x" for number in range(11)), "-Xms4g", "-Xmx4g"]
    assert options[options.index("-cp") + 1] == f"/opt/spark/conf:{tmp_path}/jars/*"
    given = dict(zip(options[-14::2], options[-13::2], strict=True))
    assert given == {
        "--driver-url": environment["SPARK_DRIVER_URL"],
        "--executor-id": "3",
        "--cores": "4",
        "--app-id": "app-1",
        "--hostname": "10.0.0.2",
        "--resourceProfileId": "0",
        "--podName": "executor-3",
    }
