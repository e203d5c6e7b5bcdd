"""The online half on Kafka in deploy/: its compose file, its overlay, and its load, which runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from support.deployment import (
    ALERTS,
    DEPLOY,
    DOCKERFILE,
    HEALTH,
    KUBERNETES,
    KUBERNETES_VERSION,
    MANIFESTS,
    SERVICES,
    limited,
    mounts,
    parsed,
    port,
    read_manifests,
    read_yaml,
)
from support.kafka_broker import needs_broker, running_broker
from support.kustomized import rendered
from support.worlds import new_world, running_online, thinrow
from thinrow.cli.app import app
from thinrow.online.config import OnlineConfig
from thinrow.schema import parse_schema

COMPOSE = read_yaml(DEPLOY / "docker-compose-online.yaml")
COMPOSED: dict[str, dict[str, Any]] = COMPOSE["services"]
REPLICAS = ("online-1", "online-2")
OWN = {name: service for name, service in COMPOSED.items() if "extends" not in service}
FOLDER = DEPLOY / "kubernetes-online"
ADDED = read_manifests(FOLDER)
SET = ADDED["StatefulSet", "online"]["spec"]
JOB = ADDED["CronJob", "compact-topic"]["spec"]
PODS: dict[str, dict[str, Any]] = {
    "online": SET["template"],
    "compact-topic": JOB["jobTemplate"]["spec"]["template"],
}
TOPIC: dict[str, str] = ADDED["ConfigMap", "topic"]["data"]
LOAD = DEPLOY / "online-load.py"


def container_of(name: str) -> dict[str, Any]:
    [container] = PODS[name]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def options_of(name: str) -> dict[str, Any]:
    """Options of a container's command; fails where the command would."""
    container = container_of(name)
    if "args" in container:
        words = container["args"]
        for variable, value in TOPIC.items():
            words = [each.replace(f"$({variable})", value) for each in words]
        return parsed(app, words)[1]
    shell, flag, script = container["command"]
    assert (shell, flag) == ("/bin/sh", "-c")
    return parsed(app, words_of(script))[1]


def words_of(script: str) -> list[str]:
    """Arguments of `thinrow` in a line of a shell, with the environment in it."""
    for variable, value in TOPIC.items():
        script = script.replace(f'"${variable}"', value)
    script = re.sub(r'"\$+\(date [^)]*\)"', "2026-01-31", script)
    replaces, program, *words = shlex.split(script)
    assert (replaces, program) == ("exec", "thinrow"), "SIGTERM reaches the command"
    return words


def of_set(options: dict[str, Any]) -> OnlineConfig:
    config = limited(OnlineConfig, options)
    assert isinstance(config, OnlineConfig)
    return config


# Compose


@pytest.mark.parametrize("name", OWN)
def test_services_are_hardened_and_bounded(name: str) -> None:
    service = OWN[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    assert "ports" not in service
    assert ("healthcheck" in service) == ("restart" in service)
    for source, read_only in mounts(service).values():
        assert ((DEPLOY / source).is_file() and read_only) or source in COMPOSE["volumes"]
    for other, wanted in service.get("depends_on", {}).items():
        is_healthy = wanted["condition"] == "service_healthy"
        assert is_healthy == ("healthcheck" in COMPOSED[other])
        assert is_healthy or wanted["condition"] == "service_completed_successfully"


def test_panels_are_those_of_the_other_file() -> None:
    for name in ("prometheus", "grafana"):
        assert COMPOSED[name] == {"extends": {"file": "docker-compose.yaml", "service": name}}
        named = {source for source, _ in mounts(SERVICES[name]).values() if "." not in source}
        assert named <= COMPOSE["volumes"].keys()
    jobs = read_yaml(DEPLOY / "prometheus/prometheus.yaml")["scrape_configs"]
    [found] = [job["dns_sd_configs"][0] for job in jobs if job["job_name"] == "thinrow-online"]
    for name in REPLICAS:
        assert found["names"] == COMPOSED[name]["networks"]["default"]["aliases"]
        assert found["port"] == port(parsed(app, COMPOSED[name]["command"])[1]["metrics"])


def test_replicas_differ_in_their_volume_alone() -> None:
    first, second = (dict(COMPOSED[name]) for name in REPLICAS)
    volumes = [each.pop("volumes") for each in (first, second)]
    assert first == second
    differing = [pair for pair in zip(*volumes, strict=True) if len(set(pair)) > 1]
    assert differing == [("data-1:/data", "data-2:/data")]
    _, options = parsed(app, first["command"])
    inside = mounts(COMPOSED["online-1"])
    for path in (options["store"], options["data"], options["schema"]):
        assert str(path) in inside
    assert inside[str(options["store"])][1] is True
    assert first["healthcheck"]["test"] == [
        "CMD",
        HEALTH.name,
        f"127.0.0.1:{port(options['listen'])}",
    ]
    config = of_set(options)
    limits = first["deploy"]["resources"]["limits"]
    assert int(limits["memory"].removesuffix("g")) << 30 >= config.memory_bound_bytes
    assert limits["pids"] >= config.threads_max
    topic = options["events"].removeprefix("kafka:")
    assert f"--topic={topic}" in COMPOSED["topic"]["command"]


def test_the_topic_keeps_every_message() -> None:
    words = COMPOSED["topic"]["command"]
    configs = dict(
        word.removeprefix("--config=").split("=") for word in words if "--config=" in word
    )
    assert (
        configs.items()
        >= {
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "cleanup.policy": "delete",
        }.items()
    )
    broker = COMPOSED["broker"]["environment"]
    [address] = [word.partition("=")[2] for word in words if word.startswith("--bootstrap-server=")]
    assert broker["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{address}"
    assert COMPOSED["broker"]["image"] == COMPOSED["topic"]["image"] == "${KAFKA_IMAGE}"
    for name in REPLICAS:
        assert parsed(app, COMPOSED[name]["command"])[1]["bootstrap_servers"] == address


def test_the_job_of_the_compose_file_parses() -> None:
    service = COMPOSED["compact"]
    assert service["profiles"] == ["compact"], "it runs by hand"
    [script] = service["command"]
    _, options = parsed(app, words_of(script))
    assert mounts(service)[str(options["store"])] == ("store", False)
    assert str(options["schema"]) in mounts(service)


@needs_broker
def test_the_load_runs_against_two_replicas_and_is_compacted(tmp_path: Path) -> None:
    """The commands of the compose file, as processes of this machine; one replica is killed."""
    entry, *words = COMPOSED["load"]["entrypoint"][1:] + COMPOSED["load"]["command"]
    assert Path(entry).name == LOAD.name
    assert f"COPY deploy/{LOAD.name} {Path(entry).parent}/\n" in DOCKERFILE
    schema = (DEPLOY / "online-schema.toml").read_text(encoding="utf-8")
    world = new_world(tmp_path, schema)
    with running_broker(in_memory=True) as broker, ExitStack() as stack:
        topic = ["--events", f"kafka:{broker.topic(4).name}", "--bootstrap-servers", broker.address]
        servers = [
            stack.enter_context(running_online(world, *topic, "--data", tmp_path / name))
            for name in REPLICAS
        ]
        words[0] = ",".join(server.address for server in servers)
        load = stack.enter_context(
            subprocess.Popen(
                [sys.executable, LOAD, *words, "--seconds=8"], stdout=subprocess.PIPE, text=True
            )
        )
        assert load.stdout is not None
        assert "0 events" not in load.stdout.readline()
        servers[0].process.kill()
        *_, last = load.stdout
        assert load.wait(60) == 0, last
        found = re.fullmatch(r"(\d+) events, (\d+) snapshots, 0 failed, .*\n", last)
        assert found is not None, last
        events, snapshots = map(int, found.groups())
        assert events and snapshots
        watermark = servers[1].scrape()  # before the run, so that every event is sealed
        assert watermark["thinrow_online_lag_seconds"] < 60
        done = thinrow(
            *("compact", *topic, "--store", world.store, "--schema", world.schema),
            *("--watermark", last_second()),
            timeout_s=120,
        )
        assert done.returncode == 0, done.stderr
        assert (world.store / "CURRENT").is_file()


def last_second() -> str:
    date = subprocess.run(["date", "--utc", "+%FT%TZ"], capture_output=True, text=True, check=True)
    return date.stdout.strip()


# Kubernetes


@pytest.mark.parametrize("kind", ADDED, ids="-".join)
def test_manifests_fit_their_schema(kind: tuple[str, str]) -> None:
    if kind[0] == "ServiceMonitor":
        pytest.skip("Prometheus' operator defines it, not Kubernetes")
    kubernetes_validate.validate(ADDED[kind], KUBERNETES_VERSION, strict=True)


def test_the_overlay_renders() -> None:
    for (kind, _), manifest in rendered(FOLDER).items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_the_overlay_lists_every_manifest_and_the_base() -> None:
    kustomization = read_yaml(FOLDER / "kustomization.yaml")
    names = {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == names | {"../kubernetes"}
    assert not ADDED.keys() & MANIFESTS.keys()
    base = read_yaml(KUBERNETES / "kustomization.yaml")
    for key in ("images", "namespace", "labels"):
        assert kustomization[key] == base[key]


@pytest.mark.parametrize("name", PODS)
def test_pods_are_restricted_and_find_their_folders(name: str) -> None:
    pod, container = PODS[name]["spec"], container_of(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = pod["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in DOCKERFILE
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    options = options_of(name)
    paths = [Path(options[key]) for key in ("store", "schema", "kafka_settings")]
    mounted = {each["mountPath"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    claims = {each["metadata"]["name"] for each in SET["volumeClaimTemplates"]}
    assert {each["name"] for each in mounted.values()} <= volumes.keys() | claims
    for path in paths:
        assert any(path.is_relative_to(folder) for folder in mounted)
    assert volumes["kafka"]["secret"]["secretName"] == "kafka"
    assert options["schema"].name in ADDED["ConfigMap", "online-schema"]["data"]
    assert mounted["/store"].get("readOnly", False) == (name == "online")
    claim = volumes["store"]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in MANIFESTS
    limits = container["resources"]["limits"]
    assert limits == {"memory": container["resources"]["requests"]["memory"]}
    assert "Secret" not in {kind for kind, _ in ADDED}


def test_schemas_are_schemas() -> None:
    own = ADDED["ConfigMap", "online-schema"]["data"]["schema.toml"]
    shipped = (DEPLOY / "online-schema.toml").read_text(encoding="utf-8")
    assert parse_schema(own) == parse_schema(shipped)


def test_servers_have_time_and_room_for_a_rebuild() -> None:
    container, options = container_of("online"), options_of("online")
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"grpc": port(options["listen"]), "metrics": port(options["metrics"])}
    startup = container["startupProbe"]
    assert startup["httpGet"] == container["readinessProbe"]["httpGet"]
    assert startup["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 6 * 3600
    # While it rebuilds only the startup probe runs, for gRPC is not served before.
    assert container["livenessProbe"]["grpc"]["port"] == ports["grpc"]
    config = of_set(options)
    limit = container["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) << 30 >= config.memory_bound_bytes
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_s = PODS["online"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > pause_s + options["drain_s"] / 1000
    [claim] = SET["volumeClaimTemplates"]
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert options["data"].is_relative_to(mounted[claim["metadata"]["name"]])
    assert str(options["data"]) != mounted[claim["metadata"]["name"]], "a folder of its own"
    assert options["tenants"].parent == Path(mounted["tenants"])
    assert SET["replicas"] >= 2


def test_everything_selects_the_pods() -> None:
    labels = PODS["online"]["metadata"]["labels"]
    assert SET["selector"]["matchLabels"] == labels
    service = ADDED["Service", SET["serviceName"]]
    assert service["spec"]["selector"] == labels
    # Clients get the address of each replica, once it is ready.
    assert service["spec"]["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in service["spec"]
    budget = ADDED["PodDisruptionBudget", "online"]["spec"]
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, labels)
    for spread in PODS["online"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels
    monitor = ADDED["ServiceMonitor", "online"]["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "thinrow-online"


def test_pods_reach_brokers_and_nothing_reaches_the_job() -> None:
    policy = ADDED["NetworkPolicy", "topic"]["spec"]
    [selected] = policy["podSelector"]["matchExpressions"]
    labels = {pod["metadata"]["labels"][selected["key"]] for pod in PODS.values()}
    assert set(selected["values"]) == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    _, brokers = policy["egress"]
    assert port(TOPIC["BOOTSTRAP_SERVERS"]) in {each["port"] for each in brokers["ports"]}
    namespace = brokers["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert TOPIC["BOOTSTRAP_SERVERS"].split(":")[0].endswith(f".{namespace}")
    own = ADDED["NetworkPolicy", "online"]["spec"]
    assert own["podSelector"]["matchLabels"] == PODS["online"]["metadata"]["labels"]
    ports = {each["name"] for each in container_of("online")["ports"]}
    assert {each["port"] for rule in own["ingress"] for each in rule["ports"]} == ports


def test_the_job_ends_never_overlaps_and_is_watched() -> None:
    assert JOB["concurrencyPolicy"] == "Forbid"
    assert JOB["timeZone"] == "Etc/UTC"
    spec = JOB["jobTemplate"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    minute, hour, *days = JOB["schedule"].split()
    assert days == ["*", "*", "*"]
    active_s = JOB["startingDeadlineSeconds"] + spec["activeDeadlineSeconds"]
    assert int(hour) * 3600 + int(minute) * 60 + active_s < 86_400, "the date stays the schedule's"
    servers, job = options_of("online"), options_of("compact-topic")
    assert job["bootstrap_servers"] == servers["bootstrap_servers"]
    assert str(job["store"]) == str(servers["store"])
    for name in ("ThinRowJobFailed", "ThinRowJobOverdue"):
        [rule] = [alert for alert in ALERTS if alert["alert"] == name]
        patterns = re.findall(r'(?:job_name|cronjob)=~"([^"]*)"', rule["expr"])
        assert patterns
        suffix = "-29876" if name == "ThinRowJobFailed" else ""
        assert all(re.fullmatch(each, f"compact-topic{suffix}") for each in patterns)
