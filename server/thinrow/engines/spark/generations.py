"""The generation of a store that a job reads, which its tasks open shard by shard."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.engines.spark.tasks import disk_remedy
from thinrow.errors import EngineError
from thinrow.remote.copies import OBJECTS, Copies
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import require_generation
from thinrow.remote.object_store import ObjectStore
from thinrow.store.current import require_current_folder
from thinrow.store.generation import Generation
from thinrow.store.layout import generation_name
from thinrow.store.manifest import read_manifest
from thinrow.store.place import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.store.manifest import Manifest

__all__ = ["ReadGeneration", "serving_generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadGeneration:
    """A generation that stays the same for all tasks, whatever is published meanwhile."""

    place: str
    """URL of the store, or path of the generation's folder."""
    number: int
    manifest_xxh3: str
    """XXH3 (64 bits) of the root manifest, hexadecimal; "" in a folder."""

    @contextmanager
    def opened(self, shard: int, folder: Path) -> Iterator[Generation]:
        """Opens one shard.

        Args:
            shard: Its number.
            folder: Folder for copies of the shard's objects.

        Raises:
            EngineError: The folder is not on this machine.
            StoreCorruptError: A file or an object is missing or damaged.
        """
        if not is_url(self.place):
            path = Path(self.place)
            if not path.is_dir():
                raise EngineError(
                    f"An executor finds no folder {path}; name a store by its URL, or by a folder "
                    f"that all executors share."
                )
        else:
            store = ObjectStore(self.place)
            found = require_generation(
                store, self.number, self.manifest_xxh3, choose=lambda _: (shard,)
            )
            copies = Copies(store, folder / OBJECTS, remedy=disk_remedy())
            copies.fetch(self.number, [file for _, file in found.files])
            path = folder / generation_name(self.number)
            copies.lay_out(found, path)
        with Generation(path, numbers=(shard,)) as generation:
            yield generation


def serving_generation(store: str | Path) -> tuple[ReadGeneration, Manifest]:
    """Returns the serving generation of a store, and its root manifest.

    Raises:
        StoreMissingError: Nothing was published there.
        StoreCorruptError: The manifest is missing or damaged.
        StoreUnavailableError: The object store does not answer.
    """
    if is_url(store):
        objects = ObjectStore(str(store))
        record = require_current(objects).record
        found = require_generation(objects, record.number, record.manifest_xxh3, lambda _: ())
        read = ReadGeneration(
            place=str(store), number=record.number, manifest_xxh3=record.manifest_xxh3
        )
        return read, found.manifest
    folder = require_current_folder(Path(store)).absolute()
    manifest = read_manifest(folder)
    return ReadGeneration(place=str(folder), number=manifest.number, manifest_xxh3=""), manifest
