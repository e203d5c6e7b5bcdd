"""Compaction on Spark: the driver plans, tasks read and build, and the driver publishes.

Tasks may run twice, at once or after each other: each attempt writes objects of its own, and the
generation has those of the attempt whose result reached the driver. What others wrote is garbage.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa
from thinrow.compaction.run import (
    InputFacts,
    ShardPlan,
    earlier_report,
    manifest_of,
    prepare,
    report_of,
)
from thinrow.compaction.topic import Skipped, exported_seal, files_seal
from thinrow.compaction.vocabularies import NewValues, known_vocabularies, write_vocabularies
from thinrow.engines.spark.building import BuildPlan, BuiltShard
from thinrow.engines.spark.reading import SURVEY_COLUMNS, ReadPlan, SliceFacts, SurveyPlan
from thinrow.engines.spark.session import Spark
from thinrow.engines.spark.shuffled import COLUMNS
from thinrow.engines.spark.slices import cut_files, user_bounds
from thinrow.engines.spark.tasks import RESULT_COLUMNS, check_numbers, software
from thinrow.engines.spark.topic_slices import cut_topic, topic_bounds
from thinrow.errors import EngineError, UsageError
from thinrow.events.order import planned_cuts
from thinrow.events.time_columns import TimeSpan, add_spans
from thinrow.jobs.topic.opening import find_span
from thinrow.remote.checkout import Checkout
from thinrow.remote.publication import Placement, commit, complete_generation, upload_files
from thinrow.store.current import current_folder
from thinrow.store.generation import Generation
from thinrow.store.layout import VOCABULARIES
from thinrow.store.marks import build_folder
from thinrow.store.place import is_url
from thinrow.store.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from thinrow.compaction.config import CompactionConfig
    from thinrow.compaction.report import CompactionReport
    from thinrow.compaction.run import Run
    from thinrow.engines.spark.slices import Slice
    from thinrow.engines.spark.topic_slices import TopicSlice
    from thinrow.events.split import Progress
    from thinrow.jobs.topic.config import BrokersConfig
    from thinrow.jobs.topic.tables import TopicSpan
    from thinrow.online.topic.settings import TopicAddress
    from thinrow.schema.proposal import ProposedSchema
    from thinrow.store.manifest import StoredVocabulary
    from thinrow.store.stored_files import StoredFile


__all__ = ["ENGINE", "compact"]

ENGINE = "spark"
"""Name of this engine in manifests."""


def compact(
    config: CompactionConfig,
    properties: Mapping[str, str],
    progress: Progress = lambda *_: None,
    proposed: Callable[[ProposedSchema], None] = lambda _: None,
    brokers: BrokersConfig | None = None,
) -> CompactionReport:
    """Builds and publishes the next generation of a store at a URL.

    Killed at any point it leaves the last generation serving, and can be run again.

    Args:
        config: The run.
        properties: Properties of Spark by name.
        progress: Receives the work done.
        proposed: Receives the schema of a new store before it is built, if the run names none.
        brokers: The brokers of the topic that has the events, if the run names one.

    Raises:
        UsageError: pyspark is not installed, or the schema, the events or the watermark cannot be
            used as they are.
        EngineError: Spark did not finish; nothing was published.
        StoreLockedError: Another run has published in the meantime.
        StoreCorruptError: An object of the last generation is damaged.
        StoreUnavailableError: The object store does not answer.
    """
    if not is_url(config.store):
        raise UsageError(
            f"--store is {config.store}; with --engine spark it is a URL that every executor "
            f"reaches: s3://, gs://, az://, or file:// of a shared file system."
        )
    if config.mirror is not None:
        raise UsageError(
            "--mirror keeps the last generation for the embedded engine; leave it out, since "
            "executors copy the shards that they build on."
        )
    with ExitStack() as stack:
        # Shards stay in the object store: the folder has manifests and vocabularies only.
        checkout = stack.enter_context(
            Checkout(str(config.store), None, progress, choose=lambda _: ())
        )
        previous = None
        folder = current_folder(checkout.folder)
        if folder is not None:
            previous = stack.enter_context(Generation(folder, cache_bytes_max=1, numbers=()))
        run = prepare(config, previous, progress, proposed)
        earlier = earlier_report(config, run, previous)
        if earlier is not None:
            return earlier
        before = None if previous is None else previous.manifest
        topic = None
        if config.topic is not None:
            assert brokers is not None
            topic = find_span(config.topic, before, config.watermark_ts, brokers)
        elif before is not None and before.topic is not None:
            # Tasks find the spans of files, too, but a store of a topic refuses most files.
            files_seal(run.files, before, config.watermark_ts)
        read = _read_plan(config, run, topic)
        spark = stack.enter_context(Spark(properties, progress))
        return _Compaction(config, run, previous, checkout, spark, read, topic, progress).report()


def _read_plan(
    config: CompactionConfig, run: Run, topic: tuple[TopicAddress, TopicSpan] | None
) -> ReadPlan:
    """Returns the slices of the input, and ranges of users that fit into memory."""
    if topic is None:
        files = cut_files(run.files)
        slices: Sequence[Slice | TopicSlice] = files
        bounds = user_bounds(files, run.schema.user_ids, run.shards)
    else:
        partitions = cut_topic(*topic)
        slices = partitions
        bounds = topic_bounds(partitions, run.schema, run.shards)
    return ReadPlan(
        software=software(),
        slices=slices,
        schema=run.schema,
        time_unit=config.time_unit,
        shards=run.shards,
        bounds=bounds,
    )


class _Compaction:
    """One run, once it is known that there is something to do."""

    def __init__(
        self,
        config: CompactionConfig,
        run: Run,
        previous: Generation | None,
        checkout: Checkout,
        spark: Spark,
        read: ReadPlan,
        topic: tuple[TopicAddress, TopicSpan] | None,
        progress: Progress,
    ) -> None:
        self._config, self._run, self._previous = config, run, previous
        self._checkout, self._spark, self._progress = checkout, spark, progress
        self._previous_ts = None if previous is None else previous.watermark_ts
        self._run_id = uuid4()
        self._read, self._slices, self._topic = read, read.slices, topic

    def report(self) -> CompactionReport:
        """Builds and publishes, and returns what commands print."""
        arrivals, vocabularies = self._survey()
        cuts = planned_cuts(
            self._previous_ts,
            arrivals.start_ts,
            self._config.watermark_ts,
            self._config.cadence,
            self._config.cuts_ts or (),
        )
        number = self._checkout.next_number
        plan = ShardPlan.of(self._config, self._run, self._previous, number, cuts)
        with build_folder(self._checkout.folder) as building:
            stored, uploaded = self._upload_vocabularies(building, vocabularies)
            built = self._build(plan, stored)
            run, facts = self._finished(built)
            manifest = manifest_of(
                run,
                plan,
                self._previous,
                run_id=self._run_id,
                engine=ENGINE,
                shards=[one.summary for one in built],
                vocabularies=stored,
            )
            generation = complete_generation(manifest, {one.shard: one.manifest for one in built})
            for one in built:
                uploaded |= one.uploaded
            self._progress("Publishing", 0, 1)
            commit(self._checkout.store, self._checkout.current, generation, uploaded)
            self._progress("Publishing", 1, 1)
        return report_of(
            self._config,
            self._run,
            self._previous,
            facts,
            [one.counts for one in built],
            generation.manifest,
            vocabularies,
        )

    def _survey(self) -> tuple[TimeSpan, dict[str, Vocabulary]]:
        """Finds what must be known of all events before shards are built.

        Returns:
            The span of arrivals, which is empty where it has no influence, and the vocabularies.
        """
        run, config = self._run, self._config
        since_ts = None if config.accept_late else self._previous_ts
        known = known_vocabularies(self._checkout.folder, run.schema, self._previous)
        values = NewValues(run.schema.coded_traits, known)
        arrivals = TimeSpan()
        needs_start = self._previous is None and config.cadence is not None
        if not needs_start and not run.schema.coded_traits:
            return arrivals, values.vocabularies()
        files = {} if self._previous is None else self._vocabulary_files(self._previous)
        plan = SurveyPlan(
            read=self._read,
            url=self._checkout.store.url,
            vocabularies=files,
            since_ts=since_ts,
            watermark_ts=config.watermark_ts,
            erased=run.erased,
        )
        frame = self._spark.numbers(len(self._slices)).mapInArrow(plan.survey, SURVEY_COLUMNS)
        found: dict[str, list[str]] = {}
        for trait, value in self._spark.rows(frame.distinct(), "Surveying events"):
            found.setdefault(trait, []).append(value)
        spans = [json.loads(text) for text in found.pop("", [])]
        check_numbers("slices", [span.pop("slice") for span in spans], len(self._slices))
        for span in spans:
            arrivals.add(TimeSpan(**span))
        for trait, texts in found.items():
            kind = Vocabulary.empty(run.schema.by_name[trait]).values.type
            values.add_found(trait, pa.array(texts, pa.large_string()).cast(kind))
        return arrivals, values.vocabularies()

    def _vocabulary_files(self, generation: Generation) -> dict[str, StoredFile]:
        """Files of a generation's vocabularies, of traits that the schema still has."""
        names = {trait.number: trait.name for trait in self._run.schema.coded_traits}
        return {
            names[one.trait]: one.file
            for one in generation.manifest.vocabularies
            if one.trait in names
        }

    def _upload_vocabularies(
        self, building: Path, vocabularies: Mapping[str, Vocabulary]
    ) -> tuple[list[StoredVocabulary], dict[str, int]]:
        """Writes the generation's vocabularies to the object store."""
        stored = write_vocabularies(building, self._run.schema, vocabularies, self._previous)
        known = [] if self._previous is None else self._previous.manifest.vocabularies
        before = {f"{VOCABULARIES}/{one.file.name}": one.file for one in known}
        placement = Placement(self._run_id, before)
        folder = building / VOCABULARIES
        placed = [
            one.model_copy(update={"file": placement.place(one.file, folder)}) for one in stored
        ]
        upload_files(self._checkout.store, placement.uploads)
        return placed, placement.uploaded

    def _build(self, plan: ShardPlan, vocabularies: list[StoredVocabulary]) -> list[BuiltShard]:
        """Reads all slices and builds all shards, in tasks."""
        names = {trait.number: trait.name for trait in self._run.schema.coded_traits}
        previous = None if self._previous is None else self._previous.manifest
        build = BuildPlan(
            read=self._read,
            url=self._checkout.store.url,
            run_id=self._run_id,
            shards=plan,
            erased_texts=self._run.erased_texts,
            vocabularies={names[one.trait]: one.file for one in vocabularies},
            previous_run_id=None if previous is None else previous.run_id,
            previous=[] if previous is None else [s.model_dump_json() for s in previous.shards],
        )
        frame = (
            self._spark.numbers(len(self._slices))
            .mapInArrow(self._read.scatter, COLUMNS)
            .repartitionById(plan.shards, "part")
            .sortWithinPartitions("part", "sub")
            .mapInArrow(build.build, RESULT_COLUMNS)
        )
        rows = self._spark.rows(frame, "Reading events and building shards")
        built = sorted((BuiltShard.decode(*row) for row in rows), key=lambda one: one.shard)
        check_numbers("shards", [one.shard for one in built], plan.shards)
        return built

    def _finished(self, built: Sequence[BuiltShard]) -> tuple[Run, InputFacts]:
        """Joins the measures of all slices, and checks that each counted once.

        Returns:
            The run, with the offsets up to which it has a topic, and what it read.

        Raises:
            EngineError: Rows were lost or came twice.
            UsageError: Exports lack events, or have some twice.
        """
        found = [SliceFacts.decode(fact, self._slices) for one in built for fact in one.facts]
        check_numbers("slices", [one.slice for one in found], len(self._slices))
        rows, received = sum(one.rows for one in found), sum(one.rows for one in built)
        if rows != received:
            raise EngineError(
                f"Tasks read {rows:,} events and shards received {received:,}; nothing was "
                f"published, so run it again, and report this."
            )
        run, skipped = self._run, Skipped()
        for one in found:
            skipped.add(one.skipped)
        if self._topic is None:
            spans = {one.span for one in found if one.span is not None}
            before = None if self._previous is None else self._previous.manifest
            seal = exported_seal([*spans], len(run.files), before, self._config.watermark_ts)
            run = replace(run, topic=seal)
        else:
            address, span = self._topic
            sealed = {number: end for one in found for number, end in one.sealed.items()}
            inputs = run.inputs.model_copy(update={"events": span.inputs(address.topic, sealed)})
            run = replace(run, inputs=inputs, topic=span.seal(address.topic, sealed))
        arrivals, times = TimeSpan(), dict[str, TimeSpan]()
        for one in found:
            arrivals.add(one.arrivals)
            add_spans(times, one.times)
        ignored = {name for one in found for name in one.ignored}
        facts = InputFacts(
            rows=rows, arrivals=arrivals, times=times, ignored=sorted(ignored), skipped=skipped
        )
        return run, facts
