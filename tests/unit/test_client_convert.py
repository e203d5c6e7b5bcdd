"""Arrays that callers hand in keep their values as a trait's type, or are refused."""

# ruff: noqa: ANN401 - arrays and lists go through as they are

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from thinrow.client import Pointers, Projection
from thinrow.client.logger.values import exact as logged
from thinrow.client.online import connect_online
from thinrow.core.pointers import MutableColumn, MutableEvents
from thinrow.core.traits import TraitForm, TraitType
from thinrow.core.wire.columns import as_column, from_wire, to_wire
from thinrow.errors import InputError, RequestError, ThinRowError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

INT8, INT64, UINT64 = wire.TRAIT_TYPE_INT8, wire.TRAIT_TYPE_INT64, wire.TRAIT_TYPE_UINT64
FLOAT16, FLOAT32, FLOAT64 = (
    wire.TRAIT_TYPE_FLOAT16,
    wire.TRAIT_TYPE_FLOAT32,
    wire.TRAIT_TYPE_FLOAT64,
)
BOOL, STRING = wire.TRAIT_TYPE_BOOL, wire.TRAIT_TYPE_STRING
NAN, INF = float("nan"), float("inf")


def stored(kind: int, given: Any, size: int = 1) -> list[Any]:
    """Values as a server reads them, None where absent."""
    column = as_column(TraitForm(type=TraitType(kind), size=size), given)
    message = to_wire("t", kind, size, column.present is not None, column)
    [read] = from_wire([message], len(column.values)).values()
    present = [True] * len(column.values) if read.present is None else read.present.tolist()
    return [v if there else None for v, there in zip(read.values.tolist(), present, strict=True)]


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (FLOAT32, np.array([4.5, -1.25]), [4.5, -1.25]),
        (FLOAT32, np.array([4, 1 << 24]), [4.0, float(1 << 24)]),
        (FLOAT32, np.array([0.1]), [float(np.float32(0.1))]),
        (FLOAT32, [0.1, 3, np.float16(0.5)], [float(np.float32(0.1)), 3.0, 0.5]),
        (FLOAT32, np.array([INF, -INF]), [INF, -INF]),
        (FLOAT64, np.array([1.5], np.float32), [1.5]),
        (FLOAT64, np.array([True, False]), [1.0, 0.0]),
        (FLOAT64, np.array([1 << 54, 0]), [float(1 << 54), 0.0]),
        (FLOAT64, [1, 2.5, None], [1.0, 2.5, None]),
        (FLOAT16, np.array([2.5], ">f8"), [2.5]),
        (INT64, np.array([42.0]), [42]),
        (INT64, [], []),
        (INT64, np.array([258], ">i8"), [258]),
        (INT64, np.arange(6)[::2], [0, 2, 4]),
        (INT64, np.array([7], np.uint8), [7]),
        (INT64, np.array([5, None], object), [5, None]),
        (INT64, [np.int32(5), 6.0, True, None], [5, 6, 1, None]),
        (INT64, [-(1 << 63), (1 << 63) - 1], [-(1 << 63), (1 << 63) - 1]),
        (INT64, np.ma.masked_array([1, 2], [False, True]), [1, None]),
        (INT64, np.ma.masked_array([1, 2]), [1, 2]),
        (INT64, pa.array([1, None, 3]), [1, None, 3]),
        (INT64, MutableColumn(np.array([7.0, NAN]), np.array([True, False])), [7, None]),
        (INT8, np.array([-128, 127]), [-128, 127]),
        (UINT64, [(1 << 64) - 1, 1], [(1 << 64) - 1, 1]),
        (UINT64, np.array([5]), [5]),
        (BOOL, np.array([0, 1]), [False, True]),
        (BOOL, [True, None, 0], [True, None, False]),
        (STRING, np.array(["a", "é"]), ["a", "é"]),
        (STRING, np.array(["a", None], object), ["a", None]),
    ],
)
def test_values_survive_conversion(kind: int, given: Any, expected: list[Any]) -> None:
    assert stored(kind, given) == expected


def test_nan_stays_a_value_of_a_float_trait() -> None:
    assert np.isnan(stored(FLOAT32, np.array([NAN]))).all()


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        (INT64, [42.7], "42.7"),
        (INT64, np.array([1.0, 42.7]), "42.7"),
        (INT64, [INF], "inf"),
        (INT64, np.array([2.0**63]), "9.22"),
        (INT64, np.array([1 << 63], np.uint64), "9223372036854775808"),
        (INT64, [1, 1 << 63], "9223372036854775808"),
        (INT64, [1 << 70, -1], "1180591620717411303424"),
        (INT64, ["5"], "'5'"),
        (INT64, "5", "'5'"),
        (INT64, np.array(["5"]), "<U1"),
        (INT64, np.array([[1]]), r"\(1, 1\)"),
        (INT64, np.array(["2024-01-01"], "datetime64[ms]"), "datetime64"),
        (INT64, np.array([1j]), "complex"),
        (INT8, np.array([1, 300]), "300"),
        (INT8, [-129], "-129"),
        (UINT64, np.array([-5]), "-5"),
        (FLOAT64, np.array([(1 << 53) + 1]), "9007199254740993"),
        (FLOAT64, [0.5, (1 << 53) + 1], "9007199254740993"),
        (FLOAT32, np.array([(1 << 24) + 1], np.uint64), "16777217"),
        (FLOAT32, np.array([1e300]), r"1e\+300"),
        (FLOAT32, [1e300], r"1e\+300"),
        (FLOAT16, np.array([70000]), "70000"),
        (BOOL, np.array([0.5]), "0.5"),
        (BOOL, [2], "2"),
        (STRING, [5], "5"),
        (STRING, np.array([b"a"]), "b'a'"),
    ],
)
def test_what_would_change_is_refused_by_value(kind: int, given: Any, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        as_column(TraitForm(type=TraitType(kind)), given)


def test_vectors_are_converted_whole_or_refused() -> None:
    expected = [[1.0, 2.0], [3.0, 4.0]]
    array = np.array(expected)
    for given in (
        array,
        array.astype(">f4"),
        array.astype(int),
        expected,
        [*array],
        array.T.copy().T,
    ):
        assert stored(FLOAT32, given, 2) == expected
    assert stored(FLOAT32, [[1, 2], None], 2) == [[1.0, 2.0], None]
    masked = np.ma.masked_array(array, [[True, True], [False, False]])
    assert stored(FLOAT32, masked, 2) == [None, [3.0, 4.0]]
    masked[1, 0] = np.ma.masked
    for wrong in (
        np.zeros((2, 3)),
        np.zeros(4),
        [[1.0, 2.0], [3.0]],
        [1.0, 2.0],
        masked,
        [[1, None]],
    ):
        with pytest.raises((ValueError, TypeError)):
            as_column(TraitForm(type=TraitType.FLOAT32, size=2), wrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([7.0]), 7),
        (np.array([7], ">i4"), 7),
        (np.array([7, 8, 9])[::3], 7),
        (np.array(["1970-01-01T00:00:01"], "datetime64[s]"), 1000),
        (np.array([5_000_000], "datetime64[ns]"), 5),
    ],
)
def test_pointers_take_whole_numbers_and_times(given: Any, expected: int) -> None:
    pointers = Pointers(user_ids=[1], end_ts=given)
    assert pointers.end_ts.tolist() == [expected] and pointers.end_ts.dtype == np.int64


@pytest.mark.parametrize(
    "given",
    [
        [10.9],
        [NAN],
        ["7"],
        [None],
        np.array([True]),
        np.array([1 << 63], np.uint64),
        np.ma.masked_array([1], [True]),
        np.array([5_000_001], "datetime64[ns]"),
        np.array(["NaT"], "datetime64[ms]"),
        np.array([10_000_000_000_000], "datetime64[D]"),
        [[1]],
    ],
)
@pytest.mark.parametrize("field", ["user_ids", "start_ts", "end_ts", "max_lengths", "request_ts"])
def test_pointers_refuse_what_would_change(field: str, given: Any) -> None:
    arrays = {"user_ids": [1], "end_ts": [1], field: given}
    if field == "user_ids" and str(given) in (
        "['7']",
        "[9223372036854775808]",
    ):  # texts and unsigned integers
        assert Pointers(**arrays).user(0) == given[0]
        return
    with pytest.raises(InputError, match=field):
        Pointers(**arrays)


def test_digests_keep_their_bits() -> None:
    top = (1 << 64) - 1
    for given in ([top], np.array([-1]), np.array([top], np.uint64), np.array([top], object)):
        assert Pointers(user_ids=[1], end_ts=[1], digests=given).digests.tolist() == [top]
    for wrong in ([42.7], [-1], np.array([1e300]), [1 << 64]):
        with pytest.raises(InputError, match="digests"):
            Pointers(user_ids=[1], end_ts=[1], digests=wrong)


def test_mutable_columns_are_plain_arrays() -> None:
    for values in ([1], np.ma.masked_array([1], [True])):
        with pytest.raises(InputError, match="'t'"):
            MutableEvents(np.array([0, 1]), np.array([1]), {"t": MutableColumn(values)})  # type: ignore[arg-type]


def test_words_of_another_type_are_refused() -> None:
    """Clients of other languages, and older ones of this, send what they have."""
    for kind, words in (
        (FLOAT32, np.array([4.5])),
        (FLOAT64, np.array([1.5], np.float32)),
        (INT8, np.array([200], np.uint16)),
        (wire.TRAIT_TYPE_INT32, np.array([1])),
        (BOOL, np.array([1, 0], np.int16)),
    ):
        message = wire.Column(trait="t", type=kind, vector_size=1, bases=[0])
        message.widths, message.data = bytes([words.itemsize]), words.tobytes()
        with pytest.raises(ThinRowError, match="t has "):
            from_wire([message], len(words))


def test_bits_of_negative_integers_are_words() -> None:
    """The contract says two's complement: what an array of another language holds, as it is."""
    message = wire.Column(trait="t", type=wire.TRAIT_TYPE_INT8, vector_size=1, bases=[0])
    message.widths, message.data = b"\1", bytes([255, 128, 127])
    assert from_wire([message], 3)["t"].values.tolist() == [-1, -128, 127]
    message.bases[0] = 1
    with pytest.raises(ThinRowError, match="t has "):
        from_wire([message], 3)


SCHEMA = """
[item]
item_id = { type = "int64", key = true }
rating = { type = "float32", sparse = true }
embedding = { type = "float32", size = 2, sparse = true }
"""


def test_online_events_are_stored_as_they_were_given(tmp_path: Path) -> None:
    schema = tmp_path / "schema.toml"
    schema.write_text(SCHEMA)
    config = OnlineConfig(
        store=tmp_path / "store", schema=schema, listen="127.0.0.1:0", metrics=None
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        traits = {
            "item_id": np.array([5.0, 6.0]),
            "rating": np.array([4.5, 0.25]),
            "embedding": np.array([[1.0, 2.0], [3.0, 4.0]]),
        }
        times = np.array([1000, 2000], "datetime64[ms]")
        result = client.append(np.array([7, 7], np.uint8), times, traits)
        assert result.appended == 2
        later_ts = result.arrival_ts + 1
        seen = client.snapshot_batch(np.array([7.0]), Projection(), request_ts=later_ts).batch
        assert seen.to_lists("event_ts") == [[1000, 2000]]
        assert seen.to_lists("item_id") == [[5, 6]]
        assert seen.to_lists("rating") == [[4.5, 0.25]]
        assert seen.to_lists("embedding") == [[[1.0, 2.0], [3.0, 4.0]]]
        for right_ts, unit in ((1_800_000_000, "seconds"), (1_800_000_000_000_000, "microseconds")):
            with pytest.raises(RequestError, match=f"look like {unit}, so convert them"):
                client.append([7, 7], [right_ts, right_ts + 1], traits)
        for name, values in (("item_id", [5.5, 6.0]), ("rating", np.array([1e300, 0.0]))):
            with pytest.raises(InputError, match=name):
                client.append([7, 7], times, {**traits, name: values})
        with pytest.raises(InputError, match="user_ids"):
            client.append([10.9, 1], times, traits)
        with pytest.raises(InputError, match="event_ts"):
            client.append([7, 7], np.array([0.5, 1.5]), traits)
        for call in (
            lambda: client.snapshot(7.5, Projection()),  # type: ignore[arg-type]
            lambda: client.snapshot_batch([7.5], Projection()),
        ):
            with pytest.raises(InputError, match="user_id"):
                call()
        foreign = client.events([7, 7], times, traits)
        [rating] = [column for column in foreign.columns if column.trait == "rating"]
        rating.data, rating.widths = np.array([4.5, 0.25]).tobytes(), bytes([8])
        with pytest.raises(RequestError, match="rating has words of 8 bytes"):
            list(client.append_all([foreign]))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.list_(pa.int64()), [42.7], InputError),
        (pa.list_(pa.int64()), np.array([1.5]), InputError),
        (pa.list_(pa.int64()), np.array([258], ">i8"), [258]),
        (pa.list_(pa.int64()), np.ma.masked_array([1, 2], [True, False]), [None, 2]),
        (pa.list_(pa.list_(pa.int8())), [[1.5]], InputError),
        (pa.struct([("a", pa.int64())]), {"a": 1.5}, InputError),
        (pa.list_(pa.float32()), [1e300], InputError),
        (pa.list_(pa.float32()), [INF, 0.5], [INF, 0.5]),
        (pa.timestamp("ms"), 1.5, InputError),
        (pa.dictionary(pa.int32(), pa.string()), "a", "a"),
        (pa.string_view(), "a", "a"),
    ],
)
def test_logged_values_do_not_change(kind: pa.DataType, value: Any, expected: Any) -> None:
    if expected is InputError:
        with pytest.raises(InputError, match="column"):
            logged([value], pa.field("column", kind))
    else:
        assert logged([value, None], pa.field("column", kind)).to_pylist() == [expected, None]


MASKED = np.ma.array([1.5, 2.5], mask=[True, False])


def test_mrequested_elements_in_a_list_are_absent() -> None:
    assert stored(FLOAT32, [MASKED[0], MASKED[1]]) == [None, 2.5]
    with pytest.raises(ValueError, match="None is no number"):
        stored(FLOAT32, [[MASKED[0], 1.0]], size=2)


@pytest.mark.parametrize(
    "present", [[True, False, True], np.array([1, 0, 1]), np.array([1.0, 0.0, 1.0])]
)
@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], np.array([1.0, 2.0, 3.0])])
def test_present_may_be_of_another_dtype(present: Any, values: Any) -> None:
    assert stored(FLOAT32, MutableColumn(values, present)) == [1.0, None, 3.0]
    if isinstance(values, np.ndarray):
        column = MutableColumn(values, present)
        events = MutableEvents(np.array([0, 3]), np.array([1, 2, 3]), {"x": column})
        kept = events[0:1].columns["x"].present
        assert kept is not None and kept.dtype == np.bool_ and kept.tolist() == [True, False, True]


@pytest.mark.parametrize("present", [[True], np.array([0, 1, 2]), np.array([[True] * 3])])
def test_present_of_another_shape_or_meaning_is_refused(present: Any) -> None:
    column = MutableColumn(np.array([1.0, 2.0, 3.0]), present)
    with pytest.raises(ValueError, match=r"present has the shape|2 cannot be stored as bool"):
        stored(FLOAT32, column)
    with pytest.raises(InputError, match=r"'x' does not fit: (present|2 cannot)"):
        MutableEvents(np.array([0, 3]), np.array([1, 2, 3]), {"x": column})


def test_users_and_times_are_no_bools() -> None:
    for wrong in ([1, True], (True,), [1, 2.0]):
        with pytest.raises(InputError, match=r"flat array of int64, but has (True|2\.0)"):
            Pointers(user_ids=wrong, end_ts=[1] * len(wrong))
