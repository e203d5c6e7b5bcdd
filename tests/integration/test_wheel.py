"""`make wheel`: the product and nothing else, which installs without a compiler."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from support.empty_environments import environment_with
from support.paths import ROOT, TESTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.wheel
SUFFIXES = frozenset({".py", ".css", ".html", ".js"})
"""Code, and the parts of pages for people, which are read at run time."""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, and the wheel that was built from it; twine has checked both."""
    folder = tmp_path_factory.mktemp("dist")
    # The module is compiled without optimization: the files of a wheel are the same.
    quick = os.environ | {"SKBUILD_CMAKE_BUILD_TYPE": "Debug"}
    subprocess.run(
        ["make", "wheel", f"DIST={folder}"], cwd=ROOT, check=True, env=quick, timeout=280
    )
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [wheel] = dist.glob("thinrow-*.whl")
    return wheel


def test_wheel_holds_all_and_only_the_product(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "/".join(path.relative_to(ROOT).parts[1:])
        for side in ("server", "client")
        for path in (ROOT / side / "thinrow").rglob("*")
        if path.suffix in SUFFIXES
    }
    wanted |= {
        "thinrow/__init__.py",
        "thinrow/errors.py",
        "thinrow/py.typed",
        "thinrow/v1/materialization_pb2.py",
    }
    wanted.add("thinrow/_native" + sysconfig.get_config_var("EXT_SUFFIX"))
    assert wanted <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"thinrow"}
    assert not [name for name in names if "test" in name]


def test_source_distribution_holds_no_more_than_a_build_needs(dist: Path) -> None:
    [archive] = dist.glob("thinrow-*.tar.gz")
    with tarfile.open(archive) as source:
        names = {name.split("/")[1] for name in source.getnames()}
    product = {"protos", "server", "client", "native", "pyproject.toml"}
    assert names == product | {"README.md", "LICENSE", ".gitignore", "PKG-INFO"}


def test_client_installs_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    environment = environment_with(wheel, set(), tmp_path / "environment")
    shown = environment.run(
        "-c", "import thinrow.client as c, thinrow._native as n; print(c.__file__, n.__file__)"
    )
    assert all(path.startswith(str(environment.packages)) for path in shown.split())


def test_server_installs_without_a_compiler_and_reads_a_store(wheel: Path, tmp_path: Path) -> None:
    environment = environment_with(wheel, {"server"}, tmp_path / "environment")
    shown = environment.run(TESTS / "tools/use_store.py")
    assert "The store has the events that were written to it." in shown
