"""The tier's events as a file of events, for compaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.core.files.arrow import trait_type
from thinrow.core.files.column_arrays import column_array
from thinrow.core.files.user_columns import user_type
from thinrow.core.ids import id_type
from thinrow.core.pointers import MutableColumn
from thinrow.core.wire.columns import from_wire
from thinrow.errors import ThinRowError
from thinrow.events.exported import EARLIEST_TS, Span
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import fsync, storage_error
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from thinrow.client.online import OnlineClient
    from thinrow.core.ids import IdKind

__all__ = ["ExportReport", "export_events"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Report of a run."""

    events: int
    from_ts: int | None
    """Events that arrived since then were written; None: all."""
    messages_refused: int = 0
    """Messages of a topic that hold no events of the schema, as every replica refuses them."""
    refusals: list[str] = field(default_factory=list)
    """Place and reason of the first ones."""
    duplicates: int = 0
    """Events of a topic that were left out, since their user had one of the same id before in the
    same millisecond."""


def export_events(
    client: OnlineClient,
    watermark_ts: int,
    path: Path,
    from_ts: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> ExportReport:
    """Seals a watermark and writes every event that arrived before to a Parquet file.

    Killed, it leaves no file of that name, and the next export into that folder removes its
    scratch; run again, it writes the same. `progress` gets the number of events so far.

    Raises:
        RequestError: the watermark lies ahead of the tier's clock, or the start is forgotten.
        StoreError: the file cannot be written.
    """
    request = online_pb2.ExportEventsRequest(watermark_ts=watermark_ts, from_ts=from_ts)
    schema = _schema(client.traits.values(), client.user_id_kind, client.event_id_kind)
    events, start_ts = 0, -1
    try:
        with scratch_beside(path) as scratch:
            partial = scratch / path.name
            with pq.ParquetWriter(partial, schema) as writer:
                for answer in client.export(request):
                    start_ts = answer.from_ts
                    count = len(answer.events.user_ids)
                    if count:
                        writer.write_batch(_record_batch(answer, schema))
                    events += count
                    progress(events)
                Span(start_ts, watermark_ts, path).mark(writer)
            fsync(partial)
            partial.replace(path)
            fsync(path.parent)
    except (OSError, pa.ArrowException) as error:
        raise storage_error(error, path) from error
    return ExportReport(events=events, from_ts=None if start_ts == EARLIEST_TS else start_ts)


def _schema(traits: Iterable[wire.Trait], user_ids: IdKind, event_ids: IdKind) -> pa.Schema:
    ids = [pa.field("user_id", user_type(user_ids))]
    ids += [pa.field(name, pa.int64()) for name in ("event_ts", "arrival_ts")]
    ids.append(pa.field("event_id", trait_type(id_type(event_ids), 1)))
    kinds = [
        (
            trait.name,
            trait_type(
                trait.vocabulary.value_type or trait.type, trait.vector_size, trait.list_length_max
            ),
        )
        for trait in traits
    ]
    return pa.schema(ids + [pa.field(*kind) for kind in kinds])


def _record_batch(answer: online_pb2.ExportEventsResponse, schema: pa.Schema) -> pa.RecordBatch:
    count = len(answer.events.user_ids)
    columns = from_wire(answer.events.columns, count)
    kind = schema.field("user_id").type
    if pa.types.is_string(kind):
        users = np.array(answer.events.user_texts, object)
    else:
        users = np.array(answer.events.user_ids, np.int64).view(kind.to_pandas_dtype())
    given = {
        "user_id": MutableColumn(users),
        "arrival_ts": MutableColumn(np.array(answer.arrival_ts, np.int64)),
        **columns,
    }
    missing = [name for name in schema.names if name not in given]
    if missing or len(given) != len(schema):
        raise ThinRowError("The tier's schema changed during the export; run it again.")
    arrays = [column_array(given[field.name], field.type) for field in schema]
    return pa.record_batch(arrays, schema=schema)
