"""deploy/kubernetes-cluster, as kubectl renders it, compared with the code and its base."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from support.deployment import (
    DEPLOY,
    HEALTH,
    KUBERNETES_VERSION,
    MANIFESTS,
    memory_bound_bytes,
    parsed,
    port,
    read_manifests,
    read_yaml,
)
from support.kustomized import rendered, rendered_with
from thinrow.cli.app import app
from thinrow.store.place import is_url

if TYPE_CHECKING:
    from support.kustomized import Manifests

FOLDER = DEPLOY / "kubernetes-cluster"
BASE = FOLDER / "base"
COMPONENTS = FOLDER / "components"
OVERLAYS = {"one-group": 1, "sixteen-groups": 16}
COPIES = ("a", "b")
COPIED = read_manifests(BASE / "copy")
BELOW = read_manifests(DEPLOY / "kubernetes-object-store")
NAMESPACE = "thinrow"
DEFINED_BY_OTHERS = {"ServiceMonitor", "VerticalPodAutoscaler"}
APPLIED = ("kubernetes-spark-operator", *(f"kubernetes-cluster/{name}" for name in OVERLAYS))
"""Overlays that people apply and no other stands on: the others are in them."""
GENERATED = ("ConfigMap", "cluster")


def named(manifests: Manifests, kind: str, name: str) -> dict[str, Any]:
    """A manifest whose name may end in the hash of what it holds."""
    [found] = [
        each
        for (its_kind, its_name), each in manifests.items()
        if its_kind == kind and its_name in (name, f"{name}-{its_name.rpartition('-')[2]}")
    ]
    return found


def container_of(manifests: Manifests, copy: str = "a") -> dict[str, Any]:
    """The container of a copy's pods."""
    pod = manifests["StatefulSet", f"thinrow-{copy}"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert isinstance(container, dict)
    return container


def options_of(manifests: Manifests, group: str = "3") -> dict[str, Any]:
    """Options of a server of a group; fails where the command would."""
    environment = manifests["ConfigMap", "object-store"]["data"] | {"GROUP": group}
    arguments = container_of(manifests)["args"]
    for name, value in environment.items():
        arguments = [each.replace(f"$({name})", value) for each in arguments]
    return parsed(app, arguments)[1]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Manifests:
    return rendered(FOLDER / request.param)


@pytest.fixture
def one() -> Manifests:
    return rendered(FOLDER / "one-group")


@pytest.mark.parametrize(
    "path", [path for path in FOLDER.rglob("*.yaml") if "components" not in path.parts], ids=str
)
def test_files_fit_their_schema(path: Path) -> None:
    if path.name == "kustomization.yaml":
        return
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("name", APPLIED)
def test_overlays_render(name: str) -> None:
    """Patched manifests fit their schema."""
    known = DEFINED_BY_OTHERS | {"ScheduledSparkApplication"}
    for (kind, _), manifest in rendered(DEPLOY / name).items():
        if kind not in known:
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_folders_list_what_they_hold() -> None:
    for folder in (BASE, BASE / "copy", *(FOLDER / name for name in OVERLAYS)):
        listed = set(read_yaml(folder / "kustomization.yaml")["resources"])
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files <= listed
        assert all((folder / name).exists() for name in listed)


def test_every_group_has_a_server_in_each_copy_and_a_budget(
    request: pytest.FixtureRequest, overlay: Manifests
) -> None:
    groups = OVERLAYS[request.node.callspec.params["overlay"]]
    desired = tomllib.loads(named(overlay, *GENERATED)["data"]["cluster.toml"])
    assert desired["groups"] == groups
    for copy, target in zip(COPIES, desired["targets"], strict=True):
        spec = overlay["StatefulSet", f"thinrow-{copy}"]["spec"]
        service = overlay["Service", spec["serviceName"]]
        assert spec["replicas"] == groups
        assert service["spec"]["clusterIP"] == "None"
        # `apply` queries servers that are not ready yet.
        assert service["spec"]["publishNotReadyAddresses"] is True
        labels = spec["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == labels == spec["selector"]["matchLabels"]
        assert labels["thinrow/copy"] == copy
        host = f"thinrow-{copy}-{{group}}.{spec['serviceName']}.{NAMESPACE}"
        assert target == f"{host}:{port(str(options_of(overlay)['listen']))}"
    budgets = [each["spec"] for (kind, _), each in overlay.items() if kind == "PodDisruptionBudget"]
    label = "apps.kubernetes.io/pod-index"
    selected = [each["selector"]["matchLabels"] for each in budgets]
    assert {each[label] for each in selected} == set(map(str, range(groups)))
    assert len(selected) == groups, "a pod of two budgets cannot be evicted at all"
    assert all(each.keys() == {"app.kubernetes.io/name", label} for each in selected)
    # A share, or maxUnavailable, counts all pods of the sets, of which a budget has two.
    assert all(each["minAvailable"] == 1 and "maxUnavailable" not in each for each in budgets)


def test_copies_differ_in_their_name_alone(overlay: Manifests) -> None:
    first, second = (
        yaml.safe_dump(overlay["StatefulSet", f"thinrow-{copy}"]).replace(
            f"copy: {copy}", "copy: x"
        )
        for copy in COPIES
    )
    assert first.replace("thinrow-a", "thinrow-b") == second


def test_a_group_is_the_number_of_its_pod(one: Manifests) -> None:
    [group] = container_of(one)["env"]
    assert group["name"] == "GROUP"
    field = group["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert options_of(one, "15")["group"] == "15"


def test_copies_of_a_group_are_kept_apart(one: Manifests) -> None:
    for copy in COPIES:
        pod = one["StatefulSet", f"thinrow-{copy}"]["spec"]["template"]["spec"]
        apart = pod["affinity"]["podAntiAffinity"]
        [node] = apart["requiredDuringSchedulingIgnoredDuringExecution"]
        [zone] = apart["preferredDuringSchedulingIgnoredDuringExecution"]
        # A selector with the copy in it would keep the pods of one copy apart, and not the copies.
        both = {"matchLabels": {"app.kubernetes.io/name": "thinrow-server"}}
        assert node["labelSelector"] == zone["podAffinityTerm"]["labelSelector"] == both
        assert node["topologyKey"] == "kubernetes.io/hostname"
        assert node["matchLabelKeys"] == ["apps.kubernetes.io/pod-index"]
        assert zone["podAffinityTerm"]["mismatchLabelKeys"] == ["thinrow/copy"]


def test_servers_differ_from_the_base_only_in_their_group(one: Manifests) -> None:
    old = BELOW["StatefulSet", "server"]["spec"]["template"]["spec"]
    [container] = old["containers"]
    new = COPIED["StatefulSet", "thinrow"]["spec"]["template"]["spec"]
    [server] = new["containers"]
    assert {key: value for key, value in new.items() if key not in ("affinity", "containers")} == {
        key: value for key, value in old.items() if key != "containers"
    }
    added = {"env", "resizePolicy"}
    assert {key: server[key] for key in server.keys() - added - {"args"}} == {
        key: container[key] for key in container.keys() - {"args"}
    }
    assert [each for each in server["args"] if each != "--group=$(GROUP)"] == container["args"]
    options = options_of(one)
    assert is_url(options["store"])
    limit = server["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) << 30 >= memory_bound_bytes(options)


def test_volumes_are_disks_of_a_node(one: Manifests) -> None:
    [claim] = one["StatefulSet", "thinrow-a"]["spec"]["volumeClaimTemplates"]
    storage = one["StorageClass", claim["spec"]["storageClassName"]]
    assert storage["volumeBindingMode"] == "WaitForFirstConsumer"
    mounts = {each["name"]: each["mountPath"] for each in container_of(one)["volumeMounts"]}
    assert Path(options_of(one)["mirror"]).is_relative_to(mounts[claim["metadata"]["name"]])


def test_nothing_replaces_or_scales_pods_by_itself(one: Manifests) -> None:
    """Two sets that roll at once could both lose a group; another replica count is another map."""
    for copy in COPIES:
        spec = one["StatefulSet", f"thinrow-{copy}"]["spec"]
        assert spec["updateStrategy"] == {"type": "OnDelete"}
        assert spec["podManagementPolicy"] == "Parallel"
    kinds = {kind for kind, _ in one}
    assert not kinds & {"HorizontalPodAutoscaler", "Deployment"}
    assert ("StatefulSet", "server") not in one


def test_the_map_is_applied_by_hand(one: Manifests) -> None:
    spec = one["CronJob", "cluster-apply"]["spec"]
    assert spec["suspend"] is True
    template = spec["jobTemplate"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    store = one["ConfigMap", "object-store"]["data"]["STORE"]
    words = [each.replace("$(STORE)", store) for each in container["args"]]
    name, options = parsed(app, words)
    assert name == "apply"
    assert options["store"] == store
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    path = Path(words[2])
    assert mounts[str(path.parent)] == "cluster"
    [volume] = [each for each in template["spec"]["volumes"] if each["name"] == "cluster"]
    generated = named(one, *GENERATED)
    assert volume["configMap"]["name"] == generated["metadata"]["name"]
    assert path.name in generated["data"]
    assert template["spec"]["serviceAccountName"] == "store-writer"
    gc = BELOW["CronJob", "gc"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert container["securityContext"] == gc["containers"][0]["securityContext"]
    assert template["spec"]["securityContext"] == gc["securityContext"]


def test_the_job_reaches_servers_and_the_object_store(one: Manifests) -> None:
    template = one["CronJob", "cluster-apply"]["spec"]["jobTemplate"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    policy = one["NetworkPolicy", "cluster-apply"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    servers, *rest = policy["egress"]
    assert rest == BELOW["NetworkPolicy", "object-store"]["spec"]["egress"]
    [selected] = [each["podSelector"]["matchLabels"] for each in servers["to"]]
    pod = one["StatefulSet", "thinrow-a"]["spec"]["template"]["metadata"]["labels"]
    assert selected.items() <= pod.items()
    trainers, _ = MANIFESTS["NetworkPolicy", "server"]["spec"]["ingress"]
    [who] = trainers["from"]
    assert who["podSelector"]["matchLabels"].items() <= labels.items()
    assert trainers["ports"] == [{"port": each["port"]} for each in servers["ports"]]
    for name in ("server", "object-store"):
        assert ("NetworkPolicy", name) in one, "servers stay under the policies of the bases"


def test_tls_reaches_probes_and_the_job() -> None:
    manifests = rendered(FOLDER / "sixteen-groups")
    container = container_of(manifests)
    options = options_of(manifests)
    secrets = {"--ca=/etc/tls/ca.crt", "--name=server.thinrow"}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, *words, address = container[name]["exec"]["command"]
        assert program == HEALTH.name
        assert secrets <= set(words)
        assert port(address) == port(str(options["listen"]))
        assert container[name]["timeoutSeconds"] < container[name]["periodSeconds"]
    assert (
        "--service=thinrow.v1.MaterializationService"
        in container["readinessProbe"]["exec"]["command"]
    )
    startup = container["startupProbe"]
    plain = container_of(rendered(FOLDER / "one-group"))["startupProbe"]
    assert (
        startup["periodSeconds"] * startup["failureThreshold"]
        == plain["periodSeconds"] * plain["failureThreshold"]
    )
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert {str(options[key].parent) for key in ("tls_cert", "tls_key")} <= mounts
    job = manifests["CronJob", "cluster-apply"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    words = [each.replace("$(STORE)", "s3://x/y") for each in job["containers"][0]["args"]]
    assert parsed(app, words)[1]["ca"] == Path("/etc/tls/ca.crt")


def test_ephemeral_volumes_replace_claims(tmp_path: Path) -> None:
    manifests = with_component("ephemeral-volumes", tmp_path)
    for copy in COPIES:
        spec = manifests["StatefulSet", f"thinrow-{copy}"]["spec"]
        assert "volumeClaimTemplates" not in spec
        volumes = {each["name"]: each for each in spec["template"]["spec"]["volumes"]}
        template = volumes["mirror"]["ephemeral"]["volumeClaimTemplate"]["spec"]
        [claim] = COPIED["StatefulSet", "thinrow"]["spec"]["volumeClaimTemplates"]
        assert template["resources"] == claim["spec"]["resources"]
    assert not [name for kind, name in manifests if kind == "StorageClass"]


def test_the_autoscaler_changes_no_number_of_pods_and_no_memory(tmp_path: Path) -> None:
    manifests = with_component("vertical-autoscaler", tmp_path)
    scalers = [each["spec"] for (kind, _), each in manifests.items() if "Autoscaler" in kind]
    assert len(scalers) == len(COPIES)
    for scaler in scalers:
        target = scaler["targetRef"]
        assert (target["kind"], target["name"]) in manifests
        [policy] = scaler["resourcePolicy"]["containerPolicies"]
        assert policy["containerName"] == container_of(manifests)["name"]
        assert policy["controlledResources"] == ["cpu"]
        assert policy["controlledValues"] == "RequestsOnly"


def with_component(name: str, folder: Path) -> Manifests:
    """The overlay of one group with a component, which fits its schema."""
    manifests = rendered_with(FOLDER / "one-group", COMPONENTS / name, folder / "overlay")
    for (kind, _), manifest in manifests.items():
        if kind not in DEFINED_BY_OTHERS:
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    return manifests


KUBECTL = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
*"get pod --selector thinrow/copy=a"*) printf 'pod/thinrow-a-0\\npod/thinrow-a-1\\n' ;;
*"get pod --selector thinrow/copy=b"*) printf 'pod/thinrow-b-0\\n' ;;
*"--for condition=Ready"*) [ "$(grep -c condition=Ready "$LOG")" -le "$READY" ] ;;
esac
"""


@pytest.mark.parametrize("ready", [99, 2])
def test_roll_replaces_one_pod_after_the_other_while_all_are_ready(
    tmp_path: Path, ready: int
) -> None:
    kubectl, log = tmp_path / "kubectl", tmp_path / "log"
    kubectl.write_text(KUBECTL, encoding="utf-8")
    kubectl.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(log),
        "READY": str(ready),
    }
    done = subprocess.run([FOLDER / "roll"], env=environment, check=False, timeout=60)
    steps = [
        "ready" if "condition=Ready" in line else line.partition("delete ")[2]
        for line in log.read_text(encoding="utf-8").splitlines()
        if "condition=Ready" in line or " delete " in line
    ]
    whole = ["ready", "pod/thinrow-a-0", "ready", "pod/thinrow-a-1", "ready"]
    if ready == 99:
        assert done.returncode == 0
        assert steps == [*whole, "ready", "pod/thinrow-b-0", "ready"]
    else:
        assert done.returncode != 0
        assert steps == whole, "the first pod that does not become ready is the last one"
