"""Headers of a column's pages, which say what the column becomes; a footer can say anything.

A reader takes memory as each page's header says, and fails where the page has other bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Struct = dict[int, "int | Struct | None"]

__all__ = ["ColumnPages", "declared_pages", "read_pages"]

HEADER_BYTES, HEADER_BYTES_MAX = 256, 1 << 20
"""Bytes first read of a header, and most bytes of one: statistics may hold long values."""
NESTED_MAX = 8
"""Most structs within each other; page headers have three."""

# Fields and values of PageHeader in parquet.thrift.
KIND, DECODED_BYTES, STORED_BYTES, DATA, DATA_V2 = 1, 2, 3, 5, 8
DICTIONARY_PAGE = 2
VALUES = 1
ENCODING = {DATA: 2, DATA_V2: 4}
DICTIONARY_ENCODINGS, PREFIX_ENCODING = (2, 8), 7

# Types of Thrift's compact protocol.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


class ColumnPages(NamedTuple):
    """Pages of one column of a row group."""

    decoded_bytes: int
    """Bytes of all pages, decompressed."""
    values: int
    """Number of values, nulls among them, as the pages have it."""
    dictionary_bytes: int
    """Bytes of the dictionary, decompressed; 0 without one."""
    opens_with_dictionary: bool
    """True if the first page of values refers to the dictionary."""
    shares_prefixes: bool
    """True if values of a page repeat parts of those before them."""


def read_pages(source: pa.NativeFile, column: pq.ColumnChunkMetaData) -> ColumnPages:
    """Reads the headers of the pages of a column, as far as a reader of the column would.

    Raises:
        ValueError: The bytes are no headers of pages, or lie outside of the file.
    """
    place = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < place:
        place = column.dictionary_page_offset
    end = min(place + column.total_compressed_size, source.size())
    decoded = values = dictionary = 0
    encodings: list[object] = []
    while place < end and values < column.num_values:
        header, header_bytes = read_header(source, place)
        page_bytes, stored_bytes = header.get(DECODED_BYTES), header.get(STORED_BYTES)
        if not isinstance(page_bytes, int) or not isinstance(stored_bytes, int):
            raise ValueError("a page has no size")
        if page_bytes < 0 or stored_bytes < 0:
            raise ValueError("a page has a negative size")
        decoded += page_bytes
        place += header_bytes + stored_bytes
        if header.get(KIND) == DICTIONARY_PAGE:
            dictionary += page_bytes
        for kind, encoding in ENCODING.items():
            data = header.get(kind)
            if isinstance(data, dict):
                count = data.get(VALUES)
                if not isinstance(count, int) or count < 0:
                    raise ValueError("a page has no number of values")
                values += count
                encodings.append(data.get(encoding))
    return ColumnPages(
        decoded,
        values,
        dictionary,
        opens_with_dictionary=bool(encodings) and encodings[0] in DICTIONARY_ENCODINGS,
        shares_prefixes=PREFIX_ENCODING in encodings,
    )


def declared_pages(column: pq.ColumnChunkMetaData) -> ColumnPages:
    """Takes a footer's word for a column whose pages lie too far to be looked at one by one."""
    decoded = column.total_uncompressed_size
    return ColumnPages(
        decoded,
        column.num_values,
        decoded if column.has_dictionary_page else 0,
        opens_with_dictionary=True,
        shares_prefixes="DELTA_BYTE_ARRAY" in column.encodings,
    )


def read_header(source: pa.NativeFile, place: int) -> tuple[Struct, int]:
    """Reads the header at a place, and returns its fields by number, and its bytes."""
    size = HEADER_BYTES
    while True:
        source.seek(place)
        data = source.read(size)
        reader = CompactReader(data)
        try:
            return reader.struct(), reader.place
        except IndexError:
            if len(data) < size or size >= HEADER_BYTES_MAX:
                raise ValueError("a page's header has no end") from None
            size *= 16


class CompactReader:
    """Thrift's compact protocol. Raises IndexError past the end, ValueError for other bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0
        """Bytes that were read."""

    def struct(self, depth: int = 0) -> Struct:
        """Reads a struct: its integers and structs by their numbers, None for other values."""
        if depth > NESTED_MAX:
            raise ValueError("a page's header has structs within each other")
        fields: Struct = {}
        number = 0
        while head := self._byte():
            delta = head >> 4
            number = number + delta if delta else self._signed()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> int | Struct | None:
        if kind in (TRUE, FALSE):
            return None
        if kind in (I16, I32, I64):
            return self._signed()
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (BYTE, DOUBLE, BINARY):
            self._skip({BYTE: 1, DOUBLE: 8}.get(kind) or self._unsigned())
            return None
        raise ValueError("a page's header has a field of an unknown type")

    def _byte(self) -> int:
        self.place += 1
        return self._data[self.place - 1]

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self._data):
            raise IndexError

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a page's header has a number of more than 64 bits")

    def _signed(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
