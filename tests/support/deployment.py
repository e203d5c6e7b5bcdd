"""Files of deploy/ that several tests read, and what they name."""

# ruff: noqa: ANN401 - what YAML holds

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from support.paths import ROOT

DEPLOY = ROOT / "deploy"


HEALTH = DEPLOY / "thinrow-health"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


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


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Mounts of a service: source, and True if read-only, by path inside."""
    found = {}
    for volume in service.get("volumes", []):
        source, target, *mode = volume.split(":")
        found[target] = (source, mode == ["ro"])
    return found
