"""Requests to object stores: conditional puts, verified copies, failures of the store."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import xxhash
from support.peak import peak_of
from thinrow.errors import StoreCorruptError, StoreError, StoreUnavailableError, UsageError
from thinrow.remote import object_store
from thinrow.remote.limits import COPIES_AT_ONCE, COPY_MEMORY_BYTES
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.object_storage import ObjectStorage

BODY = bytes(range(256)) * 1000


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "file":
        yield ObjectStore(f"file://{tmp_path}/a store", create=True)
    else:
        storage: ObjectStorage = request.getfixturevalue("object_storage")
        yield ObjectStore(storage.new_url())


def test_objects_are_created_once(store: ObjectStore) -> None:
    assert store.read("a/b", 10) is None and store.find("a/b") is None
    assert store.create("a/b", b"1")
    assert not store.create("a/b", b"2")
    found = store.read("a/b", 1)
    assert found is not None and found.data == b"1"
    with pytest.raises(StoreCorruptError, match="more than 0 bytes"):
        store.read("a/b", 0)


def test_a_stale_version_replaces_nothing(store: ObjectStore) -> None:
    assert store.replace("C", b"1", None)
    assert not store.replace("C", b"2", None)
    first = store.read("C", 10)
    assert first is not None and store.replace("C", b"22", first)
    assert not store.replace("C", b"3", first)
    second = store.read("C", 10)
    assert second is not None and second.data == b"22"
    store.delete(["C"])
    assert not store.replace("C", b"4", second)
    assert store.read("C", 10) is None


def test_of_concurrent_replacements_one_wins(store: ObjectStore) -> None:
    assert store.create("C", b"first")
    read = store.read("C", 10)
    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(lambda n: store.replace("C", b"%d" % n, read), range(8)))
    assert won.count(True) == 1
    after = store.read("C", 10)
    assert after is not None and after.data == b"%d" % won.index(True)


def test_lists_and_deletes(store: ObjectStore) -> None:
    for key in ("runs/a/1", "runs/a/2", "runs/b/1", "other"):
        store.write(key, key.encode())
    assert sorted(one.key for one in store.listed("runs/a")) == ["runs/a/1", "runs/a/2"]
    assert {one.key: one.bytes for one in store.listed()}["runs/b/1"] == 8
    store.delete(["runs/a/1", "runs/b/1", "never was"])
    assert sorted(one.key for one in store.listed()) == ["other", "runs/a/2"]


@pytest.mark.parametrize("body", [BODY, b""])
def test_copies_are_verified(store: ObjectStore, tmp_path: Path, body: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(body)
    store.upload("x", source)
    digest = xxhash.xxh3_64_hexdigest(body)
    counted: list[int] = []
    with mock.patch.object(object_store, "PIECE_BYTES", 30_000):
        store.download("x", target, len(body), digest, counted.append)
    assert target.read_bytes() == body
    assert sum(counted) == len(body)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (BODY[:-1], "size differs"),
        (BODY + b"1", "size differs"),
        (b"", "size differs"),
        (b"\x01" + BODY[1:], "checksum differs"),
        (None, "it is gone"),
    ],
)
def test_no_damaged_copy_appears(
    store: ObjectStore, tmp_path: Path, found: bytes | None, problem: str
) -> None:
    if found is not None:
        store.write("x", found)
    with pytest.raises(StoreCorruptError, match=f"/x is damaged.*{problem}"):
        store.download("x", tmp_path / "target", len(BODY), xxhash.xxh3_64_hexdigest(BODY))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("target")]


def test_a_copy_goes_on_where_a_request_ended(
    object_storage: ObjectStorage, tmp_path: Path
) -> None:
    """A network so slow that each request ends before the object does; it is read once in all."""
    with mock.patch.object(object_store, "RETRIES_MAX", 0):
        store = ObjectStore(object_storage.new_url())
    store.write("x", BODY)
    before = object_storage.served()["bytes"]
    with mock.patch.object(object_store, "PIECE_BYTES", 1000):
        object_storage.fail("cut", "GET", 5, "x")
        store.download("x", tmp_path / "x", len(BODY), xxhash.xxh3_64_hexdigest(BODY))
    assert (tmp_path / "x").read_bytes() == BODY
    assert object_storage.served()["bytes"] - before < len(BODY) / 16
    # Where no request brings anything, it ends.
    object_storage.fail("refused", "GET", 1000, "x")
    with pytest.raises(StoreUnavailableError, match="503"):
        store.download("x", tmp_path / "y", len(BODY), xxhash.xxh3_64_hexdigest(BODY))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("y")]


def test_busy_stores_are_retried(object_storage: ObjectStorage) -> None:
    store = ObjectStore(object_storage.new_url())
    object_storage.fail("refused", "PUT", 2)
    assert store.create("x", b"1")
    object_storage.fail("refused", "GET", 2)
    found = store.read("x", 10)
    assert found is not None and found.data == b"1"


def test_a_server_without_tls_is_named(
    object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreUnavailableError, match="no TLS, which AWS_ALLOW_HTTP=true allows"):
        ObjectStore(object_storage.new_url()).read("x", 10)


def test_failures_name_the_object_and_no_secret(object_storage: ObjectStorage) -> None:
    store = ObjectStore(object_storage.new_url())
    store.write("x", b"1")
    with mock.patch.object(object_store, "RETRIES_MAX", 0):
        store = ObjectStore(store.url)
    object_storage.fail("refused", "GET", 1)
    with pytest.raises(StoreUnavailableError) as raised:
        store.read("x", 10)
    assert f"{store.url}/x: 503" in str(raised.value)
    secret = object_storage.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in str(raised.value) + repr(store)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_permissions_that_are_missing(object_storage: ObjectStorage, method: str) -> None:
    store = ObjectStore(object_storage.new_url())
    store.write("x", b"1")
    object_storage.fail("denied", method, 1)
    with pytest.raises(StoreError, match="/x: permission denied; check the network") as raised:
        if method == "GET":
            store.read("x", 10)
        else:
            store.create("x", b"1")
    assert not isinstance(raised.value, StoreUnavailableError)


def test_a_store_out_of_reach_is_reported_soon() -> None:
    elsewhere = {
        "AWS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    with mock.patch.dict(os.environ, elsewhere), mock.patch.object(object_store, "RETRIES_MAX", 1):
        store = ObjectStore("s3://bucket/store")
        with pytest.raises(
            StoreUnavailableError, match=r"s3://bucket/store/C: .*check the network"
        ):
            store.read("C", 10)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/store", "is no URL of a store"),
        ("s3:///store", "names no bucket"),
        ("file://host/store", "names no folder"),
        ("file:///nowhere/at/all", "There is no folder /nowhere/at/all"),
        ("s3://key:secret@bucket/store", "leave out credentials"),
        ("az://container/store?sig=secret", "leave out credentials"),
    ],
)
def test_urls_that_are_no_stores(url: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as raised:
        ObjectStore(url)
    assert "secret" not in str(raised.value)


def test_the_library_is_named_where_it_is_missing() -> None:
    with (
        mock.patch.dict("sys.modules", {"obstore": None}),
        pytest.raises(UsageError, match=r"thinrow\[remote\]"),
    ):
        ObjectStore("s3://bucket/store")


def test_copying_stays_within_its_memory(object_storage: ObjectStorage, tmp_path: Path) -> None:
    """Large objects, all that a mirror copies at once; a server's bound counts their memory."""
    source = tmp_path / "source"
    source.write_bytes(bytes(24 << 20))
    store = ObjectStore(object_storage.new_url())
    store.upload("x", source)
    arguments = (24 << 20, xxhash.xxh3_64_hexdigest(source.read_bytes()))
    prelude = (
        "from pathlib import Path\n"
        "from thinrow.remote.limits import COPIES_AT_ONCE\n"
        "from thinrow.remote.object_store import ObjectStore\n"
        "from thinrow.remote.threads import map_in_threads\n"
        f"store = ObjectStore({store.url!r})\n"
        "def copy(number):\n"
        f"    store.download('x', Path({str(tmp_path)!r}) / str(number), *{arguments!r})\n"
        "def copies(count):\n"
        "    return len(list(map_in_threads(copy, range(count), COPIES_AT_ONCE)))\n"
        "copies(1)"
    )
    peak = peak_of(f"copies({2 * COPIES_AT_ONCE})", prelude)
    assert peak.outcome == str(2 * COPIES_AT_ONCE)
    assert peak.grown_bytes <= COPY_MEMORY_BYTES
