"""Lists: refused where they break their limit, and never trusted where lengths lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support.worlds import START_TS
from thinrow import _native
from thinrow.compaction.trait_values import to_values
from thinrow.core.wire.response import Column
from thinrow.core.wire.sizes import require_affordable
from thinrow.core.wire.widen import NarrowColumn
from thinrow.errors import AnswerTooLargeError, InputError, SchemaError, StoreCorruptError
from thinrow.events.canonical import canonical_table, from_canonical
from thinrow.events.time_columns import TimeReader
from thinrow.schema import Schema, evolve, parse_schema
from thinrow.schema.stored import from_stored, to_stored
from thinrow.store.stripe import COLUMN, HEADER, LENGTH_SHIFT, encode_stripes
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from thinrow.store.stripe import TraitValues

TAGS = '[g]\ntags = { type = "list<int64>", length_max = 3, sparse = true }\n'


def canonical(schema: Schema, column: pa.Array) -> pa.Table:
    table = pa.table({"user_id": [1] * len(column), "event_ts": [START_TS] * len(column)})
    table = table.append_column("tags", column)
    return canonical_table("e.parquet", schema, table, TimeReader(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('"list<int64>"', "g.tags: a list needs length_max"),
        ('{ type = "list<int64>", length_max = 0 }', "from 1 to 4096"),
        ('{ type = "list<int64>", length_max = 4097 }', "from 1 to 4096"),
        ('{ type = "list<int64>", length_max = 3, size = 2 }', "has a length_max, and no size"),
        ('{ type = "int64", length_max = 3 }', "only lists, such as list<int64>"),
        ('{ type = "list<bool>", length_max = 3 }', "unknown type 'list<bool>'"),
        ('{ type = "list<int64>", length_max = 3, default = [1] }', "default of a list is \\[\\]"),
        ('{ type = "list<int64>", length_max = 3, default = 0 }', "default of a list is \\[\\]"),
        ('{ type = "list<int64>", length_max = 3, unit = "ms" }', "only single integers"),
    ],
)
def test_schemas_that_are_refused(line: str, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        parse_schema(f"[g]\ntags = {line}\n")


def test_a_stored_limit_cannot_change() -> None:
    stored = parse_schema(TAGS.replace("sparse", "default = [], sparse"))
    assert from_stored(to_stored(stored)) == stored
    with pytest.raises(SchemaError, match=r'type = "list<int64>", length_max = 3.*default = \[\]'):
        evolve(stored, parse_schema(TAGS.replace("3", "300")))


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ([[1, 2, 3, 4]], pa.int64(), "a list of 4 elements; the schema says length_max = 3"),
        ([[1, None]], pa.int64(), "nulls inside lists; leave them out"),
        ([["a"]], pa.string(), "is string; it must be an integer"),
        ([[1.5]], pa.float64(), "1.5"),
    ],
)
def test_lists_that_are_refused(values: list[Any], kind: pa.DataType, says: str) -> None:
    with pytest.raises(InputError, match=rf"^e.parquet: tags .*{says}"):
        canonical(parse_schema(TAGS), pa.array(values, pa.list_(kind)))


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(InputError, match="tags is int64; the schema says list<int64>"):
        canonical(parse_schema(TAGS), pa.array([1]))
    with pytest.raises(InputError, match="tags has 1 nulls; mark the trait sparse = true"):
        dense = parse_schema(TAGS.replace(", sparse = true", ""))
        canonical(dense, pa.array([[1], None], pa.list_(pa.int64())))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 1)]
)
def test_lists_of_a_trait_without_lists_say_how_to_declare_them(kind: pa.DataType) -> None:
    schema = parse_schema('[g]\ntags = "int64"\n')
    with pytest.raises(
        InputError, match=r'the schema says int64. .*"list<int64>" and a length_max'
    ):
        canonical(schema, pa.array([[1]], kind))


@pytest.mark.parametrize("default", [None, []])
def test_a_null_list_is_no_empty_list(default: list[int] | None) -> None:
    line = "sparse = true" if default is None else "sparse = true, default = []"
    schema = parse_schema(TAGS.replace("sparse = true", line))
    values = [[1, 2], None, [], [3]]
    for layout in (pa.list_(pa.int8()), pa.large_list(pa.int64()), pa.list_view(pa.int64())):
        made = canonical(schema, pa.array(values, layout))
        stored = from_canonical(made["tags"].combine_chunks(), schema.traits[0]).to_pylist()
        assert stored == [[1, 2], default, [], [3]]
    nothing = canonical(schema, pa.array([[], None]))["tags"]
    assert nothing.to_pylist() == [[], default]


def stripe(values: list[list[int] | None]) -> tuple[bytearray, _native.Trait]:
    """A stripe of lists of at most three."""
    schema = parse_schema(TAGS)
    column = pl.from_arrow(canonical(schema, pa.array(values, pa.list_(pa.int64())))["tags"])
    assert isinstance(column, pl.Series)
    traits: list[TraitValues] = [to_values(column, schema.traits[0])]
    [encoded] = encode_stripes(traits, np.array([len(values)]))
    return bytearray(encoded), schema.native_traits["tags"]


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ((4, 0, 0), "longer than its limit"),
        ((3, 0, 3), "shorter than its header says"),
        ((2, 1, 0), "elements of an event that lacks the trait"),
    ],
)
def test_a_stripe_whose_lengths_lie(lengths: tuple[int, ...], says: str) -> None:
    data, trait = stripe([[1, 2], None, [300]])
    counts = np.array([3])
    words, _, _, _, honest = _native.decode_stripes([bytes(data)], counts, trait)
    assert (words.tolist(), honest.tolist()) == ([1, 2, 300], [2, 0, 1])
    record = np.frombuffer(bytes(data), COLUMN, 1, HEADER.itemsize)[0]
    at = int(record["bitmap"]) + 1  # behind the bitmap
    data[at : at + 3] = bytes(lengths)
    with pytest.raises(StoreCorruptError, match=says):
        _native.decode_stripes([bytes(data)], counts, trait)


def test_memory_of_lists_is_counted_before_it_is_taken() -> None:
    data, trait = stripe([[7, 7, 7]] * 50)
    assert _native.stripe_memory_bytes([bytes(data)]) == len(data) + 8 * 150
    place = HEADER.itemsize + COLUMN.fields["presence"][1]  # type: ignore[index]
    for width in (0, 2, 3):
        data[place] = width << LENGTH_SHIFT
        with pytest.raises(StoreCorruptError):
            _native.decode_stripes([bytes(data)], np.array([50]), trait)


def test_lists_of_equal_elements_cannot_fill_the_clients_memory() -> None:
    events = 100_000
    message = wire.Column(
        trait="tags",
        type=wire.TRAIT_TYPE_INT64,
        bases=[7],
        widths=b"\0",
        list_length_max=4096,
        list_lengths=np.full(events, 4096, "<u2").tobytes(),
    )
    column = NarrowColumn(Column.of(message), np.array([events]))
    assert column.widened_bytes == events * (4096 + 1) * 8
    with pytest.raises(AnswerTooLargeError):
        require_affordable(column.widened_bytes, column.travelled_bytes)
    views = np.array([0, 5]), np.array([2, 1])
    assert column.view_bytes(*views) == 3 * (4096 + 1) * 8
