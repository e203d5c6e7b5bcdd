"""The client's arithmetic: narrow columns, shared views and mutable events become batches."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import MutableColumn, MutableEvents, Pointers, Projection, ThinRows
from thinrow.core.wire.response import Column, Response
from thinrow.core.wire.widen import NarrowColumn
from thinrow.errors import InputError, ThinRowError, UsageError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.core.lookup.answer import Answer

# struct's code of each type's values; what a word is comes from the comments of the proto alone.
CODES = {
    wire.TRAIT_TYPE_INT8: "b",
    wire.TRAIT_TYPE_INT16: "h",
    wire.TRAIT_TYPE_INT32: "i",
    wire.TRAIT_TYPE_INT64: "q",
    wire.TRAIT_TYPE_UINT8: "B",
    wire.TRAIT_TYPE_UINT16: "H",
    wire.TRAIT_TYPE_UINT32: "I",
    wire.TRAIT_TYPE_UINT64: "Q",
    wire.TRAIT_TYPE_FLOAT16: "e",
    wire.TRAIT_TYPE_FLOAT32: "f",
    wire.TRAIT_TYPE_FLOAT64: "d",
    wire.TRAIT_TYPE_BOOL: "?",
}
INDEXED = (wire.TRAIT_TYPE_CATEGORICAL, wire.TRAIT_TYPE_STRING)
MUCH = 1 << 64

Truncation = Literal["newest", "head"]

Event = list[Any] | None
"""The words of one event; None where it lacks the trait."""


class Encoded(NamedTuple):
    column: wire.Column
    block_lengths: list[int]
    values: list[Event]


def encode(column: wire.Column, blocks: list[list[Event]], bases: list[int]) -> None:
    """Packs blocks of words, in plain Python."""
    by_width: dict[int, bytes] = dict.fromkeys((1, 2, 4, 8), b"")
    widths, bits = [], 0
    events = [event for block in blocks for event in block]
    for block, base in zip(blocks, bases, strict=True):
        offsets = [(word - base) % MUCH for event in block if event is not None for word in event]
        width = next(w for w in (0, 1, 2, 4, 8) if max(offsets, default=0) < 1 << 8 * w)
        if width:
            by_width[width] += b"".join(o.to_bytes(width, "little") for o in offsets)
        widths.append(width)
        column.bases.append((base + MUCH // 2) % MUCH - MUCH // 2)
    for place, event in enumerate(events):
        bits |= (event is not None) << place
    column.widths = bytes(widths)
    column.data = b"".join(by_width.values())
    if column.nullable:
        column.present = bits.to_bytes((len(events) + 7) // 8, "little")


@st.composite
def encoded_columns(draw: st.DrawFn) -> Encoded:
    kind = draw(st.sampled_from([*CODES, *INDEXED]))
    size = 1 if kind in INDEXED else draw(st.integers(1, 3))
    column = wire.Column(trait="t", type=kind, vector_size=size, nullable=draw(st.booleans()))
    if kind == wire.TRAIT_TYPE_CATEGORICAL:
        column.dictionary.extend(draw(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1)))
        words = st.integers(0, len(column.dictionary) - 1)
    elif kind == wire.TRAIT_TYPE_STRING:
        column.strings.extend(draw(st.lists(st.text(max_size=3), min_size=1)))
        words = st.integers(0, len(column.strings) - 1)
    elif kind == wire.TRAIT_TYPE_BOOL:
        words = st.integers(0, 1)
    else:
        bits = 8 * struct.calcsize(CODES[kind])
        around = draw(st.integers(0, MUCH - 1))
        words = st.integers(0, MUCH - 1) | st.integers(0, 300).map(lambda w: (w + around) % MUCH)
        if kind not in (wire.TRAIT_TYPE_INT64, wire.TRAIT_TYPE_UINT64, wire.TRAIT_TYPE_FLOAT64):
            words = words.map(lambda word: word % (1 << bits))
    event: st.SearchStrategy[Event] = st.lists(words, min_size=size, max_size=size)
    if column.nullable:
        event = st.none() | event
    blocks = draw(st.lists(st.lists(event, max_size=5), max_size=5))
    bases = [
        draw(
            st.sampled_from([w for e in block if e is not None for w in e] or [0])
            | st.integers(0, MUCH - 1)
        )
        for block in blocks
    ]
    encode(column, blocks, bases)
    return Encoded(column, [len(block) for block in blocks], [e for block in blocks for e in block])


def value(column: wire.Column, word: int) -> bytes | int | str:
    """Meaning of a word."""
    if column.type == wire.TRAIT_TYPE_CATEGORICAL:
        return column.dictionary[word]
    if column.type == wire.TRAIT_TYPE_STRING:
        return column.strings[word]
    return word.to_bytes(8, "little")[: struct.calcsize(CODES[column.type])]


EMPTY_BLOCK = wire.Column(
    trait="t",
    type=wire.TRAIT_TYPE_CATEGORICAL,
    vector_size=1,
    bases=[0, 1, 0],
    widths=bytes(3),
    dictionary=[7],
)
"""The base of its second block indexes nothing; but then that block has no word either."""


@given(encoded_columns())
@example(Encoded(EMPTY_BLOCK, [1, 0, 1], [[0], [0]]))
def test_widening_reads_what_the_contract_says(encoded: Encoded) -> None:
    column, block_lengths, events = encoded
    narrow = NarrowColumn(Column.of(column), np.array(block_lengths, np.int64))
    values = np.full((len(events), *narrow.kind.shape), 99, narrow.kind.dtype)
    present = np.full(len(events), True)
    narrow.write(values, present)
    assert present.tolist() == [event is not None for event in events]
    if column.type in CODES:
        assert values.dtype == np.dtype(CODES[column.type])
    for event, got in zip(events, values.reshape(len(events), column.vector_size), strict=True):
        if event is None:
            assert not got.any()
        elif column.type == wire.TRAIT_TYPE_STRING:
            assert [column.strings[code] for code in got] == [value(column, w) for w in event]
        elif column.type == wire.TRAIT_TYPE_CATEGORICAL:
            assert got.tolist() == [value(column, w) for w in event]
        else:
            assert got.tobytes() == b"".join(value(column, w) for w in event)  # type: ignore[misc]


@given(encoded_columns(), st.data())
def test_a_column_that_contradicts_itself_is_refused(encoded: Encoded, data: st.DataObject) -> None:
    column, block_lengths, _ = encoded
    part = data.draw(st.sampled_from(["data", "widths", "present"]))
    setattr(column, part, getattr(column, part) + b"\1")
    with pytest.raises(ThinRowError, match="malformed"):
        NarrowColumn(Column.of(column), np.array(block_lengths, np.int64))


def assemble(
    response: wire.MaterializeResponse, rows: ThinRows, projection: Projection | str
) -> Batch:
    return Batch.from_answers([read(response, rows, projection)])


def read(
    response: wire.MaterializeResponse, rows: ThinRows, projection: Projection | str
) -> Answer:
    piece = BatchLookup(rows, projection).whole()
    piece.answered(Response.read(response.SerializeToString()))
    return piece.lookup.answer()


def twice(response: wire.MaterializeResponse, rows: ThinRows) -> Batch:
    once = read(response, rows, Projection())
    return Batch.from_answers([once, once])


def int64_column(trait: str, values: list[int | None], *, nullable: bool = False) -> wire.Column:
    column = wire.Column(trait=trait, type=wire.TRAIT_TYPE_INT64, vector_size=1, nullable=nullable)
    encode(column, [[None if v is None else [v % MUCH] for v in values]], [0])
    return column


def answer(
    views: list[tuple[int, int]], columns: list[wire.Column], run: int
) -> wire.MaterializeResponse:
    return wire.MaterializeResponse(
        generation=3,
        watermark_ts=100,
        statuses=[wire.STATUS_OK] * len(views),
        view_starts=[start for start, _ in views],
        view_lengths=[length for _, length in views],
        block_lengths=[run],
        columns=columns,
        truncation=wire.TRUNCATION_NEWEST,
    )


@pytest.mark.parametrize(
    ("kind", "base", "fits"),
    [
        (wire.TRAIT_TYPE_INT64, (1 << 31) - 256, True),
        (wire.TRAIT_TYPE_INT64, (1 << 31) - 255, True),  # only the values show
        (wire.TRAIT_TYPE_INT64, (1 << 31) - 7, False),
        (wire.TRAIT_TYPE_INT64, -(1 << 31), True),
        (wire.TRAIT_TYPE_INT64, -(1 << 31) - 1, False),
        (wire.TRAIT_TYPE_UINT32, (1 << 32) - 9, False),
        (wire.TRAIT_TYPE_UINT64, -9, False),
        (wire.TRAIT_TYPE_INT8, -8, True),
    ],
)
def test_other_integers_hold_every_value_or_are_refused(kind: int, base: int, fits: bool) -> None:
    column = wire.Column(trait="t", type=kind, vector_size=1, bases=[base])  # type: ignore[arg-type]
    column.widths, column.data = b"\1", b"\0\7"
    rows = ThinRows(Pointers(user_ids=[7], end_ts=[100]))
    read_back = read(answer([(0, 2)], [column], 2), rows, Projection())
    wide, narrow = np.zeros(2, np.int64), np.zeros(2, np.int32)
    if fits:
        for values in (wide, narrow):
            read_back.write("t", values)
            assert values.tolist() == [base, base + 7]
    else:
        with pytest.raises(InputError, match="wider"):
            read_back.write("t", narrow)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), max_size=8),
    st.integers(0, 6),
    st.sampled_from(["newest", "head"]),
)
def test_mutable_events_follow_and_truncation_counts_both(
    examples: list[tuple[int, int, bool]],
    sequence_length: int,
    truncation: Truncation,
) -> None:
    run = list(range(100, 112))
    limit = sequence_length or 99
    views, want, lengths, mutable = [], [], [], []
    for place, (immutable, count, leaking) in enumerate(examples):
        own = [1000 * place + i for i in range(count)]
        history = run[place % 6 : place % 6 + immutable]
        if truncation == "newest":
            room = max(0, limit - count)
            kept = history[-room:] if room else []
            whole = (history + own)[-limit:]
        else:
            kept = history[:limit]
            whole = (history + own)[:limit]
        views.append((kept[0] - 100 if kept else 0, len(kept)))
        want.append(None if leaking and count else whole)
        lengths.append(count)
        mutable += [(v, 200 if leaking and v == own[-1] else 150) for v in own]
    response = answer(views, [int64_column("t", run)], len(run))  # type: ignore[arg-type]
    response.sequence_length = sequence_length
    projection = Projection(sequence_length, truncation=truncation)
    if truncation == "head":
        response.truncation = wire.TRUNCATION_HEAD
    rows = ThinRows(
        Pointers(
            user_ids=range(len(examples)),
            end_ts=[150] * len(examples),
            request_ts=[200] * len(examples),
        ),
        MutableEvents(
            np.cumsum([0, *lengths]),
            np.array([arrival for _, arrival in mutable], np.int64),
            {"t": MutableColumn(np.array([v for v, _ in mutable], np.int64))},
        ),
    )
    batch = assemble(response, rows, projection)
    assert batch.to_lists("t") == want
    assert (batch.statuses == wire.STATUS_INVALID).tolist() == [w is None for w in want]
    read_answer = read(response, rows, projection)
    answers = [read_answer[:3], read_answer[3:3], read_answer[3:]]
    assert Batch.from_answers(answers).to_lists("t") == want


def rows_with(arrival_ts: int, start_ts: int = 0, **columns: MutableColumn) -> ThinRows:
    pointers = Pointers(user_ids=[7], start_ts=[start_ts], end_ts=[100], request_ts=[200])
    return ThinRows(pointers, MutableEvents(np.array([0, 1]), np.array([arrival_ts]), columns))


@pytest.mark.parametrize(
    ("arrival_ts", "start_ts", "status"),
    [
        (99, 0, wire.STATUS_INVALID),
        (100, 0, wire.STATUS_OK),
        (199, 0, wire.STATUS_OK),
        (200, 0, wire.STATUS_INVALID),
        (99, 100, wire.STATUS_OK),  # before the first generation the window is empty
        (200, 100, wire.STATUS_INVALID),
    ],
)
def test_an_event_from_outside_the_window_makes_its_example_invalid(
    arrival_ts: int, start_ts: int, status: int
) -> None:
    rows = rows_with(arrival_ts, start_ts)
    response = answer([(0, 1)], [int64_column("visible_ts", [5])], 1)
    batch = assemble(response, rows, Projection())
    ok = status == wire.STATUS_OK
    assert batch.statuses.tolist() == [status]
    assert batch.to_lists("visible_ts") == [[5, arrival_ts] if ok else None]


def test_absent_mutable_values_are_absent_defaulted_or_refused() -> None:
    nullable = int64_column("a", [1], nullable=True)
    defaulted = int64_column("b", [2])
    defaulted.default_word = -5
    text = wire.Column(trait="c", type=wire.TRAIT_TYPE_STRING, vector_size=1, strings=["x"])
    text.default_string = "none"
    encode(text, [[[0]]], [0])
    half = wire.Column(trait="d", type=wire.TRAIT_TYPE_FLOAT16, vector_size=2)
    half.default_word = 0x3C00
    encode(half, [[[0, 0x4000]]], [0])
    response = answer([(0, 1)], [nullable, defaulted, text, half], 1)
    batch = assemble(response, rows_with(150), Projection())
    assert batch.to_lists("a") == [[1, None]]
    assert batch.to_lists("b") == [[2, -5]]
    assert batch.to_lists("c") == [["x", "none"]]
    assert batch.to_lists("d") == [[[0.0, 2.0], [1.0, 1.0]]]
    joined = twice(response, rows_with(150))
    assert joined.to_lists("c") == [["x", "none"]] * 2
    assert joined.to_lists("a") == [[1, None]] * 2

    response = answer([(0, 1)], [int64_column("e", [2])], 1)
    with pytest.raises(InputError, match="'e'"):
        assemble(response, rows_with(150), Projection())


def test_mutable_values_that_do_not_fit_are_refused() -> None:
    column = wire.Column(trait="t", type=wire.TRAIT_TYPE_INT8, vector_size=1)
    encode(column, [[[1]]], [0])
    for values in (np.array([300]), np.array([1.5]), np.array([[1]]), np.array(["x"], object)):
        with pytest.raises(InputError, match="'t'"):
            assemble(
                answer([(0, 1)], [column], 1), rows_with(150, t=MutableColumn(values)), Projection()
            )
    rows = rows_with(150, t=MutableColumn(np.array([-128], np.int64)))
    assert assemble(answer([(0, 1)], [column], 1), rows, Projection()).to_lists("t") == [[1, -128]]


def test_mutable_text_joins_the_texts() -> None:
    column = wire.Column(
        trait="t", type=wire.TRAIT_TYPE_STRING, vector_size=1, nullable=True, strings=["x", "y"]
    )
    encode(column, [[None, [1]]], [0])
    rows = rows_with(150, t=MutableColumn(np.array(["z"], object)))
    batch = assemble(answer([(0, 2)], [column], 2), rows, Projection())
    assert batch.to_lists("t") == [[None, "y", "z"]]
    assert batch.values["t"].dtype == np.int32
    joined = twice(answer([(0, 2)], [column], 2), rows)
    assert joined.to_lists("t") == [[None, "y", "z"]] * 2
    assert joined.values["t"][3] == 0  # 0 where absent
    with pytest.raises(InputError, match="text"):
        rows = rows_with(150, t=MutableColumn(np.array([1], object)))
        assemble(answer([(0, 2)], [column], 2), rows, Projection())


def overflow(answer: wire.MaterializeResponse) -> None:
    """Number of words so large that their bytes, counted in 64 bits, are none."""
    answer.block_lengths[0] = 1 << 31
    column = answer.columns[0]
    column.vector_size, column.widths, column.data = 1 << 30, b"\x08", b""


def bomb(answer: wire.MaterializeResponse) -> None:
    """Equal values without end, which cost no bytes on the wire."""
    del answer.columns[0].bases[:]
    answer.columns[0].bases.extend([0] * 64)
    answer.columns[0].widths, answer.columns[0].data = bytes(64), b""
    del answer.block_lengths[:]
    answer.block_lengths.extend([(1 << 32) - 1] * 64)


def test_an_answer_without_what_was_requested_is_refused() -> None:
    rows = ThinRows(Pointers(user_ids=[7], end_ts=[100]))
    response = answer([(0, 1)], [int64_column("t", [1])], 1)
    with pytest.raises(ThinRowError, match="lacks other"):
        assemble(response, rows, Projection(traits=("t", "other")))


def test_mutable_events_are_judged_by_all_responses_together() -> None:
    """Nullable in one response and not in the other, as across a change of schema."""
    kinds = [int64_column("t", [1], nullable=True), int64_column("t", [2])]
    for columns in (kinds, kinds[::-1]):
        rows = ThinRows(
            Pointers(user_ids=[1, 2], end_ts=[100] * 2, request_ts=[200] * 2),
            MutableEvents(np.array([0, 1, 2]), np.array([150, 150]), {}),
        )
        lookup = BatchLookup(rows, "tenant")
        for number, column in enumerate(columns):
            response = answer([(0, 1)], [column], 1).SerializeToString()
            lookup.add(np.array([number]), Response.read(response))
        batch = Batch.from_answers([lookup.answer()])
        assert [values[1:] for values in batch.to_lists("t") if values] == [[None], [None]]


def test_other_examples_values_do_not_matter() -> None:
    rows = ThinRows(Pointers(user_ids=[1, 2], end_ts=[100] * 2))
    column = int64_column("t", [5, 1 << 40])
    whole = read(answer([(0, 1), (1, 1)], [column], 2), rows, Projection())
    values = np.zeros(1, np.int32)
    whole[:1].write("t", values)
    assert values.tolist() == [5]
    with pytest.raises(InputError, match="int32"):
        whole[1:].write("t", values)
    places = np.array([1, 0, 1])
    assert Batch.from_answers([whole[places]]).to_lists("t") == [[1 << 40], [5], [1 << 40]]


def test_as_many_places_as_examples_need_not_be_the_whole() -> None:
    pointers = Pointers(user_ids=[1, 2], end_ts=[100] * 2, request_ts=[200] * 2)
    mutable = MutableEvents(
        np.array([0, 1, 3]),
        np.array([150, 160, 161]),
        {"t": MutableColumn(np.array([7, 8, 9]))},
    )
    column = int64_column("t", [5, 6])
    whole = read(answer([(0, 1), (1, 1)], [column], 2), ThinRows(pointers, mutable), Projection())
    turned = whole[np.array([1, 0])]
    assert Batch.from_answers([turned]).to_lists("t") == [[6, 8, 9], [5, 7]]
    assert turned.rows.pointers.user_ids.tolist() == [2, 1]
    assert turned.mutable.arrival_ts.tolist() == [160, 161, 150]
    assert whole[np.array([0, 0])].mutable.arrival_ts.tolist() == [150, 150]


def test_a_malformed_answer_is_refused_as_often_as_it_is_read() -> None:
    column = wire.Column(trait="t", type=wire.TRAIT_TYPE_BOOL, vector_size=1)
    encode(column, [[[7]]], [0])
    rows = ThinRows(Pointers(user_ids=[1], end_ts=[100]))
    malformed = read(answer([(0, 1)], [column], 1), rows, Projection())
    for _ in range(2):
        with pytest.raises(ThinRowError, match="does not exist"):
            Batch.from_answers([malformed])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer.statuses.append(wire.STATUS_OK),
        lambda answer: answer.view_lengths.append(0),
        lambda answer: answer.statuses.__setitem__(0, 0),
        lambda answer: answer.statuses.__setitem__(0, wire.STATUS_EXPIRED),
        lambda answer: answer.view_starts.__setitem__(0, 1),
        lambda answer: answer.block_lengths.__setitem__(0, 4),
        lambda answer: answer.block_lengths.append(1),
        lambda answer: answer.columns.append(answer.columns[0]),
        lambda answer: setattr(answer.columns[0], "type", 99),
        lambda answer: setattr(answer.columns[0], "vector_size", 0),
        lambda answer: setattr(answer.columns[0], "widths", b"\3"),
        lambda answer: setattr(answer.columns[0], "vector_size", 1 << 30),
        lambda answer: overflow(answer),
        lambda answer: bomb(answer),
        lambda answer: setattr(answer, "sequence_length", 2),
        lambda answer: setattr(answer, "truncation", wire.TRUNCATION_HEAD),
    ],
)
def test_a_malformed_answer_is_refused(spoil: Callable[[Any], object]) -> None:
    rows = ThinRows(Pointers(user_ids=[7], end_ts=[100], max_lengths=[3]))
    response = answer([(0, 3)], [int64_column("t", [1, 2, 3])], 3)
    assert assemble(response, rows, Projection()).to_lists("t") == [[1, 2, 3]]
    spoil(response)
    with pytest.raises(ThinRowError, match="malformed"):
        assemble(response, rows, Projection())


def test_more_events_than_the_pointer_or_the_projection_allow_are_refused() -> None:
    response = answer([(0, 3)], [int64_column("t", [1, 2, 3])], 3)
    with pytest.raises(ThinRowError, match="malformed"):
        assemble(response, ThinRows(Pointers(user_ids=[7], end_ts=[9], max_lengths=[2])), "tenant")
    response.sequence_length = 3
    with pytest.raises(ThinRowError, match="malformed"):
        assemble(response, rows_with(150), "tenant")  # a mutable event needs room


def test_a_pointer_of_negative_length_may_be_answered_as_invalid() -> None:
    response = answer([(0, 0)], [int64_column("t", [])], 0)
    response.statuses[0] = wire.STATUS_INVALID
    rows = ThinRows(Pointers(user_ids=[7], end_ts=[9], max_lengths=[-1]))
    assert assemble(response, rows, Projection()).to_lists("t") == [None]


def test_rows_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InputError, match="end_ts"):
        Pointers(user_ids=[1, 2], end_ts=[1])
    with pytest.raises(InputError, match="user_ids"):
        Pointers(user_ids=[1.5], end_ts=[1])
    with pytest.raises(InputError, match="ascend"):
        MutableEvents(np.array([0, 2]), np.array([1]), {})
    with pytest.raises(InputError, match="'t'"):
        MutableEvents(np.array([0, 1]), np.array([1]), {"t": MutableColumn(np.zeros(2))})
    with pytest.raises(InputError, match="2 pointers"):
        ThinRows(rows_with(150).pointers, None) and ThinRows(
            Pointers(user_ids=[1, 2], end_ts=[1, 2]), rows_with(150).mutable
        )
    with pytest.raises(UsageError, match="sequence_length"):
        Projection(-1)


def test_slicing_rows_deals_events_to_their_examples() -> None:
    pointers = Pointers(user_ids=[1, 2, 3], end_ts=[9, 8, 7], digests=[1 << 63, 0, 2])
    events = MutableEvents(
        np.array([0, 2, 2, 3]),
        np.array([10, 11, 12]),
        {"t": MutableColumn(np.array([5, 6, 7]), np.array([True, False, True]))},
    )
    part = ThinRows(pointers, events)[1:]
    assert part.pointers.user_ids.tolist() == [2, 3]
    assert part.pointers.request_ts.tolist() == [8, 7]
    assert pointers.digests.tolist() == [1 << 63, 0, 2]
    assert part.mutable is not None
    assert part.mutable.offsets.tolist() == [0, 0, 1]
    assert part.mutable.arrival_ts.tolist() == [12]
    assert part.mutable.columns["t"].values.tolist() == [7]
