"""The images, built and run for real: `make image-test`, as root on a Debian machine.

No Docker engine is needed. buildah builds the Dockerfile on a Debian that debootstrap makes, and
what docker-compose.yaml says is run by hand: each service in a network namespace of its own, under
the names that Compose would give it, on a read-only root and without capabilities.
"""

# ruff: noqa: ANN401 - what JSON holds

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.deployment import ALERTS, COMPOSE, DEPLOY, HEALTH, OURS, PANELS, mounts
from support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE = ROOT / ".cache/images"
BASE = re.findall(r"^ARG DEBIAN_IMAGE=([^@\s]+)", (DEPLOY / "Dockerfile").read_text(), re.M)[0]
RELEASE = BASE.partition(":")[2].removesuffix("-slim")
BUILDAH = ("buildah", "--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run"))
GRPCURL = Path(sys.executable).parent / "grpcurl"
SUBNET = "10.77.0"
READY_S_MAX = 2.0
SERVER_IMAGE_BYTES_MAX = 700_000_000
QUIET = {
    "Calls refused",
    "Calls that failed",
    "Calls that failed, by tenant",
    "Examples that are not OK",
    "Certificates end in",
    "Topic: lag",
    "Topic: events applied",
    "Topic: messages refused",
    "Topic: readers that ended",
    "Topic: retention used",
}
"""Panels that show nothing without faults, certificates and a topic."""


def run(*command: object, **options: Any) -> str:
    """A command's output. What it says on standard error is shown where the test fails."""
    words = [str(word) for word in command]
    ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **options)
    return str(ran.stdout)


def buildah(*arguments: object) -> str:
    return run(*BUILDAH, *arguments).strip()


# Building


def make_base() -> None:
    """A Debian as small as the one that the Dockerfile names, under that name."""
    mirrors = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
        *("Identifier: Packages", f"Codename: {RELEASE}"),
    ).split()
    root = CACHE / "base"
    shutil.rmtree(root, ignore_errors=True)
    run("debootstrap", "--variant=minbase", RELEASE, root, *mirrors[:1])
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists"):
        shutil.rmtree(root / folder)
    run("chroot", root, "apt-get", "clean")
    (root / "etc/resolv.conf").write_text("")
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, root, "/")
    buildah("commit", "--rm", container, BASE)
    shutil.rmtree(root)


def package_sources() -> list[str]:
    """Lets a build request packages where this machine does, by volumes that no image keeps."""
    listed = run(sys.executable, "-m", "pip", "config", "list")
    settings = dict(re.findall(r"^\S+?\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    volumes = {"/etc/apt/apt.conf.d": "/etc/apt/apt.conf.d"}
    if "cert" in settings:
        # Its usual place belongs to a package that the build installs.
        volumes[settings["cert"]] = settings["cert"] = "/run/certificates.crt"
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        place = path.parent if word.startswith("file://") else path
        if place.is_absolute() and place.exists():
            volumes[str(place)] = str(place)
    configuration = CACHE / "pip.conf"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    configuration.write_text("\n".join(["[global]", *lines, ""]))
    volumes[str(configuration)] = "/etc/pip.conf"
    return [f"--volume={here}:{there}:ro" for here, there in volumes.items()]


@dataclass
class Image:
    """A built image, and its root as it lies on disk."""

    name: str
    root: Path
    config: dict[str, Any]
    size_bytes: int


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    """Both images by target."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not buildah("images", "--quiet", "--filter", f"reference={BASE}"):
        make_base()
    built, containers = {}, []
    for target in ("server", "trainer"):
        name = f"thinrow-{target}"
        buildah(
            *("build", "--isolation=chroot", "--format=docker", "--pull-never", "--layers"),
            f"--build-arg=DEBIAN_IMAGE={BASE}",  # ours has another digest than the registry's
            *("--file", DEPLOY / "Dockerfile", "--ignorefile", DEPLOY / "Dockerfile.dockerignore"),
            *package_sources(),
            *("--target", target, "--tag", name, ROOT),
        )
        container = buildah("from", "--pull-never", name)
        containers.append(container)
        result = json.loads(buildah("inspect", "--type", "image", name))
        root = Path(buildah("mount", container))
        size_bytes = int(run("du", "--summarize", "--bytes", root).split()[0])
        built[target] = Image(name, root, result["Docker"]["config"], size_bytes)
        print(f"\n{name}: {size_bytes / 1e6:.0f} MB")
    yield built
    for container in containers:
        buildah("umount", container)
        buildah("rm", container)


# Running


@dataclass
class Container:
    """A process in an image."""

    process: subprocess.Popen[bytes]
    log: Path
    started_s: float

    def wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.log.read_text()

    def ready_s(self) -> float:
        """Time from its start to the line of the log that it serves."""
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s and self.process.poll() is None:
            for line in self.text().splitlines():
                if '"event": "serving"' in line:
                    at = datetime.fromisoformat(json.loads(line)["time"])
                    return at.timestamp() - self.started_s
            time.sleep(0.05)
        raise AssertionError(self.text())

    def kill(self, number: signal.Signals) -> None:
        """Signals the process inside, the only child of what contains it."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill(signal.SIGKILL)
            self.process.kill()
            self.process.wait(30)


@dataclass
class Host:
    """Network namespaces on one bridge, a name server, and folders as volumes."""

    folder: Path
    stack: ExitStack
    addresses: dict[str, str] = field(default_factory=dict)
    hub: str = f"thinrow-{os.getpid()}"

    def __post_init__(self) -> None:
        self.add_namespace(self.hub)
        self.inside(self.hub, "ip", "link", "add", "bridge", "type", "bridge")
        self.inside(self.hub, "ip", "address", "add", f"{SUBNET}.1/24", "dev", "bridge")
        self.inside(self.hub, "ip", "link", "set", "bridge", "up")
        self.resolver = self.folder / "resolv.conf"
        self.resolver.write_text(f"nameserver {SUBNET}.1\n")

    def add_namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self.stack.callback(run, "ip", "netns", "del", name)
        self.inside(name, "ip", "link", "set", "lo", "up")

    def inside(self, namespace: str, *command: object) -> str:
        return run("ip", "netns", "exec", namespace, *command)

    def add(self, name: str) -> None:
        """A namespace for one container, with an address."""
        number = len(self.addresses) + 2
        namespace = f"{self.hub}-{name}"
        self.add_namespace(namespace)
        link = ("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0")
        self.inside(self.hub, *link, "netns", namespace)
        self.inside(self.hub, "ip", "link", "set", f"port{number}", "master", "bridge", "up")
        self.inside(namespace, "ip", "address", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
        self.inside(namespace, "ip", "link", "set", "eth0", "up")
        self.addresses[name] = f"{SUBNET}.{number}"

    def serve_names(self, names: dict[str, list[str]]) -> None:
        """Answers each name with the addresses of its containers."""
        records = [
            f"--host-record={name},{self.addresses[one]}"
            for name, containers in names.items()
            for one in containers
        ]
        options = ("--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null")
        self.start(self.hub, "dnsmasq", *options, "--bind-interfaces", *records, log="names")

    def start(self, namespace: str, *command: object, log: str) -> Container:
        path = self.folder / f"{log}.log"
        words = ["ip", "netns", "exec", namespace, *map(str, command)]
        started_s = time.time()
        with path.open("wb") as sink:
            process = subprocess.Popen(words, stdout=sink, stderr=subprocess.STDOUT)
        container = Container(process, path, started_s)
        self.stack.callback(container.end)
        return container

    def volume(self, name: str, owner: os.stat_result) -> Path:
        """A folder that, when new, belongs to whom it belongs in the image."""
        path = self.folder / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, owner.st_uid, owner.st_gid)
        return path

    def contain(self, image: Image, service: dict[str, Any], *command: object) -> list[object]:
        """Command that runs as the service's container would."""
        words: list[object] = ["bwrap", "--ro-bind", image.root, "/", "--proc", "/proc"]
        words += ["--dev", "/dev", "--ro-bind", self.resolver, "/etc/resolv.conf"]
        for tmpfs in service["tmpfs"]:
            target, options = tmpfs.split(":")
            mode = dict(option.split("=") for option in options.split(","))["mode"]
            words += ["--perms", mode, "--tmpfs", target]
        for target, (source, read_only) in mounts(service).items():
            inside = image.root / target.lstrip("/")
            if not inside.exists():  # an engine makes the place where a volume goes
                inside.mkdir()
            words += ["--ro-bind" if read_only else "--bind"]
            words += [self.volume(source, inside.stat()), target]
        words += ["--unshare-pid", "--as-pid-1", "--unshare-ipc", "--die-with-parent", "--clearenv"]
        for variable in image.config["Env"]:
            words += ["--setenv", *variable.split("=", 1)]
        user, group = image.config["User"].split(":")
        # No capability but those that it takes to give up all and become the user.
        for capability in ("setuid", "setgid", "setpcap"):
            words += ["--cap-add", f"cap_{capability}"]
        words += ["setpriv", "--reuid", user, "--regid", group, "--clear-groups"]
        words += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return [*words, *command]


@dataclass
class Composition:
    """docker-compose.yaml, run."""

    host: Host
    images: dict[str, Image]

    def __post_init__(self) -> None:
        names: dict[str, list[str]] = {}
        for service in [*OURS, "prometheus"]:
            replicas = COMPOSE["services"][service]["deploy"].get("replicas", 1)
            names[service] = [f"{service}-{n}" for n in range(1, replicas + 1)]
            for one in names[service]:
                self.host.add(one)
                names[f"{COMPOSE['name']}-{one}"] = [one]
        self.host.serve_names(names)

    def command(self, name: str, *command: object) -> list[object]:
        service = OURS[name.rpartition("-")[0]]
        image = self.images[service["build"]["target"]]
        entrypoint = service.get("entrypoint", image.config["Entrypoint"])
        words = command or (*entrypoint, *service.get("command", image.config["Cmd"]))
        return self.host.contain(image, service, *words)

    def start(self, name: str) -> Container:
        return self.host.start(f"{self.host.hub}-{name}", *self.command(name), log=name)

    def inside(self, name: str, *command: object) -> str:
        return self.host.inside(f"{self.host.hub}-{name}", *self.command(name, *command))

    def healthy(self, name: str) -> bool:
        """Result of the compose file's health check."""
        test = OURS[name.rpartition("-")[0]]["healthcheck"]["test"][1:]
        command = ["ip", "netns", "exec", f"{self.host.hub}-{name}", *self.command(name, *test)]
        return subprocess.run([*map(str, command)], check=False, timeout=30).returncode == 0

    def prometheus(self) -> None:
        """Debian's in place of the image, with the shipped configuration."""
        config = DEPLOY / "prometheus/prometheus.yaml"
        self.host.start(
            f"{self.host.hub}-prometheus-1",
            *("bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--die-with-parent"),
            *("--ro-bind", self.host.resolver, "/etc/resolv.conf"),
            *("prometheus", f"--config.file={config}"),
            f"--storage.tsdb.path={self.host.folder / 'prometheus'}",
            log="prometheus",
        )
        until(lambda: self.query_api("targets") is not None)

    def query_api(self, path: str) -> Any:
        """Answer of Prometheus' API; None until there is one."""
        address = self.host.addresses["prometheus-1"]
        command = ["ip", "netns", "exec", self.host.hub, "curl", "--silent", "--globoff"]
        path, _, query = path.partition("?query=")
        words = [*command, "--get", f"http://{address}:9090/api/v1/{path}"]
        words += ["--data-urlencode", f"query={query}"] if query else []
        answer = subprocess.run(words, check=False, capture_output=True, text=True).stdout
        return json.loads(answer)["data"] if '"status":"success"' in answer else None

    def up(self) -> dict[str, int]:
        """Targets that answer, by job."""
        counts: dict[str, int] = {}
        for target in self.query_api("targets")["activeTargets"]:
            job = target["labels"]["job"]
            counts[job] = counts.get(job, 0) + (target["health"] == "up")
        return counts


def until(what: Callable[[], bool], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.25)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(tmp_path, stack)


# What is proven


def test_shipped_configuration_passes_promtool() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus/prometheus.yaml")
    run("promtool", "check", "rules", DEPLOY / "prometheus/rules.yaml")
    run("promtool", "test", "rules", ROOT / "tests/support/alert_cases.yaml")


def test_server_image_holds_what_it_needs_and_no_more(images: dict[str, Image]) -> None:
    server = images["server"]
    assert server.size_bytes < SERVER_IMAGE_BYTES_MAX
    assert server.config["StopSignal"] == "SIGTERM"
    assert server.config["Healthcheck"]["Test"][1] == HEALTH.name
    for program in ("cc", "gcc", "g++", "make", "pip", "pip3"):
        assert not list(server.root.glob(f"**/bin/{program}"))
    packages = server.root / "opt/thinrow/lib/python3.11/site-packages"
    assert (packages / "thinrow").is_dir()
    assert not (packages / "torch").exists()
    assert not (packages / "pip").exists()
    # The place where this machine gets packages stays here.
    configuration = server.root / "etc/pip.conf"
    assert not configuration.exists() or not configuration.read_text()


def test_server_answers_from_buildah_run(images: dict[str, Image], host: Host) -> None:
    composition = Composition(host, images)
    sample = composition.start("sample-1")
    assert sample.wait(120) == 0, sample.text()
    container = buildah("from", "--pull-never", "thinrow-server")
    host.stack.callback(buildah, "rm", container)
    store = host.folder / "volumes/store"
    log = host.folder / "buildah.log"
    command = [*BUILDAH, "run", "--isolation=chroot", "--user=10001:10001", "--cap-drop=all"]
    command += [f"--volume={store}:/store:ro", container, *images["server"].config["Entrypoint"]]
    command += ["serve", "--store=/store", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0"]
    started_s = time.time()
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    host.stack.callback(process.wait, 30)
    host.stack.callback(process.terminate)
    server = Container(process, log, started_s)
    ready_s = server.ready_s()
    print(f"\nready {ready_s:.2f} s after `buildah run`")
    assert ready_s < READY_S_MAX
    address = re.findall(r'"address": "([^"]*)"', server.text())[0]
    grpcurl = (GRPCURL, "-plaintext")
    assert "thinrow.v1.MaterializationService" in run(*grpcurl, address, "list")
    health = run(*grpcurl, address, "grpc.health.v1.Health/Check")
    assert '"status": "SERVING"' in health
    requested = ("-d", '{"user_id": 10, "projection": {"sequence_length": 3}}')
    shown = run(*grpcurl, *requested, address, "thinrow.v1.MaterializationService/Inspect")
    assert '"status": "STATUS_OK"' in shown


def test_composition(images: dict[str, Image], host: Host) -> None:
    composition = Composition(host, images)
    sample = composition.start("sample-1")
    assert sample.wait(120) == 0, sample.text()

    # Neither root nor a writable root file system, and nothing to gain.
    status = composition.inside("server-1", "cat", "/proc/self/status")
    assert re.search(r"^Uid:\s+10001\s+10001\s+10001\s+10001$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    for path in ("/x", "/opt/thinrow/x", "/store/x", "/data/x"):
        writing = f"touch {path} 2>&1 || true"
        assert "Read-only file system" in composition.inside("server-1", "sh", "-c", writing)

    composition.prometheus()
    running = {
        name: composition.start(name)
        for name in composition.host.addresses
        if OURS.get(name.rpartition("-")[0], {}).get("restart")
    }
    for name, container in running.items():
        print(f"\n{name}: ready after {container.ready_s():.2f} s, beside the others")
        until(lambda name=name: composition.healthy(name), 30)  # type: ignore[misc]

    trainer = composition.start("trainer-1")
    until(lambda: composition.up().get("thinrow-trainer") == 1)
    assert trainer.wait(300) == 0
    print(trainer.text())
    assert "Trained: loss" in trainer.text()
    assert (host.folder / "volumes/model/model.pt").stat().st_size > 0

    assert composition.up()["thinrow-server"] == 2
    rules = [rule for group in composition.query_api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {alert["alert"] for alert in ALERTS}
    assert {rule["health"] for rule in rules} == {"ok"}
    for panel in PANELS:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m")
            answer = composition.query_api(f"query?query={query}")
            assert answer is not None, f"{panel['title']}: {query}"
            assert answer["result"] or panel["title"] in QUIET, f"{panel['title']}: {query}"
    assert all(rule["state"] == "inactive" for rule in rules), [
        rule["name"] for rule in rules if rule["state"] != "inactive"
    ]

    running["server-1"].kill(signal.SIGKILL)
    until(
        lambda: any(
            alert["labels"]["alertname"] == "ThinRowDown"
            for alert in composition.query_api("alerts")["alerts"]
        )
    )
    started_s = time.monotonic()
    running["server-2"].kill(signal.SIGTERM)
    assert running["server-2"].wait(15) == 0
    print(f"drained in {time.monotonic() - started_s:.2f} s")
    assert '"event": "stopped"' in running["server-2"].text()
