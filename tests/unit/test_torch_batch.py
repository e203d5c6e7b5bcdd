"""Batches of tensors: the numpy batch's numbers, whichever way a model looks at them."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import worlds
from thinrow.client import (
    Answer,
    Batch,
    MutableColumn,
    MutableEvents,
    Pointers,
    Projection,
    ThinRows,
    connect,
)
from thinrow.client.torch.layout import BatchExamples, lay_out
from thinrow.core.lookup.batch import write_traits
from thinrow.core.traits import BATCH_DTYPES
from thinrow.core.wire.response import Column
from thinrow.core.wire.widen import NarrowColumn
from thinrow.core.wire.widen_jobs import Job, Views, run_jobs
from thinrow.errors import InputError, UsageError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.client import Client
    from thinrow.client.torch import TensorBatch

SCHEMA = """
[item]
item_id = { type = "int64", key = true }
brand = "string"
genre = "categorical"

[feedback]
rating = { type = "int8", sparse = true }
liked = "bool"
price = "float64"
score = { type = "float32", sparse = true }

[content]
embedding = { type = "float16", size = 3 }
"""
SCALARS = ("item_id", "brand", "genre", "rating", "liked", "price", "score", "event_ts")
UNKNOWN_USER = 99
ALL_USERS = (1, 2, UNKNOWN_USER, 3, UNKNOWN_USER, 4, 5)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    world = worlds.new_world(tmp_path_factory.mktemp("batch"), SCHEMA)
    events = worlds.some_events()
    count = len(events)
    rng = np.random.default_rng(0)
    vectors = pa.array(rng.random(3 * count, np.float32))
    world.compact(
        events.append_column("genre", pa.array(rng.integers(-3, 3, count)))
        .append_column("liked", pa.array(rng.random(count) < 0.5))
        .append_column("score", pa.array(rng.random(count), mask=rng.random(count) < 0.3))
        .append_column("embedding", pa.FixedSizeListArray.from_arrays(vectors, 3)),
        3,
    )
    with worlds.running_server(world.store) as server, connect(server.address) as client:
        yield client


def answers_about(
    client: Client, users: Sequence[int] = ALL_USERS, length: int = 0, traits: tuple[str, ...] = ()
) -> list[Answer]:
    """Several answers, so that a batch is put together of parts."""
    halves = [users[: len(users) // 2], users[len(users) // 2 :]]
    requested = [
        Pointers(user_ids=half, end_ts=[worlds.as_of(3)] * len(half)) for half in halves if half
    ]
    projection = Projection(sequence_length=length, traits=traits)
    return list(client.answers(requested, projection))


def to_tensors(answers: Sequence[Answer], integer_dtype: torch.dtype = torch.int64) -> TensorBatch:
    examples = sum(map(len, answers))
    of_batch = BatchExamples(
        lengths=np.concatenate([answer.lengths for answer in answers]),
        statuses=np.concatenate([answer.statuses for answer in answers]),
        example_ids=np.arange(100, 100 + examples),
        columns={
            "user_id": np.arange(examples),
            "label": np.arange(examples) % 2 == 0,
            "note": ["n"] * examples,
        },
        generation=answers[0].generation,
        watermark_ts=answers[0].watermark_ts,
    )
    [batch] = lay_out(Answer.joint_kinds(answers), [of_batch], integer_dtype=integer_dtype)
    write_traits(
        answers,
        {trait: values.numpy() for trait, values in batch.values.items()},
        {trait: present.numpy() for trait, present in batch.present.items()},
        batch.strings,
        {trait: offsets.numpy() for trait, offsets in batch.list_offsets.items()},
    )
    return batch


def same(mine: torch.Tensor, theirs: np.ndarray[Any, Any]) -> bool:
    """Compares numbers, NaN being itself."""
    return np.array_equal(mine.numpy(), theirs, equal_nan=theirs.dtype.kind == "f")


def assert_equal(batch: TensorBatch, expected: Batch) -> None:
    assert len(batch) == len(expected)
    assert batch.events == expected.offsets[-1]
    assert same(batch.offsets, expected.offsets)
    assert same(batch.statuses, expected.statuses)
    assert batch.max_seqlen == np.diff(expected.offsets).max()
    assert list(batch.values) == list(expected.values)
    assert batch.present.keys() == expected.present.keys()
    assert batch.strings == expected.strings
    assert (batch.generation, batch.watermark_ts) == (expected.generation, expected.watermark_ts)
    for trait, values in expected.values.items():
        assert same(batch.values[trait], values), trait
    for trait, present in expected.present.items():
        assert same(batch.present[trait], present), trait


# Of users, their newest events, and whether there are any.
CASES = [
    pytest.param(ALL_USERS, 0, id="everything"),
    pytest.param(ALL_USERS, 5, id="truncated"),
    pytest.param((UNKNOWN_USER,), 0, id="one empty example"),
    pytest.param((UNKNOWN_USER, UNKNOWN_USER), 0, id="no events at all"),
    pytest.param((1,), 1, id="one event"),
]


@pytest.mark.parametrize(("users", "length"), CASES)
def test_a_batch_equals_the_numpy_batch(
    client: Client, users: tuple[int, ...], length: int
) -> None:
    answers = answers_about(client, users, length)
    batch, expected = to_tensors(answers), Batch.from_answers(answers)
    assert_equal(batch, expected)
    for trait in ("item_id", "brand", "genre", "rating", "event_ts"):
        assert batch.values[trait].dtype == torch.int64
    assert batch.values["liked"].dtype == torch.bool
    assert batch.values["price"].dtype == torch.float64
    assert batch.values["score"].dtype == torch.float32
    assert batch.values["embedding"].dtype == torch.float16
    assert batch.example_ids.tolist() == list(range(100, 100 + len(users)))
    assert batch.columns["note"] == ["n"] * len(users)
    assert torch.equal(torch.as_tensor(batch.columns["label"]), torch.arange(len(users)) % 2 == 0)


def test_narrow_integers_are_refused_where_a_value_does_not_fit(client: Client) -> None:
    answers = answers_about(client)
    with pytest.raises(InputError, match="'item_id' has values that do not fit int32"):
        to_tensors(answers, torch.int32)


def test_narrow_integers_are_the_same_numbers(client: Client) -> None:
    answers = answers_about(client, traits=("rating", "genre", "brand", "price", "event_ts"))
    batch = to_tensors(answers, torch.int32)
    assert_equal(batch, Batch.from_answers(answers))
    assert {str(batch.values[trait].dtype) for trait in ("rating", "genre", "brand")} == {
        "torch.int32"
    }
    # In 32 bits no time of today fits.
    assert batch.values["event_ts"].dtype == torch.int64


@pytest.mark.parametrize(("users", "length"), CASES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padded_length", [None, 0, 1, 3, 200])
def test_padded_holds_the_newest_events(
    client: Client, users: tuple[int, ...], length: int, side: str, padded_length: int | None
) -> None:
    answers = answers_about(client, users, length)
    batch, expected = to_tensors(answers), Batch.from_answers(answers)
    width = batch.max_seqlen if padded_length is None else padded_length
    for trait, values in expected.values.items():
        # A bool has but two values to be filled with.
        fill = 1 if values.dtype == np.bool_ else -7
        padded = batch.to_padded(trait, padded_length, fill, side=side)  # type: ignore[arg-type]
        want = np.full((len(users), width, *values.shape[1:]), fill, padded.numpy().dtype)
        for example in range(len(users)):
            events = values[expected.offsets[example] : expected.offsets[example + 1]]
            events = events[max(0, len(events) - width) :]
            start = 0 if side == "right" else width - len(events)
            want[example, start : start + len(events)] = events
        assert same(padded, want), trait


@pytest.mark.parametrize(("users", "length"), CASES)
def test_nested_tensors_share_everything(
    client: Client, users: tuple[int, ...], length: int
) -> None:
    answers = answers_about(client, users, length)
    batch, expected = to_tensors(answers), Batch.from_answers(answers)
    for trait, values in expected.values.items():
        nested = batch.to_njt(trait)
        assert nested.layout == torch.jagged
        assert nested.values().data_ptr() == batch.values[trait].data_ptr()
        assert nested.offsets() is batch.offsets  # type: ignore[attr-defined]
        for example, part in enumerate(nested.unbind()):
            assert same(part, values[expected.offsets[example] : expected.offsets[example + 1]])


def test_nested_tensors_of_one_batch_can_be_combined(client: Client) -> None:
    batch = to_tensors(answers_about(client))
    total = batch.to_njt("item_id") + batch.to_njt("genre")
    assert torch.equal(total.values(), batch.values["item_id"] + batch.values["genre"])
    weighted = batch.to_njt("embedding").float() * batch.to_njt("price").float().unsqueeze(-1)
    assert weighted.shape[0] == len(batch)
    # After a move, too, though it makes new offsets.
    moved = batch.to("cpu")
    assert torch.equal((moved.to_njt("item_id") + moved.to_njt("genre")).values(), total.values())


def test_what_is_not_there_is_named(client: Client) -> None:
    batch = to_tensors(answers_about(client, traits=("rating",)))
    with pytest.raises(UsageError, match="no trait 'item_id'; it has rating"):
        batch.to_njt("item_id")
    with pytest.raises(UsageError, match="no trait 'item_id'; it has rating"):
        batch.to_padded("item_id")


def test_values_and_columns_have_names(client: Client) -> None:
    batch = to_tensors(answers_about(client, traits=("rating", "item_id")))
    assert batch.keys() == ["offsets", *batch.values, *batch.columns]
    assert {**batch} == {"offsets": batch.offsets, **batch.values, **batch.columns}
    assert batch["item_id"] is batch.values["item_id"]
    assert "item_id" in batch
    assert batch.get("item_id") is batch.values["item_id"]
    assert "genre" not in batch
    assert batch.get("genre") is None
    with pytest.raises(KeyError, match="genre"):
        batch["genre"]
    # Neither of two is meant more than the other.
    batch.columns["item_id"] = ["one"]
    with pytest.raises(UsageError, match="'item_id' is a trait and a column"):
        dict(**batch)
    with pytest.raises(TypeError, match="not iterable"):
        iter(batch)  # type: ignore[call-overload]


def test_batches_are_not_collated(client: Client) -> None:
    batches = [to_tensors(answers_about(client))]
    with pytest.raises(UsageError, match="batch_size=None"):
        next(iter(torch.utils.data.DataLoader(batches, batch_size=1)))  # type: ignore[arg-type]


def test_a_batch_is_not_cast_as_one(client: Client) -> None:
    batch = to_tensors(answers_about(client))
    with pytest.raises(UsageError, match=r"batch.values\[trait\].to\(torch.float16\)"):
        batch.to(torch.float16)  # type: ignore[arg-type]


def test_all_tensors_lie_in_one_piece_of_memory_and_move_as_one(client: Client) -> None:
    answers = answers_about(client)
    batch = to_tensors(answers)
    pieces = []

    def clone(memory: torch.Tensor) -> torch.Tensor:
        pieces.append(memory)
        return memory.clone()

    moved = batch._moved(clone)
    assert len(pieces) == 1
    assert pieces[0].nbytes < batch.nbytes + 64 * len(batch.values)
    assert_equal(moved, Batch.from_answers(answers))
    assert moved.values["item_id"].data_ptr() != batch.values["item_id"].data_ptr()
    assert torch.equal(moved.example_ids, batch.example_ids)
    assert moved.columns["note"] is batch.columns["note"]
    memory = moved.offsets.untyped_storage().data_ptr()
    assert {of.untyped_storage().data_ptr() for of in moved._tensors()} == {memory}


def test_tensors_of_ones_own_move_along(client: Client) -> None:
    """Memory of other origins, with gaps, reversed, empty: nothing of it may get lost."""
    batch = to_tensors(answers_about(client))
    matrix = torch.arange(40).view(8, 5)
    batch.columns |= {"column": matrix[:, 2], "row": matrix[3], "odd": matrix.byte().view(-1)[3:9]}
    batch.columns["empty"] = torch.zeros(0, dtype=torch.float32)
    moved = batch._moved(torch.Tensor.clone)
    for name in ("column", "row", "odd", "empty"):
        assert torch.equal(
            torch.as_tensor(moved.columns[name]), torch.as_tensor(batch.columns[name])
        )


def test_it_can_be_pipelined_without_a_gpu(client: Client) -> None:
    answers = answers_about(client)
    batch = to_tensors(answers)
    assert_equal(batch.pin_memory(), Batch.from_answers(answers))
    assert_equal(batch.to(torch.device("cpu"), non_blocking=True), Batch.from_answers(answers))
    batch.record_stream(torch.Stream("cpu"))


def with_mutable_events(users: Sequence[int]) -> ThinRows:
    """Every other example has some, and they come after the generation."""
    lengths = np.array([place % 3 for place in range(len(users))])
    count = int(lengths.sum())
    times = worlds.as_of(3) + np.arange(count)
    rng = np.random.default_rng(1)
    columns = {
        "event_ts": times,
        "event_id": np.arange(count),
        "item_id": rng.integers(-(2**62), 2**62, count),
        "brand": np.array(["b"] * count, object),
        "genre": np.arange(count),
        "liked": np.ones(count, np.bool_),
        "price": rng.random(count),
        "embedding": rng.random((count, 3)).astype(np.float16),
    }
    pointers = Pointers(
        user_ids=users,
        end_ts=[worlds.as_of(3)] * len(users),
        request_ts=[worlds.as_of(4)] * len(users),
    )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return ThinRows(
        pointers,
        MutableEvents(offsets, times, {name: MutableColumn(of) for name, of in columns.items()}),
    )


NARROWED = [
    (np.int8, (-128, 127)),
    (np.uint8, (0, 255)),
    (np.uint16, (0, 65_535)),
    (np.uint32, (0, 2**32 - 1)),
    (np.int32, (-(2**31), 2**31 - 1)),
    (np.int64, (-(2**63), 2**63 - 1)),
    (np.float16, (-2.5, np.nan)),
    (np.float32, (-0.0, 1e30)),
    (np.float64, (np.nan, -1e300)),
]


@pytest.mark.parametrize(("dtype", "bounds"), NARROWED)
@pytest.mark.parametrize("size", [1, 3])
def test_every_dtype_and_width_widens_bit_by_bit(
    dtype: type[np.generic], bounds: tuple[float, float], size: int
) -> None:
    """Blocks of all widths side by side, an empty one, and views that overlap and lie apart."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 0, 3, 1, 7, 6, 2, 4], np.int64)
    widths = np.array([1, 2, 8, 0, 4, 1, 2, 8], np.uint8)
    low, high = np.array(bounds, dtype).view(f"i{np.dtype(dtype).itemsize}").astype(np.int64)
    bases = rng.choice([low, high, 0], len(lengths))
    sections = {
        width: rng.integers(0, 256, int(width) * size * int(lengths[widths == width].sum()))
        for width in (1, 2, 4, 8)
    }
    column = wire.Column(
        trait="t",
        type=next(kind for kind, of in BATCH_DTYPES.items() if of == dtype),  # type: ignore[arg-type]
        vector_size=size,
        bases=bases.tolist(),
        widths=widths.tobytes(),
        data=b"".join(section.astype(np.uint8).tobytes() for section in sections.values()),
    )
    narrow = NarrowColumn(Column.of(column), lengths)
    views = Views(*np.array([[0, 0, 0, 0], [3, 0, 20, 7], [6, 28, 1, 0], [0, 6, 40, 34]], np.int64))
    every = np.zeros((int(lengths.sum()), size), dtype)
    narrow.write(every)
    expected = np.zeros((41, size), dtype)
    for _, start, length, place in zip(*(part.tolist() for part in views), strict=True):
        expected[place : place + length] = every[start : start + length]
    integers = np.dtype(dtype).kind in "iu"
    wide = np.dtype(np.int64) if integers else np.dtype(dtype)
    out = np.zeros((41, size), wide)
    run_jobs([Job("t", [narrow.run], np.dtype(dtype), views, out)])
    assert out.tobytes() == expected.astype(wide).tobytes()


def load_torchrec() -> Any:  # noqa: ANN401 - a module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torchrec")
    except ImportError as error:
        pytest.skip(f"torchrec is not installed: {error}")


def test_a_keyed_jagged_tensor_holds_the_same(client: Client) -> None:
    torchrec = load_torchrec()
    for users, length in (case.values for case in CASES):
        answers = answers_about(client, users, length)  # type: ignore[arg-type]
        batch, expected = to_tensors(answers), Batch.from_answers(answers)
        traits = [trait for trait, values in batch.values.items() if values.dtype == torch.int64]
        for dtype in (torch.int32, torch.int64):
            keyed = batch.to_kjt(lengths_dtype=dtype)
            assert keyed.keys() == batch.kjt.keys() == traits
            assert keyed.lengths().dtype == dtype
            assert keyed.values().data_ptr() == batch.values[traits[0]].data_ptr()
            # What torchrec would compute, had it not been reported.
            plain = torchrec.KeyedJaggedTensor(traits, keyed.values(), lengths=keyed.lengths())
            assert keyed.stride() == plain.stride() == len(users)  # type: ignore[arg-type]
            assert keyed.length_per_key() == plain.length_per_key()
            assert keyed.offset_per_key() == plain.offset_per_key()
            for trait, jagged in keyed.to_dict().items():
                assert same(jagged.values(), expected.values[trait])
                assert same(jagged.offsets().to(torch.int64), expected.offsets)


def test_torchrec_takes_it_for_pipelineable(client: Client) -> None:
    torchrec = load_torchrec()
    answers = answers_about(client)
    batch = to_tensors(answers)
    assert isinstance(batch, torchrec.streamable.Pipelineable)
    pipelined = importlib.import_module("torchrec.distributed.train_pipeline.utils")
    moved = pipelined._to_device(batch.pin_memory(), torch.device("cpu"), non_blocking=True)
    moved.record_stream(torch.Stream(device="cpu"))
    assert_equal(moved, Batch.from_answers(answers))


def test_it_travels_between_processes(client: Client) -> None:
    answers = answers_about(client)
    assert_equal(pickle.loads(pickle.dumps(to_tensors(answers))), Batch.from_answers(answers))  # noqa: S301


def test_traits_that_are_no_neighbours_are_copied(client: Client) -> None:
    load_torchrec()
    batch = to_tensors(answers_about(client))
    for traits in (["event_ts", "item_id"], ["item_id", "genre"], ["price"], ["item_id"] * 2):
        keyed = batch.to_kjt(traits)
        assert torch.equal(keyed.values(), torch.cat([batch.values[trait] for trait in traits]))


def test_contextual_columns_come_first_with_one_value_each(client: Client) -> None:
    load_torchrec()
    batch = to_tensors(answers_about(client))
    keyed = batch.to_kjt(["item_id", "rating"], contextual=["user_id"])
    assert keyed.keys() == ["user_id", "item_id", "rating"]
    assert keyed["user_id"].values().tolist() == list(range(len(batch)))
    assert keyed["user_id"].lengths().tolist() == [1] * len(batch)
    assert torch.equal(keyed["item_id"].values(), batch.values["item_id"])
    assert torch.equal(keyed["rating"].lengths(), batch.offsets.diff())


def test_what_fits_no_keyed_jagged_tensor_is_refused(client: Client) -> None:
    load_torchrec()
    batch = to_tensors(answers_about(client))
    for traits in (["item_id", "price"], ["embedding"], []):
        with pytest.raises(UsageError, match="scalars of one dtype"):
            batch.to_kjt(traits)
    with pytest.raises(UsageError, match="no column 'note' of numbers"):
        batch.to_kjt(["item_id"], contextual=["note"])


def test_without_torchrec_the_error_says_what_to_install(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(UsageError, match="pip install torchrec"):
        to_tensors(answers_about(client)).to_kjt()


@pytest.mark.parametrize("arguments", [{"side": "LEFT"}, {"length": -1}])
def test_padding_that_makes_no_sense_is_refused(client: Client, arguments: dict[str, Any]) -> None:
    batch = to_tensors(answers_about(client, (1,), 5))
    with pytest.raises(UsageError, match="must be"):
        batch.to_padded("item_id", **arguments)
