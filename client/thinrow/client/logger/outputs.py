"""Outputs of joined rows: Parquet files by hour and by part of the users, and a Kafka topic."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.client.logger.journal import sync_folder
from thinrow.core.files.arrow import rows_at
from thinrow.core.files.message import encode_thin_rows
from thinrow.core.files.permissions import file_mode, private_umask
from thinrow.core.files.rows import to_pointers
from thinrow.core.kafka import load_kafka
from thinrow.core.shards import part_folder, shard_of
from thinrow.core.user_keys import check_keys, user_keys
from thinrow.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.client.logger.config import FileOutput, KafkaOutput
    from thinrow.client.logger.state import RowBatch
    from thinrow.core.ids import IdKind

__all__ = ["Files", "Output", "Topic"]

HOUR_MS = 3_600_000


class Output(Protocol):
    """Publishes joined rows, in the order in which they were logged."""

    def publish(self, batch: RowBatch, table: pa.Table) -> None:
        """Publishes the rows of a batch, perhaps after an interrupted attempt."""

    def close(self) -> None:
        """Closes connections."""


class Files:
    """Writes each row to the folder of its hour, and of its part there, exactly once.

    A file is written under a hidden name, synced and renamed. Its name has the batch's numbers, so
    that an interrupted attempt is recognized, and replaces the hidden file that a crash left. One
    file is open at a time.
    """

    def __init__(self, config: FileOutput, journal_id: str, user_ids: IdKind) -> None:
        self._folder = config.folder
        self._journal_id, self._user_ids = journal_id, user_ids
        if config.row_parts:
            check_keys(user_ids)
        make_folder(self._folder)

    def publish(self, batch: RowBatch, table: pa.Table) -> None:
        """See Output. Raises OSError."""
        name = f"part-{self._journal_id}-{batch.first:012}-{batch.last:012}.parquet"
        hours = table.column("request_ts").to_numpy() // HOUR_MS
        parts = self._parts(table, batch.row_parts)
        for hour, part in sorted(set(zip(hours.tolist(), parts.tolist(), strict=True))):
            folder = self._folder / f"hour={hour_name(hour)}"
            if batch.row_parts:
                folder /= part_folder(part)
            if (folder / name).exists():
                continue
            make_folder(folder)
            mine = np.flatnonzero((hours == hour) & (parts == part))
            write_part(rows_at(table, mine), folder / name)

    def close(self) -> None:
        """See Output."""

    def _parts(self, table: pa.Table, row_parts: int) -> NDArray[np.int64]:
        """Returns the part of each row's user, shape (rows,); 0 if there are no parts."""
        if not row_parts:
            return np.zeros(len(table), np.int64)
        pointers = (to_pointers("The rows", rows) for rows in table.to_batches())
        keys = [user_keys(of_some, self._user_ids) for of_some in pointers]
        return shard_of(np.concatenate(keys), row_parts)


class Topic:
    """Sends rows to a Kafka topic, each at least once."""

    def __init__(self, config: KafkaOutput) -> None:
        self._kafka = load_kafka()
        self._config = config
        self._producer: Any = self._connect()
        self._batch: RowBatch | None = None
        self._delivered: set[int] = set()
        """First rows of the batch's messages that brokers acknowledged."""
        self._error: Any = None

    def publish(self, batch: RowBatch, table: pa.Table) -> None:
        """See Output. Raises UnavailableError."""
        if self._batch != batch:
            self._batch, self._delivered = batch, set()
        self._error = None
        end_s = time.monotonic() + self._config.deadline_ms / 1000
        if self._producer is None:
            self._producer = self._connect()
        try:
            for start in range(0, len(table), self._config.message_rows):
                self._send(start, table.slice(start, self._config.message_rows), end_s)
            left = self._producer.flush(max(end_s - time.monotonic(), 0))
        except self._kafka.KafkaException as error:
            self._error, left = error.args[0], 0
        if left or self._error is not None:
            reason = "no answer in time" if self._error is None else self._error.str()
            # Messages in flight must not arrive after the rows sent next.
            self._producer.purge()
            self._producer.flush(1)
            self._producer = None
            raise UnavailableError(
                f"Kafka at {self._config.bootstrap_servers} does not take rows for topic "
                f"{self._config.topic}: {reason}; check the brokers and the settings."
            )

    def close(self) -> None:
        """See Output."""
        self._producer = None

    def _send(self, start: int, rows: pa.Table, end_s: float) -> None:
        message = encode_thin_rows(rows)
        if len(message) > self._config.message_bytes_max and len(rows) > 1:
            half = len(rows) // 2
            self._send(start, rows.slice(0, half), end_s)
            self._send(start + half, rows.slice(half), end_s)
            return
        if start in self._delivered:
            return

        def delivered(error: Any, _: object) -> None:  # noqa: ANN401
            if error is None:
                self._delivered.add(start)
            else:
                self._error = error

        while True:
            try:
                self._producer.produce(self._config.topic, message, on_delivery=delivered)
            except BufferError:
                if time.monotonic() > end_s:
                    raise self._kafka.KafkaException(
                        self._kafka.KafkaError(self._kafka.KafkaError._QUEUE_FULL)
                    ) from None
                self._producer.poll(0.1)
            else:
                return

    def _connect(self) -> Any:  # noqa: ANN401
        own = {
            "bootstrap.servers": self._config.bootstrap_servers,
            "enable.idempotence": True,
            "message.max.bytes": self._config.message_bytes_max + 65_536,
            "delivery.timeout.ms": self._config.deadline_ms,
        }
        if taken := self._config.settings.keys() & own.keys():
            raise UsageError(
                f"settings must leave out {', '.join(sorted(taken))}, which the logger sets."
            )
        try:
            return self._kafka.Producer(own | dict(self._config.settings))
        except self._kafka.KafkaException as error:
            raise UsageError(
                f"Kafka refuses the settings: {error.args[0].str()}; correct them."
            ) from error


def hour_name(hour: int) -> str:
    """Names an hour since the epoch, UTC; by its number if no calendar has it."""
    try:
        return datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%dT%H")
    except (ValueError, OverflowError, OSError):
        return str(hour)


def make_folder(folder: Path) -> None:
    """Creates a folder whose name survives a crash."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o777 & ~private_umask(), exist_ok=True)
        sync_folder(folder.parent)


def write_part(table: pa.Table, path: Path) -> None:
    """Writes a file atomically."""
    # Neither a shell pattern nor *.parquet matches it.
    hidden = path.with_name(f".{path.name}.new")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(hidden, flags, file_mode()), "wb") as sink:
            pq.write_table(table, sink, compression="zstd")
            sink.flush()
            os.fsync(sink.fileno())
        hidden.rename(path)
        sync_folder(path.parent)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise
