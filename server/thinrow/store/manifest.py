"""The manifest of a generation: its schema, its shards, and the run that made it.

``manifest.json`` is written last: a folder without it is not a generation.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import xxhash
from pydantic import Field
from thinrow.core.codes import FIRST_CODE
from thinrow.errors import StoreError
from thinrow.schema import Schema, from_stored
from thinrow.store.layout import MANIFEST, shard_name
from thinrow.store.small_files import read_small, unreadable, write_atomically
from thinrow.store.stored_files import Count, Record, StoredFile, Time

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FORMAT",
    "IDS_FORMAT",
    "MANIFEST_BYTES_MAX",
    "FillRecord",
    "Manifest",
    "RunInputs",
    "ShardSummary",
    "StoredVocabulary",
    "encode_manifest",
    "format_of",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

FORMAT = 2
IDS_FORMAT = 3
"""Format of stores with ids that are not int64, so that earlier releases refuse them."""
MANIFEST_BYTES_MAX = 64 << 20
"""Limit on a manifest, about a kilobyte a shard: reading one takes many times its size."""


class ShardSummary(Record):
    """One shard."""

    name: str
    keys: Count
    events: Count
    users: Count
    """Users that have events."""
    files: list[StoredFile]
    value_bytes_max: Count = 0
    """Bytes of the largest value; 0 if not recorded, as in older stores."""


class StoredVocabulary(Record):
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


class RunInputs(Record):
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


class FillRecord(Record):
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


class Manifest(Record):
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
    fills: list[FillRecord] = Field(default_factory=list)
    """Fills so far, the oldest first."""
    vocabularies: list[StoredVocabulary] = Field(default_factory=list)
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


def format_of(schema: Schema) -> int:
    """Returns the format of a store with such ids."""
    return FORMAT if (schema.user_ids, schema.event_ids) == ("int64", "int64") else IDS_FORMAT


def encode_manifest(manifest: Manifest) -> str:
    """Returns the text of a manifest."""
    # Fields that came later are left out at their defaults, so that earlier versions read on.
    body = manifest.model_dump(mode="json", exclude_defaults=True)
    body["xxh3"] = _checksum(body)
    return json.dumps(body, indent=1) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes the generation in ``folder``."""
    write_atomically(folder / MANIFEST, encode_manifest(manifest))


def parse_manifest(text: str, name: object) -> Manifest:
    """Reads and checks the text of a manifest.

    Args:
        text: The text.
        name: Path or URL, for the message.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, RecursionError: It is altered.
        StoreError: Another version of ThinRow wrote it.
    """
    body = json.loads(text)
    if body.pop("xxh3") != _checksum(body):
        raise ValueError("its checksum does not fit")
    if body["format"] not in (FORMAT, IDS_FORMAT):
        raise StoreError(
            f"{name} has format {body['format']}, and this ThinRow reads formats {FORMAT} and "
            f"{IDS_FORMAT}; use the version that wrote it."
        )
    manifest = Manifest.model_validate(body)
    _check_shards(manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks a manifest.

    Raises:
        StoreCorruptError: it is missing or altered.
        StoreError: another version of ThinRow wrote it.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(read_small(path, MANIFEST_BYTES_MAX), path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error


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


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
