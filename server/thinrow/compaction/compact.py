"""Compaction: raw events and the last generation become the next generation, all or nothing.

Two phases, so that memory holds one shard: events are split by shard into scratch files, then
each shard is sorted and written. Everything happens in a scratch folder that no reader looks at;
the new generation appears by one rename, and serves once CURRENT names it.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import xxhash
from thinrow.compaction.config import SHARDS_DEFAULT, SHARDS_MAX, CompactionConfig
from thinrow.compaction.shard import ShardBuild, ShardCounts, ShardTask
from thinrow.compaction.shards import ENGINE, is_whole_due, previous_shard, write_shards
from thinrow.compaction.users import read_user_ids
from thinrow.compaction.vocabularies import (
    RunValues,
    VocabularyGrowth,
    growths,
    write_vocabularies,
)
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import data_files
from thinrow.errors import SchemaError, UsageError
from thinrow.events.canonical import ID_COLUMNS, ignored_columns
from thinrow.events.exported import check_exports
from thinrow.events.log_facts import propose_schema
from thinrow.events.order import planned_cuts
from thinrow.events.split import Progress, SplitEvents, split_events
from thinrow.events.time_columns import TimeReader, TimeSpan
from thinrow.events.user_ids import UserIdReader
from thinrow.remote.checkout import Checkout
from thinrow.schema import Schema, evolve, parse_schema, read_schema
from thinrow.store.current import current_folder
from thinrow.store.generation import Generation
from thinrow.store.generations import (
    check_nothing_newer,
    check_removable,
    highest_number,
    locked_store,
    make_store,
    prune,
    publish_built,
    remove_leftovers,
)
from thinrow.store.hashing import file_fingerprint, shard_of
from thinrow.store.layout import shard_name
from thinrow.store.manifest import RunInputs, ShardSummary, new_manifest, write_manifest
from thinrow.store.marks import build_folder
from thinrow.store.place import is_url
from thinrow.store.shard import storage_error
from thinrow.store.user_texts import check_texts, known_texts, unique_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.events.order import Cuts
    from thinrow.schema.proposal import ProposedSchema
    from thinrow.store.shard import ShardWriter
    from thinrow.store.vocabulary import Vocabulary

__all__ = ["CompactionReport", "compact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionReport:
    """Report of a run."""

    generation: int
    watermark_ts: int
    already_published: bool = False
    """True where the very same run was done before; then nothing was done and counts are 0."""
    rows_read: int = 0
    events_added: int = 0
    duplicates: int = 0
    late: int = 0
    """Skipped: arrived before the last watermark, so taken as already there."""
    left_for_later: int = 0
    """Arrived at or after the watermark."""
    erased_users: int = 0
    events_dropped: int = 0
    """Events dropped by retention and erasure."""
    event_count: int = 0
    """Events in the generation."""
    user_count: int = 0
    stored_bytes: int = 0
    ignored_columns: list[str] = field(default_factory=list)
    """Input columns that the schema does not list."""
    times: dict[str, TimeSpan] = field(default_factory=dict)
    """Range of the times read, by time column."""
    tied_events: int = 0
    """Events added whose order only their traits decide, as the input does not define it."""
    uncut_ms: int = 0
    """Span of this run's arrivals that has no watermark inside; 0 with a cadence."""
    vocabularies: list[VocabularyGrowth] = field(default_factory=list)
    """Sizes of vocabularies, and their growth in this run."""


def compact(
    config: CompactionConfig,
    progress: Progress = lambda *_: None,
    proposed: Callable[[ProposedSchema], None] = lambda _: None,
) -> CompactionReport:
    """Builds and publishes the next generation of a store.

    Killed at any point it leaves the last generation serving, and can be run again.

    Args:
        config: The run.
        progress: Receives the work done.
        proposed: Receives the schema of a new store before it is built, if the run names none.

    Raises:
        UsageError: the schema, the events, the watermark or the store's folder cannot be used as
            they are.
        StoreLockedError: another compaction is running on this store.
        StoreError: the store holds a newer generation than CURRENT names, or no CURRENT.
        StoreFullError: the disk is full.
        StoreCorruptError: a file of the last generation is damaged.
        StoreUnavailableError: the object store does not answer.
    """
    if is_url(config.store):
        with Checkout(str(config.store), config.mirror, progress) as checkout:
            local = replace(config, store=checkout.folder, mirror=None)
            report = compact(local, progress, proposed)
            return replace(report, generation=checkout.publish())
    try:
        make_store(config.folder)
        with locked_store(config.folder), ExitStack() as stack:
            remove_leftovers(config.folder)
            check_nothing_newer(config.folder)
            if config.keep is not None:
                check_removable(config.folder)
            previous = None
            if current_folder(config.folder) is not None:
                previous = stack.enter_context(Generation.open_current(config.folder))
            return _compact(config, previous, progress, proposed)
    except OSError as error:
        raise storage_error(error, config.folder) from error


def _first_schema(
    config: CompactionConfig,
    files: Sequence[DataFile],
    progress: Progress,
    proposed: Callable[[ProposedSchema], None],
) -> Schema:
    """Returns the schema of a new store: as given, or as the events propose it."""
    if config.schema is not None:
        return read_schema(config.schema)
    proposal = propose_schema(files, progress)
    proposed(proposal)
    return parse_schema(proposal.toml)


def _compact(
    config: CompactionConfig,
    previous: Generation | None,
    progress: Progress,
    proposed: Callable[[ProposedSchema], None],
) -> CompactionReport:
    files = data_files(config.events)
    if previous is None:
        schema = _first_schema(config, files, progress, proposed)
    elif config.schema is None:
        schema = previous.schema
    else:
        schema = evolve(previous.schema, read_schema(config.schema))
        if not config.drop_filled:
            _check_filled_kept(config.schema, previous.schema, schema)
    users = UserIdReader(schema.user_ids)
    erased = np.unique(read_user_ids(config.erase_users, users))
    erased_texts = users.take_users()
    if previous is not None and len(erased_texts):
        named = unique_texts(erased_texts)
        check_texts(named, known_texts(previous, named.keys), schema.user_ids)
    run = RunInputs(
        events=sorted(file_fingerprint(file, PurePosixPath(file.name).name) for file in files),
        erase_xxh3=xxhash.xxh3_64_hexdigest(erased.tobytes()),
        cadence_ms=config.cadence_ms,
        lookback_ms=config.lookback_ms,
        dedup_window_ms=config.dedup_window_ms,
        accept_late=config.accept_late,
        cadence_offset_ms=config.cadence_offset_ms,
        time_unit=config.time_unit,
        cuts_xxh3=None if config.cuts_ts is None else _cuts_xxh3(config.cuts_ts),
    )
    if previous is not None and config.watermark_ts <= previous.watermark_ts:
        return _already_there(config, previous, schema, run)
    check_exports(files, None if previous is None else previous.watermark_ts, config.watermark_ts)
    shards = _shard_count(config, previous)

    with build_folder(config.folder) as building:
        times = TimeReader(config.time_unit)
        values = RunValues(
            config.folder,
            schema,
            previous,
            since_ts=None if previous is None or config.accept_late else previous.watermark_ts,
            watermark_ts=config.watermark_ts,
            erased=erased,
        )
        split = split_events(
            files, schema.carried, shards, building / "events", times, progress, values.add
        )
        vocabularies = values.vocabularies()
        cuts = planned_cuts(
            None if previous is None else previous.watermark_ts,
            split.arrivals.start_ts,
            config.watermark_ts,
            config.cadence,
            config.cuts_ts or (),
        )
        number = highest_number(config.folder) + 1
        totals, summaries = _write_shards(
            config,
            previous,
            number,
            schema,
            cuts,
            split,
            erased,
            erased_texts,
            vocabularies,
            progress,
        )
        shutil.rmtree(building / "events")
        manifest = new_manifest(
            run_id=uuid4(),
            engine=ENGINE,
            number=number,
            watermarks=[
                *([] if previous is None else previous.manifest.watermarks),
                *cuts.watermarks.tolist(),
            ],
            schema=schema,
            shards=summaries,
            run=run,
            fills=[] if previous is None else previous.manifest.fills,
            vocabularies=write_vocabularies(building, schema, vocabularies, previous),
        )
        write_manifest(building, manifest)
        publish_built(building, manifest.number)
    _prune(config)
    known = {*ID_COLUMNS, *schema.by_name}
    ignored = {
        name for file in files for name in ignored_columns(open_parquet(file).schema_arrow, known)
    }
    return CompactionReport(
        generation=manifest.number,
        watermark_ts=manifest.watermark_ts,
        rows_read=split.rows,
        events_added=sum(counts.events_added for counts in totals),
        duplicates=sum(counts.duplicates for counts in totals),
        late=sum(counts.late for counts in totals),
        left_for_later=sum(counts.left_for_later for counts in totals),
        erased_users=len(erased),
        events_dropped=sum(counts.events_dropped for counts in totals),
        event_count=manifest.event_count,
        user_count=manifest.user_count,
        stored_bytes=manifest.stored_bytes,
        ignored_columns=sorted(ignored),
        times=times.spans,
        tied_events=sum(counts.tied for counts in totals),
        uncut_ms=_uncut_ms(config, previous, split.arrivals),
        vocabularies=growths(schema, vocabularies, previous),
    )


def _check_filled_kept(file: Path, stored: Schema, schema: Schema) -> None:
    """Refuses a schema file from before a fill, which would remove what was filled.

    Raises:
        SchemaError: Names the trait.
    """
    groups = {trait.name: group.name for group in stored.groups for trait in group.traits}
    kept = {trait.name for trait in schema.traits}
    for trait in stored.traits:
        if trait.filled_before_ts is not None and trait.name not in kept:
            raise SchemaError(
                f"{file} lacks {groups[trait.name]}.{trait.name}, which was filled; add it to the "
                f"file, leave --schema out, or give --drop-filled to remove it."
            )


def _cuts_xxh3(cuts_ts: Sequence[int]) -> str:
    return xxhash.xxh3_64_hexdigest(np.array(cuts_ts, dtype="<i8").tobytes())


def _uncut_ms(config: CompactionConfig, previous: Generation | None, arrivals: TimeSpan) -> int:
    if config.cadence is not None or config.cuts_ts is not None or arrivals.start_ts is None:
        return 0
    start_ts = arrivals.start_ts
    if previous is not None:
        start_ts = max(start_ts, previous.watermark_ts)
    return max(min(arrivals.latest_ts, config.watermark_ts) - start_ts, 0)


def _write_shards(
    config: CompactionConfig,
    previous: Generation | None,
    generation: int,
    schema: Schema,
    cuts: Cuts,
    split: SplitEvents,
    erased: NDArray[np.int64],
    erased_texts: pa.Table,
    vocabularies: Mapping[str, Vocabulary],
    progress: Progress,
) -> tuple[list[ShardCounts], list[ShardSummary]]:
    """Writes every shard of the next generation."""
    groups = {group.number for group in schema.groups}
    known = groups
    if previous is not None:
        known = {group.number for group in previous.schema.groups}
    owners = shard_of(erased, split.shards)

    def write(number: int) -> tuple[ShardCounts, ShardWriter]:
        task = ShardTask(
            schema=schema,
            texts=split.read_texts(number, erased_texts),
            new_groups=frozenset(groups - known),
            cuts=cuts,
            dedup_window_ms=config.dedup_window_ms,
            lookback_ms=config.lookback_ms,
            erased=erased[owners == number],
            accept_late=config.accept_late,
            whole=(
                groups != known
                or config.lookback_ms is not None
                or bool((owners == number).any())
                or is_whole_due(generation, number)
            ),
            vocabularies=vocabularies,
        )
        folder = split.folder.parent / shard_name(number)
        build = ShardBuild(previous_shard(previous, number), task, folder)
        build.add(split.read(number))
        return build.finish()

    return write_shards(split.shards, write, previous, progress)


def _already_there(
    config: CompactionConfig, previous: Generation, schema: Schema, run: RunInputs
) -> CompactionReport:
    manifest = previous.manifest
    if config.watermark_ts < previous.watermark_ts:
        raise UsageError(
            f"The store already has watermark {previous.watermark_ts}, which is after "
            f"{config.watermark_ts}; give a later --watermark."
        )
    if run != manifest.run or schema != previous.schema:
        raise UsageError(
            f"Watermark {previous.watermark_ts} was published with other input or options; a "
            f"generation never changes, so give a later --watermark."
        )
    _prune(config)
    return CompactionReport(
        generation=manifest.number,
        watermark_ts=manifest.watermark_ts,
        already_published=True,
        event_count=manifest.event_count,
        user_count=manifest.user_count,
        stored_bytes=manifest.stored_bytes,
    )


def _shard_count(config: CompactionConfig, previous: Generation | None) -> int:
    if previous is None:
        shards = config.shards or SHARDS_DEFAULT
        # Servers, or row files, by twos and fours can then have whole shards each.
        if shards & (shards - 1):
            below = 1 << (shards.bit_length() - 1)
            raise UsageError(
                f"--shards is {shards}; a new store has a power of two, such as {below} or "
                f"{min(2 * below, SHARDS_MAX)}."
            )
        return shards
    if config.shards not in (None, previous.shard_count):
        raise UsageError(
            f"The store has {previous.shard_count} shards and keeps them; leave --shards out."
        )
    return previous.shard_count


def _prune(config: CompactionConfig) -> None:
    if config.keep is not None:
        # A generation that was rolled back and kept holds the users erased as well.
        prune(config.folder, config.keep, withdrawn=config.erase_users is not None)
