"""`thinrow explore`: pointers that name a part of a history, or one that the store cannot prove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import pytest
from support.explored import CHROMIUM, Page, browsed, said
from support.small_store import copied
from support.thin_rows import EVENT, UIH
from support.worlds import DAY_MS, START_TS, World, days, new_world
from thinrow.compaction.compact import compact
from thinrow.explore.serving import explorer
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STAYS, ERASED, EXPIRED = 1, 2, 3
EVENTS, FIRST_EVENTS = 30, 20
WATERMARK_TS = START_TS + 3 * DAY_MS
"""Watermark of the first of two generations; it has the first events."""
TIMES = [WATERMARK_TS + (n - FIRST_EVENTS) // 2 * 3_600_000 for n in range(EVENTS)]
"""Two events at each, at the same millisecond."""
ROWS: dict[str, dict[str, Any]] = {
    "window": {"start_ts": TIMES[6]},
    "longest": {"max_length": 7},
    "snapshot": {"carried": range(20, 24), "request_ts": TIMES[24]},
    "older": {"end_ts": TIMES[12]},
    "cut": {"max_length": 11},
    "EXPIRED": {"user_id": EXPIRED},
    "ERASED": {"user_id": ERASED},
    "NOT_READY": {"end_ts": START_TS + 9 * DAY_MS, "request_ts": START_TS + 9 * DAY_MS},
    "INVALID": {"request_ts": WATERMARK_TS - 1},
}
NUMBERS = {name: number for number, name in enumerate(ROWS)}


def event(number: int) -> dict[str, Any]:
    """Returns an event without an id."""
    price = float(number)
    return {"event_ts": TIMES[number], "item_id": number, "brand": "a", "rating": 1, "price": price}


def thin_row(
    user_id: int = STAYS,
    start_ts: int = 0,
    end_ts: int = WATERMARK_TS,
    max_length: int = 0,
    request_ts: int = WATERMARK_TS + DAY_MS,
    carried: range = range(0),
) -> dict[str, Any]:
    """Returns a thin row without a digest."""
    uih = {"start_ts": start_ts, "end_ts": end_ts, "max_length": max_length, "digest": 0}
    events = [{**event(n), "arrival_ts": TIMES[n]} for n in carried]
    return {"user_id": user_id, "request_ts": request_ts, "uih": uih, "mutable": events}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two generations, the second of which drops days, and a user; and thin rows."""
    world = new_world(tmp_path_factory.mktemp("pointed"))
    users = {STAYS: EVENTS, ERASED: FIRST_EVENTS, EXPIRED: FIRST_EVENTS}
    events = [{"user_id": user, **event(n)} for user, count in users.items() for n in range(count)]
    early = [e for e in events if e["event_ts"] < WATERMARK_TS]
    for each in early[-FIRST_EVENTS:][: FIRST_EVENTS // 2]:
        each["event_ts"] -= 2 * DAY_MS
    late = [e for e in events if e["event_ts"] >= WATERMARK_TS]
    compact(world.compaction([world.write("early.parquet", pa.Table.from_pylist(early))], 3))
    users_file = world.folder / "erase.txt"
    users_file.write_text(f"{ERASED}\n", encoding="utf-8")
    path = world.write("late.parquet", pa.Table.from_pylist(late))
    compact(
        world.compaction([path], 5, erase_users=users_file, lookback_ms=days(5)[0] - days(2)[0])
    )
    fields = [("user_id", pa.int64()), ("request_ts", pa.int64()), ("uih", UIH)]
    schema = pa.schema([*fields, ("mutable", pa.list_(EVENT))])
    rows = pa.Table.from_pylist([thin_row(**given) for given in ROWS.values()], schema)
    world.write("rows.parquet", rows)
    return world


@pytest.fixture(scope="module")
def page(world: World) -> Iterator[Page]:
    rows = world.folder / "rows.parquet"
    with explorer([str(world.store)], [str(rows)]) as address:
        yield Page(address)


def seen(page: Page, *rows: str) -> list[list[tuple[int, str]]]:
    """Returns the events by number, and how each moment, a row or now, saw them."""
    moments = ["now" if row == "now" else f"row:{NUMBERS[row]}" for row in rows]
    given: dict[str, Any] = dict(zip("ab", moments, strict=False))
    view = page.get("/api/view", **given)
    item = [trait["name"] for trait in view["traits"]].index("item_id")
    return [
        [(int(event["values"][item]), event["seen"][n]["state"]) for event in view["events"]]
        for n in range(len(rows))
    ]


def runs(**states: range) -> list[tuple[int, str]]:
    """Returns events by number, each with its state."""
    return [(number, state) for state, numbers in states.items() for number in numbers]


def test_what_a_pointer_leaves_out_is_outside(page: Page) -> None:
    later = range(FIRST_EVENTS, EVENTS)
    for name, first in (("window", 6), ("longest", 13)):
        within = range(first, FIRST_EVENTS)
        assert seen(page, name, "now") == [
            runs(outside=range(first), store=within, later=later),
            runs(store=range(EVENTS)),
        ]
    assert seen(page, "window") == [runs(store=range(6, FIRST_EVENTS), later=later)]


def test_events_without_ids_are_found_in_the_store(page: Page) -> None:
    assert seen(page, "snapshot") == [
        runs(store=range(20), snapshot=range(20, 24), later=range(24, EVENTS))
    ]


def test_filled_values_are_marked_and_do_not_part_events(
    world: World, page: Page, tmp_path: Path
) -> None:
    before = seen(page, "snapshot")
    filled = copied(world, tmp_path / "filled")
    prices = pa.table({"item_id": range(EVENTS), "price": [n + 0.5 for n in range(EVENTS)]})
    values = filled.write("prices.parquet", prices)
    fill(FillConfig(group="feedback", values=values, store=filled.store))
    rows = filled.folder / "rows.parquet"
    with explorer([str(filled.store)], [str(rows)]) as address:
        filled_page = Page(address)
        assert seen(filled_page, "snapshot") == before
        moment = f"row:{NUMBERS['snapshot']}"
        traits = filled_page.get("/api/view", a=moment)["traits"]
        assert [trait["name"] for trait in traits if trait["filled_before_ts"] is not None] == [
            "price"
        ]
        if CHROMIUM is not None:
            drawn = browsed(f"http://{address}/#a={moment}", 1280, tmp_path)
            assert drawn.count('class="text filled"') == EVENTS
            assert "(filled later)" in drawn


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("EXPIRED", "Retention has dropped"),
        ("ERASED", "erased on request"),
        ("NOT_READY", "past the store's watermark"),
        ("INVALID", "makes no sense"),
    ],
)
def test_nothing_is_seen_where_the_status_denies_it(page: Page, status: str, sentence: str) -> None:
    view = page.get("/api/view", a=f"row:{NUMBERS[status]}", b="now")
    moment = view["moments"][0]
    assert moment["status"] == status and not moment["is_served"] and sentence in said(view)
    found = [(event["visible_ts"] >= moment["end_ts"], event["seen"]) for event in view["events"]]
    assert bool(found) == (status != "ERASED")
    for is_later, (one, other) in found:
        assert one["state"] == ("later" if is_later else "unproven")
        assert other["state"] == ("unproven" if status == "EXPIRED" else "store")


def test_a_model_may_be_served_where_a_longer_one_is_not(page: Page) -> None:
    view = page.get("/api/view", a=f"row:{NUMBERS['EXPIRED']}", length=4)
    assert view["moments"][0]["status"] == "OK"
    assert said(view) == (
        "What the model reads is exact; retention has dropped older events, so no others are "
        "proven."
    )
    found = [(event["seen"][0]["state"], event["seen"][0]["kept"]) for event in view["events"]]
    assert found == [("unproven", False)] * 6 + [("store", True)] * 4


def test_what_a_full_list_leaves_out_is_unlisted(page: Page, tmp_path: Path) -> None:
    with mock.patch.multiple("thinrow.explore.histories", EVENTS_MAX=10, LATER_EVENTS_MAX=20):
        query: dict[str, Any] = {"a": f"row:{NUMBERS['cut']}", "b": f"row:{NUMBERS['older']}"}
        assert page.get("/api/view", **query)["has_more"]
        # One of the two events of a millisecond is before the pointer's longest part.
        assert seen(page, "cut", "older") == [
            runs(
                outside=range(2, 9), unlisted=range(9, 10), store=range(10, 20), later=range(20, 22)
            ),
            runs(store=range(2, 12), later=range(12, 22)),
        ]
        assert seen(page, "now", "longest")[0] == runs(unlisted=range(12, 20), store=range(20, 30))
        if CHROMIUM is not None:
            drawn = browsed(f"http://{page.address}/#a={query['a']}&b={query['b']}", 400, tmp_path)
            assert "2 events were seen by both, 7 by B only, 8 by A only." in drawn
            assert drawn.count('class="differs"') == 15
            assert drawn.count("older than the list") == 1
    with mock.patch.multiple("thinrow.explore.histories", EVENTS_MAX=3, LATER_EVENTS_MAX=6):
        assert seen(page, "snapshot") == [
            runs(unlisted=range(20, 21), snapshot=range(21, 24), later=range(24, 26))
        ]
    assert not page.get("/api/view", **query)["has_more"]
