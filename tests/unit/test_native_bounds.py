"""The native module refuses inputs that contradict each other, and is exact at the extremes.

`make faults` runs the fuzzers over the same code with AddressSanitizer and UBSan; these are the
cases that they found, and one per length that a native function takes on trust from its caller.
"""

# ruff: noqa: ANN401 - arrays and fields of any kind

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.numpy_twin import NumpyPlan
from support.worlds import DAY_MS, World, days, new_world, some_events
from thinrow import _native
from thinrow.errors import StoreCorruptError
from thinrow.schema import EVENT_GROUP, EVENT_TS, VISIBLE_TS
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan, PointerBatch, Truncation
from thinrow.store.keys import KEY_BYTES
from thinrow.store.stripe import COLUMN, EVENTS_MAX, HEADER, decode_stripes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Edit = Callable[[bytearray], None]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
USERS = (1, 2, 3, 99)
DIRECTORY_GROUP = 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = new_world(tmp_path_factory.mktemp("world"))
    world.compact(some_events(400), 3, cadence_ms=DAY_MS)
    return world


@pytest.fixture
def generation(world: World) -> Iterator[Generation]:
    with Generation.open_current(world.store) as generation:
        yield generation


def edited(generation: Generation, group: int, edit: Edit) -> None:
    """Applies `edit` to every stored value of a group, behind all checksums."""
    stored = generation.values

    def values(keys: bytes) -> list[bytes | None]:
        found = stored(keys)
        for place, value in enumerate(found):
            if value is not None and keys[KEY_BYTES * place + 8] == group:
                changed = bytearray(value)
                edit(changed)
                found[place] = bytes(changed)
        return found

    generation.values = values  # type: ignore[method-assign]


def read(generation: Generation, **fields: Any) -> HistoryPlan:
    """Reads and resolves pointers that end inside a stripe, digests checked."""
    zeros = np.zeros(len(USERS), np.int64)
    end_ts = zeros + days(2)[0]
    given = {
        "user_ids": np.array(USERS),
        "start_ts": zeros,
        "end_ts": end_ts,
        "max_lengths": zeros,
        "digests": zeros.view(np.uint64) + np.uint64(7),
        "request_ts": end_ts,
        "mutable_lengths": zeros,
        **fields,
    }
    plan = HistoryPlan(generation, PointerBatch(**given), Truncation(sequence_length=0), [1, 2])
    plan.read()
    plan.resolve()
    return plan


def column_edit(number: int, field: str, value: int) -> Edit:
    """Sets a field of one column's record in a stripe."""
    place, kind = COLUMN.fields[field][1], COLUMN.fields[field][0]  # type: ignore[index]

    def edit(stripe: bytearray) -> None:
        columns = struct.unpack_from("<H", stripe, 4)[0]
        for column in range(columns):
            at = HEADER.itemsize + COLUMN.itemsize * column
            if struct.unpack_from("<H", stripe, at)[0] == number:
                stripe[at + place : at + place + kind.itemsize] = value.to_bytes(
                    kind.itemsize, "little"
                )

    return edit


@pytest.mark.parametrize("trait", [VISIBLE_TS, EVENT_TS])
@pytest.mark.parametrize("presence", [1, 2])
def test_missing_values_of_a_trait_that_every_event_has(
    generation: Generation, trait: Any, presence: int
) -> None:
    edited(generation, EVENT_GROUP, column_edit(trait.number, "presence", presence))
    with pytest.raises(StoreCorruptError, match=r"lacks values|times differ|shorter"):
        read(generation)


@pytest.mark.parametrize("presence", [1, 2])
def test_the_same_where_compaction_reads_it(generation: Generation, presence: int) -> None:
    edited(generation, EVENT_GROUP, column_edit(EVENT_TS.number, "presence", presence))
    key = np.array([1], ">i8").tobytes() + bytes([EVENT_GROUP]) + bytes(4)
    [stripe] = generation.values(key)
    assert stripe is not None
    events = np.frombuffer(stripe, HEADER, 1)["events"].astype(np.int64)
    native = generation.schema.native_traits["event_ts"]
    with pytest.raises(StoreCorruptError, match=r"lacks values"):
        decode_stripes([stripe], events, EVENT_TS, native)


@pytest.mark.parametrize("word", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", [INT64_MIN, -1, INT64_MAX - 1, INT64_MAX, 1 << 32])
def test_extremes_in_a_directory(generation: Generation, word: int, value: int) -> None:
    """Each word of the header; those that may be anything change the status only."""

    def edit(directory: bytearray) -> None:
        struct.pack_into("<q", directory, 8 * word, value)

    edited(generation, DIRECTORY_GROUP, edit)
    if word in (0, 1, 2):
        with pytest.raises(StoreCorruptError, match=r"directory|length"):
            read(generation)
    else:
        read(generation)


@pytest.mark.parametrize("value", [INT64_MIN, -1, INT64_MAX])
def test_extremes_in_a_row_of_a_directory(generation: Generation, value: int) -> None:
    def edit(directory: bytearray, word: int) -> None:
        struct.pack_into("<q", directory, 8 * word, value)

    edited(generation, DIRECTORY_GROUP, lambda directory: edit(directory, 7))
    with pytest.raises(StoreCorruptError, match=r"out of order|length differs"):
        read(generation)
    # A time that no window is cut at is not compared.
    edited(generation, DIRECTORY_GROUP, lambda directory: edit(directory, 6))
    with pytest.raises(StoreCorruptError):
        read(generation)


def test_a_stripe_that_says_more_events_than_any_has(generation: Generation) -> None:
    """A column of equal values takes no bytes, so nothing else bounds what would be decoded."""
    huge = EVENTS_MAX + 1

    def directory(value: bytearray) -> None:
        [ordinal] = struct.unpack_from("<q", value, 8 * (len(value) // 8 - 2))
        struct.pack_into("<q", value, 16, ordinal + huge)

    edited(generation, DIRECTORY_GROUP, directory)
    with pytest.raises(StoreCorruptError, match="out of order"):
        read(generation)


EXTREMES = (INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX // 4, INT64_MAX - 1, INT64_MAX)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("sequence_length", [0, 1, INT64_MAX - 1, INT64_MAX])
def test_pointers_at_the_extremes_equal_numpy(
    generation: Generation, sequence_length: int, head: bool
) -> None:
    watermark_ts = days(2)[0]
    starts = [*EXTREMES, watermark_ts - 1]
    ends = [*EXTREMES, watermark_ts]
    rows = [
        (user, start_ts, end_ts, length, request_ts, mutable)
        for user in (1, INT64_MIN, INT64_MAX)
        for start_ts, end_ts in itertools.product(starts, ends)
        for length in (0, 3, INT64_MIN, INT64_MAX // 4, INT64_MAX)
        for request_ts in (watermark_ts, INT64_MAX)
        for mutable in (0, INT64_MAX)
    ]
    users, start, end, lengths, requests, mutables = np.array(rows, np.int64).T.copy()
    pointers = PointerBatch(
        user_ids=users,
        start_ts=start,
        end_ts=end,
        max_lengths=lengths,
        digests=np.zeros(len(rows), np.uint64),
        request_ts=requests,
        mutable_lengths=mutables,
    )
    truncation = Truncation(sequence_length=sequence_length, head=head)
    twin = NumpyPlan(generation, pointers, truncation, [1, 2], record_digests=True)
    expected = twin.resolve(twin.read())
    plan = HistoryPlan(generation, pointers, truncation, [1, 2], record_digests=True)
    plan.read()
    selection = plan.resolve()
    assert selection.statuses.tolist() == expected.statuses.tolist()
    assert selection.counts.tolist() == expected.counts.tolist()
    assert selection.available_counts.tolist() == expected.available_counts.tolist()
    assert selection.digests.tolist() == expected.digests.tolist()
    assert 0 <= plan.events_at_most <= 400 and plan.stripe_bytes_at_most >= 0
    assert len({*selection.statuses.tolist()}) >= 3, "the extremes reach several statuses"


def zeros(count: int, dtype: Any = np.int64) -> Any:
    return np.zeros(count, dtype)


def test_a_plan_checks_its_lengths_and_its_order(generation: Generation) -> None:
    for short in range(8):
        arrays = [zeros(2, np.uint64 if place == 4 else np.int64) for place in range(8)]
        arrays[short] = arrays[short][:1]
        if short < 7:
            with pytest.raises(ValueError, match="differ in length"):
                _native.Plan(*arrays, 0, False, False)  # type: ignore[call-overload]
    given = [zeros(2, np.uint64 if place == 4 else np.int64) for place in range(7)]
    given[2] += days(2)[0]
    given[5] += days(2)[0]
    with pytest.raises(ValueError, match="must not be negative"):
        _native.Plan(*given, generation.watermarks, -1, False, False)  # type: ignore[call-overload]
    plan = _native.Plan(*given, generation.watermarks, 0, False, True)  # type: ignore[call-overload]
    groups = [(EVENT_GROUP, True, True, 24)]
    for wrong in ([], [None, None]):
        with pytest.raises(ValueError, match="differ in number"):
            plan.choose_stripes(wrong, groups)
    [directory] = generation.values(
        np.array([1], ">i8").tobytes() + bytes([DIRECTORY_GROUP]) + bytes(4)
    )
    plan.choose_stripes([directory], groups)
    with pytest.raises(RuntimeError, match="already chosen"):
        plan.choose_stripes([directory], groups)
    with pytest.raises((IndexError, StoreCorruptError)):  # no stripe was read yet
        plan.resolve(
            [generation.schema.native_traits["event_ts"]], lambda _: 0, generation.digest_memory
        )
    with pytest.raises(StoreCorruptError, match="missing"):
        plan.set_stripes([])
    with pytest.raises(TypeError, match="bytes"):
        plan.set_stripes([3])


def test_traits_have_a_size_that_products_can_hold() -> None:
    for size in (INT64_MIN, -1, 0, (1 << 16) + 1, INT64_MAX):
        with pytest.raises(ValueError, match="size"):
            _native.Trait("x", 16, 4, size, False, None, None, 2)
    with pytest.raises(ValueError, match="size"):
        _native.Trait("x", 16, 14, 2, False, None, None, 2)


@pytest.mark.parametrize("field", ["size", "word_bytes", "word_at", "has_at", "length_max"])
@pytest.mark.parametrize("value", [INT64_MIN, INT64_MIN + 1, -1, 10**6, INT64_MAX])
def test_record_formats_at_the_extremes(field: str, value: int) -> None:
    column = {"size": 1, "word_bytes": 8, "word_at": 19, "has_at": 10, "length_max": 0}
    column[field] = value
    with pytest.raises(ValueError, match="outside"):
        _native.RecordFormat(0, 27, [("x", 4, *parts_of(column))])


def parts_of(column: dict[str, int]) -> tuple[Any, ...]:
    size, *others = column.values()
    return (size, True, *others)


def test_records_check_their_lengths() -> None:
    with pytest.raises(ValueError, match="head"):
        _native.RecordFormat(0, 18, [])
    record_format = _native.RecordFormat(0, 27, [("x", 1, 1, False, 8, 19, 0, 0)])
    with pytest.raises(ValueError, match="arrivals"):
        record_format.events([1, 2], [bytes(27)])
    assert record_format.events([5], [bytes(27)]) is not None
    with pytest.raises(ValueError, match="event_id"):
        record_format.topic_events([bytes(27)])
    for kind in (9, 10, 11):  # floats of three bytes
        with pytest.raises(ValueError, match="outside"):
            _native.RecordFormat(0, 27, [("x", kind, 1, False, 3, 19, 0, 0)])
    with pytest.raises(TypeError, match="bytes"):
        record_format.events([1], [3])  # type: ignore[list-item]
    with pytest.raises(StoreCorruptError, match="cut off"):
        record_format.events([1], [bytes(26)])


@pytest.mark.parametrize("kind", [1, 4, 14])
def test_records_check_their_lists(kind: int) -> None:
    """A list of four texts or numbers, cut off anywhere, or longer than its limit."""
    word_bytes = {1: 1, 4: 8, 14: 4}[kind]
    layout = ("x", kind, 1, False, word_bytes, 19, 0, 5)
    record_format = _native.RecordFormat(0, 21, [layout])
    texts = b"\1\0\0\0" * 4 + b"abba"
    rest = texts if kind == 14 else bytes(4 * word_bytes)
    record = bytes(19) + b"\4\0" + rest
    assert record_format.events([1], [record]) is not None
    for size in range(len(record)):
        with pytest.raises(StoreCorruptError, match="cut off"):
            record_format.events([1], [record[:size]])
    for length in (5, 6, 65535):
        longer = bytes(19) + length.to_bytes(2, "little") + rest
        with pytest.raises(StoreCorruptError, match="cut off" if length == 5 else "its limit"):
            record_format.events([1], [longer])
    if kind == 14:
        wild = record[:21] + b"\xff\xff\xff\xff" + record[25:]
        with pytest.raises(StoreCorruptError, match="cut off"):
            record_format.events([1], [wild])


def test_the_cache_checks_what_it_is_given() -> None:
    cache = _native.ValueCache(1 << 20)
    with pytest.raises(ValueError, match="length"):
        cache.look_up(bytes(KEY_BYTES + 1))
    with pytest.raises(ValueError, match="differ in number"):
        cache.add(bytes(KEY_BYTES), [])
    with pytest.raises(TypeError, match="bytes"):
        cache.add(bytes(KEY_BYTES), [3])  # type: ignore[list-item]


def test_one_user_needs_a_watermark() -> None:
    with pytest.raises(ValueError, match="watermark"):
        _native.CachedSnapshotPath([], [], [], 0, False, [], 1, 8)
