"""The span of arrivals that an exported file of events holds in full, written in its footer."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError, UsageError
from thinrow.store.manifest import TopicSeal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    import pyarrow.parquet as pq
    from thinrow.core.files.parquet import ParquetTable
    from thinrow.core.files.paths import AnyFile

__all__ = [
    "EARLIEST_TS",
    "FROM_KEY",
    "TOPIC_KEY",
    "UNTIL_KEY",
    "ExportedTopic",
    "Span",
    "check_exports",
    "export_span",
    "is_export",
]

FROM_KEY, UNTIL_KEY = b"thinrow.exported_from_ts", b"thinrow.exported_until_ts"
TOPIC_KEY = b"thinrow.exported_topic"
EARLIEST_TS = int(np.iinfo(np.int64).min)


class ExportedTopic(NamedTuple):
    """The part of a topic that a file holds, by partition: offsets in ``[first, sealed)``."""

    name: str
    first: tuple[int, ...]
    sealed: tuple[int, ...]

    @property
    def seal(self) -> TopicSeal:
        """The end of the part."""
        return TopicSeal(name=self.name, offsets=list(self.sealed))

    @classmethod
    def read(cls, body: Sequence[Any]) -> Self:
        """Reads the fields as JSON has them. Raises ValueError."""
        name, first, sealed = body
        TopicSeal(name=name, offsets=first)
        TopicSeal(name=name, offsets=sealed)
        if len(first) != len(sealed) or any(map(int.__gt__, first, sealed)):
            raise ValueError("its offsets contradict each other")
        return cls(name, tuple(first), tuple(sealed))


class Span(NamedTuple):
    """Arrivals in ``[from_ts, until_ts)``, ms; EARLIEST_TS: all."""

    from_ts: int
    until_ts: int
    path: AnyFile
    topic: ExportedTopic | None = None
    """The part of a topic that they are; None for the events of a tier without one."""

    def mark(self, writer: pq.ParquetWriter) -> None:
        """Writes it down; the file may not be closed yet."""
        metadata = {FROM_KEY: str(self.from_ts), UNTIL_KEY: str(self.until_ts)}
        if self.topic is not None:
            metadata[TOPIC_KEY] = json.dumps(self.topic)
        writer.add_key_value_metadata({key.decode(): value for key, value in metadata.items()})


def is_export(file: ParquetTable) -> bool:
    """Returns whether an online tier exported a file of events."""
    return UNTIL_KEY in (file.metadata.metadata or {})


def check_exports(spans: Sequence[Span], previous_ts: int | None, watermark_ts: int) -> None:
    """Refuses exports that lack events between two watermarks, or have some of them twice.

    Raises:
        UsageError: Says what to compact instead.
    """
    spans = sorted(spans, key=lambda span: span[:2])
    if not spans:
        return
    for earlier, later in pairwise(spans):
        if later.from_ts < earlier.until_ts:
            raise UsageError(
                f"{earlier.path} and {later.path} are exports with arrivals in common, which would "
                f"count twice; compact them one after the other, or only the newer one."
            )
        if later.from_ts > earlier.until_ts:
            raise _lacking(earlier.until_ts, later.from_ts)
    start_ts = EARLIEST_TS if previous_ts is None else previous_ts
    if spans[0].from_ts > start_ts:
        raise _lacking(start_ts, spans[0].from_ts)
    if spans[-1].until_ts < watermark_ts:
        raise UsageError(
            f"{spans[-1].path} was exported up to {spans[-1].until_ts} and lacks what arrived "
            f"since; give that as --watermark, or export up to {watermark_ts}."
        )


def export_span(path: AnyFile) -> Span | None:
    """Returns the span of a file; None if no online tier exported it.

    Raises:
        InputError: The file or its span cannot be read.
    """
    file = open_parquet(path)
    if not is_export(file):
        return None
    footer = file.metadata.metadata
    try:
        topic = None
        if TOPIC_KEY in footer:
            topic = ExportedTopic.read(json.loads(footer[TOPIC_KEY]))
        return Span(int(footer[FROM_KEY]), int(footer[UNTIL_KEY]), path, topic)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not say which arrivals it was exported for; export it again."
        ) from error


def _lacking(start_ts: int, stop_ts: int) -> UsageError:
    since = "before" if start_ts == EARLIEST_TS else f"from {start_ts} to"
    return UsageError(
        f"The exports lack what arrived {since} {stop_ts}, and no later run takes that any more; "
        f"export all of it again."
    )
