"""Events of a topic up to a watermark as a file of events, for compaction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.errors import UsageError
from thinrow.events.exported import EARLIEST_TS, ExportedTopic, Span
from thinrow.jobs.export import ExportReport
from thinrow.jobs.topic.opening import find_span
from thinrow.jobs.topic.tables import TopicEvents
from thinrow.remote.current import read_current
from thinrow.remote.generation_objects import read_generation
from thinrow.remote.object_store import ObjectStore
from thinrow.schema import evolve, read_schema
from thinrow.store.current import current_folder
from thinrow.store.manifest import read_manifest
from thinrow.store.place import is_url
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import fsync, storage_error

if TYPE_CHECKING:
    from thinrow.events.split import Progress
    from thinrow.jobs.config import ExportConfig
    from thinrow.jobs.topic.config import BrokersConfig
    from thinrow.schema import Schema
    from thinrow.store.manifest import Manifest

__all__ = ["export_topic"]


def export_topic(
    config: ExportConfig, brokers: BrokersConfig, progress: Progress = lambda *_: None
) -> ExportReport:
    """Writes every event of a topic that arrived before a watermark, and is in no generation yet.

    Killed, it leaves no file of that name, and the next export into that folder removes its
    scratch; run again, it writes the same events.

    Raises:
        UsageError: The store has this watermark, a partition is not sealed at it, or the topic
            cannot be read.
        InputError: The topic has lost messages.
        UnavailableError: The brokers do not answer.
        StoreError: The file cannot be written, or the store not read.
    """
    assert config.topic is not None
    before = _last_manifest(config.store)
    schema = _schema(config, before)
    if before is not None and config.watermark_ts <= before.watermark_ts:
        raise UsageError(
            f"The store already has watermark {before.watermark_ts}, and so everything that "
            f"arrived before {config.watermark_ts}; give a later --watermark."
        )
    address, span = find_span(config.topic, before, config.watermark_ts, brokers)
    topic = TopicEvents(address, schema, span, progress)
    from_ts = EARLIEST_TS if span.since_ts is None else span.since_ts
    path, events = config.events, 0
    try:
        with scratch_beside(path) as scratch:
            partial = scratch / path.name
            with pq.ParquetWriter(partial, topic.columns) as writer:
                for table in topic.tables():
                    writer.write_table(table)
                    events += table.num_rows
                exported = ExportedTopic(
                    config.topic, tuple(span.first.values()), tuple(topic.seal.offsets)
                )
                Span(from_ts, config.watermark_ts, path, exported).mark(writer)
            fsync(partial)
            partial.replace(path)
            fsync(path.parent)
    except (OSError, pa.ArrowException) as error:
        raise storage_error(error, path) from error
    return ExportReport(
        events=events,
        from_ts=span.since_ts,
        messages_refused=topic.skipped.messages_refused,
        refusals=topic.skipped.refusals,
        duplicates=topic.skipped.duplicates,
    )


def _last_manifest(store: str | Path | None) -> Manifest | None:
    """Returns the manifest of a store's current generation; None where there is none."""
    if store is None:
        return None
    if is_url(store):
        objects = ObjectStore(str(store))
        current = read_current(objects)
        if current is None:
            return None
        generation = read_generation(
            objects, current.record.number, current.record.manifest_xxh3, choose=lambda _: ()
        )
        if generation is None:
            raise UsageError(
                f"{store} has a newer generation than when reading began; run the export again."
            )
        return generation.manifest
    folder = current_folder(Path(store))
    return None if folder is None else read_manifest(folder)


def _schema(config: ExportConfig, before: Manifest | None) -> Schema:
    """Returns the schema that the next generation will have."""
    if before is not None:
        known = before.schema_
        return known if config.schema is None else evolve(known, read_schema(config.schema))
    if config.schema is None:
        raise UsageError(
            f"{config.store} has no generation, and a topic's events have no schema of their own; "
            f"give --schema FILE."
        )
    return read_schema(config.schema)
