"""Files of deploy/ that several tests read, and what they name."""

# ruff: noqa: ANN401 - what YAML holds

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from support.paths import ROOT
from thinrow.materialization.config import ServerConfig

if TYPE_CHECKING:
    from thinrow.online.config import OnlineConfig

DEPLOY = ROOT / "deploy"


HEALTH = DEPLOY / "thinrow-health"


KUBERNETES = DEPLOY / "kubernetes"


KUBERNETES_VERSION = "1.37"


DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_manifests(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Manifests that a folder's kustomization lists, by kind and name; other folders left out."""
    return {
        (manifest["kind"], manifest["metadata"]["name"]): manifest
        for name in read_yaml(folder / "kustomization.yaml")["resources"]
        if (folder / name).is_file()
        for manifest in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))
    }


MANIFESTS = read_manifests(KUBERNETES)


COMPOSE = read_yaml(DEPLOY / "docker-compose.yaml")


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


OURS = {name: service for name, service in SERVICES.items() if "build" in service}


ALERTS = [
    rule
    for group in read_yaml(DEPLOY / "prometheus/rules.yaml")["groups"]
    for rule in group["rules"]
]


DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/thinrow.json").read_text(encoding="utf-8"))


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def locked(name: str) -> dict[str, str]:
    """Versions by package, of a file in which every one has hashes."""
    text = (DEPLOY / f"requirements/{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    entries = [
        entry for entry in re.split(r"\n(?=\S)", text) if entry.strip() and entry[0] not in "#-"
    ]
    assert all("--hash=sha256:" in entry for entry in entries)
    return dict(entry.split()[0].split("==") for entry in entries)


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Mounts of a service: source, and True if read-only, by path inside."""
    found = {}
    for volume in service.get("volumes", []):
        source, target, *mode = volume.split(":")
        found[target] = (source, mode == ["ro"])
    return found


def parsed(program: typer.Typer, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """A command line as the program takes it, options by name; fails where it would."""
    command: Any = typer.main.get_command(program)
    name, rest = "", arguments
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    return name, command.make_context(name, rest).params


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def memory_bound_bytes(options: dict[str, Any]) -> int:
    """The bound that `thinrow serve` works out from these options."""
    return limited(ServerConfig, options).memory_bound_bytes


def limited(
    kind: type[ServerConfig | OnlineConfig], options: dict[str, Any]
) -> ServerConfig | OnlineConfig:
    """The configuration of a command with these options, as far as its limits go."""
    names = {field.name for field in fields(kind) if field.name.endswith("_max")} | {"mirror"}
    given = {name: options[name] for name in names & options.keys()}
    return kind(store=options["store"], **given)
