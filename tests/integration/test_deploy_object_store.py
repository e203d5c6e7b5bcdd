"""deploy/kubernetes-object-store compared with the code and deploy/kubernetes; its jobs run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pyarrow.parquet as pq
import pytest
import yaml
from support.deployment import (
    DEPLOY,
    DOCKERFILE,
    KUBERNETES,
    KUBERNETES_VERSION,
    MANIFESTS,
    memory_bound_bytes,
    parsed,
    port,
    read_manifests,
    read_yaml,
)
from support.worlds import some_events
from thinrow.cli.app import app
from thinrow.store.place import is_url

FOLDER = DEPLOY / "kubernetes-object-store"
KUSTOMIZATION = read_yaml(FOLDER / "kustomization.yaml")
ADDED = read_manifests(FOLDER)
PATCHES = {
    (each["target"]["kind"], each["target"]["name"]): yaml.safe_load(each["patch"])
    for each in KUSTOMIZATION["patches"]
}
ENVIRONMENT: dict[str, str] = ADDED["ConfigMap", "object-store"]["data"]
JOBS = {name: ADDED["CronJob", name]["spec"] for name in ("compact", "gc")}
PODS: dict[str, dict[str, Any]] = {
    "server": ADDED["StatefulSet", "server"]["spec"]["template"],
    **{name: spec["jobTemplate"]["spec"]["template"] for name, spec in JOBS.items()},
}
CONTAINERS = {
    each["name"]: (pod, each)
    for pod in PODS.values()
    for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
}
SERVER = CONTAINERS["server"][1]


def expanded(text: str) -> str:
    """Text with the environment in it, as Kubernetes and the shell write it."""
    for name, value in ENVIRONMENT.items():
        text = text.replace(f"$({name})", value).replace(f'"${name}"', value)
    return text.replace('"$(date --utc +%F)"', "2026-01-31")


def options_of(name: str) -> dict[str, Any]:
    """Options of a container's command; fails where the command would."""
    container = CONTAINERS[name][1]
    if "command" not in container:
        return parsed(app, [expanded(each) for each in container["args"]])[1]
    shell, flag, script = container["command"]
    assert (shell, flag) == ("/bin/sh", "-c")
    replaces, program, *arguments = shlex.split(expanded(script))
    assert (replaces, program) == ("exec", "thinrow"), "SIGTERM reaches the command"
    return parsed(app, arguments)[1]


def mounted(name: str, path: Path) -> dict[str, Any]:
    """The mount of a container that a path lies in."""
    mounts = CONTAINERS[name][1]["volumeMounts"]
    [found] = [each for each in mounts if path.is_relative_to(each["mountPath"])]
    result: dict[str, Any] = found
    return result


@pytest.mark.parametrize("kind", ADDED, ids="-".join)
def test_manifests_fit_their_schema(kind: tuple[str, str]) -> None:
    kubernetes_validate.validate(ADDED[kind], KUBERNETES_VERSION, strict=True)


def test_overlay_lists_every_manifest_and_the_base() -> None:
    listed = set(KUSTOMIZATION["resources"])
    assert listed == {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"} | {
        "../kubernetes"
    }
    assert (FOLDER / "../kubernetes").resolve() == KUBERNETES
    assert not ADDED.keys() & MANIFESTS.keys()
    base = read_yaml(KUBERNETES / "kustomization.yaml")
    for key in ("images", "namespace", "labels"):
        assert KUSTOMIZATION[key] == base[key]


def test_patches_replace_the_deployment() -> None:
    for kind, patch in PATCHES.items():
        assert kind in MANIFESTS
        assert (patch["kind"], patch["metadata"]["name"]) == kind
        assert patch["apiVersion"] == MANIFESTS[kind]["apiVersion"]
    removed = {kind for kind, patch in PATCHES.items() if patch.get("$patch") == "delete"}
    assert removed == {("Deployment", "server"), ("PersistentVolumeClaim", "store")}
    scaler = PATCHES["HorizontalPodAutoscaler", "server"]
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in ADDED
    assert target["apiVersion"] == ADDED[target["kind"], target["name"]]["apiVersion"]
    patched = MANIFESTS["HorizontalPodAutoscaler", "server"]
    patched = patched | {"spec": patched["spec"] | scaler["spec"]}
    kubernetes_validate.validate(patched, KUBERNETES_VERSION, strict=True)


def test_servers_differ_from_the_base_only_in_their_store() -> None:
    deployment = MANIFESTS["Deployment", "server"]["spec"]["template"]
    [container] = deployment["spec"]["containers"]
    own = options_of("server")
    assert is_url(own["store"])
    assert own["mirror"] is not None
    shared = parsed(app, container["args"])[1]
    assert own | {"store": shared["store"], "mirror": None} == shared
    changed = {"args", "envFrom", "startupProbe", "volumeMounts"}
    assert {key: SERVER[key] for key in SERVER.keys() - changed} == {
        key: container[key] for key in container.keys() - changed
    }
    pod, base = PODS["server"]["spec"], deployment["spec"]
    assert PODS["server"]["metadata"] == deployment["metadata"]
    for key in base.keys() - {"containers", "volumes", "securityContext"}:
        assert pod[key] == base[key]
    assert pod["securityContext"].items() >= base["securityContext"].items()


def test_servers_have_room_and_time_for_their_mirror() -> None:
    spec, options = ADDED["StatefulSet", "server"]["spec"], options_of("server")
    assert spec["selector"]["matchLabels"] == PODS["server"]["metadata"]["labels"]
    assert ("Service", spec["serviceName"]) in MANIFESTS
    [claim] = spec["volumeClaimTemplates"]
    mount = mounted("server", options["mirror"])
    assert mount["name"] == claim["metadata"]["name"]
    assert not mount.get("readOnly", False)
    assert str(options["mirror"]) != mount["mountPath"], "a folder that the server owns"
    limit = SERVER["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) << 30 >= memory_bound_bytes(options)
    probe = SERVER["startupProbe"]
    assert probe["grpc"]["port"] == port(options["listen"])
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 3600


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_restricted(name: str) -> None:
    pod, container = CONTAINERS[name]
    assert container["image"] == KUSTOMIZATION["images"][0]["name"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    user = pod["spec"]["securityContext"]
    assert user["runAsNonRoot"] is True
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in DOCKERFILE
    limits = container["resources"]["limits"]
    assert limits == {"memory": container["resources"]["requests"]["memory"]}
    own = {each["metadata"]["name"] for each in claims_of_servers()} if name == "server" else set()
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    for mount in container["volumeMounts"]:
        assert mount["name"] in volumes.keys() | own
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in ADDED


def claims_of_servers() -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = ADDED["StatefulSet", "server"]["spec"]["volumeClaimTemplates"]
    return claims


@pytest.mark.parametrize("name", CONTAINERS)
def test_credentials_are_in_no_manifest(name: str) -> None:
    """They come from a secret that an operator made, or from the role of a service account."""
    pod, container = CONTAINERS[name]
    assert "env" not in container
    config, secret = container["envFrom"]
    assert ("ConfigMap", config["configMapRef"]["name"]) in ADDED
    wanted = "object-store-read" if name == "server" else "object-store-write"
    assert secret == {"secretRef": {"name": wanted, "optional": True}}
    account = "server" if name == "server" else "store-writer"
    assert pod["spec"]["serviceAccountName"] == account
    assert ("ServiceAccount", account) in ADDED
    assert "Secret" not in {kind for kind, _ in ADDED}
    page = (DEPLOY.parent / "docs/guides/object-stores.md").read_text(encoding="utf-8")
    for variable in ENVIRONMENT.keys() - {"STORE"}:
        assert f"`{variable}" in page
        assert "KEY" not in variable
        assert "TOKEN" not in variable


@pytest.mark.parametrize("name", JOBS)
def test_jobs_end_and_never_overlap(name: str) -> None:
    job = JOBS[name]
    assert job["concurrencyPolicy"] == "Forbid"
    assert job["timeZone"] == "Etc/UTC"
    spec = job["jobTemplate"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert 0 < spec["backoffLimit"] <= 6
    starting_s, active_s = job["startingDeadlineSeconds"], spec["activeDeadlineSeconds"]
    assert starts_at_s(name) + starting_s + active_s < 86_400, "the date stays that of the schedule"


def starts_at_s(name: str) -> int:
    """Time of day at which a job starts."""
    minute, hour, *days = JOBS[name]["schedule"].split()
    assert days == ["*", "*", "*"]
    return int(hour) * 3600 + int(minute) * 60


def test_gc_waits_for_compaction_and_verification() -> None:
    compaction, gc = options_of("compact"), options_of("gc")
    active_s = JOBS["compact"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert starts_at_s("gc") > starts_at_s("compact") + active_s
    assert gc["grace"] > 1000 * active_s
    assert [each["name"] for each in PODS["gc"]["spec"]["initContainers"]] == ["verify"]
    assert {options_of(name)["store"] for name in CONTAINERS} == {compaction["store"]}
    mirror = mounted("compact", compaction["mirror"])
    assert not mirror.get("readOnly", False)
    [events] = compaction["events"]
    assert mounted("compact", Path(events))["readOnly"] is True


def test_pods_reach_the_object_store_and_nothing_reaches_jobs() -> None:
    policy = ADDED["NetworkPolicy", "object-store"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    [selected] = policy["podSelector"]["matchExpressions"]
    labels = {pod["metadata"]["labels"][selected["key"]] for pod in PODS.values()}
    assert (selected["operator"], set(selected["values"])) == ("In", labels)
    assert len(labels) == len(PODS)
    names, https = policy["egress"]
    assert {(each["port"], each["protocol"]) for each in names["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }
    assert https["ports"] == [{"port": 443, "protocol": "TCP"}]
    [target] = https["to"]
    assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(target["ipBlock"]["except"])


def test_jobs_do_a_day(tmp_path: Path) -> None:
    """The commands as written, one after another, on folders of this machine."""
    (tmp_path / "events").mkdir()
    pq.write_table(some_events(40, days=1), tmp_path / "events/day.parquet")
    store = f"file://{tmp_path}/histories"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = {}
    for name in ("compact", "verify", "gc"):
        container = CONTAINERS[name][1]
        command = container.get("command") or ["thinrow", *container["args"]]
        for folder in ("events", "mirror"):
            command = [each.replace(f"/{folder}", f"{tmp_path}/{folder}") for each in command]
        done = subprocess.run(
            [each.replace("$(STORE)", store) for each in command],
            env=os.environ | {"PATH": path, "STORE": store},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed[name] = done.stdout
    assert "0 problems" in printed["verify"]
    assert "Removed no generation" in printed["gc"]
    assert (tmp_path / "mirror/store/CURRENT").is_file()
