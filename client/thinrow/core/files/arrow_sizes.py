"""Sizes that Arrow data declares, read before any of it is decoded.

A message of Arrow IPC says how large each compressed buffer becomes, and how long each array is. A
decoded array may stand for more than its bytes: entries of a dictionary, views and runs repeat, and
nulls take nothing. Both are compared with the bytes that are there and with a limit.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.files.arrow import load_pyarrow
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

__all__ = [
    "ARROW_BYTES_MAX",
    "require_bounded_arrays",
    "require_bounded_batch",
    "require_bounded_message",
    "table_bytes",
]

ARROW_BYTES_MAX = 64 << 20
"""Limit on a decoded message beyond a multiple of its size."""
BYTES_PER_MESSAGE_BYTE = 8
VALUE_BYTES = 8

# Fields of the tables of Arrow's Message.fbs, by place.
HEADER_TYPE, HEADER = 1, 2
RECORD_BATCH, DICTIONARY_BATCH = 3, 2
DICTIONARY_DATA = 1
BUFFERS, COMPRESSION = 2, 3
NOT_COMPRESSED = -1


def require_bounded_message(where: str, message: bytes | pa.Buffer) -> None:
    """Adds up what the buffers of a stream's messages become once they are decompressed.

    Raises InputError for too much, and pyarrow's errors for bytes that are no stream.
    """
    pa = load_pyarrow()
    decoded = 0
    for part in pa.ipc.MessageReader.open_stream(message):
        decoded += decompressed_bytes(part)
        require_few_bytes(where, decoded, len(message))


def require_bounded_batch(where: str, message: bytes | pa.Buffer) -> None:
    """Checks one message of a record batch as `require_bounded_message` does those of a stream."""
    part = load_pyarrow().ipc.read_message(message)
    require_few_bytes(where, decompressed_bytes(part), len(message))


def decompressed_bytes(message: pa.Message) -> int:
    """Adds up the buffers of one message as they are once decompressed."""
    if message.body is None:
        return 0
    body = memoryview(message.body)
    try:
        return sum(
            decompressed if decompressed != NOT_COMPRESSED else length
            for decompressed, length in declared_buffers(memoryview(message.metadata), body)
        )
    except struct.error as error:
        raise ValueError("its metadata points outside") from error


def declared_buffers(metadata: memoryview, body: memoryview) -> Iterator[tuple[int, int]]:
    """Yields each buffer's size once decompressed, NOT_COMPRESSED where it is not, and its own."""
    root = Table(metadata, struct.unpack_from("<I", metadata, 0)[0])
    batch = root.table(HEADER)
    kind = root.number(HEADER_TYPE)
    if batch is not None and kind == DICTIONARY_BATCH:
        batch = batch.table(DICTIONARY_DATA)
    if batch is None or kind not in (RECORD_BATCH, DICTIONARY_BATCH):
        return
    is_compressed = batch.place(COMPRESSION) is not None
    for offset, length in batch.pairs(BUFFERS):
        decompressed = NOT_COMPRESSED
        if is_compressed and length:
            decompressed = struct.unpack_from("<q", body, offset)[0]
            if decompressed < NOT_COMPRESSED:
                raise ValueError("a buffer has a negative size")
        yield decompressed, length


class Table:
    """A table of a flatbuffer, which Arrow has verified."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self._at = data, at

    def place(self, field: int) -> int | None:
        """Returns the place of a field; None if it is left out."""
        vtable = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        size = struct.unpack_from("<H", self._data, vtable)[0]
        if 4 + 2 * field + 2 > size:
            return None
        offset = struct.unpack_from("<H", self._data, vtable + 4 + 2 * field)[0]
        return self._at + offset if offset else None

    def number(self, field: int) -> int:
        """Returns a number of one byte."""
        place = self.place(field)
        return 0 if place is None else int(self._data[place])

    def table(self, field: int) -> Table | None:
        """Returns a table within this one."""
        place = self.place(field)
        if place is None:
            return None
        return Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yields the elements of a vector of structs of two 64-bit numbers."""
        place = self.place(field)
        if place is None:
            return
        vector = place + struct.unpack_from("<I", self._data, place)[0]
        count = struct.unpack_from("<I", self._data, vector)[0]
        for number in range(count):
            yield struct.unpack_from("<qq", self._data, vector + 4 + 16 * number)


def require_bounded_arrays(where: str, table: pa.Table, message_bytes: int) -> None:
    """Adds up what a table's values take once each stands for itself.

    The table must have been validated in full. Raises InputError for too much.
    """
    require_few_bytes(where, table_bytes(table), message_bytes)


def table_bytes(table: pa.Table) -> int:
    """Bounds the bytes of a table's values, each standing for itself."""
    return sum(value_bytes(chunk) for column in table.columns for chunk in column.chunks)


def value_bytes(array: pa.Array) -> int:
    """Bounds the bytes of an array's values: repeated ones count each time, nulls as well."""
    types, kind, length = load_pyarrow().types, array.type, len(array)
    if types.is_struct(kind):
        return length + sum(value_bytes(array.field(n)) for n in range(kind.num_fields))
    if types.is_union(kind):
        children = [array.field(n) for n in range(kind.num_fields)]
        return length * (VALUE_BYTES + max((value_bytes(child) for child in children), default=0))
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        viewed = int(np.sum(array.sizes.to_numpy(), dtype=np.float64))
        return VALUE_BYTES * length + viewed * one_value_bytes(array.values)
    if types.is_dictionary(kind):
        return length * (VALUE_BYTES + one_value_bytes(array.dictionary))
    if types.is_run_end_encoded(kind):
        return length * (VALUE_BYTES + one_value_bytes(array.values))
    if types.is_nested(kind):  # lists, fixed-size lists, maps: each value stands in one of them
        values = array.values if not types.is_map(kind) else array.cast(list_of(kind)).values
        return VALUE_BYTES * length + value_bytes(values)
    if isinstance(array, load_pyarrow().ExtensionArray):
        return value_bytes(array.storage)
    return VALUE_BYTES * length + text_bytes(array)


def one_value_bytes(array: pa.Array) -> int:
    """Bounds the bytes of any one of an array's values."""
    types = load_pyarrow().types
    if types.is_nested(array.type) or types.is_dictionary(array.type):
        return value_bytes(array)
    lengths = text_lengths(array)
    return VALUE_BYTES + (int(lengths.max()) if lengths.size else 0)


def text_bytes(array: pa.Array) -> int:
    """Adds up the bytes of texts, and of other values without a fixed width."""
    return int(text_lengths(array).sum(dtype=np.float64))


def text_lengths(array: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Bytes of each text; empty for values of a fixed width."""
    pa = load_pyarrow()
    types, kind = pa.types, array.type
    if types.is_string_view(kind) or types.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1] or b"", np.int32).reshape(-1, 4)
        return views[array.offset : array.offset + len(array), 0].astype(np.int64)
    if types.is_fixed_size_binary(kind):
        return np.full(min(len(array), 1), len(array) * kind.byte_width, np.int64)
    for texts, offset in (
        (types.is_string(kind) or types.is_binary(kind), np.int32),
        (types.is_large_string(kind) or types.is_large_binary(kind), np.int64),
    ):
        if texts and len(array):
            ends = np.frombuffer(array.buffers()[1], offset)
            return np.diff(ends[array.offset : array.offset + len(array) + 1]).astype(np.int64)
    return np.zeros(0, np.int64)


def list_of(kind: pa.MapType) -> pa.DataType:
    """The list of pairs that a map is."""
    pa = load_pyarrow()
    pair = pa.struct([pa.field("key", kind.key_type, nullable=False), kind.item_field])
    return pa.list_(pair)


def require_few_bytes(where: str, decoded_bytes: int, message_bytes: int) -> None:
    """Compares what a message becomes with its size and the limit."""
    if decoded_bytes > ARROW_BYTES_MAX + BYTES_PER_MESSAGE_BYTE * message_bytes:
        raise InputError(
            f"{where} has {message_bytes:,} bytes and would take {decoded_bytes:,} once decoded; "
            f"send fewer rows, or fewer mutable events, in one message."
        )
