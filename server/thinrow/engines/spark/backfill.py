"""Backfill on Spark: tasks compute thin rows shard by shard, and write a file for each slice."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.files.parquet import JointColumns
from thinrow.core.files.paths import data_files
from thinrow.core.shards import check_parts
from thinrow.engines.spark.generations import serving_generation
from thinrow.engines.spark.outputs import output_folder
from thinrow.engines.spark.reading import ReadPlan
from thinrow.engines.spark.row_parts import PartPlan
from thinrow.engines.spark.session import Spark
from thinrow.engines.spark.shuffled import COLUMNS
from thinrow.engines.spark.slices import cut_files, user_bounds
from thinrow.engines.spark.tasks import RESULT_COLUMNS, check_numbers, software
from thinrow.engines.spark.thin_facts import RequestSurvey, WrittenSlice
from thinrow.engines.spark.thin_rows import (
    ThinPlan,
)
from thinrow.errors import EngineError, UsageError
from thinrow.events.time_columns import TimeSpan, add_spans
from thinrow.jobs.backfill import BackfillReport, RowCounts, check_belonging
from thinrow.jobs.row_parts import check_no_part_column
from thinrow.jobs.served_requests import PastWatermarks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from thinrow.engines.spark.outputs import OutputFolder
    from thinrow.engines.spark.row_parts import WrittenParts
    from thinrow.events.split import Progress
    from thinrow.jobs.config import BackfillConfig

__all__ = ["backfill"]

_WRITING = "Reading events and writing thin rows"


def backfill(
    config: BackfillConfig, properties: Mapping[str, str], progress: Progress = lambda *_: None
) -> BackfillReport:
    """Writes a thin row for every request into a new folder of files.

    The rows of all files, in the order of their names, are those that the embedded engine writes;
    with `row_parts` the rows of each part are.

    Args:
        config: The run.
        properties: Properties of Spark by name.
        progress: Receives the work done.

    Raises:
        UsageError: The store does not reach the requests, or was cut at other watermarks; or there
            is something at the output.
        InputError: A file cannot be used as it is.
        EngineError: Spark did not finish; nothing was published.
        StoreError: The store cannot be read, or the disk is full.
    """
    if config.mirror is not None:
        raise UsageError(
            "--mirror keeps a copy of the store for the embedded engine; leave it out, since "
            "executors copy the shards that they read."
        )
    with output_folder(config.rows) as output, Spark(properties, progress) as spark:
        return _backfill(config, output, spark, progress)


def _backfill(
    config: BackfillConfig, output: OutputFolder, spark: Spark, progress: Progress
) -> BackfillReport:
    files, request_files = data_files(config.events), data_files(config.requests)
    generation, manifest = serving_generation(config.store)
    schema, shards = manifest.schema_, manifest.shard_count
    if config.row_parts:
        check_parts(config.row_parts, "--row-parts", shards)
        check_no_part_column(request_files)
    events, requests = cut_files(files), cut_files(request_files)
    past = PastWatermarks.of(manifest)
    plan = ThinPlan(
        read=ReadPlan(
            software=software(),
            slices=events,
            schema=schema,
            time_unit=config.time_unit,
            shards=shards,
            bounds=user_bounds([*events, *requests], schema.user_ids, shards),
        ),
        config=config,
        requests=requests,
        columns=JointColumns.of(request_files),
        past=past,
        generation=generation,
        output=output,
    )
    surveyed = _survey(plan, spark)
    latest_ts = [ts for one in surveyed for ts in one.latest_ts]
    past.check(config, np.array(latest_ts, dtype=np.int64))
    parts = None
    if config.row_parts:
        parts = _divided(plan, spark)
        written = [WrittenSlice.decode(result) for result in parts.results]
    else:
        written = _written(plan, spark)
    facts = written[0].events
    assert facts is not None
    check_numbers("slices", facts.slices, len(events))
    rows = sum(one.rows for one in surveyed)
    counts = RowCounts.total(one.counts for one in written)
    arrived = counts.rows if parts is None else parts.rows
    if facts.rows_read != facts.rows_received or {rows} != {counts.rows, arrived}:
        raise EngineError(
            f"Tasks read {facts.rows_read:,} events and {rows:,} requests, and "
            f"{facts.rows_received:,} and {arrived:,} arrived; nothing was published, so run "
            f"it again, and report this."
        )
    check_belonging(manifest, facts.arrivals)
    # Empty files are of no use beside others.
    kept = [one for one in written if one.counts.rows] or written[:1]
    progress("Publishing", 0, 1)
    if parts is None:
        output.publish([one.file for one in kept])
    else:
        parts.publish()
    progress("Publishing", 1, 1)
    times = dict[str, TimeSpan]()
    for spans in (*(one.times for one in surveyed), facts.times):
        add_spans(times, spans)
    return BackfillReport(
        **asdict(counts),
        first_watermark_ts=manifest.watermarks[0],
        row_bytes=sum(one.file_bytes for one in kept) if parts is None else parts.file_bytes,
        times=times,
    )


def _survey(plan: ThinPlan, spark: Spark) -> list[RequestSurvey]:
    """Reads the times of all requests, so that a store that does not reach them is refused soon."""
    frame = spark.numbers(len(plan.requests)).mapInArrow(plan.survey, RESULT_COLUMNS)
    found = [RequestSurvey.decode(*row) for row in spark.rows(frame, "Surveying requests")]
    found.sort(key=lambda one: one.slice)
    check_numbers("slices", [one.slice for one in found], len(plan.requests))
    return found


def _thin(plan: ThinPlan, spark: Spark) -> Any:  # noqa: ANN401 - pyspark may not be installed
    """Returns a frame of thin columns by slice, which tasks compute."""
    return (
        spark.numbers(len(plan.read.slices) + len(plan.requests))
        .mapInArrow(plan.scatter, COLUMNS)
        .repartitionById(plan.read.shards, "part")
        .sortWithinPartitions("part", "sub")
        .mapInArrow(plan.thin, COLUMNS)
        .repartitionById(len(plan.requests), "part")
        .sortWithinPartitions("part", "sub")
    )


def _written(plan: ThinPlan, spark: Spark) -> list[WrittenSlice]:
    """Computes and writes all thin rows, in tasks; returns their files in the order of the rows."""
    rows = spark.rows(_thin(plan, spark).mapInArrow(plan.write, RESULT_COLUMNS), _WRITING)
    found = [WrittenSlice.decode(json.loads(text)) for _, text in sorted(rows)]
    check_numbers("slices", [one.slice for one in found], len(plan.requests))
    return found


def _divided(plan: ThinPlan, spark: Spark) -> WrittenParts:
    """Computes all thin rows, and writes them by part, in tasks."""
    parts = PartPlan(
        software=plan.read.software,
        slices=len(plan.requests),
        parts=plan.config.row_parts,
        output=plan.output,
    )
    return parts.collect(_thin(plan, spark).mapInArrow(plan.divide, COLUMNS), spark, _WRITING)
