"""The manifest of a generation, and the pointer to a store's current generation.

``manifest.json`` is written last: a folder without it is not a generation. ``CURRENT`` names the
serving generation and is replaced atomically.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import xxhash
from pydantic import BaseModel, ConfigDict, Field
from thinrow.core.codes import FIRST_CODE
from thinrow.core.files.io_errors import access_failure, first_line, is_temporary
from thinrow.core.files.permissions import file_mode
from thinrow.errors import StoreCorruptError, StoreError, StoreMissingError, StoreUnavailableError
from thinrow.schema import Schema, from_stored
from thinrow.store.shard import fsync

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "CURRENT",
    "CURRENT_BYTES_MAX",
    "FORMAT",
    "HIGHEST",
    "LOCK",
    "MANIFEST",
    "MANIFEST_BYTES_MAX",
    "NEW",
    "UNPUBLISHED",
    "USERS_FORMAT",
    "VOCABULARIES",
    "Count",
    "FillRecord",
    "Manifest",
    "RunInputs",
    "ShardSummary",
    "StoredFile",
    "StoredVocabulary",
    "Time",
    "check_files",
    "current_folder",
    "file_summary",
    "generation_name",
    "generation_number",
    "read_manifest",
    "read_small",
    "require_current_folder",
    "shard_name",
    "write_atomically",
    "write_beside",
    "write_manifest",
]

FORMAT = 2
USERS_FORMAT = 3
"""Format of stores whose user ids are not int64, so that earlier releases refuse them."""
MANIFEST = "manifest.json"
CURRENT = "CURRENT"
VOCABULARIES = "vocabularies"
"""Folder of a generation with its vocabularies, and of a store with those that it keeps."""
HIGHEST = "HIGHEST"
"""Names the newest generation that was ever published; numbers continue after it."""
LOCK = "LOCK"
"""Locked while a command changes the store."""
UNPUBLISHED = "UNPUBLISHED"
"""Marks a folder that no reader uses: what a run builds, or what it removes."""
MANIFEST_BYTES_MAX = 64 << 20
"""Limit on a manifest, about a kilobyte a shard: reading one takes many times its size."""
CURRENT_BYTES_MAX = 1 << 10

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Time = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
NEW = ".new"
"""Suffix of a small file that is being replaced."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Record):
    """One file of a shard."""

    name: str
    bytes: Count
    xxh3: str
    """XXH3 (64 bits) of the content, hexadecimal."""


class ShardSummary(_Record):
    """One shard."""

    name: str
    keys: Count
    events: Count
    users: Count
    """Users that have events."""
    files: list[StoredFile]
    value_bytes_max: Count = 0
    """Bytes of the largest value; 0 if not recorded, as in older stores."""


class StoredVocabulary(_Record):
    """The vocabulary of one trait."""

    trait: Count
    """Number of the trait."""
    values: Count
    file: StoredFile
    """The file, in the folder VOCABULARIES of the generation."""

    @property
    def codes_end(self) -> int:
        """All codes are below."""
        return FIRST_CODE + self.values


class RunInputs(_Record):
    """The inputs of one compaction, which identify a run that is repeated."""

    events: list[str]
    """Name, size and XXH3 of the last bytes of each input file, sorted."""
    erase_xxh3: str
    """XXH3 (64 bits) over the sorted ids of users erased in this run, hexadecimal."""
    cadence_ms: int | None
    lookback_ms: int | None
    dedup_window_ms: int
    accept_late: bool
    cadence_offset_ms: int = 0
    time_unit: str | None = None
    cuts_xxh3: str | None = None
    """XXH3 (64 bits) over the watermarks that were given one by one, hexadecimal."""


class FillRecord(_Record):
    """One fill: values that stored events got after they were served."""

    generation: Count
    """Number of the generation that the fill published."""
    filled_ts: Time
    """Time of the run, ms."""
    watermark_ts: Time
    """Watermark of that generation, ms: events that became visible later are as served."""
    group: str
    traits: list[str]
    """Names of the traits filled."""
    trait_numbers: list[Count]
    """Their numbers, which are never used again for other traits."""
    by: list[str]
    """Columns that joined rows to events."""
    time_unit: str | None = None
    """Unit of times that are integers; None for ms."""
    values: list[str]
    """Name and XXH3 of each file of values, sorted."""
    rows: Count
    """Distinct rows."""
    rows_unmatched: Count
    """Rows that matched no event."""
    events: Count
    """Events that a row matched."""
    events_unmatched: Count
    """Events that no row matched."""


class Manifest(_Record):
    """A complete generation."""

    format: int
    number: Count
    """Number of the generation, from 1."""
    watermarks: Annotated[list[Time], Field(min_length=1)]
    """Watermarks of all generations so far, ms, ascending; the last is this one's."""
    stored_schema: dict[str, Any]
    shards: list[ShardSummary]
    run: RunInputs
    """The inputs of the last compaction."""
    fills: list[FillRecord] = []
    """Fills so far, the oldest first."""
    vocabularies: list[StoredVocabulary] = []
    """Those of traits with codes of a vocabulary, in schema order."""

    @property
    def is_fill(self) -> bool:
        """True if a fill published this generation, and no compaction."""
        return bool(self.fills) and self.fills[-1].generation == self.number

    @property
    def watermark_ts(self) -> int:
        """Everything that arrived before is in this generation."""
        return self.watermarks[-1]

    @property
    def schema_(self) -> Schema:
        """The schema as of this generation."""
        filled: dict[int, int] = {}
        for fill in self.fills:
            filled.update(dict.fromkeys(fill.trait_numbers, fill.watermark_ts))
        ends = {one.trait: one.codes_end for one in self.vocabularies}
        return from_stored(self.stored_schema, filled, ends)

    @property
    def shard_count(self) -> int:
        """Shards of the generation, of which a process may have opened fewer."""
        return len(self.shards)

    @property
    def event_count(self) -> int:
        """Events of all shards."""
        return sum(shard.events for shard in self.shards)

    @property
    def user_count(self) -> int:
        """Users of all shards."""
        return sum(shard.users for shard in self.shards)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files of all shards, and of vocabularies."""
        files = [file for shard in self.shards for file in shard.files]
        return sum(file.bytes for file in [*files, *(one.file for one in self.vocabularies)])


def generation_name(number: int) -> str:
    """The folder's name of a generation."""
    return f"generation-{number:06d}"


def generation_number(name: str) -> int | None:
    """The inverse; None where the name is not a generation's."""
    match = re.fullmatch(r"generation-(\d{6,})", name)
    return int(match[1]) if match else None


def shard_name(number: int) -> str:
    """Returns the folder's name of a shard."""
    return f"shard-{number:04d}"


def file_summary(path: Path) -> StoredFile:
    """Measures a file."""
    hasher = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return StoredFile(name=path.name, bytes=path.stat().st_size, xxh3=hasher.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes the generation in ``folder``."""
    # Fields that came later are left out at their defaults, so that earlier versions read on.
    body = manifest.model_dump(mode="json", exclude_defaults=True)
    body["xxh3"] = _checksum(body)
    write_atomically(folder / MANIFEST, json.dumps(body, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks a manifest.

    Raises:
        StoreCorruptError: it is missing or altered.
        StoreError: another version of ThinRow wrote it.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(read_small(path, MANIFEST_BYTES_MAX))
        if body.pop("xxh3") != _checksum(body):
            raise ValueError("its checksum does not fit")
        if body["format"] not in (FORMAT, USERS_FORMAT):
            raise StoreError(
                f"{path} has format {body['format']}, and this ThinRow reads formats {FORMAT} and "
                f"{USERS_FORMAT}; use the version that wrote it."
            )
        manifest = Manifest.model_validate(body)
        _check_shards(manifest)
        return manifest
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _check_shards(manifest: Manifest) -> None:
    """Checks that shards are numbered without a gap, and that their counts and files agree.

    A user's shard is a number modulo the count of shards: one that is left out or stands in the
    place of another would make users look unknown.

    Raises:
        ValueError: Names the first shard at fault.
    """
    if not manifest.shards:
        raise ValueError("it lists no shard")
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            raise ValueError(f"it lists {shard.name} where {shard_name(number)} belongs")
        has_tables = any(file.name.endswith(".sst") for file in shard.files)
        counts = (shard.users, shard.events, shard.keys)
        if has_tables != (shard.keys > 0) or bool(shard.users) != bool(shard.events):
            raise ValueError(
                f"of {shard.name} it lists {shard.users} users, {shard.events} events, "
                f"{shard.keys} keys and {'' if has_tables else 'no '}tables, which contradict "
                f"each other"
            )
        if any(counts[:2]) and not shard.keys:
            raise ValueError(f"of {shard.name} it lists {shard.users} users and no keys")


def read_small(path: Path, bytes_max: int) -> str:
    """Reads a text file that has a limit. Raises OSError, and ValueError for a larger one."""
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"it has more than {bytes_max:,} bytes")
    return data.decode()


def check_files(folder: Path, manifest: Manifest, numbers: Collection[int] | None = None) -> None:
    """Checks that every file of a generation is there and of the right size.

    Small files are read and checked whole; of the large ones RocksDB checks each block when it
    reads it.

    Args:
        folder: Folder of the generation.
        manifest: The generation's manifest.
        numbers: Shards that should be there; None for all.

    Raises:
        StoreCorruptError: names the first file or folder at fault.
    """
    _check_no_more_shards(folder, manifest)
    for number, shard in enumerate(manifest.shards):
        if numbers is not None and number not in numbers:
            continue
        if not (folder / shard.name).exists():
            raise StoreCorruptError(
                f"{folder / shard.name} is missing, with the histories of {shard.users} users; "
                f"copy the generation again, whole, restore it from a replica or build it again."
            )
        for expected in shard.files:
            path = folder / shard.name / expected.name
            try:
                if path.stat().st_size != expected.bytes:
                    raise StoreCorruptError(_damaged(path, "its size differs"))
                small = not path.name.endswith(".sst")
                if small and file_summary(path) != expected:
                    raise StoreCorruptError(_damaged(path, "its checksum differs"))
            except OSError as error:
                raise _unreadable(path, error) from error
    for vocabulary in manifest.vocabularies:
        path = folder / VOCABULARIES / vocabulary.file.name
        try:
            if path.stat().st_size != vocabulary.file.bytes:
                raise StoreCorruptError(_damaged(path, "its size differs"))
        except OSError as error:
            raise _unreadable(path, error) from error


def _check_no_more_shards(folder: Path, manifest: Manifest) -> None:
    """Checks that the folder has no shard that the manifest lacks, and whose users it would hide.

    Raises:
        StoreCorruptError: Names the shard's folder.
    """
    known = {shard.name for shard in manifest.shards}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error
    for name in names:
        if re.fullmatch(r"shard-\d{4,}", name) and name not in known:
            raise StoreCorruptError(
                f"{folder / name} is no shard of this generation, whose manifest lists "
                f"{len(known)}; the folder mixes two copies, or its manifest is that of another "
                f"store: restore it from a replica or build the generation again."
            )


def _unreadable(path: Path, error: Exception) -> StoreError:
    """Distinguishes a damaged file from one that this process cannot read for now."""
    if (reason := access_failure(error)) is not None:
        kind = StoreUnavailableError if is_temporary(error) else StoreError
        return kind(f"Cannot read {path}: {reason}.")
    return StoreCorruptError(_damaged(path, _reason(error)))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}); restore it from a replica or build the generation again."


def _damaged_current(store: Path, reason: str) -> str:
    return (
        f"{store / CURRENT} is damaged ({reason}); restore it from a replica, or choose a "
        f"generation with `thinrow store rollback --store {store} --to NUMBER --newer keep`."
    )


def current_folder(store: Path) -> Path | None:
    """The serving generation's folder; None where nothing was published yet."""
    try:
        name = read_small(store / CURRENT, CURRENT_BYTES_MAX).strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if access_failure(error) is not None:
            raise _unreadable(store / CURRENT, error) from error
        raise StoreCorruptError(_damaged_current(store, _reason(error))) from error
    if generation_number(name) is None:
        raise StoreCorruptError(_damaged_current(store, "it names no generation"))
    return store / name


def require_current_folder(store: Path) -> Path:
    """Returns the folder of the current generation.

    Raises:
        StoreMissingError: There is no store, or nothing was published in it.
        StoreCorruptError: The folder of the current generation is gone, or CURRENT alone is.
    """
    folder = current_folder(store)
    if folder is None:
        is_lost = _has_published(store)
        folder = current_folder(store)  # which may have been published in between
        if folder is None and is_lost:
            raise StoreCorruptError(_damaged_current(store, "it is gone"))
    if folder is None:
        raise StoreMissingError(_missing(store))
    if not folder.is_dir():
        raise StoreCorruptError(_damaged_current(store, f"{folder.name} is gone"))
    return folder


def _has_published(store: Path) -> bool:
    """Returns whether a folder has a sign that a generation was published in it."""
    if not store.is_dir():
        return False
    if (store / HIGHEST).exists():
        return True
    folders = [path for path in store.iterdir() if generation_number(path.name) is not None]
    return any((path / MANIFEST).exists() and not (path / UNPUBLISHED).exists() for path in folders)


def _missing(store: Path) -> str:
    """Returns why a folder has no current generation, and what to do."""
    if not store.is_dir():
        return (
            f"There is no folder {store}; check the path, or build a store there with thinrow "
            f"compact … --store {store}."
        )
    if (store / MANIFEST).is_file():
        return f"{store} is one generation of a store; name the store's folder, {store.parent}."
    names = {path.name for path in store.iterdir()}
    if names and not names & {LOCK, HIGHEST}:
        return (
            f"{store} is a folder without a store; name the folder that was built with thinrow "
            f"compact … --store."
        )
    return (
        f"{store} holds no published generation; wait for the compaction that may be building it, "
        f"or build one with thinrow compact … --store {store}."
    )


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old content or the new, also after a crash."""
    write_beside(path, text).replace(path)
    fsync(path.parent)


def write_beside(path: Path, text: str) -> Path:
    """Writes what is to replace a small file, on disk when this returns."""
    temporary = path.with_name(path.name + NEW)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, file_mode()), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
