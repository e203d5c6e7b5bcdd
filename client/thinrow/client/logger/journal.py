"""The journal: acknowledged calls, in append-only files of checked frames.

A frame is synced before the next one begins, so a crash tears at most the last one. If writing
fails, the frame goes into a new segment, which records the valid bytes of the segment before it.
A frame is `MAGIC, length, checksum of the payload, checksum of the three before`, then the payload:
a letter and its content. "E" has rows and labels, "C" a control record in JSON. Each file begins
with a control record that summarizes the removed files, and has the schemas.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
import re
import struct
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from thinrow.core.files.arrow_sizes import require_bounded_batch
from thinrow.core.files.permissions import file_mode, make_folder
from thinrow.errors import InputError, JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["VERSION", "VERSION_OF_PARTS", "Entries", "Journal", "Place", "sync_folder"]

log = logging.getLogger("thinrow.logger")

VERSION = 1
VERSION_OF_PARTS = 2
"""Version of segments whose batches of files are in parts. A release that reads version 1 alone
would publish an interrupted batch again in other folders, so it must refuse the journal."""
MAGIC = 0x4C526854
HEAD = struct.Struct("<IIII")
LENGTHS = struct.Struct("<cII")
SEGMENT = re.compile(r"segment-(\d{10})\.journal")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a frame."""

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """A frame of rows and labels; None if there are none."""

    rows: pa.RecordBatch | None
    labels: pa.RecordBatch | None
    place: Place


class Journal:
    """A folder of segments, the newest open for appending. Raises JournalError, OSError.

    `replay` comes first and once; then any thread may append and read.
    """

    def __init__(self, folder: Path, schemas: tuple[pa.Schema, pa.Schema]) -> None:
        self._folder = folder
        self._schemas = schemas
        self._lock = threading.Lock()
        self._file: int | None = None
        self._segment = 0
        self._end = 0
        self._sizes: dict[int, int] = {}
        self.broken = False
        """True after a failed append, so that `roll` must come next."""
        self._read_schemas: dict[int, tuple[pa.Schema, pa.Schema]] = {}
        make_folder(folder)
        self._held = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, file_mode())
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._held)
            raise JournalError(
                f"Another logger uses the journal {folder}; give each one a folder of its own."
            ) from error

    def replay(self) -> Iterator[Entries | dict[str, Any]]:
        """Yields all entries and control records, oldest first; cuts off a torn end.

        Raises:
            JournalError: There is damage anywhere else; names the file.
        """
        numbers = sorted(
            int(match[1]) for path in self._folder.iterdir() if (match := SEGMENT.match(path.name))
        )
        if numbers and not self._begun(numbers[-1]):
            # A crash interrupted its creation: nothing in it was acknowledged.
            self._path(numbers.pop()).unlink()
        ends = [self._begins(number) for number in numbers]
        for place, number in enumerate(numbers):
            if number != numbers[0] + place:
                raise self._damaged(numbers[0] + place, 0)
            data = self._path(number).read_bytes()
            if number != numbers[-1]:
                # The rest is a failed write, repeated in the next segment.
                data = data[: ends[place + 1]]
            end = 0
            for frame, payload in self._frames(number, data):
                end = frame.offset + HEAD.size + frame.length
                if payload[:1] == b"E":
                    yield self._entries(frame, payload)
                else:
                    yield json.loads(payload[1:])
            if number != numbers[-1] and end != ends[place + 1]:
                raise self._damaged(number, end)
            if end < len(data) and followed(data, end):
                raise self._damaged(number, end)
            if end < len(data):
                log.warning(
                    "%s ends in %d bytes that a crash tore, none of them acknowledged: cut off",
                    self._path(number),
                    len(data) - end,
                )
            self._sizes[number] = end
        self._segment = max(self._sizes, default=-1)
        self._end = self._sizes.get(self._segment, 0)

    def roll(self, checkpoint: dict[str, Any]) -> None:
        """Begins a new segment with a checkpoint, after `replay` or a failed append.

        Args:
            checkpoint: A summary of all segments before, and the version of the new one.
        """
        with self._lock:
            number = self._segment + 1
            record = {
                **checkpoint,
                "previous_bytes": self._end,
                "schemas": [
                    base64.b64encode(schema.serialize().to_pybytes()).decode()
                    for schema in self._schemas
                ],
            }
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            file = os.open(self._path(number), flags, file_mode())
            try:
                end = write_frame(file, 0, b"C" + json.dumps(record).encode())
                sync_folder(self._folder)
            except OSError:
                os.close(file)
                self._path(number).unlink(missing_ok=True)
                raise
            if self._file is not None:
                os.close(self._file)
            self._file, self._segment, self._end, self.broken = file, number, end, False
            self._sizes[number] = end
            self._read_schemas[number] = self._schemas

    def append(self, rows: pa.RecordBatch | None, labels: pa.RecordBatch | None) -> Place:
        """Writes rows and labels; they are durable when it returns."""
        parts = [
            b"" if batch is None else batch.serialize().to_pybytes() for batch in (rows, labels)
        ]
        return self._append(LENGTHS.pack(b"E", *map(len, parts)) + b"".join(parts))

    def control(self, record: dict[str, Any]) -> None:
        """Writes a control record; it is durable when it returns."""
        self._append(b"C" + json.dumps(record).encode())

    def read(self, place: Place) -> Entries:
        """Reads a frame again."""
        with self._path(place.segment).open("rb") as file:
            data = os.pread(file.fileno(), HEAD.size + place.length, place.offset)
        payload = frame_at(data, 0)
        if payload is None:
            raise self._damaged(place.segment, place.offset)
        return self._entries(place, payload)

    def has_schema(self, place: Place) -> bool:
        """Returns True if a frame's rows and labels have the present schemas."""
        return self._read_schemas[place.segment] == self._schemas

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.copy().values())

    @property
    def segment(self) -> int:
        """Number of the open segment."""
        return self._segment

    @property
    def segment_bytes(self) -> int:
        """Bytes of the open segment."""
        return self._end

    def forget(self, before: int) -> None:
        """Removes the segments below a number, oldest first, so that there is never a gap."""
        for number in sorted(number for number in self._sizes if number < before):
            self._path(number).unlink()
            del self._sizes[number], self._read_schemas[number]

    def close(self) -> None:
        """Closes the files and releases the lock."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if self._held >= 0:
                os.close(self._held)
                self._held = -1

    def _append(self, payload: bytes) -> Place:
        with self._lock:
            assert self._file is not None
            place = Place(self._segment, self._end, len(payload))
            try:
                self._end = write_frame(self._file, self._end, payload)
            except OSError:
                self.broken = True
                raise
            self._sizes[self._segment] = self._end
            return place

    def _path(self, number: int) -> Path:
        return self._folder / f"segment-{number:010}.journal"

    def _frames(self, number: int, data: bytes) -> Iterator[tuple[Place, bytes]]:
        """Yields the whole frames from the beginning on."""
        offset = 0
        while (payload := frame_at(data, offset)) is not None:
            yield Place(number, offset, len(payload)), payload
            offset += HEAD.size + len(payload)

    def _begun(self, number: int) -> bool:
        data = self._path(number).read_bytes()
        return frame_at(data, 0) is not None or followed(data, 1)

    def _begins(self, number: int) -> int:
        """Reads a segment's first record; returns the valid bytes of the segment before it."""
        path = self._path(number)
        with path.open("rb") as file:
            _, length, _, _ = HEAD.unpack(file.read(HEAD.size).ljust(HEAD.size, b"\0"))
            file.seek(0)
            # A damaged length must not decide how much memory is allocated.
            size = min(HEAD.size + length, os.fstat(file.fileno()).st_size)
            payload = frame_at(file.read(size), 0)
        if payload is None:
            raise self._damaged(number, 0)
        record = json.loads(payload[1:])
        if record["version"] not in (VERSION, VERSION_OF_PARTS):
            raise JournalError(
                f"{path} has version {record['version']}, but this release reads {VERSION} and "
                f"{VERSION_OF_PARTS}; finish it with the release that wrote it."
            )
        rows, labels = (
            pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
            for schema in record["schemas"]
        )
        self._read_schemas[number] = rows, labels
        return int(record["previous_bytes"])

    def _entries(self, place: Place, payload: bytes) -> Entries:
        try:
            _, *lengths = LENGTHS.unpack_from(payload)
            start = LENGTHS.size
            batches: list[pa.RecordBatch | None] = []
            for length, schema in zip(lengths, self._read_schemas[place.segment], strict=True):
                part = pa.py_buffer(payload)[start : start + length]
                if length:
                    require_bounded_batch("The frame", part)
                batches.append(pa.ipc.read_record_batch(part, schema) if length else None)
                start += length
        except (struct.error, OSError, ValueError, pa.ArrowException, InputError) as error:
            raise self._damaged(place.segment, place.offset) from error
        return Entries(batches[0], batches[1], place)

    def _damaged(self, number: int, offset: int) -> JournalError:
        return JournalError(
            f"{self._path(number)} is damaged at byte {offset}; bring the file back from a copy, "
            f"or move the journal away and lose what was pending."
        )


def write_frame(file: int, offset: int, payload: bytes) -> int:
    """Writes and syncs a frame; returns its end."""
    head = struct.pack("<III", MAGIC, len(payload), zlib.crc32(payload))
    frame = memoryview(head + struct.pack("<I", zlib.crc32(head)) + payload)
    while frame:
        written = os.pwrite(file, frame, offset)
        frame, offset = frame[written:], offset + written
    os.fdatasync(file)
    return offset


def frame_at(data: bytes, offset: int) -> bytes | None:
    """Returns the payload of a frame; None if there is no whole one."""
    if len(data) - offset < HEAD.size:
        return None
    magic, length, checksum, head_checksum = HEAD.unpack_from(data, offset)
    start = offset + HEAD.size
    if magic != MAGIC or zlib.crc32(data[offset : start - 4]) != head_checksum:
        return None
    payload = data[start : start + length]
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def followed(data: bytes, offset: int) -> bool:
    """Returns True if a whole frame follows: then the broken bytes before it were acknowledged."""
    magic = struct.pack("<I", MAGIC)
    while (offset := data.find(magic, offset)) >= 0:
        if frame_at(data, offset) is not None:
            return True
        offset += 1
    return False


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
