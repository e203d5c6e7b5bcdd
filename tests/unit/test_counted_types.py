"""Times and decimals as integers of a trait, by every way in: equal counts, or refused by all."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import DOCS
from thinrow.core.codes import BUCKETS_MAX, bucket_codes
from thinrow.core.files.trait_arrays import arrow_column
from thinrow.core.traits import NS_PER_UNIT
from thinrow.core.wire.columns import as_column
from thinrow.errors import InputError, SchemaError
from thinrow.events.canonical import canonical_table
from thinrow.events.time_columns import TimeReader
from thinrow.schema import evolve, from_stored, parse_schema, to_stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.schema import Schema

COUNTS = st.one_of(st.integers(-(10**4), 10**4), st.integers(-(2**62), 2**62))


def declared(line: str) -> Schema:
    return parse_schema(f"[g]\nx = {{ {line}, sparse = true }}\n")


def stored(schema: Schema, column: pa.Array) -> list[Any]:
    """Returns the stored values of a column of a file."""
    table = pa.table({"user_id": [1] * len(column), "event_ts": [0] * len(column), "x": column})
    made = canonical_table("e.parquet", schema, table, TimeReader(None))  # type: ignore[arg-type]
    values: list[Any] = made["x"].to_pylist()
    return values


def by_every_way(schema: Schema, column: pa.Array, *others: Any) -> list[Any] | None:  # noqa: ANN401
    """Returns what every way in makes of the same values; None where all refuse them."""
    form = schema.traits[0].form

    def column_of(other: Any) -> list[Any]:  # noqa: ANN401
        return as_column(form, other).to_list()

    ways: list[Callable[[], list[Any]]] = [
        partial(stored, schema, column),
        partial(stored, schema, column.dictionary_encode()),
        lambda: arrow_column("x", column, form).to_list(),
        *(partial(column_of, other) for other in others),
    ]
    found: list[list[Any] | None] = []
    for way in ways:
        try:
            found.append(way())
        except (InputError, ValueError):
            found.append(None)
    assert found == found[:1] * len(found), found
    return found[0]


@given(COUNTS, st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from(list(NS_PER_UNIT)))
def test_times_are_counted_exactly_or_refused(count: int, given_unit: str, unit: str) -> None:
    ns = count * NS_PER_UNIT[given_unit]
    expected, rest = divmod(ns, NS_PER_UNIT[unit])
    fits = rest == 0 and -(2**63) <= expected < 2**63
    schema = declared(f'type = "int64", unit = "{unit}"')
    for kind, letter in ((pa.timestamp(given_unit), "M"), (pa.duration(given_unit), "m")):
        column = pa.array([count, None], pa.int64()).cast(kind)
        numpy = np.ma.masked_array(
            np.array([count, 0]).view(f"{letter}8[{given_unit}]"), [False, True]
        )
        assert by_every_way(schema, column, numpy) == ([expected, None] if fits else None)


@given(st.dates(), st.sampled_from(list(NS_PER_UNIT)))
def test_dates_are_counted_exactly_or_refused(day: date, unit: str) -> None:
    expected = (day - date(1970, 1, 1)).days * NS_PER_UNIT["d"] // NS_PER_UNIT[unit]
    fits = -(2**63) <= expected < 2**63
    schema = declared(f'type = "int64", unit = "{unit}"')
    for column in (pa.array([day, None]), pa.array([day, None], pa.date64())):
        counted = by_every_way(schema, column, [day, None])
        assert counted == ([expected, None] if fits else None)


@given(st.integers(-(10**20), 10**20), st.integers(0, 6), st.integers(0, 6))
def test_decimals_are_counted_exactly_or_refused(digits: int, given_scale: int, scale: int) -> None:
    value = Decimal(digits).scaleb(-given_scale)
    steps, rest = divmod(digits * 10**scale, 10**given_scale)
    fits = rest == 0 and -(2**63) <= steps < 2**63
    schema = declared(f'type = "int64", scale = {scale}')
    column = pa.array([value, None], pa.decimal128(30, given_scale))
    wide = pa.array([value, None], pa.decimal256(50, given_scale))
    for each in (column, wide):
        assert by_every_way(schema, each, [value, None]) == ([steps, None] if fits else None)


def test_floats_are_no_steps_by_any_way() -> None:
    schema = declared('type = "int64", scale = 2')
    for dtype in (np.float16, np.float32, np.float64):
        floats = np.array([1.0, 2.0], dtype)
        given = (floats, floats.tolist(), list(floats), floats.astype(object))
        assert by_every_way(schema, pa.array(floats), *given) is None
    digits = [Decimal("1." + "1" * 120)]
    with pytest.raises(ValueError, match="no whole number of steps"):
        as_column(schema.traits[0].form, digits)


def test_whole_decimals_are_integers() -> None:
    column = pa.array([Decimal(2), None], pa.decimal128(10, 0))
    assert by_every_way(declared('type = "int64"'), column, [Decimal(2), None]) == [2, None]
    half = pa.array([Decimal("2.5")])
    assert by_every_way(declared('type = "int64"'), half, [Decimal("2.5")]) is None


@pytest.mark.parametrize("whole", [True, False])
def test_nanoseconds_of_pandas_are_kept(whole: bool) -> None:
    pandas = pytest.importorskip("pandas")
    ns = 1_700_000_000_000_000_000 + (1_000_000 if whole else 1)
    moments = pandas.Series(pandas.to_datetime([ns, ns]))
    spans = pandas.Series(pandas.to_timedelta([ns, ns]))
    for series in (moments, spans):
        column = pa.array(series)
        for unit in ("ns", "ms"):
            schema = declared(f'type = "int64", unit = "{unit}"')
            expected = [ns if unit == "ns" else ns // 10**6] * 2
            found = by_every_way(schema, column, series, series.to_numpy(), list(series))
            assert found == (expected if whole or unit == "ns" else None)


def test_spans_without_a_fixed_length_are_refused() -> None:
    form = declared('type = "int64", unit = "s"').traits[0].form
    for kind in ("m8[M]", "m8[Y]"):
        with pytest.raises(ValueError, match="no fixed length"):
            as_column(form, np.array([1], kind))


def test_gaps_hide_no_rounded_integer() -> None:
    """pandas stores integers with gaps as floats, from 2^53 on rounded."""
    schema = declared('type = "int64"')
    large = [float(2**53), None]
    floats = np.array([2.0**53, np.nan])
    assert by_every_way(schema, pa.array(large), floats, floats.tolist(), list(floats)) is None
    small = np.array([2.0**53 - 1, np.nan])
    expected = [2**53 - 1, None]
    assert by_every_way(schema, pa.array(small), small, small.tolist(), list(small)) == expected


def test_nothing_absent_hides_in_a_list() -> None:
    for line in ('type = "list<int64>", length_max = 4', 'type = "int64", size = 2'):
        lists = pa.array([[1.0, float("nan")], [-3.0, 4.0]])
        with pytest.raises(InputError, match=r"nulls inside|the schema says"):
            stored(declared(line), lists)
    whole = pa.array([[1.0], [-3.0, 2.0]])
    assert stored(declared('type = "list<int64>", length_max = 4'), whole) == [[1], [-3, 2]]


def test_uuids_have_codes_and_stand_in_lists() -> None:
    ids = [bytes(range(16)), bytes(16)]
    texts = [str(UUID(bytes=one)) for one in ids]
    column = pa.array(ids, pa.uuid())
    codes = coded('type = "string", codes = { buckets = 10 }')
    assert stored(codes, column) == bucket_codes(texts, 10).tolist()
    assert arrow_column("x", column, codes.traits[0].form).to_list() == stored(codes, column)
    lists = pa.ListArray.from_arrays([0, 2, 2], column)
    schema = declared('type = "list<string>", length_max = 4')
    assert stored(schema, lists) == [texts, []]


def test_integers_are_counts_already() -> None:
    for line in ('type = "int64", unit = "ms"', 'type = "int64", scale = 2'):
        column = pa.array([5, None])
        assert by_every_way(declared(line), column, [5, None]) == [5, None]


CODES = {"": 758, "a": 930, "corner shop": 599, "Ä": 126, "\N{GRINNING FACE}": 807}
"""Codes of 1,000 buckets, as docs/guides/schema.md has them."""


def coded(line: str) -> Schema:
    return parse_schema(f"[g]\nx = {{ {line} }}\n")


def test_codes_are_those_of_the_documentation() -> None:
    line = 'type = "string", codes = { buckets = 1000 }'
    texts, codes = list(CODES), list(CODES.values())
    assert by_every_way(coded(line), pa.array(texts), texts, np.array(texts, object)) == codes
    assert by_every_way(coded(line), pa.array(codes), codes, np.array(codes)) == codes
    guide = " ".join((DOCS / "guides/schema.md").read_text(encoding="utf-8").split())
    assert (
        "the empty text 758, `a` 930, `corner shop` 599, `Ä` 126, `\N{GRINNING FACE}` 807" in guide
    )


@given(st.lists(st.text(max_size=3), min_size=1), st.integers(1, BUCKETS_MAX))
def test_a_text_has_one_code_by_every_way(texts: list[str], buckets: int) -> None:
    schema = coded(f'type = "string", codes = {{ buckets = {buckets} }}')
    codes = by_every_way(schema, pa.array(texts), texts, np.array(texts, object))
    assert codes is not None
    assert all(2 <= code < buckets + 2 for code in codes)
    assert stored(schema, pa.array([text.encode() for text in texts])) == codes


@pytest.mark.parametrize("code", [-1, 12, 1 << 40])
def test_integers_that_are_no_codes_are_refused(code: int) -> None:
    schema = coded('type = "string", codes = { buckets = 10 }')
    assert by_every_way(schema, pa.array([0, 1, 11]), [0, 1, 11]) == [0, 1, 11]
    assert by_every_way(schema, pa.array([code]), [code]) is None


@pytest.mark.parametrize(
    "line",
    [
        'type = "string", codes = { buckets = 0 }',
        'type = "string", codes = "buckets"',
        'type = "int64", codes = { buckets = 5 }',
        'type = "string", default = "", codes = { buckets = 5 }',
        'type = "string", size = 2, codes = { buckets = 5 }',
        'type = "string", unit = "ms", codes = { buckets = 5 }',
    ],
)
def test_codes_that_mean_nothing_are_refused(line: str) -> None:
    with pytest.raises(SchemaError, match=r"codes|size|unit"):
        coded(line)


def test_codes_never_change() -> None:
    first = coded('type = "string", sparse = true, codes = { buckets = 5 }')
    assert from_stored(to_stored(first)) == first
    assert first.traits[0].default == 0 and not first.traits[0].nullable
    with pytest.raises(SchemaError, match=r"codes = \{ buckets = 5 \}"):
        evolve(first, coded('type = "string", sparse = true, codes = { buckets = 6 }'))


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ('type = "int64"', pa.array([1], pa.timestamp("us")), 'give the trait unit = "us"'),
        ('type = "int32"', pa.array([date(2024, 1, 1)]), 'give the trait unit = "d"'),
        ('type = "categorical"', pa.array(["a"]), 'must be an integer, unless .* type = "string"'),
        ('type = "float64"', pa.array([1], pa.timestamp("us")), "a type of integers"),
        ('type = "int64", unit = "ms"', pa.array([1], pa.timestamp("us")), 'unit = "us"'),
        ('type = "int64"', pa.array([Decimal("9.99")]), "give the trait scale = 2"),
        ('type = "int64", scale = 1', pa.array([Decimal("9.99")]), "give the trait scale = 2"),
        ('type = "int64", scale = 1', pa.array([9.5]), "write decimals"),
        ('type = "int8", unit = "s"', pa.array([300], pa.timestamp("s")), "not in range"),
        ('type = "float32", size = 2', pa.array([b"1234"]), "2 float32, which are 8"),
    ],
)
def test_what_is_refused_names_what_allows_it(line: str, column: pa.Array, says: str) -> None:
    with pytest.raises(InputError, match=f"e.parquet: x .*{says}"):
        stored(declared(line), column)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i4", "<u8"])
def test_vectors_may_be_the_bytes_of_their_elements(dtype: str) -> None:
    vectors = np.array([[1.5, -2.0], [0.25, 3.0]]).astype(dtype)
    schema = declared(f'type = "{np.dtype(dtype).name}", size = 2')
    lists = pa.array([vectors[0], None, vectors[1]], pa.list_(pa.from_numpy_dtype(dtype)))
    given = [vectors[0].tobytes(), None, vectors[1].tobytes()]
    for kind in (pa.binary(), pa.binary_view(), pa.binary(2 * np.dtype(dtype).itemsize)):
        assert stored(schema, pa.array(given, kind)) == stored(schema, lists)


def test_a_uuid_is_text_as_people_write_it() -> None:
    column = pa.array([bytes(range(16)), None], pa.uuid())
    assert stored(declared('type = "string"'), column) == [
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        None,
    ]


@pytest.mark.parametrize(
    "line",
    [
        'type = "float32", unit = "ms"',
        'type = "int64", unit = "min"',
        'type = "int64", unit = ["ms"]',
        'type = "int64", scale = 19',
        'type = "int64", scale = 2, unit = "ms"',
        'type = "int64", size = 2, scale = 2',
    ],
)
def test_the_schema_refuses_forms_that_mean_nothing(line: str) -> None:
    with pytest.raises(SchemaError, match=r"unit|scale"):
        declared(line)


def test_a_form_is_kept_and_never_changes() -> None:
    decimals = "y = { type = 'int32', scale = 2 }"
    first = parse_schema(f"[g]\nx = {{ type = 'int64', unit = 'ms' }}\n{decimals}")
    assert from_stored(to_stored(first)) == first
    assert evolve(first, first) == first
    with pytest.raises(SchemaError, match=r'which has .* unit = "ms"'):
        evolve(first, parse_schema(f"[g]\nx = 'int64'\n{decimals}"))
