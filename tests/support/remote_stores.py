"""Stores at a URL, beside local stores that were built of the same events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.worlds import SCHEMA, World, days, new_world, pointers_to, read_store, some_events
from thinrow.compaction.compact import compact
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import RemoteGeneration, key_of, require_generation
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.reading import local_store

if TYPE_CHECKING:
    from support.worlds import Answers
    from thinrow.compaction.report import CompactionReport


@dataclass(frozen=True)
class RemoteWorld:
    """A store at a URL, and a local one beside it."""

    local: World
    url: str

    @property
    def objects(self) -> ObjectStore:
        return ObjectStore(self.url)

    def events(self, day: int) -> Path:
        """Events of the days before; more in the first build than later."""
        path = self.local.folder / f"events-{day}.parquet"
        if not path.exists():
            first = 0 if day <= 3 else day - 1
            table = some_events(
                300 if day <= 3 else 20, days=day - first, first_day=first, seed=day
            )
            self.local.write(path.name, table)
        return path

    def compact(self, day: int, **options: Any) -> CompactionReport:  # noqa: ANN401
        """Publishes the generation up to the end of a day at the URL."""
        config = self.local.compaction([self.events(day)], day)
        return compact(replace(config, **{"store": self.url, **options}))

    def compact_locally(self, day: int) -> CompactionReport:
        """Publishes the same generation in the local store."""
        return compact(self.local.compaction([self.events(day)], day))

    def compact_both(self, *numbers: int, **options: Any) -> None:  # noqa: ANN401
        """Publishes generations at the URL, and the same in the local store."""
        for day in numbers:
            self.compact(day, **options)
            self.compact_locally(day)

    def current(self) -> RemoteGeneration:
        """The serving generation."""
        record = require_current(self.objects).record
        return require_generation(self.objects, record.number, record.manifest_xxh3)

    def keys(self) -> set[str]:
        """Keys of all objects."""
        return {one.key for one in self.objects.listed()}

    def answers(self, *numbers: int) -> Answers:
        """Answers of the store at the URL, as of the ends of days."""
        with local_store(self.url) as folder:
            return read_store(folder, pointers_to(days(*numbers)))

    def local_answers(self, *numbers: int) -> Answers:
        """Answers of the local store, as of the ends of days."""
        return read_store(self.local.store, pointers_to(days(*numbers)))

    def tables(self) -> list[str]:
        """Keys of the serving generation's tables."""
        return [key_of(file) for _, file in self.current().files if file.name.endswith(".sst")]

    def damage(self, key: str, kind: str) -> None:
        """Truncates, flips a bit of, removes or swaps an object."""
        content = self.objects.read(key, 1 << 30)
        assert content is not None
        data = bytearray(content.data)
        if kind == "lost":
            self.objects.delete([key])
            return
        if kind == "swapped":
            other = next(one for one in self.tables() if one != key and "shard-0001" in one)
            swapped = self.objects.read(other, 1 << 30)
            assert swapped is not None
            data = bytearray(swapped.data)
        elif kind == "truncated":
            data = data[:-1]
        else:
            assert kind == "flipped"
            data[len(data) // 2] ^= 4
        self.objects.write(key, bytes(data))


def remote_world(folder: Path, url: str, schema: str = SCHEMA) -> RemoteWorld:
    """A store at a URL that is still empty."""
    return RemoteWorld(new_world(folder, schema), url)
