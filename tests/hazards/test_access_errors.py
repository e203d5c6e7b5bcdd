"""Errors of access: permissions, the table of files, the disk. None is taken for damage."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from support.logged import config_in
from support.worlds import World, as_of, built_world, store_files
from thinrow.access.tenants_file import read_tenants
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.client.credentials import tls_credentials
from thinrow.client.logger import ThinRowLogger
from thinrow.compaction.users import read_user_ids
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import (
    InputError,
    JournalError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
    ThinRowError,
)
from thinrow.jobs.connecting import Access
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.schema import read_schema
from thinrow.store.generation import Generation
from thinrow.store.generations import highest_number
from thinrow.store.shard import Shard, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEMPORARY = (errno.EMFILE, errno.ENFILE, errno.ESTALE)
"""Another replica may be able to read what this one cannot."""
NUMBERS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("access"))


@pytest.mark.parametrize("number", NUMBERS)
def test_what_the_system_refuses_is_not_damage(number: int, tmp_path: Path) -> None:
    reason = os.strerror(number)
    for error in (
        OSError(number, reason, str(tmp_path)),
        Exception(f"IO error: While open a file for random read: {tmp_path}/1.sst: {reason}"),
    ):
        result = storage_error(error, tmp_path)
        assert type(result) is (StoreUnavailableError if number in TEMPORARY else StoreError)
        assert reason in str(result)
        assert str(tmp_path) in str(result)
        assert "try again" in str(result)


def test_damage_stays_damage(tmp_path: Path) -> None:
    for text in ("Corruption: block checksum mismatch", "IO error: No such file or directory: x"):
        assert type(storage_error(Exception(text), tmp_path)) is StoreCorruptError


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_store_that_cannot_be_read_for_now(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each file in turn: CURRENT, the manifest, and those that it names."""
    real: Any = type(world.store).open
    names = ["CURRENT", "manifest.json"]
    names += [path.name for path in store_files(world) if path.suffix != ".sst"][:3]
    for name in names:

        def refusing(path: Path, *args: Any, name: str = name, **options: Any) -> Any:  # noqa: ANN401
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **options)

        monkeypatch.setattr(type(world.store), "open", refusing)
        with pytest.raises(StoreError, match=os.strerror(number)) as refused:
            Generation.open_current(world.store)
        assert type(refused.value) is (StoreUnavailableError if number in TEMPORARY else StoreError)
        assert name in str(refused.value)
        monkeypatch.undo()
    Generation.open_current(world.store).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(world.store, store)
    (store / "CURRENT").chmod(0)
    with pytest.raises(StoreError, match="Permission denied"):
        Generation.open_current(store)
    rows = world.write("rows.parquet", pytest.importorskip("pyarrow").table({"user_id": [1]}))
    rows.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        open_parquet(rows)


def test_text_files_that_cannot_be_read_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schemas, tenants, tokens, certificates, users to erase and the highest number."""
    path = tmp_path / "HIGHEST"
    path.write_text("")
    access = Access(token_file=path)
    readers: list[Callable[[], object]] = [
        lambda: read_schema(path),
        lambda: read_tenants(path),
        lambda: access.token(),
        lambda: tls_credentials(ca=path),
        lambda: read_user_ids(path),
        lambda: highest_number(tmp_path),
    ]
    for number in NUMBERS:
        reason = os.strerror(number)

        def refusing(refused: Path, *_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number), str(refused))

        monkeypatch.setattr(type(path), "open", refusing)
        for method in ("read_text", "read_bytes"):
            monkeypatch.setattr(type(path), method, refusing)
        for read in readers:
            with pytest.raises(ThinRowError, match=reason) as refused:
                read()
            assert not isinstance(refused.value, StoreCorruptError)
            assert "try again" in str(refused.value)
            assert str(path) in str(refused.value)
        monkeypatch.undo()


@pytest.mark.parametrize("refused_name", ["LOCK", "segment-"])
def test_a_logger_whose_journal_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_name: str
) -> None:
    config, real = config_in(tmp_path), os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:  # noqa: ANN401
        if refused_name in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(JournalError, match=f"{refused_name}.*Too many open files.*try again"):
        ThinRowLogger(config)
    monkeypatch.undo()
    ThinRowLogger(config).close()


def test_errors_without_a_text_have_a_name(tmp_path: Path) -> None:
    assert str(storage_error(MemoryError(), tmp_path)) == (
        f"Storage failed at {tmp_path}: MemoryError."
    )


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_clients_leave_a_replica_that_cannot_read_for_now(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Calls and streams alike; each answer comes from the replica that can."""
    real: Any = Shard.get
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    refused: list[int] = []

    def refusing(shard: Shard, *arguments: Any) -> Any:  # noqa: ANN401
        if not refused:
            refused.append(number)
            raise storage_error(OSError(number, os.strerror(number)), shard.path)
        return real(shard, *arguments)

    def of(*user_ids: int) -> Pointers:
        return Pointers(user_ids=user_ids, end_ts=[as_of(3)] * len(user_ids))

    monkeypatch.setattr(Shard, "get", refusing)
    with (
        Server(config) as one,
        Server(config) as other,
        connect([one.address, other.address], ClientConfig(backoff_max_s=0.1)) as client,
    ):
        called = client.materialize(of(1, 2), Projection()).to_lists("item_id")
        assert (refused, client._transport.current) == ([number], 1)
        refused.clear()
        [streamed] = client.stream([of(3, 4, 5)], Projection())
        assert (refused, client._transport.current) == ([number], 0)
        everything = client.materialize(of(1, 2, 3, 4, 5), Projection()).to_lists("item_id")
        assert called + streamed.to_lists("item_id") == everything
