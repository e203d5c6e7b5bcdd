"""Targets of a client: an address, the path of a store, or one sentence that says what to write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from thinrow.client.target import parse_targets
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from thinrow.client.target import Target


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with a store and with a folder that has the name of an address."""
    monkeypatch.chdir(tmp_path)
    for name in ("store", "host:7878", "localhost"):
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    "target",
    ["other:7878", "[::1]:7878", "dns:///a/b:1", "ipv4:127.0.0.1:80,127.0.0.2:80", "unix:/run/s"],
)
def test_addresses_are_servers(target: str) -> None:
    assert parse_targets(target) == parse_targets([target]) == (target,)
    assert parse_targets([target, "b:1"]) == (target, "b:1")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("store", "store"),
        ("localhost", "localhost"),  # an address needs a port
        ("./host:7878", "host:7878"),
        ("missing/store", "missing/store"),
        ("./missing", "missing"),
        ("file:///data/my store", "/data/my store"),
        (Path("missing"), "missing"),
        (Path("host:7878"), "host:7878"),
    ],
)
def test_paths_are_stores(target: str | Path, path: str) -> None:
    found = parse_targets(target)
    assert found == parse_targets([target]) == Path.cwd() / path
    assert found == parse_targets(found)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("missing", "neither an address nor a folder; write HOST:PORT"),
        ("", "write HOST:PORT"),
        ("http://localhost:7878", "write HOST:PORT"),
        ("s3://bucket/store", "the path of a store, such as ./store"),
        ("file://store", "the path of a store"),
        ("host:7878", "write ./host:7878 for the store in it, or dns:host:7878 for the server"),
        ([], "Name a server as HOST:PORT, or the path of a store"),
        (["store", "b:1"], "Only servers have replicas; name the store store alone"),
        (["./a", "./b"], "Only servers have replicas"),
    ],
)
def test_what_is_unclear_is_refused(target: Target, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_targets(target)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
