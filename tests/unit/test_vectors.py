"""The published test vectors: up to date, and what the code itself decodes."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.paths import DOCS
from thinrow.client.torch.kafka_messages import OFFSET_BITS, ROW_BITS
from thinrow.core.shards import shard_of, xxh3
from thinrow.core.wire.response import Column
from thinrow.core.wire.widen import NarrowColumn
from thinrow.errors import ThinRowError
from thinrow.events.user_ids import UserIdReader
from thinrow.online.records import RecordFormat
from thinrow.online.topic.decoding import MessageDecoder
from thinrow.online.topic.messages import encode_messages, partition_of
from thinrow.schema import parse_schema
from thinrow.v1 import materialization_pb2 as wire
from tools.make_vectors import as_json

FILE = DOCS / "reference" / "test-vectors.json"
VECTORS: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))


def test_the_file_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == as_json(), "Run `make vectors` and commit the file."


def names(kind: str) -> list[str]:
    return [vector["name"] for vector in VECTORS[kind]]


def decoded(vector: dict[str, Any]) -> list[Any]:
    """The values, as the client widens them and the vectors write them."""
    message = wire.Column.FromString(base64.b64decode(vector["message"]))
    lengths = np.array(vector["block_lengths"], np.int64)
    column = NarrowColumn(Column.of(message), lengths)
    events = int(lengths.sum())
    listed = column.kind.listed
    count = int(column.lengths.sum()) if listed else events
    values = np.zeros((count, *column.kind.shape), column.kind.dtype)
    present = np.zeros(events, np.bool_) if message.nullable else None
    column.write(values, present)
    written = [[each] for each in values] if values.ndim == 1 else values
    shown = [[shown_value(vector["type"], each, message) for each in row] for row in written]
    there = [True] * events if present is None else present.tolist()
    if listed:
        elements = [element for row in shown for element in row]
        ends = column.element_offsets.tolist()
        shown = [elements[start:stop] for start, stop in itertools.pairwise(ends)]
    scalar = message.vector_size == 1
    return [
        (row[0] if scalar else row) if is_there else None
        for row, is_there in zip(shown, there, strict=True)
    ]


def shown_value(kind: str, value: Any, message: wire.Column) -> Any:  # noqa: ANN401
    if "FLOAT" in kind:
        bits = int(value.view(f"u{value.itemsize}"))
        return f"0x{bits:0{2 * value.itemsize}x}"
    if "BOOL" in kind:
        return bool(value)
    if "STRING" in kind:
        return message.strings[value] if message.strings else None
    return str(int(value))


@pytest.mark.parametrize("vector", VECTORS["columns"], ids=names("columns"))
def test_columns(vector: dict[str, Any]) -> None:
    assert decoded(vector) == vector["values"]
    message = wire.Column.FromString(base64.b64decode(vector["message"]))
    assert message.widths.hex() == vector["widths"] and message.data.hex() == vector["data"]
    assert [str(base) for base in message.bases] == vector["bases"]


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=names("malformed"))
def test_malformed_columns_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ThinRowError, match="malformed"):
        decoded(vector)


def test_every_type_width_and_null_pattern_is_there() -> None:
    for kind in set(wire.TraitType.keys()) - {"TRAIT_TYPE_UNSPECIFIED"}:
        mine = [vector for vector in VECTORS["columns"] if vector["type"] == kind]
        widths = {width for vector in mine for width in bytes.fromhex(vector["widths"])}
        assert widths == {0, 1, 2, 4, 8}, kind
        nulls = {
            tuple(sorted({value is None for value in vector["values"]}))
            for vector in mine
            if vector["nullable"]
        }
        assert nulls == {(False,), (True,), (False, True)}, kind


def test_shards() -> None:
    for entry in VECTORS["shards"]:
        user_id = np.array([int(entry["user_id"])], np.int64)
        assert f"0x{int(xxh3(user_id.view(np.uint64))[0]):016x}" == entry["xxh3"]
        for count, shard in entry["shard"].items():
            assert shard_of(user_id, int(count)).tolist() == [shard]


def test_user_keys() -> None:
    for entry in VECTORS["user_keys"]:
        column = pa.chunked_array([pa.array([entry["id"]])])
        if entry["kind"] in ("int64", "uint64"):
            column = pa.chunked_array([pa.array([int(entry["id"])], entry["kind"])])
        keys = UserIdReader(entry["kind"]).keys("vectors", column)  # type: ignore[arg-type]
        assert str(keys[0]) == entry["key"]
        for count, shard in entry["shard"].items():
            assert shard_of(keys, int(count)).tolist() == [shard]


def test_user_events() -> None:
    """Messages lie in the partition where a server finds their users, and hold what pages show."""
    text = '[g]\nitem_id = "int64"\nscore = "float32"\nsurface = "string"\n'
    text += 'taste = { type = "float32", size = 2 }\n'
    for entry in VECTORS["user_events"]:
        schema = parse_schema(f'[user]\nid = "{entry["kind"]}"\n' + text)
        record_format = RecordFormat(schema, 0)
        value = base64.b64decode(entry["value"])
        for count, number in entry["partition"].items():
            decoder = MessageDecoder(record_format, int(count))
            [found] = decoder.decode([value], [number])
            assert not found.refused and found.counts == [1]
            columns = record_format.decode(found.batch.records)
            assert columns["event_ts"].to_list() == [1_700_000_000_000]
            assert columns["event_id"].to_list() == [42]
            traits = [columns[t].to_list() for t in ("item_id", "score", "surface", "taste")]
            assert traits == [[-7], [0.5], ["home"], [[1.0, -2.0]]]
            [again] = encode_messages(found.batch, record_format)
            assert (again.key, partition_of(again.user_key, int(count))) == (
                entry["id"].encode(),
                number,
            )
            if int(count) > 1:
                [elsewhere] = decoder.decode([value], [(number + 1) % int(count)])
                assert "another partition" in elsewhere.refused


def test_kafka_example_ids() -> None:
    for entry in VECTORS["kafka_example_ids"]:
        message = entry["partition"] << OFFSET_BITS | int(entry["offset"])
        assert str(message << ROW_BITS | entry["row"]) == entry["example_id"]
