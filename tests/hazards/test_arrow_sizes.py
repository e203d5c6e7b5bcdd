"""Messages of Arrow IPC become no larger than their own size and a limit allow."""

# ruff: noqa: ANN401 - values of any kind

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.declared_arrow import MAKE, thin_rows
from support.peak import MIB, peak_of
from thinrow.client.logger.journal import Journal
from thinrow.core.files.arrow_sizes import (
    ARROW_BYTES_MAX,
    require_bounded_arrays,
    require_bounded_message,
    table_bytes,
    value_bytes,
)
from thinrow.core.files.message import decode_thin_rows, encode_thin_rows, split_thin_rows
from thinrow.errors import InputError, JournalError

if TYPE_CHECKING:
    from pathlib import Path

REFUSED_BYTES_MAX = 48 * MIB


BOMBS = {
    "zeros by zstd": """
events = mutable({"event_ts": times(20_000_000)}, [20_000_000])
message = encoded(rows() | {"mutable": events}, "zstd")
""",
    "zeros by lz4": """
events = mutable({"event_ts": times(20_000_000)}, [20_000_000])
message = encoded(rows() | {"mutable": events}, "lz4")
""",
    "another column": """
message = encoded(rows() | {"mutable": mutable({"event_ts": times(1)}, [1]),
    "label": pa.array([bytes(150_000_000)])}, "zstd")
""",
    "a text that a dictionary repeats": """
brand = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int8)), pa.array(["x" * 500_000]))
message = encoded(rows() | {"mutable": mutable({"event_ts": times(3000), "brand": brand}, [3000])})
""",
    "a dictionary of another column": """
label = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int8)), pa.array(["x" * 500_000]))
message = encoded(rows(1000) | {"mutable": mutable({"event_ts": times(1000)}, [1] * 1000),
    "label": label})
""",
    "views of one text": """
text = pa.array(["x" * 500_000], pa.string_view())
views = np.tile(np.frombuffer(text.buffers()[1], np.uint8), 1000)
buffers = [None, pa.py_buffer(views), text.buffers()[2]]
label = pa.Array.from_buffers(pa.string_view(), 1000, buffers)
message = encoded(rows(1000) | {"mutable": mutable({"event_ts": times(1000)}, [1] * 1000),
    "label": label})
""",
    "views of one list": """
values = times(1_000_000)
label = pa.ListViewArray.from_arrays(pa.array([0] * 1000, pa.int32()),
    pa.array([1_000_000] * 1000, pa.int32()), values)
message = encoded(rows(1000) | {"mutable": mutable({"event_ts": times(1000)}, [1] * 1000),
    "label": label})
""",
    "runs of one text": """
label = pa.RunEndEncodedArray.from_arrays(pa.array([1000], pa.int32()), pa.array(["x" * 500_000]))
message = encoded(rows(1000) | {"mutable": mutable({"event_ts": times(1000)}, [1] * 1000),
    "label": label})
""",
    "lists of nulls": """
label = pa.ListArray.from_arrays(pa.array([0, 2**31 - 1], pa.int32()), pa.nulls(2**31 - 1))
message = encoded(rows() | {"mutable": mutable({"event_ts": times(1)}, [1]), "label": label})
""",
    "fixed lists of nulls": """
label = pa.FixedSizeListArray.from_arrays(pa.nulls(2**30), 2**30)
message = encoded(rows() | {"mutable": mutable({"event_ts": times(1), "label": label}, [1])})
""",
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_a_message_that_would_take_gigabytes(make: str) -> None:
    made = f"{MAKE}{make}\n"
    made += "import sys; sys.stdout.buffer.write(message)"
    message = subprocess.run([sys.executable, "-c", made], capture_output=True, check=True).stdout
    read = f"{MAKE}import sys\nmessage = bytes.fromhex(sys.stdin.read())\n"
    assert len(message) < 20 * MIB
    with pytest.raises(InputError, match="once decoded"):
        decode_thin_rows("m", message)
    peak = peak_of("decoded(message)", read, stdin=message.hex())
    assert peak.outcome.startswith("InputError: m has"), peak
    assert peak.grown_bytes < REFUSED_BYTES_MAX, peak


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_honest_messages_are_decoded(compression: str | None) -> None:
    table = thin_rows(500)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    message = sink.getvalue().to_pybytes()
    assert decode_thin_rows("m", message).equals(table)
    assert decode_thin_rows("m", encode_thin_rows(table)).equals(table)
    rows, _ = split_thin_rows("m", decode_thin_rows("m", message))
    assert rows.mutable is not None and len(rows.mutable.arrival_ts) == 1500


def test_a_compressed_buffer_that_lies_about_its_size() -> None:
    """Arrow would take what the first eight bytes of the buffer say, and then find out."""
    table = thin_rows(5000)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    message = sink.getvalue().to_pybytes()
    honest = struct.pack("<q", 8 * 15_000)
    assert honest in message
    for size in (2**40, 2**62, 2**63 - 1):
        with pytest.raises(InputError, match="once decoded"):
            decode_thin_rows("m", message.replace(honest, struct.pack("<q", size)))
    for size in (-2, -(2**63), 8 * 15_000 - 8):
        with pytest.raises(InputError, match="cannot be read"):
            decode_thin_rows("m", message.replace(honest, struct.pack("<q", size)))


def test_a_message_cut_off_anywhere() -> None:
    message = encode_thin_rows(thin_rows())
    for end in range(0, len(message) - 8, 7):
        with pytest.raises(InputError):
            decode_thin_rows("m", message[:end])


ARRAYS: list[tuple[Any, int]] = [
    (pa.array([1, 2, 3]), 24),
    (pa.array(["ab", None, "cde"]), 29),
    (pa.array(["ab", None, "cde"], pa.large_string()), 29),
    (pa.array(["ab", "x" * 40], pa.string_view()), 58),
    (pa.array([b"abc"] * 2, pa.binary(3)), 22),
    (pa.array([[1], [2, 3], None]), 48),
    (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), 24),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), 8 + 1 + 9 + 8),
    (pa.array([{"a": 1}, None]), 18),
    (pa.array(["ab"] * 4).dictionary_encode(), 4 * (8 + 8 + 2)),
    (pa.RunEndEncodedArray.from_arrays([4], [1]), 4 * 16),
    (pa.nulls(5), 40),
]


@pytest.mark.parametrize(("array", "size"), ARRAYS, ids=[str(a.type) for a, _ in ARRAYS])
def test_bytes_of_values(array: Any, size: int) -> None:
    assert value_bytes(array) == size
    assert value_bytes(array.slice(0, 0)) <= size


def test_the_limit_grows_with_the_message() -> None:
    table = pa.table({"x": np.zeros(ARROW_BYTES_MAX // 8 + 1000, np.int64)})
    assert table_bytes(table) == ARROW_BYTES_MAX + 8000
    require_bounded_arrays("m", table, 1000)
    with pytest.raises(InputError, match="fewer rows"):
        require_bounded_arrays("m", table, 999)
    with pytest.raises(pa.ArrowInvalid):
        require_bounded_message("m", b"\xff\xff\xff\xff\x00\x00\x00\x7f")


def test_a_journal_whose_frames_lie(tmp_path: Path) -> None:
    schemas = (pa.schema({"x": pa.int64()}), pa.schema({"y": pa.int64()}))
    journal = Journal(tmp_path, schemas)
    assert list(journal.replay()) == []
    journal.roll({})
    batch = pa.record_batch({"x": np.zeros(20_000_000, np.int64)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    _, part = pa.ipc.MessageReader.open_stream(sink.getvalue())
    data = part.serialize().to_pybytes()
    for payload in (
        struct.pack("<cII", b"E", len(data), 0) + data,
        struct.pack("<cII", b"E", 2**32 - 1, 0) + data,
        struct.pack("<cII", b"E", len(data) // 2, 0) + data,
        b"E",
    ):
        place = journal._append(payload)
        with pytest.raises(JournalError, match="is damaged at byte"):
            journal.read(place)
    journal.close()


def test_a_journal_whose_first_frame_says_it_is_huge(tmp_path: Path) -> None:
    head = struct.pack("<III", 0x4C526854, 2**32 - 1, zlib.crc32(b""))
    frame = head + struct.pack("<I", zlib.crc32(head)) + json.dumps({}).encode()
    # A whole frame behind it: it was acknowledged.
    payload = b"C{}"
    behind = struct.pack("<III", 0x4C526854, len(payload), zlib.crc32(payload))
    behind += struct.pack("<I", zlib.crc32(behind)) + payload
    (tmp_path / "segment-0000000000.journal").write_bytes(frame + behind)
    read = f"""
from pathlib import Path
import pyarrow as pa
from thinrow.client.logger.journal import Journal
journal = Journal(Path({str(tmp_path)!r}), (pa.schema([]), pa.schema([])))
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
"""
    peak = peak_of("list(journal.replay())", read)
    assert peak.outcome.startswith("JournalError"), peak
