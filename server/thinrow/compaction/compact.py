"""Compaction: raw events and the last generation become the next generation, all or nothing.

Two phases, so that memory holds one shard: events are split by shard into scratch files, then
each shard is sorted and written. Everything happens in a scratch folder that no reader looks at;
the new generation appears by one rename, and serves once CURRENT names it.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from thinrow.compaction.config import EMBEDDED_SHARDS_MAX, CompactionConfig
from thinrow.compaction.run import (
    InputFacts,
    ShardPlan,
    earlier_report,
    manifest_of,
    prepare,
    report_of,
)
from thinrow.compaction.shard import ShardBuild
from thinrow.compaction.shards import ENGINE, write_shards
from thinrow.compaction.topic import Skipped, canonical_tables, files_seal
from thinrow.compaction.vocabularies import RunValues, known_vocabularies, write_vocabularies
from thinrow.core.files.parquet import open_parquet
from thinrow.core.shards import SHARDS_MAX
from thinrow.errors import UsageError
from thinrow.events.canonical import ID_COLUMNS, ignored_columns
from thinrow.events.order import planned_cuts
from thinrow.events.split import Progress, split_events, split_tables
from thinrow.events.time_columns import TimeReader
from thinrow.events.user_ids import UserIdReader
from thinrow.remote.checkout import Checkout
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
from thinrow.store.layout import shard_name
from thinrow.store.manifest import write_manifest
from thinrow.store.marks import build_folder
from thinrow.store.place import is_url
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.compaction.pair_writer import PreviousShard
    from thinrow.compaction.report import CompactionReport
    from thinrow.compaction.shard import ShardCounts
    from thinrow.compaction.topic import OpenTopic
    from thinrow.schema.proposal import ProposedSchema
    from thinrow.store.shard import ShardWriter

__all__ = ["compact"]


def compact(
    config: CompactionConfig,
    progress: Progress = lambda *_: None,
    proposed: Callable[[ProposedSchema], None] = lambda _: None,
    open_topic: OpenTopic | None = None,
) -> CompactionReport:
    """Builds and publishes the next generation of a store.

    Killed at any point it leaves the last generation serving, and can be run again.

    Args:
        config: The run.
        progress: Receives the work done.
        proposed: Receives the schema of a new store before it is built, if the run names none.
        open_topic: Opens the topic that has the events, if the run names one.

    Raises:
        UsageError: the schema, the events, the watermark or the store's folder cannot be used as
            they are.
        StoreLockedError: another compaction is running on this store.
        StoreError: the store holds a newer generation than CURRENT names, or no CURRENT.
        StoreFullError: the disk is full.
        StoreCorruptError: a file of the last generation is damaged.
        StoreUnavailableError: the object store does not answer.
    """
    if config.shards is not None and config.shards > EMBEDDED_SHARDS_MAX:
        raise UsageError(
            f"--shards is {config.shards}; it must be at most {EMBEDDED_SHARDS_MAX}, or with "
            f"--engine spark {SHARDS_MAX}."
        )
    if is_url(config.store):
        with Checkout(str(config.store), config.mirror, progress) as checkout:
            local = replace(config, store=checkout.folder, mirror=None)
            report = compact(local, progress, proposed, open_topic)
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
            return _compact(config, previous, progress, proposed, open_topic)
    except OSError as error:
        raise storage_error(error, config.folder) from error


def _compact(
    config: CompactionConfig,
    previous: Generation | None,
    progress: Progress,
    proposed: Callable[[ProposedSchema], None],
    open_topic: OpenTopic | None,
) -> CompactionReport:
    run = prepare(config, previous, progress, proposed)
    earlier = earlier_report(config, run, previous)
    if earlier is not None:
        _prune(config)
        return earlier
    previous_ts = None if previous is None else previous.watermark_ts
    before = None if previous is None else previous.manifest
    topic = None
    if config.topic is None:
        run = replace(run, topic=files_seal(run.files, before, config.watermark_ts))
    else:
        assert open_topic is not None
        topic = open_topic(run.schema, before, progress)

    with build_folder(config.folder) as building:
        times = TimeReader(config.time_unit)
        observed = RunValues(
            run.schema,
            known_vocabularies(config.folder, run.schema, previous),
            since_ts=None if config.accept_late else previous_ts,
            watermark_ts=config.watermark_ts,
            erased=run.erased,
        )
        schema, folder = run.schema.carried, building / "events"
        if topic is None:
            split = split_events(
                run.files, schema, run.shards, folder, times, progress, observed.add
            )
        else:
            users = UserIdReader(schema.user_ids)
            tables = canonical_tables(topic, schema, times.of_exports(), users)
            split = split_tables(tables, schema, run.shards, folder, users, observed.add)
            inputs = run.inputs.model_copy(update={"events": topic.inputs})
            run = replace(run, inputs=inputs, topic=topic.seal)
        vocabularies = observed.values.vocabularies()
        cuts = planned_cuts(
            previous_ts,
            split.arrivals.start_ts,
            config.watermark_ts,
            config.cadence,
            config.cuts_ts or (),
        )
        number = highest_number(config.folder) + 1
        plan = ShardPlan.of(config, run, previous, number, cuts)

        def write(shard: int, before: PreviousShard | None) -> tuple[ShardCounts, ShardWriter]:
            task = plan.task(shard, vocabularies)
            build = ShardBuild(before, task, building / shard_name(shard))
            build.add(split.read(shard), texts=split.read_texts(shard, run.erased_texts))
            return build.finish()

        totals, summaries = write_shards(run.shards, write, previous, progress)
        shutil.rmtree(building / "events")
        manifest = manifest_of(
            run,
            plan,
            previous,
            run_id=uuid4(),
            engine=ENGINE,
            shards=summaries,
            vocabularies=write_vocabularies(building, run.schema, vocabularies, previous),
        )
        write_manifest(building, manifest)
        publish_built(building, manifest.number)
    _prune(config)
    known = {*ID_COLUMNS, *run.schema.by_name}
    ignored = {
        name
        for file in run.files
        for name in ignored_columns(open_parquet(file).schema_arrow, known)
    }
    facts = InputFacts(
        rows=split.rows,
        arrivals=split.arrivals,
        times=times.spans,
        ignored=sorted(ignored),
        skipped=Skipped() if topic is None else topic.skipped,
    )
    return report_of(config, run, previous, facts, totals, manifest, vocabularies)


def _prune(config: CompactionConfig) -> None:
    if config.keep is not None:
        # A generation that was rolled back and kept holds the users erased as well.
        prune(config.folder, config.keep, withdrawn=config.erase_users is not None)
