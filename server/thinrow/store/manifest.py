"""The root manifest of a generation: its schema, its shards, and the run that made it.

``manifest.json`` is written last: a folder without it is not a generation. The files of each shard
stand in a manifest of the shard (shard_manifest.py), so that the root stays small.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import xxhash
from pydantic import Field
from thinrow.core.codes import FIRST_CODE
from thinrow.core.shards import SHARDS_MAX
from thinrow.errors import StoreError
from thinrow.schema import Schema, from_stored, to_stored
from thinrow.store.layout import MANIFEST, shard_manifest_name, shard_name
from thinrow.store.shard_manifest import ShardManifest, read_shard_manifest
from thinrow.store.single_manifest import SINGLE_FORMATS, split_single
from thinrow.store.small_files import damaged, read_small, reason_of, unreadable, write_atomically
from thinrow.store.stored_files import Count, Record, StoredFile, Time, Xxh64, Xxh128

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FORMAT",
    "MANIFEST_BYTES_MAX",
    "PART_FUNCTION",
    "TOPIC_FORMAT",
    "FillRecord",
    "Manifest",
    "RunInputs",
    "ShardSummary",
    "StoredVocabulary",
    "TopicSeal",
    "check_shard",
    "encode_manifest",
    "new_manifest",
    "parse_manifest",
    "read_manifest",
    "shard_manifest",
    "write_manifest",
]

FORMAT = 4
"""The format that is written; formats 2 and 3 are read, too."""
TOPIC_FORMAT = 5
"""The format of generations with offsets of a topic, which versions that would lose them refuse."""
PART_FUNCTION: Literal["xxh3_64_le_mod"] = "xxh3_64_le_mod"
"""Gives each user a shard: XXH3 (64 bits) of the key's eight little-endian bytes, modulo their
number."""
MANIFEST_BYTES_MAX = 64 << 20
"""Limit on a root manifest, some 250 bytes a shard: reading one takes many times its size."""


class ShardSummary(Record):
    """One shard."""

    name: str
    keys: Count
    events: Count
    users: Count
    """Users that have events."""
    value_bytes_max: Count = 0
    """Bytes of the largest value; 0 if not recorded, as in older stores."""
    stored_bytes: Count = 0
    """Bytes of its files."""
    kv_xxh3_128: Xxh128 | None = None
    """Digest of its stream of keys and values (kv_digest.py); None in formats 2 and 3."""
    manifest_xxh3: Xxh64 | None = None
    """XXH3 (64 bits) of the text of its manifest; None in formats 2 and 3."""


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


class TopicSeal(Record):
    """A topic of Kafka, and the offsets up to which a generation holds its events."""

    name: Annotated[str, Field(min_length=1, max_length=249)]
    """Name of the topic."""
    offsets: Annotated[list[Count], Field(min_length=1)]
    """Sealing offset of each partition: that of the first message that arrived at the watermark or
    later. The generation holds the events of all messages before it."""


class Manifest(Record):
    """A complete generation."""

    format: int
    number: Count
    """Number of the generation, from 1."""
    watermarks: Annotated[list[Time], Field(min_length=1)]
    """Watermarks of all generations so far, ms, ascending; the last is this one's."""
    stored_schema: dict[str, Any]
    shard_count: Annotated[int, Field(ge=1, le=SHARDS_MAX)]
    """Shards of the generation, of which a process may have opened fewer."""
    part_function: Literal["xxh3_64_le_mod"]
    """Function that gives each user a shard."""
    run_id: UUID | None
    """Identity of the run that wrote the generation; None in formats 2 and 3."""
    engine: str | None
    """Engine that wrote it, such as `embedded`; None in formats 2 and 3."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of thinrow, rocksdict and Python that wrote it."""
    shards: list[ShardSummary]
    run: RunInputs
    """The inputs of the last compaction."""
    fills: list[FillRecord] = Field(default_factory=list)
    """Fills so far, the oldest first."""
    vocabularies: list[StoredVocabulary] = Field(default_factory=list)
    """Those of traits with codes of a vocabulary, in schema order."""
    topic: TopicSeal | None = None
    """The topic that the store's events come from; None for a store of files."""
    single: tuple[ShardManifest, ...] = Field(default=(), exclude=True)
    """Manifests of all shards, which formats 2 and 3 have in the same file."""

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
        vocabularies = sum(one.file.bytes for one in self.vocabularies)
        return sum(shard.stored_bytes for shard in self.shards) + vocabularies


def new_manifest(
    *,
    run_id: UUID,
    engine: str,
    number: int,
    watermarks: list[int],
    schema: Schema,
    shards: list[ShardSummary],
    run: RunInputs,
    fills: list[FillRecord],
    vocabularies: list[StoredVocabulary],
    topic: TopicSeal | None,
) -> Manifest:
    """Returns the manifest of a generation that this process writes."""
    return Manifest(
        format=FORMAT if topic is None else TOPIC_FORMAT,
        number=number,
        watermarks=watermarks,
        stored_schema=to_stored(schema),
        shard_count=len(shards),
        part_function=PART_FUNCTION,
        run_id=run_id,
        engine=engine,
        versions={
            "thinrow": version("thinrow"),
            "rocksdict": version("rocksdict"),
            "python": platform.python_version(),
        },
        shards=shards,
        run=run,
        fills=fills,
        vocabularies=vocabularies,
        topic=topic,
    )


def encode_manifest(manifest: Manifest) -> str:
    """Returns the text of a root manifest, which has one line for each shard."""
    assert manifest.format == (FORMAT if manifest.topic is None else TOPIC_FORMAT)
    body = manifest.model_dump(mode="json", exclude_defaults=True)
    body["xxh3"] = _checksum(body)
    shards = ",\n".join(f"  {json.dumps(shard)}" for shard in body.pop("shards"))
    return f'{json.dumps(body, indent=1)[:-2]},\n "shards": [\n{shards}\n ]\n}}\n'


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes the generation in ``folder``."""
    write_atomically(folder / MANIFEST, encode_manifest(manifest))


def parse_manifest(text: str, name: Path | str) -> Manifest:
    """Reads and checks the text of a root manifest.

    Args:
        text: The text.
        name: The file or object that has it, for errors.

    Raises:
        StoreCorruptError: It is altered.
        StoreError: Another version of ThinRow wrote it.
    """
    try:
        return _parsed(text, name)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(name, reason_of(error)) from error


def _parsed(text: str, name: Path | str) -> Manifest:
    body = json.loads(text)
    if body.pop("xxh3") != _checksum(body):
        raise ValueError("its checksum does not fit")
    single: tuple[ShardManifest, ...] = ()
    if body["format"] in SINGLE_FORMATS:
        single = split_single(body, PART_FUNCTION)
    elif body["format"] not in (FORMAT, TOPIC_FORMAT):
        raise StoreError(
            f"{name} has format {body['format']}, and this ThinRow reads formats "
            f"{', '.join(map(str, (*SINGLE_FORMATS, FORMAT)))} and {TOPIC_FORMAT}; use the version "
            f"that wrote it."
        )
    manifest = Manifest.model_validate(body | {"single": single})
    if not single and (manifest.run_id is None or manifest.engine is None):
        raise ValueError("it does not name the run that wrote it")
    if (manifest.topic is not None) != (manifest.format == TOPIC_FORMAT):
        raise ValueError("its format does not fit its topic")
    _check_shards(manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks the root manifest of a generation.

    Raises:
        StoreCorruptError: it is missing or altered.
        StoreError: another version of ThinRow wrote it.
    """
    path = folder / MANIFEST
    try:
        text = read_small(path, MANIFEST_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return parse_manifest(text, path)


def shard_manifest(folder: Path, manifest: Manifest, number: int) -> ShardManifest:
    """Returns the manifest of one shard of a generation, checked against the root.

    Raises:
        StoreCorruptError: It is missing, altered, or contradicts the root manifest.
        StoreError: It cannot be read for now.
    """
    summary = manifest.shards[number]
    if manifest.single:
        return manifest.single[number]
    assert summary.manifest_xxh3 is not None
    found = read_shard_manifest(folder, number, summary.manifest_xxh3)
    try:
        check_shard(summary, found)
    except ValueError as error:
        raise damaged(folder / shard_manifest_name(number), str(error)) from error
    return found


def _check_shards(manifest: Manifest) -> None:
    """Checks that shards are numbered without a gap, and that their counts agree.

    A user's shard is a number modulo the count of shards: one that is left out or stands in the
    place of another would make users look unknown.

    Raises:
        ValueError: Names the first shard at fault.
    """
    if len(manifest.shards) != manifest.shard_count:
        raise ValueError(f"it lists {len(manifest.shards)} of {manifest.shard_count} shards")
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            raise ValueError(f"it lists {shard.name} where {shard_name(number)} belongs")
        if bool(shard.users) != bool(shard.events):
            raise ValueError(
                f"of {shard.name} it lists {shard.users} users and {shard.events} events, which "
                f"contradict each other"
            )
        if shard.users and not shard.keys:
            raise ValueError(f"of {shard.name} it lists {shard.users} users and no keys")
        if manifest.single:
            check_shard(shard, manifest.single[number])
        elif shard.kv_xxh3_128 is None or shard.manifest_xxh3 is None:
            raise ValueError(f"of {shard.name} it lacks a digest")


def check_shard(summary: ShardSummary, manifest: ShardManifest) -> None:
    """Checks that a shard's manifest has tables exactly if the root manifest says it has keys.

    Raises:
        ValueError: It has not.
    """
    if manifest.has_tables != (summary.keys > 0):
        has = "" if manifest.has_tables else "no "
        raise ValueError(
            f"of {summary.name} it lists {has}tables, which contradict its {summary.keys} keys"
        )


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
