"""A cluster whose servers want TLS and tokens: commands and clients reach every replica."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from support.certificates import Authority
from support.cluster import running_cluster
from support.remote_stores import remote_world
from support.worlds import ALL, OWN_HOST, days, pointers_to, read_store, shown
from thinrow.client import ClientConfig, connect, tls_credentials
from thinrow.cluster.map_objects import read_map
from thinrow.errors import UnauthenticatedError
from thinrow.remote.reading import local_store

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)
USERS = range(1, 41)


def test_every_replica_is_reached_with_credentials(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    world = remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")
    world.compact(3, shards=4)
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", OWN_HOST)
    token, tenants = tmp_path / "token", tmp_path / "tenants.toml"
    secret = "of a test, and of no one else"  # noqa: S105
    token.write_text(secret, encoding="ascii")
    tenants.write_text(
        f'[audit]\nprojections = "any"\n'
        f'token_sha256 = ["{hashlib.sha256(secret.encode()).hexdigest()}"]\n',
        encoding="utf-8",
    )
    options = ("--tls-cert", cert, "--tls-key", key, "--tenants", tenants)
    credentials = ("--ca", authority.ca, "--token-file", token)
    with local_store(world.url) as folder:
        expected = read_store(folder, pointers_to(days(3), USERS))
    with running_cluster(
        world.url, tmp_path / "cluster", *options, groups=2, copies=1, lifetime_s=0.5
    ) as cluster:
        clear = cluster.command("status")
        assert clear.returncode == 1
        assert "give --ca if it serves over TLS." in clear.stdout
        stranger = cluster.command("status", *credentials[:2])
        assert stranger.returncode == 1
        assert "it rejects the token" in stranger.stdout
        page = tmp_path / "cluster.html"
        status = cluster.command("status", *credentials, "--html", page)
        assert status.returncode == 0 and "Nothing is wrong" in status.stdout, status.stdout
        assert "Nothing is wrong" in page.read_text(encoding="utf-8")
        tls = tls_credentials(ca=authority.ca)
        config = ClientConfig(credentials=tls, token=secret)
        with connect(cluster.addresses[0], config) as client:
            batches = client.stream((pointers_to(days(3), USERS) for _ in range(60)), ALL)
            assert shown(next(batches)) == expected
            for replica in cluster.grow(3):
                replica.launch()
            applied = cluster.command("apply", cluster.file, *credentials)
            assert applied.returncode == 0, applied.stderr
            drained = cluster.command("drain", "0", *credentials)
            assert drained.returncode == 0, drained.stderr
            assert [shown(batch) for batch in batches] == [expected] * 59
            stored = read_map(world.objects)
            assert stored is not None and list(stored.map.groups) == ["1", "2"]
            while client.routing.map_version < stored.map.version:
                assert shown(client.materialize(pointers_to(days(3), USERS), ALL)) == expected
            assert client.describe_store().generation == 1
        with (
            connect(cluster.addresses[1], ClientConfig(credentials=tls)) as client,
            pytest.raises(UnauthenticatedError),
        ):
            client.describe_store()
