"""One run of compaction, as every engine does it: what it reads, and what it does with a shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from thinrow.compaction.config import SHARDS_DEFAULT
from thinrow.compaction.report import CompactionReport
from thinrow.compaction.shard import ShardTask
from thinrow.compaction.shards import is_whole_due
from thinrow.compaction.topic import Skipped
from thinrow.compaction.users import read_user_ids
from thinrow.compaction.vocabularies import growths
from thinrow.core.files.paths import data_files
from thinrow.core.shards import SHARDS_MAX, shard_of
from thinrow.errors import SchemaError, UsageError
from thinrow.events.log_facts import propose_schema
from thinrow.events.user_ids import UserIdReader
from thinrow.schema import Schema, evolve, parse_schema, read_schema
from thinrow.store.hashing import file_fingerprint
from thinrow.store.manifest import RunInputs, new_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from uuid import UUID

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.compaction.config import CompactionConfig
    from thinrow.compaction.shard import ShardCounts
    from thinrow.core.files.paths import DataFile
    from thinrow.events.order import Cuts
    from thinrow.events.split import Progress
    from thinrow.events.time_columns import TimeSpan
    from thinrow.schema.proposal import ProposedSchema
    from thinrow.store.generation import Generation
    from thinrow.store.manifest import Manifest, ShardSummary, StoredVocabulary, TopicSeal
    from thinrow.store.vocabulary import Vocabulary

__all__ = [
    "InputFacts",
    "Run",
    "ShardPlan",
    "earlier_report",
    "manifest_of",
    "prepare",
    "report_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: its input, and the schema of the generation that it builds."""

    files: list[DataFile]
    schema: Schema
    shards: int
    erased: NDArray[np.int64]
    """Users to erase, ascending, each once."""
    erased_texts: pa.Table
    """Those whose ids are texts: see USERS."""
    inputs: RunInputs
    topic: TopicSeal | None = None
    """The offsets up to which the generation will hold a topic, once they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """Measures of the events that a run read."""

    rows: int
    arrivals: TimeSpan
    times: dict[str, TimeSpan]
    """Range of the times read, by time column."""
    ignored: list[str]
    """Columns that the schema does not list, ascending."""
    skipped: Skipped = field(default_factory=Skipped)
    """The part of a topic that was read and gave no event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """Work of a run on each shard."""

    generation: int
    shards: int
    schema: Schema
    known_groups: frozenset[int]
    """Groups of the last generation; those of the schema in a first build."""
    cuts: Cuts
    dedup_window_ms: int
    lookback_ms: int | None
    accept_late: bool
    erased: NDArray[np.int64]
    owners: NDArray[np.int64] = field(init=False)
    """Shard of each user to erase."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "owners", shard_of(self.erased, self.shards))

    @classmethod
    def of(
        cls,
        config: CompactionConfig,
        run: Run,
        previous: Generation | None,
        generation: int,
        cuts: Cuts,
    ) -> ShardPlan:
        """Returns the plan of a run that builds a generation of that number."""
        return cls(
            generation=generation,
            shards=run.shards,
            schema=run.schema,
            known_groups=frozenset(group.number for group in (previous or run).schema.groups),
            cuts=cuts,
            dedup_window_ms=config.dedup_window_ms,
            lookback_ms=config.lookback_ms,
            accept_late=config.accept_late,
            erased=run.erased,
        )

    def task(self, shard: int, vocabularies: Mapping[str, Vocabulary]) -> ShardTask:
        """Returns the task for one shard."""
        groups = {group.number for group in self.schema.groups}
        erased = self.erased[self.owners == shard]
        return ShardTask(
            schema=self.schema,
            new_groups=frozenset(groups - self.known_groups),
            cuts=self.cuts,
            dedup_window_ms=self.dedup_window_ms,
            lookback_ms=self.lookback_ms,
            erased=erased,
            accept_late=self.accept_late,
            whole=(
                groups != self.known_groups
                or self.lookback_ms is not None
                or len(erased) > 0
                or is_whole_due(self.generation, shard)
            ),
            vocabularies=vocabularies,
        )


def prepare(
    config: CompactionConfig,
    previous: Generation | None,
    progress: Progress,
    proposed: Callable[[ProposedSchema], None],
) -> Run:
    """Lists the input of a run, and decides on the schema of its generation.

    Raises:
        UsageError: The schema, the users to erase or the number of shards cannot be used.
        InputError: A file cannot be read.
    """
    files = [] if config.topic is not None else data_files(config.events)
    schema = _schema(config, files, previous, progress, proposed)
    users = UserIdReader(schema.user_ids)
    erased = np.unique(read_user_ids(config.erase_users, users))
    inputs = RunInputs(
        events=_known_events(config, files, previous),
        erase_xxh3=xxhash.xxh3_64_hexdigest(erased.tobytes()),
        cadence_ms=config.cadence_ms,
        lookback_ms=config.lookback_ms,
        dedup_window_ms=config.dedup_window_ms,
        accept_late=config.accept_late,
        cadence_offset_ms=config.cadence_offset_ms,
        time_unit=config.time_unit,
        cuts_xxh3=None if config.cuts_ts is None else _cuts_xxh3(config.cuts_ts),
    )
    return Run(
        files=files,
        schema=schema,
        shards=_shard_count(config, previous),
        erased=erased,
        erased_texts=users.take_users(),
        inputs=inputs,
    )


def _known_events(
    config: CompactionConfig, files: Sequence[DataFile], previous: Generation | None
) -> list[str]:
    """Returns the identity of the input, as far as it is known before it is read.

    That of a topic follows from the generation before and the watermark. So a generation of this
    very topic and watermark has it.
    """
    if config.topic is None:
        return sorted(file_fingerprint(file, PurePosixPath(file.name).name) for file in files)
    if previous is None or previous.watermark_ts != config.watermark_ts:
        return []
    manifest = previous.manifest
    is_same = manifest.topic is not None and manifest.topic.name == config.topic
    events = manifest.run.events
    return events if is_same and all(one.startswith("kafka:") for one in events) else []


def _schema(
    config: CompactionConfig,
    files: Sequence[DataFile],
    previous: Generation | None,
    progress: Progress,
    proposed: Callable[[ProposedSchema], None],
) -> Schema:
    """Returns the schema as given, or the last generation's, or what the events propose."""
    if previous is None:
        if config.schema is not None:
            return read_schema(config.schema)
        if config.topic is not None:
            raise UsageError("A topic's events have no schema of their own; give --schema FILE.")
        proposal = propose_schema(files, progress)
        proposed(proposal)
        return parse_schema(proposal.toml)
    if config.schema is None:
        return previous.schema
    schema = evolve(previous.schema, read_schema(config.schema))
    if not config.drop_filled:
        _check_filled_kept(config.schema, previous.schema, schema)
    return schema


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


def earlier_report(
    config: CompactionConfig, run: Run, previous: Generation | None
) -> CompactionReport | None:
    """Returns the report of a run that was done before; None if there is something to do.

    Raises:
        UsageError: The store has this watermark by another run, or a later one.
    """
    if previous is None or config.watermark_ts > previous.watermark_ts:
        return None
    manifest = previous.manifest
    if config.watermark_ts < previous.watermark_ts:
        raise UsageError(
            f"The store already has watermark {previous.watermark_ts}, which is after "
            f"{config.watermark_ts}; give a later --watermark."
        )
    if run.inputs != manifest.run or run.schema != previous.schema:
        raise UsageError(
            f"Watermark {previous.watermark_ts} was published with other input or options; a "
            f"generation never changes, so give a later --watermark."
        )
    return CompactionReport(
        generation=manifest.number,
        watermark_ts=manifest.watermark_ts,
        already_published=True,
        event_count=manifest.event_count,
        user_count=manifest.user_count,
        stored_bytes=manifest.stored_bytes,
    )


def manifest_of(
    run: Run,
    plan: ShardPlan,
    previous: Generation | None,
    *,
    run_id: UUID,
    engine: str,
    shards: list[ShardSummary],
    vocabularies: list[StoredVocabulary],
) -> Manifest:
    """Returns the root manifest of the generation that a run built."""
    before = [] if previous is None else previous.manifest.watermarks
    return new_manifest(
        run_id=run_id,
        engine=engine,
        number=plan.generation,
        watermarks=[*before, *plan.cuts.watermarks.tolist()],
        schema=run.schema,
        shards=shards,
        run=run.inputs,
        fills=[] if previous is None else previous.manifest.fills,
        vocabularies=vocabularies,
        topic=run.topic,
    )


def report_of(
    config: CompactionConfig,
    run: Run,
    previous: Generation | None,
    facts: InputFacts,
    totals: Sequence[ShardCounts],
    manifest: Manifest,
    vocabularies: Mapping[str, Vocabulary],
) -> CompactionReport:
    """Returns the report of a run that published its generation."""
    return CompactionReport(
        generation=manifest.number,
        watermark_ts=manifest.watermark_ts,
        rows_read=facts.rows + facts.skipped.duplicates,
        messages_refused=facts.skipped.messages_refused,
        refusals=facts.skipped.refusals,
        events_added=sum(counts.events_added for counts in totals),
        duplicates=facts.skipped.duplicates + sum(counts.duplicates for counts in totals),
        late=sum(counts.late for counts in totals),
        left_for_later=sum(counts.left_for_later for counts in totals),
        erased_users=len(run.erased),
        events_dropped=sum(counts.events_dropped for counts in totals),
        event_count=manifest.event_count,
        user_count=manifest.user_count,
        stored_bytes=manifest.stored_bytes,
        ignored_columns=facts.ignored,
        times=facts.times,
        tied_events=sum(counts.tied for counts in totals),
        uncut_ms=_uncut_ms(config, previous, facts.arrivals),
        vocabularies=growths(run.schema, vocabularies, previous),
    )


def _uncut_ms(config: CompactionConfig, previous: Generation | None, arrivals: TimeSpan) -> int:
    if config.cadence is not None or config.cuts_ts is not None or arrivals.start_ts is None:
        return 0
    start_ts = arrivals.start_ts
    if previous is not None:
        start_ts = max(start_ts, previous.watermark_ts)
    return max(min(arrivals.latest_ts, config.watermark_ts) - start_ts, 0)
