"""Records of the mutable tier, packed and shown: what native code writes is what Python means."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from thinrow import _native
from thinrow.core.pointers import MutableColumn
from thinrow.core.runs import offsets_of
from thinrow.core.wire.columns import from_wire, to_wire
from thinrow.errors import StoreCorruptError
from thinrow.online.records import RecordFormat
from thinrow.schema import EVENT_ID, EVENT_TS, Schema, Trait, TraitType, read_schema
from thinrow.schema.traits import LIST_LABELS
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    """Every type, of events that all have it and of events that may not; vectors and lists."""
    lines = ["[group]", 'key = { type = "int64", key = true }']
    for kind in TraitType:
        size = ", size = 3" if kind.is_float else ""
        lines.append(f'{kind.label}_one = {{ type = "{kind.label}"{size} }}')
        lines.append(f'{kind.label}_sparse = {{ type = "{kind.label}", sparse = true }}')
        if f"list<{kind.label}>" in LIST_LABELS:
            limit, more = (300, ", sparse = true") if kind % 2 else (3, "")
            form = f'type = "list<{kind.label}>", length_max = {limit}{more}'
            lines.append(f"{kind.label}_list = {{ {form} }}")
    path = tmp_path / "schema.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_schema(path)


def lists_of(trait: Trait, events: int, rng: np.random.Generator) -> MutableColumn:
    most = min(trait.length_max, 5)
    lengths = rng.integers(0, most + 1, events)
    if events and trait.length_max > most:
        lengths[events // 2] = trait.length_max
    present = None
    if trait.nullable:
        present = rng.random(events) < rng.choice([0.0, 0.5, 1.0])
        lengths[~present] = 0
    elements = replace(trait, length_max=0)
    values = values_of(elements, int(lengths.sum()), rng)
    return MutableColumn(values, present, offsets_of(lengths))


def values_of(trait: Trait, events: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (events, trait.size) if trait.size > 1 else (events,)
    if trait.type is TraitType.STRING:
        texts = np.empty(events, object)
        texts[:] = [f"é{number}" * (number % 3) for number in rng.integers(0, events + 1, events)]
        return texts
    if trait.type is TraitType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    size = int(np.prod(shape)) * trait.type.value_dtype.itemsize
    words = rng.integers(0, 256, size, dtype=np.uint8)
    return words.view(trait.type.value_dtype).reshape(shape)


def columns_of(
    schema: Schema, events: int, rng: np.random.Generator
) -> tuple[tuple[Trait, ...], dict[str, MutableColumn]]:
    traits = (EVENT_TS, EVENT_ID, *schema.traits)
    columns = {}
    for trait in traits:
        if trait.length_max:
            columns[trait.name] = lists_of(trait, events, rng)
            continue
        values, present = values_of(trait, events, rng), None
        if trait.nullable:
            present = rng.random(events) < rng.choice([0.0, 0.5, 1.0])
            values = values.copy()
            values[~present] = "" if trait.type is TraitType.STRING else 0
        columns[trait.name] = MutableColumn(values, present)
    return traits, columns


@pytest.mark.parametrize("events", [0, 1, 7, 8, 9, 300, 70_000])
def test_native_columns_are_those_of_python(schema: Schema, events: int) -> None:
    traits, columns = columns_of(schema, events, np.random.default_rng(events))
    record_format = RecordFormat(schema, 3)
    records = record_format.encode(columns, events)
    shown = record_format.to_wire(range(events), records)
    assert shown is not None
    message = online_pb2.MutableEvents.FromString(shown)
    assert list(message.arrival_ts) == list(range(events))
    for trait, column in zip(traits, message.columns, strict=True):
        expected = to_wire(
            trait.name,
            trait.type.value,
            0 if trait.length_max else trait.size,
            trait.nullable,
            columns[trait.name],
            trait.length_max,
        )
        assert column.SerializeToString() == expected.SerializeToString(), trait.name
    again = from_wire(message.columns, events, 1 << 40)
    decoded = record_format.decode(records)
    for name, values in columns.items():
        for found in (again[name], decoded[name]):
            assert_same(found, values, name)


def assert_same(found: MutableColumn, expected: MutableColumn, name: str) -> None:
    """Compares bit by bit, which lists of 70,000 Python values would make slow."""
    assert found.values.dtype == expected.values.dtype, name
    if expected.values.dtype == object:
        assert found.values.tolist() == expected.values.tolist(), name
    else:
        assert found.values.tobytes() == expected.values.tobytes(), name
    everywhere = np.ones(len(expected), np.bool_)
    here, there = (
        everywhere if column.present is None else column.present for column in (found, expected)
    )
    assert np.array_equal(here, there), name
    if expected.offsets is None:
        assert found.offsets is None, name
    else:
        assert found.offsets is not None, name
        assert np.array_equal(found.offsets, expected.offsets), name


def test_records_without_lists_are_as_they_were(tmp_path: Path) -> None:
    """Events that wait in a tier are read by every later version."""
    path = tmp_path / "schema.toml"
    lines = ["[g]", 'a = "int16"', 'b = { type = "string", sparse = true }', 'c = "float32"']
    path.write_text("\n".join([*lines, 'd = "string"']), encoding="utf-8")
    record_format = RecordFormat(read_schema(path), 258)
    columns = {
        "event_ts": MutableColumn(np.array([-2, 1])),
        "event_id": MutableColumn(np.array([7, 0]), np.array([True, False])),
        "a": MutableColumn(np.array([-2, 3], np.int16)),
        "b": MutableColumn(np.array(["é", ""], object), np.array([True, False])),
        "c": MutableColumn(np.array([1, -0.0], np.float32)),
        "d": MutableColumn(np.array(["xyz", "w"], object)),
    }
    records = record_format.encode(columns, 2)
    assert records == [
        struct.pack("<HqBqhBIfI", 258, -2, 1, 7, -2, 1, 2, 1, 3) + "éxyz".encode(),
        struct.pack("<HqBqhBIfI", 258, 1, 0, 0, 3, 0, 0, -0.0, 1) + b"w",
    ]


def test_damaged_and_foreign_records(schema: Schema) -> None:
    _, columns = columns_of(schema, 5, np.random.default_rng(0))
    record_format = RecordFormat(schema, 3)
    records = record_format.encode(columns, 5)
    foreign = RecordFormat(schema, 2)
    assert foreign.to_wire([0] * 5, records) is None
    with pytest.raises(ValueError, match="another format"):
        foreign.to_topic(records)
    for record in records:
        for size in range(len(record)):
            with pytest.raises(StoreCorruptError, match="cut off"):
                record_format.to_wire([0], [record[:size]])
            with pytest.raises(StoreCorruptError, match="cut off"):
                record_format.to_topic([record[:size]])
            if size < 19:
                with pytest.raises(StoreCorruptError, match="cut off"):
                    _native.record_order([record[:size]], TraitType.INT64)


def test_order(schema: Schema) -> None:
    """Order by time, presence of an id, and id; nothing where that does not decide."""
    rng = np.random.default_rng(0)
    _, columns = columns_of(schema, 200, rng)
    times, ids = rng.integers(-3, 3, 200), rng.permutation(200) - 100
    columns["event_ts"] = MutableColumn(times)
    columns["event_id"] = MutableColumn(ids)
    record_format = RecordFormat(schema, 0)
    records = record_format.encode(columns, 200)
    expected = sorted(range(200), key=lambda row: (times[row], ids[row]))
    assert _native.record_order(records, TraitType.INT64) == expected
    assert [record_format.order(records[row])[:2] for row in expected] == [
        (times[row], (1, ids[row])) for row in expected
    ]
    assert _native.record_order([*records, records[7]], TraitType.INT64) == []
