"""A Kafka topic as the source of a store: its input, and the rules between runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from thinrow.core.files.paths import DataFile
from thinrow.errors import UsageError
from thinrow.events.canonical import canonical_table
from thinrow.events.exported import check_exports, export_span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from thinrow.events.exported import Span
    from thinrow.events.split import Progress
    from thinrow.events.time_columns import TimeReader
    from thinrow.events.user_ids import UserIdReader
    from thinrow.schema import Schema
    from thinrow.store.manifest import Manifest, TopicSeal

__all__ = [
    "REFUSALS_SHOWN_MAX",
    "OpenTopic",
    "SealedEvents",
    "Skipped",
    "canonical_tables",
    "check_same_topic",
    "exported_seal",
    "files_seal",
]

REFUSALS_SHOWN_MAX = 10
"""Refused messages that a report names."""


@dataclass(slots=True)
class Skipped:
    """The messages and events of a topic that its tables lack, as every replica skips them."""

    messages_refused: int = 0
    refusals: list[str] = field(default_factory=list)
    """Place and reason of the first ones."""
    duplicates: int = 0
    """Events whose user had one of the same id before in the same millisecond."""

    def add(self, other: Skipped) -> None:
        """Takes in what was skipped of another part of the topic."""
        self.messages_refused += other.messages_refused
        self.refusals = [*self.refusals, *other.refusals][:REFUSALS_SHOWN_MAX]
        self.duplicates += other.duplicates


class SealedEvents(Protocol):
    """The events of a topic from the last generation's offsets up to a watermark."""

    skipped: Skipped

    @property
    def name(self) -> str:
        """Name of the topic among inputs."""

    @property
    def seal(self) -> TopicSeal:
        """The offsets up to which the topic was read, once all tables were."""

    @property
    def inputs(self) -> list[str]:
        """Identity of what was read, a text for each partition."""

    def tables(self) -> Iterator[pa.Table]:
        """Yields the events with the columns of an exported file, once."""


OpenTopic = Callable[["Schema", "Manifest | None", "Progress"], SealedEvents]
"""Opens what a generation lacks of a topic, given the schema of the next one."""


def check_same_topic(known: TopicSeal, topic: str) -> None:
    """Refuses another topic than the one that a store's events come from.

    Raises:
        UsageError: It is another one.
    """
    if known.name != topic:
        raise UsageError(
            f"The events of this store come from topic {known.name}, and {topic} is another one; "
            f"give --events kafka:{known.name}, or another --store."
        )


def canonical_tables(
    topic: SealedEvents, schema: Schema, times: TimeReader, users: UserIdReader
) -> Iterator[pa.Table]:
    """Yields the events of a topic in canonical form, exactly as those of an exported file.

    Args:
        topic: The topic.
        schema: The schema of its events.
        times: Reads times of exports.
        users: Reads users.
    """
    source = DataFile(topic.name)
    for table in topic.tables():
        yield canonical_table(source, schema, table, times, users)
    times.finish(source)


def files_seal(
    files: Sequence[DataFile], before: Manifest | None, watermark_ts: int
) -> TopicSeal | None:
    """Returns the offsets up to which files hold a topic; None if they are no exports of one.

    Args:
        files: The input of a run.
        before: The last generation.
        watermark_ts: Watermark of the run.

    Raises:
        UsageError: The exports among them lack events, or have some twice.
    """
    spans = [span for file in files if (span := export_span(file)) is not None]
    return exported_seal(spans, len(files), before, watermark_ts)


def exported_seal(
    spans: Sequence[Span], files: int, before: Manifest | None, watermark_ts: int
) -> TopicSeal | None:
    """Returns the same, given the spans of those files that are exports, and the number of all."""
    check_exports(spans, None if before is None else before.watermark_ts, watermark_ts)
    known = None if before is None else before.topic
    parts = [span.topic for span in sorted(spans, key=lambda span: span[:2]) if span.topic]
    if not parts:
        if known is not None:
            raise UsageError(
                f"The events of this store come from topic {known.name}, and a generation of other "
                f"files would not say how far it holds the topic; give --events "
                f"kafka:{known.name}, or an export of it."
            )
        return None
    if len(parts) < files:
        raise UsageError(
            f"Some of these files are exports of topic {parts[0].name}, and some are not; compact "
            f"the others first, into a store that has nothing of the topic yet."
        )
    if known is not None:
        check_same_topic(known, parts[0].name)
    ends = (0,) * len(parts[0].first) if known is None else tuple(known.offsets)
    for part in parts:
        if part.name != parts[0].name:
            raise UsageError(
                f"These files are exports of two topics, {parts[0].name} and {part.name}; a store "
                f"has the events of one."
            )
        if part.first != ends:
            raise UsageError(
                f"An export of topic {part.name} begins at offsets {_shown(part.first)}, and what "
                f"is there before ends at {_shown(ends)}; export the topic with --store, or "
                f"compact it directly with --events kafka:{part.name}."
            )
        ends = part.sealed
    last_ts = max(span.until_ts for span in spans)
    if watermark_ts != last_ts:
        raise UsageError(
            f"The offsets of topic {parts[0].name} are known at {last_ts}, up to which it was "
            f"exported; give that as --watermark."
        )
    return parts[-1].seal


def _shown(offsets: Sequence[int]) -> str:
    return f"({', '.join(map(str, offsets))})"
