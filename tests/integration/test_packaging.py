"""Imports: nothing missing, nothing heavy, nothing the wrong way round."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS
from support.worlds import SCHEMA, days, new_world, some_events
from thinrow.core.status import Status

RANKS = {
    "schema": 0,
    "store": 1,
    "events": 2,
    "remote": 2,
    "access": 3,
    "cluster": 3,
    "compaction": 3,
    "filling": 4,
    "materialization": 4,
    "online": 4,
    "jobs": 5,
    "engines": 6,
    "api": 7,
    "demo": 7,
    "explore": 7,
    "wall": 7,
    "cli": 8,
}
"""Packages of the server: each imports only itself and what ranks below."""
LOADS_THE_SERVER = ROOT / "client/thinrow/client/local_store.py"
"""The one file of the client that imports the server's half, once a store is opened."""
SOURCES = sorted(
    path for root in ("server", "client") for path in (ROOT / root / "thinrow").rglob("*.py")
)


def names_imported(path: Path) -> set[str]:
    """Names everything that a file imports, at its top or inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules_loaded_by(statement: str) -> set[str]:
    """Names the top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["thinrow.errors", "thinrow.client"])
def test_all_is_complete_and_sorted(module: str) -> None:
    contents = vars(import_module(module))
    public = {
        name
        for name, value in contents.items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("thinrow")
    }
    assert contents["__all__"] == sorted(public)


def test_modules_beside_each_other_have_names_of_their_own() -> None:
    """Tests and benchmarks are imported by their bare names: of two, one would be found."""
    paths = [path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    names = Counter(path.stem for path in paths if path.stem not in ("__init__", "conftest"))
    assert not [name for name, count in names.items() if count > 1]


def test_tests_import_no_test_module() -> None:
    """Tests share helpers in tests/support, so each module moves and runs by itself."""
    imported = {
        str(path.relative_to(TESTS)): sorted(
            name for name in names_imported(path) if name.startswith("test_")
        )
        for path in TESTS.rglob("*.py")
    }
    assert not {path: names for path, names in imported.items() if names}


def test_client_loads_nothing_heavy() -> None:
    heavy = {"torch", "pyarrow", "polars", "pandas", "rocksdict", "pydantic", "rich", "typer"}
    assert not heavy & modules_loaded_by("import thinrow.client")


def test_server_loads_no_torch() -> None:
    packages = "thinrow.compaction, thinrow.online, thinrow.materialization, thinrow.cli.entry"
    assert "torch" not in modules_loaded_by(f"import {packages}")


SERVE = """
from pathlib import Path
from thinrow.client import Pointers, Projection, connect
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
config = ServerConfig(store=Path({store!r}), listen="127.0.0.1:0", metrics=None)
with Server(config) as server, connect(server.address) as client:
    batch = client.materialize(Pointers(user_ids=[1], end_ts=[{end_ts}]), Projection())
    assert batch.statuses.tolist() == [{status}]
"""


@pytest.mark.parametrize(("codes", "loaded"), [("", set()), ("vocabulary", {"polars", "pyarrow"})])
def test_a_server_loads_polars_for_vocabularies_only(
    tmp_path: Path, codes: str, loaded: set[str]
) -> None:
    """Together they take a quarter of the time that it needs to start, and 80 MB."""
    brand = f'{{ type = "string", codes = "{codes}" }}' if codes else '"string"'
    world = new_world(tmp_path, SCHEMA.replace('"string"', brand))
    world.compact(some_events(), 3)
    (end_ts,) = days(3)
    serve = SERVE.format(store=str(world.store), end_ts=end_ts, status=int(Status.OK))
    assert modules_loaded_by(serve) & {"polars", "pyarrow", "torch"} == loaded


def test_the_online_service_loads_no_polars() -> None:
    loaded = modules_loaded_by("import thinrow.online.server, thinrow.online.exports")
    assert not {"polars", "pyarrow", "torch"} & loaded


def test_only_servers_of_a_topic_load_the_kafka_client() -> None:
    loaded = modules_loaded_by("import thinrow.cli.online, thinrow.online.server")
    assert "confluent_kafka" not in loaded


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    if path.is_relative_to(ROOT / "client/thinrow/core"):
        allowed = {"core", "errors", "v1", "_native"}
    elif "client" in path.relative_to(ROOT).parts[:1]:
        allowed = {"client", "core", "errors", "v1", "_native"}
        if path == LOADS_THE_SERVER:
            allowed.add("materialization")
    else:
        own = path.relative_to(ROOT / "server/thinrow").with_suffix("").parts[0]
        below = {name for name, rank in RANKS.items() if rank < RANKS[own]}
        allowed = {own, "core", "errors", "v1", "_native", *below}
        # Services never call others; commands and what they run are clients of a server.
        if RANKS[own] >= RANKS["jobs"]:
            allowed.add("client")
    imported = {name.split(".")[1] for name in names_imported(path) if name.startswith("thinrow.")}
    assert imported <= allowed, f"imports {sorted(imported - allowed)}"
