"""Arrow types that other writers choose for a trait's values."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from support.worlds import days, new_world, pointers_to, read_store, some_events
from thinrow.client import Projection
from thinrow.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def stored(folder: Path, trait: str, values: pa.Array | list[Any]) -> Any:
    """Compacts events of one user with these values of a trait x, and reads them back."""
    world = new_world(folder, f"[g]\nx = {{ {trait}, sparse = true }}\n")
    values = pa.array(values) if isinstance(values, list) else values
    events = some_events(len(values), users=1).select(["user_id", "event_ts"])
    world.compact(events.sort_by("event_ts").append_column("x", values), 3)
    pointers = pointers_to(days(3), users=[1])
    [(_, answer)] = read_store(world.store, pointers, Projection(traits=("x",)))
    return answer["x"]


@pytest.mark.parametrize(
    ("trait", "values", "read"),
    [
        pytest.param("int64", [1.0, None], [1, None], id="pandas stores integers with nulls so"),
        pytest.param("int64", [1.0, float("nan")], [1, None], id="or with NaN"),
        pytest.param("categorical", [1.0, None], [1, None], id="categorical"),
        pytest.param("int8", pa.array([3.0], pa.float16()), [3], id="float16"),
        pytest.param("int64", pa.array([9, None], pa.decimal128(38, 0)), [9, None], id="Snowflake"),
        pytest.param("uint64", pa.array([2**63], pa.decimal128(38, 0)), [2**63], id="64 bits"),
        pytest.param("float64", [Decimal("9.75"), None], [9.75, None], id="prices"),
        pytest.param("float16", [Decimal("9.75"), None], [9.75, None], id="short prices"),
        pytest.param("string", [b"a", None], ["a", None], id="Impala stores text as bytes"),
        pytest.param("string", pa.array(["{}", None], pa.json_()), ["{}", None], id="JSON"),
        pytest.param("bool", pa.array([0, 1, None], pa.int8()), [False, True, None], id="0 and 1"),
        pytest.param("bool", pa.array([None], pa.uint8()), [None], id="neither"),
        pytest.param("float32", [float("inf"), 1.5], [float("inf"), 1.5], id="infinite before"),
        pytest.param("float32, 2", [[Decimal("1.5")] * 2, None], [[1.5, 1.5], None], id="vectors"),
        pytest.param("float32, 2", [[1, -2], None], [[1.0, -2.0], None], id="whole vectors"),
    ],
)
def test_values_of_other_types_are_stored_exactly(
    tmp_path: Path, trait: str, values: pa.Array | list[Any], read: list[Any]
) -> None:
    assert stored(tmp_path, declared(trait), values) == read


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("float32", [1e300, None]),
        ("float16", [70000]),
        ("float16", pa.array([70000], pa.float32())),
        ("float16", [Decimal("70000.5")]),
        ("float32, 2", [[1e300, 1.0], None]),
        ("float16, 2", pa.array([[1e5, 1.0]], pa.list_(pa.float32(), 2))),
    ],
)
def test_finite_numbers_do_not_become_infinite(
    tmp_path: Path, trait: str, values: pa.Array | list[Any]
) -> None:
    with pytest.raises(InputError, match=r"x does not fit into .* too large; give .* wider type"):
        stored(tmp_path, declared(trait), values)


@pytest.mark.parametrize(
    ("trait", "values", "says"),
    [
        ("int64", [1.5], "1.5"),
        ("int64", [2.0**53], "rounds integers from 9007199254740992 on"),
        ("int64", pa.array([2.0**24], pa.float32()), "rounds integers from 16777216 on"),
        ("int8", pa.array([200], pa.decimal128(38, 0)), "out of bounds"),
        ("int64", [Decimal("9.5")], "data loss"),
        ("bool", pa.array([0, 2], pa.int8()), "the schema says bool"),
        ("string", [b"\xff"], "UTF8"),
    ],
)
def test_values_that_would_change_are_refused(
    tmp_path: Path, trait: str, values: pa.Array | list[Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        stored(tmp_path, declared(trait), values)


def declared(trait: str) -> str:
    """A trait's line: its type, and for a vector its size."""
    name, _, size = trait.partition(", ")
    return f'type = "{name}", size = {size}' if size else f'type = "{name}"'
