"""Fill: stored events get values of traits that came later, or corrected ones.

The next generation shares everything with the last but the stripes of one feature group, and has
the same watermark: pointers and digests stay valid.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4

import polars as pl
import pyarrow as pa
from thinrow.compaction.shards import ENGINE, write_shards
from thinrow.compaction.vocabularies import (
    NewValues,
    VocabularyGrowth,
    coded,
    growths,
    known_vocabularies,
    write_vocabularies,
)
from thinrow.core.files.paths import data_files
from thinrow.core.ids import is_text_kind
from thinrow.errors import InputError, SchemaError, UsageError
from thinrow.events.split import TEXTS, ShardFiles, read_split
from thinrow.events.time_columns import TimeReader
from thinrow.events.user_ids import USERS, UserIdReader
from thinrow.filling.key_names import KeyNames
from thinrow.filling.rows import FillRows, check_bytes, text_of_key
from thinrow.filling.shard import SHOWN_MAX, FillCounts, FillTask, fill_shard
from thinrow.filling.table import FillTable
from thinrow.remote.checkout import Checkout
from thinrow.schema import Schema, evolve, read_schema
from thinrow.store.current import require_current_folder
from thinrow.store.generation import Generation
from thinrow.store.generations import (
    check_nothing_newer,
    highest_number,
    locked_store,
    publish_built,
    remove_leftovers,
)
from thinrow.store.hashing import content_fingerprint
from thinrow.store.layout import shard_name
from thinrow.store.manifest import FillRecord, new_manifest, write_manifest
from thinrow.store.marks import build_folder
from thinrow.store.place import is_url
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from thinrow.compaction.pair_writer import PreviousShard
    from thinrow.compaction.shard import ShardCounts
    from thinrow.events.split import Progress
    from thinrow.filling.config import FillConfig
    from thinrow.schema import FeatureGroup
    from thinrow.store.shard import ShardWriter
    from thinrow.store.vocabulary import Vocabulary

__all__ = ["FILLS_MAX", "FillReport", "fill"]

FILLS_MAX = 10_000
"""Limit on the fills of a store, each of which its manifest records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FillReport:
    """Report of a fill."""

    record: FillRecord
    """Record of the fill, as the manifest holds it."""
    already_published: bool = False
    """True where the very same fill was done before; then nothing was done."""
    is_new_group: bool = False
    rows_read: int = 0
    """Rows, those included that repeat others."""
    shown_rows: list[dict[str, object]] = field(default_factory=list)
    """Keys of some rows that matched no event."""
    shown_events: list[dict[str, object]] = field(default_factory=list)
    """Keys of some events that no row matched."""
    ignored_columns: list[str] = field(default_factory=list)
    """Input columns that are neither of the key nor of the group."""
    stored_bytes: int = 0
    """Bytes of the generation."""
    vocabularies: list[VocabularyGrowth] = field(default_factory=list)
    """Sizes of the vocabularies of traits that were filled, and their growth."""


def fill(config: FillConfig, progress: Progress = lambda *_: None) -> FillReport:
    """Publishes a generation in which the stored events of a group have the values of a table.

    Killed at any point it leaves the last generation serving, and can be run again.

    Args:
        config: The run.
        progress: Receives the work done.

    Raises:
        UsageError: the group, the schema or the table's columns cannot be used as they are.
        InputError: a row cannot be used, or contradicts another.
        StoreMissingError: there is no store.
        StoreLockedError: another command is changing this store.
        StoreFullError: the disk is full.
        StoreCorruptError: a file of the last generation is damaged.
    """
    if is_url(config.store):
        with Checkout(str(config.store), config.mirror, progress) as checkout:
            report = fill(replace(config, store=checkout.folder, mirror=None), progress)
            checkout.publish()
            return report
    require_current_folder(config.folder)  # before a lock is made in a folder that is no store
    try:
        with locked_store(config.folder), ExitStack() as stack:
            remove_leftovers(config.folder)
            check_nothing_newer(config.folder)
            previous = stack.enter_context(Generation.open_current(config.folder))
            return _fill(config, previous, progress)
    except OSError as error:
        raise storage_error(error, config.folder) from error


def _fill(config: FillConfig, previous: Generation, progress: Progress) -> FillReport:
    files = data_files(config.values)
    schema, group = _schema(config, previous.schema)
    table = FillTable.of(files, schema, group, config.by)
    for trait in table.key_traits:
        if trait.name not in previous.schema.by_name:
            raise UsageError(
                f"--by {trait.name} names a trait that no stored event has; join rows by another."
            )
    manifest = previous.manifest
    record = FillRecord(
        generation=highest_number(config.folder) + 1,
        filled_ts=time.time_ns() // 1_000_000,
        watermark_ts=manifest.watermark_ts,
        group=group.name,
        traits=[trait.name for trait in table.filled],
        trait_numbers=[trait.number for trait in table.filled],
        by=list(table.key),
        time_unit=config.time_unit,
        values=sorted(content_fingerprint(file, PurePosixPath(file.name).name) for file in files),
        rows=0,
        rows_unmatched=0,
        events=0,
        events_unmatched=0,
    )
    # Another fill in between may have changed what joins rows to events.
    known = manifest.fills[-1] if manifest.fills else None
    if known is not None and _inputs(known) == _inputs(record) and schema == previous.schema:
        return FillReport(record=known, already_published=True, stored_bytes=manifest.stored_bytes)
    if len(manifest.fills) >= FILLS_MAX:
        raise UsageError(
            f"The store has had {FILLS_MAX:,} fills, which is the limit; build it again from "
            f"events that have the values."
        )
    is_new = group.number not in {each.number for each in previous.schema.groups}
    task = FillTask(schema=schema, group=group, is_new=is_new, table=table)
    known_values = known_vocabularies(config.folder, schema, previous)
    with build_folder(config.folder) as building:
        times = TimeReader(config.time_unit)
        shards = _FilledShards(previous, task, known_values, building, times, progress)
        vocabularies = known_values | shards.new_vocabularies
        _, summaries = write_shards(previous.shard_count, shards.write, previous, progress)
        record = shards.completed(record)
        filled = new_manifest(
            run_id=uuid4(),
            engine=ENGINE,
            number=record.generation,
            watermarks=manifest.watermarks,
            schema=schema,
            shards=summaries,
            run=manifest.run,
            fills=[*manifest.fills, record],
            vocabularies=write_vocabularies(building, schema, vocabularies, previous),
            topic=manifest.topic,
        )
        shards.remove_scratch()
        write_manifest(building, filled)
        publish_built(building, filled.number)
    return FillReport(
        record=record,
        is_new_group=is_new,
        rows_read=shards.rows_read,
        shown_rows=shards.shown_rows,
        shown_events=shards.counts.shown_events,
        ignored_columns=list(table.ignored),
        stored_bytes=filled.stored_bytes,
        vocabularies=[
            growth
            for growth in growths(schema, vocabularies, previous)
            if growth.trait in shards.new_vocabularies
        ],
    )


def _inputs(record: FillRecord) -> dict[str, object]:
    """The part of a record that the same fill, run again, has in common with it."""
    return record.model_dump(
        include={"watermark_ts", "group", "trait_numbers", "by", "time_unit", "values"},
    )


class _FilledShards:
    """The shards of one fill, and what is known of all of them."""

    def __init__(
        self,
        previous: Generation,
        task: FillTask,
        known: Mapping[str, Vocabulary],
        building: Path,
        times: TimeReader,
        progress: Progress,
    ) -> None:
        self.counts = FillCounts()
        self.rows_read = 0
        self.shown_rows: list[dict[str, object]] = []
        self._previous, self._task, self._building = previous, task, building
        self._rows = self._rows_unmatched = 0
        self._of_all: FillRows | None = None
        self._scratch: Path | None = None
        self._values = NewValues((*task.table.coded_key, *task.table.coded_filled), known)
        users = UserIdReader(previous.schema.user_ids)
        tables = self._counted(task.table.read(times, users), progress)
        if task.table.by_user:
            self._scratch = building / "values"
            with ExitStack() as stack:
                shards, texts = previous.shard_count, None
                values = ShardFiles(self._scratch, task.table.schema, shards)
                files = stack.enter_context(values)
                if is_text_kind(users.kind):
                    texts = stack.enter_context(ShardFiles(self._scratch / TEXTS, USERS, shards))
                for table in tables:
                    files.write(table)
                    if texts is not None:
                        texts.write(users.take_users())
            self._vocabularies = self._values.vocabularies()
        else:
            table = _bounded(tables, task.table)
            self._vocabularies = self._values.vocabularies()
            self._of_all = self._fill_rows(table, self._names())
        if not self.rows_read:
            raise InputError(f"{task.table.files[0]} has no rows; there is nothing to fill.")

    @property
    def new_vocabularies(self) -> dict[str, Vocabulary]:
        """Vocabularies of the traits that are filled, with the values of the rows, by trait."""
        filled = [trait.name for trait in self._task.table.coded_filled]
        return {name: self._vocabularies[name] for name in filled}

    def write(self, number: int, shard: PreviousShard | None) -> tuple[ShardCounts, ShardWriter]:
        """Writes one shard."""
        rows, names = self._of_all, self._names()
        if self._scratch is not None:
            if is_text_kind(self._previous.schema.user_ids):
                names = self._names(read_split(self._scratch / TEXTS, number))
            table = read_split(self._scratch, number)
            rows = self._fill_rows(_bounded(iter([table]), self._task.table), names)
        assert rows is not None
        assert shard is not None
        folder = self._building / shard_name(number)
        written = fill_shard(rows, shard, self._task, self.counts, names, folder)
        if self._of_all is None:
            self._add(rows, names)
        return written

    def completed(self, record: FillRecord) -> FillRecord:
        """Returns the record with what was counted.

        Raises:
            UsageError: no row matched an event.
        """
        if self._of_all is not None:
            self._add(self._of_all, self._names())
        if not self.counts.events:
            shown = f"; one row has {text_of_key(self.shown_rows[0])}" if self.shown_rows else ""
            raise UsageError(
                f"None of the {self._rows:,} rows matches an event by "
                f"{', '.join(self._task.table.key)}{shown}; check the values, or give another --by."
            )
        return record.model_copy(
            update={
                "rows": self._rows,
                "rows_unmatched": self._rows_unmatched,
                "events": self.counts.events,
                "events_unmatched": self.counts.events_unmatched,
            }
        )

    def remove_scratch(self) -> None:
        """Removes what is no part of the generation."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch)

    def _counted(self, tables: Iterator[pa.Table], progress: Progress) -> Iterator[pa.Table]:
        total = self._task.table.row_count
        for table in tables:
            self.rows_read += table.num_rows
            self._values.add(table)
            progress("Reading values", self.rows_read, total)
            yield table

    def _names(self, texts: pa.Table | None = None) -> KeyNames:
        """Names keys; those of users by the texts of a shard, where ids are texts."""
        key = [trait.name for trait in self._task.table.coded_key]
        codes = {name: self._vocabularies[name] for name in key}
        return KeyNames(self._previous, codes, texts)

    def _fill_rows(self, table: pa.Table, names: KeyNames) -> FillRows:
        """Takes rows in canonical form, whose values get codes."""
        frame, own = pl.from_arrow(table), self._task.table
        assert isinstance(frame, pl.DataFrame)
        frame = coded(frame, (*own.coded_key, *own.coded_filled), self._vocabularies)
        return FillRows(frame, own, names)

    def _add(self, rows: FillRows, names: KeyNames) -> None:
        unmatched = rows.unmatched
        self._rows += len(rows)
        self._rows_unmatched += len(unmatched)
        some = unmatched[: SHOWN_MAX - len(self.shown_rows)].to_dicts()
        self.shown_rows += map(names.shown, some)


def _bounded(tables: Iterator[pa.Table], table: FillTable) -> pa.Table:
    """Joins tables. Raises UsageError where they have more than VALUES_BYTES_MAX bytes."""
    joined: list[pa.Table] = []
    total = 0
    for each in tables:
        total += each.nbytes
        check_bytes(total, by_user=table.by_user)
        joined.append(each)
    return pa.concat_tables(joined) if joined else table.schema.empty_table()


def _schema(config: FillConfig, stored: Schema) -> tuple[Schema, FeatureGroup]:
    """Returns the schema with the group to be filled, and the group.

    Raises:
        SchemaError: the file changes more than the group, or removes traits.
        UsageError: neither the store nor the file has the group.
    """
    wanted = stored
    if config.schema is not None:
        wanted = _with_group(config, stored, read_schema(config.schema))
    for group in wanted.groups:
        if group.name == config.group:
            return wanted, group
    known = ", ".join(group.name for group in stored.groups)
    raise UsageError(
        f"The store has no group {config.group}, but {known}; to fill a new one give a --schema "
        f"with a table [{config.group}]."
    )


def _with_group(config: FillConfig, stored: Schema, given: Schema) -> Schema:
    """Returns the stored schema with one group as the file has it, where the file has it."""
    own = {group.name: group for group in given.groups}
    if config.group not in own:
        raise SchemaError(
            f"{config.schema} has no group {config.group}; add a table [{config.group}]."
        )
    known = {group.name: group for group in stored.groups}
    # The order of a whole schema's file counts, so that compaction takes the same file.
    names = list(own) if known.keys() <= own.keys() else [*known]
    if config.group not in names:
        names.append(config.group)
    for name in own.keys() - known.keys() - {config.group}:
        raise SchemaError(
            f"{config.schema} has the group {name}, which the store has not; a fill adds only "
            f"{config.group}, so fill {name} after it, or add it with thinrow compact."
        )
    for name, group in known.items():
        traits = {trait.name for trait in own.get(name, group).traits}
        for trait in group.traits:
            if trait.name not in traits:
                raise SchemaError(
                    f"{config.schema} lacks {name}.{trait.name}, which a fill cannot remove; put "
                    f"it back."
                )
        added = traits - {trait.name for trait in group.traits}
        if added and name != config.group:
            raise SchemaError(
                f"{config.schema} adds {name}.{min(added)}; a fill adds traits only to "
                f"{config.group}, so fill {name} after it."
            )
    owners = {trait.name: name for name, group in known.items() for trait in group.traits}
    for trait in own[config.group].traits:
        owner = owners.get(trait.name, config.group)
        if owner != config.group:
            raise SchemaError(
                f"{config.schema}: {config.group}.{trait.name} has the name of {owner}.{trait.name}"
                f", which the store has; trait names are unique, so choose another."
            )
    groups = tuple(own.get(name) or known[name] for name in names)
    return evolve(stored, replace(stored, groups=groups))
