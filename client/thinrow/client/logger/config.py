"""Settings of a logger: columns, the window of the join, outputs and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from thinrow.client.logger.values import UNFIT, exact
from thinrow.core.settings import require_bounds
from thinrow.core.shards import PART_KEY, check_parts
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from thinrow.core.ids import IdKind

__all__ = ["FileOutput", "KafkaOutput", "LoggerConfig"]

MIB = 1 << 20
RESERVED = frozenset({"logged_ts", "request_id", "request_ts", "uih", "user_id", "mutable"})
"""Names of columns that the logger itself writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutput:
    """Parquet files `FOLDER/hour=2026-11-23T07/part-….parquet`, the hour that of request_ts, UTC.

    With `row_parts` they are `FOLDER/hour=2026-11-23T07/part=0003/part-….parquet`.

    Raises:
        UsageError: A value is out of its range.
    """

    folder: Path
    """A folder of a local file system, because publishing relies on rename and fsync. Several
    loggers may share it."""

    part_rows: int = 16_384
    """Most rows in a file, and in all files that are written together: they are in memory
    meanwhile, however many parts there are."""

    part_ms: int = 60_000
    """Longest time that a joined row waits for others to share its file."""

    row_parts: int = 0
    """Number of parts by the hash of the user, a power of two up to 4,096 that divides the store's
    number of shards; 0 for none. A row is in one part, and each part has files of its own."""

    def __post_init__(self) -> None:
        require_bounds(self, part_rows=1, part_ms=0)
        check_parts(self.row_parts, "row_parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOutput:
    """A topic of messages as thinrow.core.files.message has them.

    Raises:
        UsageError: A value is out of its range.
    """

    topic: str

    bootstrap_servers: str
    """HOST:PORT of some brokers, separated by commas."""

    message_rows: int = 256
    """Most rows in a message."""

    message_bytes_max: int = 900_000
    """Larger messages are split; brokers reject more than 1 MB by default."""

    linger_ms: int = 1_000
    """Longest time that a joined row waits for others to share its message."""

    batch_rows: int = 16_384
    """Most rows sent before the brokers must acknowledge them."""

    deadline_ms: int = 30_000
    """Time for the brokers to acknowledge, before a warning and another attempt."""

    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Other settings of librdkafka's producer, such as security.protocol and compression.type."""

    def __post_init__(self) -> None:
        require_bounds(
            self, message_rows=1, message_bytes_max=1024, linger_ms=0, batch_rows=1, deadline_ms=1
        )
        if self.message_rows > 1024:
            raise UsageError(f"message_rows is {self.message_rows}, but must be 1024 or fewer.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggerConfig:
    """Settings of one logger.

    Raises:
        UsageError: Values are out of range or contradict each other.
    """

    journal: Path
    """Folder of this logger alone, on a disk that survives the process. One logger at a time."""

    mutable: pa.DataType
    """Type of the column `mutable`; mutable_type() makes it from the store's schema."""

    user_ids: IdKind = "int64"
    """The kind of user ids, as the store's schema has it."""

    features: pa.Schema
    """The request's own columns. Each row has them all; numbers, bools and times never null (but
    floats), since no trainer could read them."""

    labels: pa.Schema
    """Columns that come later."""

    label_defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of labels that never came. Needed for integers, bools and times; others default to
    null."""

    join_window_ms: int
    """Longest time between a row and its label, in either order."""

    unlabelled: Literal["emit", "drop"] = "emit"
    """Treatment of rows without any label: "emit" gives them the defaults, "drop" leaves them
    out. Both are counted."""

    files: FileOutput | None = None

    kafka: KafkaOutput | None = None

    commit_ms: int = 20
    """Longest time that a call waits to be made durable together with more."""

    close_ms: int = 30_000
    """Time for close() to write and publish; the rest stays in the journal."""

    retry_ms: int = 1_000
    """Pause after a failure, such as a full disk or an absent broker."""

    queued_events_max: int = 1_000_000
    """Most events that wait in memory to be written; each row and label counts as one more."""

    rows_pending_max: int = 1_000_000
    """Most rows that some output lacks, at some 300 bytes of memory each."""

    labels_pending_max: int = 1_000_000
    """Most calls whose labels wait for their row."""

    journal_bytes_max: int = 64 << 30
    """Most bytes of the journal; it holds the calls of twice the window, or more if an output
    fails."""

    segment_bytes: int = 64 * MIB
    """Size at which the journal continues in a new file; whole files are removed."""

    mutable_events_max: int = 10_000
    """Most mutable events in a row."""

    row_bytes_max: int = MIB // 2
    """Most bytes of a row, as Arrow counts them."""

    label_bytes_max: int = 4_096
    """Most bytes of one call's labels, as Arrow counts them."""

    request_id_bytes_max: int = 256
    """Most bytes of a request id in UTF-8."""

    def __post_init__(self) -> None:
        require_bounds(self, join_window_ms=1, commit_ms=1, close_ms=0, retry_ms=1, segment_bytes=1)
        bounds = [name for name in self.__dataclass_fields__ if name.endswith("_max")]
        require_bounds(self, **dict.fromkeys(bounds, 1))
        if self.files is None and self.kafka is None:
            raise UsageError("The logger has no output; give it files, kafka or both.")
        if self.unlabelled not in ("emit", "drop"):
            raise UsageError(f"unlabelled is {self.unlabelled!r}, but must be 'emit' or 'drop'.")
        if self.kafka is not None and self.row_bytes_max > self.kafka.message_bytes_max:
            raise UsageError(
                f"row_bytes_max is {self.row_bytes_max}, more than a message's "
                f"{self.kafka.message_bytes_max}; a row must fit into a message."
            )
        if not pa.types.is_list(self.mutable) or not pa.types.is_struct(self.mutable.value_type):
            raise UsageError(
                "mutable must be the type of a column of snapshots; mutable_type() makes it."
            )
        for event_time in ("event_ts", "arrival_ts"):
            if self.mutable.value_type.get_field_index(event_time) < 0:
                raise UsageError(
                    f"mutable has no field {event_time}; mutable_type() makes it from the schema."
                )
        for column in (*self.features, *self.labels):
            if pa.types.is_dictionary(column.type):
                raise UsageError(
                    f"The column {column.name} is {column.type}; declare the type of its values."
                )
        names = [*self.features.names, *self.labels.names]
        for name in names:
            if name in RESERVED or names.count(name) > 1:
                raise UsageError(
                    f"The column {name} is there twice or is the logger's own; rename it."
                )
        if self.files is not None and self.files.row_parts and PART_KEY in names:
            raise UsageError(
                f"There is a column {PART_KEY}, which row_parts makes of its folders; rename the "
                f"column."
            )
        for name in self.label_defaults:
            if name not in self.labels.names:
                raise UsageError(f"label_defaults names {name}, which is no label; correct it.")
        for label in self.labels:
            default = self.label_defaults.get(label.name)
            if default is None and never_null(label.type):
                raise UsageError(
                    f"The label {label.name} is {label.type} and needs one of label_defaults, for "
                    f"rows whose label never comes."
                )
            try:
                exact([default], label)
            except UNFIT as error:
                raise UsageError(
                    f"The default of label {label.name} must be {label.type}, but is {default!r}."
                ) from error


def never_null(kind: pa.DataType) -> bool:
    """Returns True for types that a tensor cannot hold nulls of."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_boolean(kind) or types.is_timestamp(kind))
