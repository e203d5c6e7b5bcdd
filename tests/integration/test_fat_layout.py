"""Fat rows in another layout: refused by name, converted exactly once their layout is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fat_tables import SCHEMA, hour_ts, slimmed
from support.worlds import thinrow
from thinrow.client import connect
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.errors import InputError, UsageError
from thinrow.jobs.layout import FatLayout
from thinrow.jobs.verify import verify
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.jobs.compared_rows import VerifyReport

DEFAULT = FatLayout()
TS = pa.list_(pa.int64())
SEEN = [[1, 2, 3], [1, 2, 3, 4], [5], [], [7, 7], [6, 6, 8]]
"""Events by hour: rows of users 1, 1, 2, 3, 4 and 5, each with the items ten times the hour."""
USERS = [1, 1, 2, 3, 4, 5]
REQUESTS = [hour_ts(10), hour_ts(30), hour_ts(10), hour_ts(10), hour_ts(10), hour_ts(10)]


def rows(
    times: list[list[Any]], items: list[list[Any]], path: Path, kinds: tuple[Any, Any] = (TS, TS)
) -> Path:
    table = {
        "user_id": pa.array(USERS),
        "request_ts": pa.array(REQUESTS),
        "event_ts": pa.array(times, kinds[0]),
        "item_id": pa.array(items, kinds[1]),
    }
    pq.write_table(pa.table(table), path)
    return path


def times() -> list[list[int]]:
    return [[hour_ts(hour) for hour in hours] for hours in SEEN]


def items() -> list[list[int]]:
    """Items apart even where times tie, so that their order shows."""
    return [[10 * hour + place for place, hour in enumerate(hours)] for hours in SEEN]


def padded(lists: list[list[Any]], value: object, side: str, length: int = 5) -> list[list[Any]]:
    fill = [[value] * (length - len(each)) for each in lists]
    pairs = zip(lists, fill, strict=True)
    return [more + each if side == "left" else each + more for each, more in pairs]


def flipped(lists: list[list[Any]]) -> list[list[Any]]:
    return [each[::-1] for each in lists]


def compare(folder: Path, fat: Path, layout: FatLayout, plain: Path) -> tuple[VerifyReport, Any]:
    """Slims, and compares the store with the rows given, and with plain ones."""
    done = slimmed(folder, [fat], layout=layout)
    compact(
        CompactionConfig(
            store=folder / "store",
            events=[folder / "events.parquet"],
            schema=folder / "schema.toml",
            watermark_ts=done.report.watermark_ts,
            shards=1,
        )
    )
    config = ServerConfig(store=folder / "store", listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        thin = folder / "rows.parquet"
        seen = verify(client, thin, fat, layout=layout)
        assert seen.rows_that_differ == 0, seen.differences
        again = verify(client, thin, plain)
        assert again.rows_that_differ == 0, again.differences
        error = None
        try:
            verify(client, thin, fat)
        except InputError as refused:
            error = refused
    return seen, error


def both(side: str, time: object, item: object, **kinds: Any) -> Any:  # noqa: ANN401
    return lambda path: rows(
        padded(times(), time, side), padded(items(), item, side), path, **kinds
    )


NULLS = (TS, TS)
FLOATS = (TS, pa.list_(pa.float64()))
STAMPS = (pa.list_(pa.timestamp("us", "UTC")), TS)


LAYOUTS: dict[str, tuple[Any, dict[str, str], str]] = {
    "newest first": (
        lambda path: rows(flipped(times()), flipped(items()), path),
        {"order": "newest-first"},
        "--order newest-first",
    ),
    "zeros at the left": (both("left", 0, 0), {"padding": "left"}, "--padding left"),
    "zeros at the right": (both("right", 0, 0), {"padding": "right"}, "--padding right"),
    "nulls at the left": (
        both("left", None, None),
        {"padding": "left", "padding_value": "null"},
        "--padding left --padding-value null",
    ),
    "nulls at the right": (
        both("right", None, None),
        {"padding": "right", "padding_value": "null"},
        "--padding right --padding-value null",
    ),
    "-1 for times only": (
        both("left", -1, 0),
        {"padding": "left", "padding_value": "-1"},
        "--padding left --padding-value -1",
    ),
    "a far time": (
        both("right", 253_402_300_799_000, 77),
        {"padding": "right", "padding_value": "253402300799000"},
        "--padding right --padding-value 253402300799000",
    ),
    "newest first with zeros behind": (
        lambda path: rows(
            padded(flipped(times()), 0, "right"), padded(flipped(items()), 0, "right"), path
        ),
        {"order": "newest-first", "padding": "right"},
        "--padding right",
    ),
    "longer traits": (
        lambda path: rows(times(), padded(items(), 0, "right"), path),
        {"padding": "right"},
        "give --padding left or right",
    ),
    "traits only": (
        lambda path: rows(padded(times(), hour_ts(0), "left"), padded(items(), 0, "left"), path),
        {"padding": "left", "padding_value": "item_id=0"},
        "--padding left --padding-value COLUMN=VALUE",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_refused_by_name_and_converted_once_named(tmp_path: Path, name: str) -> None:
    write, options, message = LAYOUTS[name]
    fat = write(tmp_path / "fat.parquet")
    plain = rows(times(), items(), tmp_path / "plain.parquet")
    with pytest.raises(InputError) as refused:
        slimmed(tmp_path, [fat], layout=DEFAULT)
    assert message in str(refused.value)
    assert not (tmp_path / "rows.parquet").exists()
    layout = FatLayout(**options)  # type: ignore[arg-type]
    seen, error = compare(tmp_path, fat, layout, plain)
    assert seen.events == sum(map(len, SEEN))
    if name != "longer traits":  # shown as a difference in length
        assert error is not None, "verify compared rows of another layout without a word"
        assert message in str(error)


def test_timestamps_are_padded_in_their_own_unit(tmp_path: Path) -> None:
    stamps = [[1000 * ts for ts in each] for each in padded(times(), 0, "left")]
    kinds = (pa.list_(pa.timestamp("us")), TS)
    fat = rows(stamps, padded(items(), 0, "left"), tmp_path / "fat.parquet", kinds)
    with pytest.raises(InputError, match="--padding left --padding-value 0,"):
        slimmed(tmp_path, [fat], layout=DEFAULT)
    plain = rows(times(), items(), tmp_path / "plain.parquet")
    compare(tmp_path, fat, FatLayout(padding="left"), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "right"}, "--padding left"),
        ({"padding": "left", "padding_value": "-1"}, "--padding-value 0"),
        ({"order": "newest-first"}, "padded at the left"),
        ({"padding": "left", "padding_value": "brand=x"}, "has no list brand"),
        ({"padding": "left", "padding_value": "zero"}, "no value of a list of int64"),
    ],
)
def test_a_layout_named_wrongly_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    fat = LAYOUTS["zeros at the left"][0](tmp_path / "fat.parquet")
    with pytest.raises(InputError) as refused:
        slimmed(tmp_path, [fat], layout=FatLayout(**options))
    assert message in str(refused.value)


def test_an_order_named_wrongly_is_refused(tmp_path: Path) -> None:
    plain = rows(times(), items(), tmp_path / "plain.parquet")
    with pytest.raises(InputError, match="--order oldest-first"):
        slimmed(tmp_path, [plain], layout=FatLayout(order="newest-first"))
    with pytest.raises(UsageError, match="COLUMN=VALUE"):
        FatLayout(padding_value="item_id=")


def test_rows_in_no_order_are_refused(tmp_path: Path) -> None:
    one = [*times()]
    one[1] = [one[1][2], one[1][0], one[1][1], one[1][3]]
    fat = rows(one, items(), tmp_path / "fat.parquet")
    with pytest.raises(InputError, match=r"not oldest first, such as that of user 1 .*do both"):
        slimmed(tmp_path, [fat], layout=DEFAULT)
    slimmed(tmp_path, [fat], layout=FatLayout(order="arrival"))


def test_one_row_among_others_the_other_way_round_is_refused(tmp_path: Path) -> None:
    one = [*times()]
    one[1] = one[1][::-1]
    fat = rows(one, items(), tmp_path / "fat.parquet")
    with pytest.raises(InputError, match="2 rows ascend, 1 descend, 0 do both"):
        slimmed(tmp_path, [fat], layout=DEFAULT)


def test_rows_that_show_no_layout_confuse_nothing(tmp_path: Path) -> None:
    single = [[hour_ts(1)], [hour_ts(2)] * 3, [], [hour_ts(3)], [], [hour_ts(4)]]
    same = [[0], [0, 5, 0], [], [7], [], [0]]
    fat = rows(single, same, tmp_path / "fat.parquet")
    slimmed(tmp_path, [fat], layout=DEFAULT)
    newest = rows(flipped(times()), flipped(items()), tmp_path / "newest.parquet")
    with pytest.raises(InputError, match="newest first"):
        slimmed(tmp_path, [fat, newest], layout=DEFAULT)


def test_events_that_look_like_padding_can_be_kept(tmp_path: Path) -> None:
    fat = LAYOUTS["traits only"][0](tmp_path / "fat.parquet")
    done = slimmed(tmp_path, [fat], layout=FatLayout(padding="none"))
    assert done.report.facts.fat_events == 30


def test_padding_of_every_type(tmp_path: Path) -> None:
    schema = SCHEMA + (
        'price = "float64"\nliked = "bool"\nbrand = "string"\n'
        'taste = { type = "float32", size = 2 }\n'
    )
    first = pq.read_table(
        rows(padded(times(), 0, "left"), padded(items(), 0, "left"), tmp_path / "f")
    )
    more = {
        "price": padded([[1.5] * len(each) for each in SEEN], np.nan, "left"),
        "liked": padded([[True] * len(each) for each in SEEN], False, "left"),
        "brand": padded([["é"] * len(each) for each in SEEN], "", "left"),
        "taste": padded([[[1.0, 2.0]] * len(each) for each in SEEN], [0.0, 0.0], "left"),
    }
    for name, values in more.items():
        kind = pa.list_(pa.list_(pa.float32(), 2)) if name == "taste" else None
        first = first.append_column(name, pa.array(values, kind))
    pq.write_table(first, tmp_path / "fat.parquet")
    done = slimmed(tmp_path, [tmp_path / "fat.parquet"], schema, layout=FatLayout(padding="left"))
    assert done.report.facts.fat_events == sum(map(len, SEEN))
    # With plausible times instead, the traits alone show.
    stamped = first.set_column(2, "event_ts", pa.array(padded(times(), hour_ts(0), "left"), TS))
    pq.write_table(stamped, tmp_path / "fat.parquet")
    with pytest.raises(InputError, match="without a value of any trait"):
        slimmed(tmp_path, [tmp_path / "fat.parquet"], schema, layout=DEFAULT)


def test_the_options_on_the_command_line(tmp_path: Path) -> None:
    fat = LAYOUTS["newest first with zeros behind"][0](tmp_path / "fat.parquet")
    (tmp_path / "schema.toml").write_text(SCHEMA)
    command = ["slim", fat, "--schema", tmp_path / "schema.toml"]
    command += [
        "--out-events",
        tmp_path / "events.parquet",
        "--out-rows",
        tmp_path / "thin.parquet",
    ]
    refused = thinrow(*command)
    assert refused.returncode != 0
    assert "--padding right" in " ".join(refused.stderr.split())
    done = thinrow(*command, "--order", "newest-first", "--padding", "right")
    assert done.returncode == 0, done.stderr
