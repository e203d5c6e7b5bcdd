"""Fuzz targets with declared sizes: Arrow messages, and the native functions."""

# ruff: noqa: ANN401 - values of any kind

from __future__ import annotations

import random
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from support.mutation import altered_bytes, any_number
from thinrow import _native
from thinrow.core.files.message import MESSAGE_ROWS_MAX, decode_thin_rows, split_thin_rows
from thinrow.errors import InputError, StoreCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INT64 = (-(2**63), 2**63 - 1)
EVENTS_MAX = 1 << 24
"""More events than a message may hold, by its size and the limit."""


class MessageTarget:
    """Arbitrary bytes as a message of thin rows: an error of the tree, or rows that hold together,
    and in either case no more memory than the message and the limit allow."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002 - it needs no store
        self.seen: Counter[str] = Counter()
        self._messages = [
            encoded(thin_rows(random.Random(number)), compression)
            for number in range(4)
            for compression in (None, "zstd", "lz4")
        ]

    def close(self) -> None:
        """Nothing stays open."""

    def altered(self, rng: random.Random) -> bytes:
        message = bytearray(rng.choice(self._messages))
        for _ in range(rng.choice((0, 1, 1, 2))):
            # Sizes, lengths and offsets stand at multiples of eight and four.
            kind, step = rng.choice((("<q", 8), ("<i", 4)))
            at = rng.randrange(len(message) // step) * step
            low, high = INT64 if step == 8 else (-(2**31), 2**31 - 1)
            number = any_number(rng, struct.unpack_from(kind, message, at)[0])
            struct.pack_into(kind, message, at, (number - low) % (high - low + 1) + low)
        data = bytes(message)
        return altered_bytes(data, rng, self._messages) if rng.random() < 0.4 else data

    def __call__(self, data: bytes) -> None:
        try:
            rows, others = split_thin_rows("m", decode_thin_rows("m", data))
        except InputError as error:
            assert str(error).endswith("."), error
            self.seen["refused"] += 1
            return
        assert len(rows) == len(others) <= MESSAGE_ROWS_MAX
        assert rows.mutable is not None and len(rows.mutable) == len(rows)
        assert len(rows.mutable.arrival_ts) < EVENTS_MAX
        self.seen["answered"] += 1


def thin_rows(rng: random.Random) -> pa.Table:
    """A few rows, their mutable events of several types."""

    def event() -> dict[str, Any]:
        return {
            "event_ts": rng.randrange(100),
            "arrival_ts": rng.randrange(100),
            "event_id": rng.choice((None, rng.getrandbits(40))),
            "brand": rng.choice(("a", "bc", None)),
            "liked": rng.random() < 0.5,
            "taste": rng.choice((None, [1.0, 2.0])),
        }

    rows = [
        {
            "user_id": rng.randrange(5),
            "request_ts": 100,
            "uih": {"start_ts": 0, "end_ts": 9, "max_length": 0, "digest": 0},
            "mutable": [event() for _ in range(rng.randrange(1, 5))],
            "label": rng.choice(("x", "yz")),
        }
        for _ in range(3)
    ]
    table = pa.Table.from_pylist(rows)
    label = table.column("label").combine_chunks().dictionary_encode()
    return table.set_column(table.schema.get_field_index("label"), "label", label)


def encoded(table: pa.Table, compression: str | None) -> bytes:
    """A message, compressed as senders may."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    message: bytes = sink.getvalue().to_pybytes()
    return message


class NativeTarget:
    """Arbitrary arguments of the native functions: an error, or a result; never a crash."""

    REFUSALS = (ValueError, IndexError, TypeError, RuntimeError, StoreCorruptError)

    def __init__(self, folder: Path) -> None:  # noqa: ARG002 - it needs no store
        self.seen: Counter[str] = Counter()

    def close(self) -> None:
        """Nothing stays open."""

    def altered(self, rng: random.Random) -> bytes:
        return rng.randbytes(8)

    def __call__(self, data: bytes) -> None:
        rng = random.Random(data)
        call: Callable[[random.Random], Any] = rng.choice(
            (write, decode_stripes, present_counts, count_fields, records, order, plan, values)
        )
        try:
            call(rng)
        except self.REFUSALS:
            self.seen[f"{call.__name__} refused"] += 1
        else:
            self.seen[f"{call.__name__} answered"] += 1


def numbers(rng: random.Random, count: int, most: int = 8) -> Any:
    """Numbers that are mostly small, and of another count now and then."""
    wrong = rng.random() < 0.04
    picked = [
        any_number(rng) if rng.random() < 0.03 else rng.randrange(most + 1)
        for _ in range(rng.randrange(5) if wrong else count)
    ]
    low, high = INT64
    return np.array([(n - low) % (high - low + 1) + low for n in picked], np.int64)


def write(rng: random.Random) -> None:
    """Widens views of a run."""
    blocks = rng.randrange(4)
    counts = numbers(rng, blocks)
    widths = np.array([rng.choice((*(0, 1, 2, 4, 8) * 6, 3)) for _ in range(blocks)], np.uint8)
    bytes_of = sum(int(w) * int(c) for w, c in zip(widths, counts, strict=False) if 0 <= c < 100)
    run = _native.Run(
        np.frombuffer(rng.randbytes(max(0, bytes_of + (rng.random() < 0.1))), np.uint8),
        widths,
        numbers(rng, blocks),
        counts,
        rng.choice((None, numbers(rng, 3))),
    )
    views = rng.randrange(4)
    size = rng.choice((1, 1, 1, 2, 2, max(-(2**63), min(any_number(rng), 2**63 - 1))))
    out = np.zeros(64, np.uint8)
    job = ([run], *(numbers(rng, views, most) for most in (0, 2, 2, 5)), size)
    _native.write([(*job, rng.randrange(-1, 8), rng.randrange(-1, 4), out)], 1)


def decode_stripes(rng: random.Random) -> None:
    """Decodes a trait of any type of stripes, mostly with the counts that their headers state."""
    kind, length_max = rng.choice((4, 13, 14)), rng.choice((0, 0, 3, 300))
    nullable = rng.random() < 0.5
    trait = _native.Trait("t", rng.choice((1, 2, 9)), kind, 1, nullable, None, None, 1, length_max)
    values: list[bytes | None] = [stripe(rng) for _ in range(rng.randrange(4))]
    heads = [int.from_bytes((value or b"")[:4], "little") for value in values]
    counts = np.array(heads, np.int64) if rng.random() < 0.9 else numbers(rng, len(values))
    words, presence, _, ends, lengths = _native.decode_stripes(values, counts, trait)
    if length_max:
        assert len(words) == lengths.sum()
        assert lengths.max(initial=0) <= length_max
    else:
        assert len(words) <= counts.sum()
    assert len(presence) in (0, counts.sum())
    assert (np.diff(ends) >= 0).all()


def present_counts(rng: random.Random) -> None:
    """Counts bits by block."""
    bits = np.frombuffer(rng.randbytes(rng.randrange(20)), np.uint8)
    lengths = numbers(rng, rng.randrange(5), 40)
    counts = _native.present_counts(bits, lengths)
    there = np.unpackbits(bits, bitorder="little")
    ends = np.cumsum(lengths)
    assert counts.tolist() == [
        int(there[end - n : end].sum()) for n, end in zip(lengths, ends, strict=True)
    ]


def count_fields(rng: random.Random) -> None:
    """Counts fields within fields."""
    message = b"\x12\x04\x12\x00\x08\x01\x12\x00"
    path = [rng.randrange(4) for _ in range(rng.randrange(4))]
    assert _native.count_fields(altered_bytes(message, rng), path) >= 0


def records(rng: random.Random) -> None:
    """Packs records of an arbitrary layout."""
    columns: list[Any] = []
    at = 19
    for _ in range(rng.randrange(4)):
        word_bytes, size = rng.choice((1, 2, 4, 8)), rng.choice((1, 1, 3))
        kind = rng.randrange(1, 15)
        parts = [kind, size, rng.random() < 0.5, word_bytes, at, rng.choice((0, 10))]
        if rng.random() < 0.15:
            parts[rng.choice((1, 3, 4, 5))] = max(-(2**63), min(any_number(rng), 2**63 - 1))
        columns.append(("c", *parts))
        at += word_bytes * size
    record_format = _native.RecordFormat(0, at, columns)
    given = [bytes(2) + rng.randbytes(at + rng.randrange(-2, 6)) for _ in range(rng.randrange(4))]
    record_format.events([*range(len(given) + rng.choice((0, 0, 0, 1)))], given)


def order(rng: random.Random) -> None:
    """Sorts records."""
    _native.record_order(
        [rng.randbytes(rng.choice((19, 25, 25, 3))) for _ in range(4)], rng.choice((4, 8, 14))
    )


def plan(rng: random.Random) -> None:
    """Plans a batch, its steps in any order and with values of any kind."""
    examples = rng.randrange(3)
    arrays = [numbers(rng, examples, 300) for _ in range(7)]
    arrays[4] = arrays[4].view(np.uint64)
    watermarks = np.sort(numbers(rng, rng.randrange(4), 300))
    length = rng.choice((0, 5, max(-(2**63), min(any_number(rng), 2**63 - 1))))
    made = _native.Plan(*arrays, watermarks, length, rng.random() < 0.5, rng.random() < 0.5)  # type: ignore[call-overload]
    groups = [(1, True, True, 24)][: rng.choice((0, 1, 1, 1))]
    trait = _native.Trait("t", rng.choice((1, 2, 9)), 4, 1, rng.random() < 0.5, None, None, 1)
    memory = _native.DigestMemory(16)
    in_order = rng.random() < 0.7
    for number in range(5):
        step = number if in_order else rng.randrange(5)
        if step == 0:
            users = len(made.directory_keys()) // 13 + (rng.random() < 0.1)
            made.choose_stripes([directory(rng) for _ in range(users)], groups)
        elif step == 1:
            stripes = len(made.stripe_keys()) // 13
            made.set_stripes([stripe(rng) for _ in range(stripes + (rng.random() < 0.1))])
        elif step == 2:
            made.resolve([trait], lambda _: 0, memory)
        elif step == 3:
            made.answer([trait], 1, 300, 1 << 20, None, 0)
        else:
            assert made.events_at_most >= 0 and made.stripe_bytes_at_most >= 0


def directory(rng: random.Random) -> bytes:
    """A directory of a stripe or two, often a damaged one."""
    words = [1, 0, 6, 0, INT64[0], INT64[0], 5, 0, 0, 50, 3, 0][: rng.choice((6, 9, 12, 12))]
    if rng.random() < 0.4:
        words[rng.randrange(len(words))] = max(INT64[0], min(any_number(rng), INT64[1]))
    return struct.pack(f"<{len(words)}q", *words)


def stripe(rng: random.Random) -> bytes:
    """A stripe of three events with one or two columns, often a damaged one."""
    head = struct.pack("<IHH", 3, 2, 0)
    columns = b"".join(
        struct.pack("<HBBIIIIIq", number, width, rng.choice((0, 0, 0, 1, 2)), 72, 72, 0, 0, 0, 50)
        for number, width in ((1, 0), (2, rng.choice((0, 1, 8))))
    )
    data = head + columns + bytes(24)
    return altered_bytes(data, rng) if rng.random() < 0.4 else data


def values(rng: random.Random) -> None:
    """Fills the cache of values and looks into it."""
    cache = _native.ValueCache(rng.choice((0, 1000)))
    keys = rng.randbytes(rng.choice((13, 26, 26, 14)))
    some_values: tuple[Any, ...] = ([b"a", None], [b"a"], [3, b"a"])
    cache.add(keys, rng.choice(some_values))
    assert len(cache.look_up(keys)[0]) == len(keys) // 13
