"""Errors of access: permissions, the table of files, the disk. None is taken for damage."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from thinrow.errors import InputError, StoreCorruptError, StoreError
from thinrow.events.canonical import open_parquet
from thinrow.store.generation import Generation
from thinrow.store.shard import storage_error
from worlds import World, built_world, store_files

if TYPE_CHECKING:
    from pathlib import Path

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
        told = storage_error(error, tmp_path)
        assert type(told) is StoreError
        assert reason in str(told)
        assert str(tmp_path) in str(told)
        assert "try again" in str(told)


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
        assert type(refused.value) is StoreError
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
