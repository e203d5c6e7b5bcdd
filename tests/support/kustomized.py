"""Overlays of deploy/ as kubectl renders them."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Manifests", "rendered", "rendered_with"]

Manifests = dict[tuple[str, str], dict[str, Any]]
"""Manifests by kind and name; a generated name has no suffix."""


@cache
def rendered(folder: Path) -> Manifests:
    """Manifests of an overlay. Skips the test where kubectl is missing."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, which renders overlays")
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return {
        (manifest["kind"], manifest["metadata"]["name"]): manifest
        for manifest in yaml.safe_load_all(done.stdout)
    }


def rendered_with(overlay: Path, component: Path, folder: Path) -> Manifests:
    """Manifests of an overlay of an overlay, which adds a component; `folder` is a new one."""
    folder.mkdir()
    # kustomize takes no absolute paths.
    below, added = (os.path.relpath(path, folder.resolve()) for path in (overlay, component))
    content = {"resources": [below], "components": [added]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return rendered(folder)
