"""Slim on Spark: tasks stitch partitions of users, and write a file for each piece of fat rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from thinrow.engines.spark.outputs import output_folder, write_text
from thinrow.engines.spark.row_parts import PartPlan
from thinrow.engines.spark.session import Spark
from thinrow.engines.spark.shuffled import COLUMNS
from thinrow.engines.spark.slimming import (
    ReadPieces,
    StitchedPartition,
    StitchPlan,
    WrittenPiece,
)
from thinrow.engines.spark.tasks import RESULT_COLUMNS, check_numbers, lost_rows, software
from thinrow.events.time_columns import TimeSpan, add_spans, read_spans
from thinrow.jobs.facts import first_generation, total
from thinrow.jobs.row_parts import check_no_part_column
from thinrow.jobs.slim_plan import SlimPlan, SlimReport, is_stitched_again

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from thinrow.engines.spark.outputs import OutputFolder
    from thinrow.events.split import Progress
    from thinrow.jobs.config import SlimConfig

__all__ = ["slim"]


def slim(
    config: SlimConfig, properties: Mapping[str, str], progress: Progress = lambda *_: None
) -> SlimReport:
    """Writes events, and a thin row for every fat row, into new folders of files.

    The rows of all files of a folder, in the order of their names, are those that the embedded
    engine writes; with `row_parts` the thin rows of each part are.

    Args:
        config: The run.
        properties: Properties of Spark by name.
        progress: Receives the work done.

    Raises:
        UsageError: There is something at an output.
        InputError: A file cannot be used as it is.
        EngineError: Spark did not finish; nothing was published.
        StoreError: The disk is full, or fails.
    """
    plan, text = SlimPlan.of(config)
    if config.row_parts:
        check_no_part_column(plan.files)
    with (
        output_folder(config.events) as events,
        output_folder(config.rows) as rows,
        Spark(properties, progress) as spark,
    ):
        report = _slim(plan.absolute, events, rows, spark, progress)
        if report.written and config.schema is None:
            write_text(config.written_schema, text)
        return report


def _slim(
    plan: SlimPlan, events: OutputFolder, rows: OutputFolder, spark: Spark, progress: Progress
) -> SlimReport:
    read = ReadPieces(software=software(), slim=plan)
    requests = _surveyed(read, spark)
    stitch = StitchPlan(
        read=read,
        requests=requests,
        first=-1,
        again=frozenset(),
        passing=plan.passing(),
        events=events,
        rows=rows,
    )
    frame = (
        spark.numbers(len(plan.pieces))
        .mapInArrow(read.scatter, COLUMNS)
        .repartitionById(plan.partitions, "part")
        .sortWithinPartitions("part", "sub")
    )
    # Read once, for the earliest generation of all users changes what some of them have.
    with spark.kept(frame) as kept:
        found = _stitched(stitch, kept, spark, "Reading and stitching histories")
        check_numbers("partitions", [*found], plan.partitions)
        times = dict[str, TimeSpan]()
        for one in found.values():
            add_spans(times, one.times)
        pieces = [piece for one in found.values() for piece in one.pieces]
        check_numbers("pieces", pieces, len(plan.pieces))
        first = first_generation([one.facts for one in found.values()])
        again = [number for number, one in found.items() if is_stitched_again(one.facts, first)]
        stitch = replace(stitch, first=first, again=frozenset(again))
        if again:
            chosen = kept.filter(f"part in ({', '.join(map(str, again))})")
            found |= _stitched(stitch, chosen, spark, "Stitching histories again")
        facts = total([found[number].facts for number in range(plan.partitions)])
        if not plan.writes(facts):
            return plan.report(facts, times, 0, 0)
        event_bytes, row_bytes = _write(stitch, kept, spark, progress)
    return plan.report(facts, times, event_bytes, row_bytes)


def _surveyed(read: ReadPieces, spark: Spark) -> TimeSpan:
    """Reads the times of all requests, the last of which bounds every pointer."""
    count = len(read.slim.pieces)
    frame = spark.numbers(count).mapInArrow(read.survey, RESULT_COLUMNS)
    rows = spark.rows(frame, "Surveying requests")
    check_numbers("pieces", [number for number, _ in rows], count)
    requests = TimeSpan()
    for _, text in rows:
        for span in read_spans(json.loads(text)).values():
            requests.add(span)
    return requests


def _stitched(
    plan: StitchPlan,
    frame: Any,  # noqa: ANN401 - pyspark may not be installed
    spark: Spark,
    stage: str,
) -> dict[int, StitchedPartition]:
    rows = spark.rows(frame.mapInArrow(plan.facts, RESULT_COLUMNS), stage)
    return {row[0]: StitchedPartition.decode(*row) for row in sorted(rows)}


def _write(
    plan: StitchPlan,
    frame: Any,  # noqa: ANN401
    spark: Spark,
    progress: Progress,
) -> tuple[int, int]:
    """Writes both outputs, and lets them appear; returns the bytes of events and of rows."""
    slim = plan.read.slim
    thin = (
        frame.mapInArrow(plan.thin, COLUMNS)
        .repartitionById(len(slim.pieces), "part")
        .sortWithinPartitions("part", "sub")
    )
    parts, stage = None, "Writing events and thin rows"
    if slim.config.row_parts:
        part_plan = PartPlan(
            software=plan.read.software,
            slices=len(slim.pieces),
            parts=slim.config.row_parts,
            output=plan.rows,
        )
        parts = part_plan.collect(thin.mapInArrow(plan.divide, COLUMNS), spark, stage)
        results = parts.results
    else:
        rows = spark.rows(thin.mapInArrow(plan.write, RESULT_COLUMNS), stage)
        results = [json.loads(text) for _, text in sorted(rows)]
    found = [WrittenPiece.decode(result) for result in results]
    check_numbers("pieces", [one.piece for one in found], len(slim.pieces))
    if parts is not None and parts.rows != sum(one.rows for one in found):
        raise lost_rows()
    events = sorted(found[0].events)
    check_numbers("partitions", [one.partition for one in events], slim.partitions)
    events = [one for one in events if one.rows] or events[:1]
    progress("Publishing", 0, 1)
    plan.events.publish([one.file for one in events])
    if parts is None:
        plan.rows.publish([one.file for one in found])
        row_bytes = sum(one.file_bytes for one in found)
    else:
        parts.publish()
        row_bytes = parts.file_bytes
    progress("Publishing", 1, 1)
    return sum(one.file_bytes for one in events), row_bytes
