"""The oracle itself, held to examples worked by hand from docs/concepts/semantics.md."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.oracle import (
    DAY_MS,
    Event,
    Oracle,
    Past,
    Pointer,
    Report,
    Run,
    Schema,
    Trait,
    Wanted,
    column,
    columns,
    fat_rows,
    order,
)

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = Schema(
    {"what": [Trait("film", "int64", key=True), Trait("stars", "float32", sparse=True)]}
)
HOUR = 3_600_000
MINUTE = 60_000
MON = 1_704_067_200_000  # 2024-01-01 00:00 UTC, a Monday
TUE, WED, THU, FRI = (MON + n * DAY_MS for n in range(1, 5))
ANN, BOB = 1, 2
ALL = Wanted()


def event(user: int, event_ts: int, arrival_ts: int | None = None, **known: int) -> Event:
    arrival_ts = event_ts if arrival_ts is None else arrival_ts
    return Event(user, event_ts, arrival_ts, known.get("id"), {"film": known.get("film", 0)})


def films(store: Oracle, pointer: Pointer, request_ts: int, wanted: Wanted = ALL) -> object:
    status, sequence = store.answer(pointer, wanted, [], request_ts)
    return column(sequence, "film", store.schema) if status == "OK" else status


def built(*runs: Run) -> Oracle:
    store = Oracle(SCHEMA)
    for run in runs:
        store.compact(run)
    return store


def visible(store: Oracle, user: int) -> list[int | None]:
    return [entry.visible_ts for entry in store.kept[user]]


def test_late_arrival() -> None:
    old = event(ANN, MON + 9 * HOUR, film=1)
    late = event(ANN, MON + 10 * HOUR, WED + 9 * HOUR, film=7)
    store = built(Run([late, old], THU, cadence_ms=DAY_MS))
    assert store.watermarks == [TUE, WED, THU]
    assert visible(store, ANN) == [MON + 9 * HOUR, WED]
    assert films(store, Pointer(ANN, 0, WED), WED + 8 * HOUR) == [1]
    assert films(store, Pointer(ANN, 0, THU), THU + 8 * HOUR) == [1, 7]


def test_clock_ahead() -> None:
    ahead = event(ANN, FRI, WED + HOUR, film=7)
    store = built(Run([event(ANN, MON), ahead], THU, cadence_ms=DAY_MS))
    assert visible(store, ANN) == [MON, THU - 1]
    # The first generation clamps from above only.
    assert visible(built(Run([ahead, event(ANN, 5, WED)], THU)), ANN) == [5, THU - 1]


def test_duplicate_in_one_input() -> None:
    click = event(BOB, MON, MON + 10 * HOUR, id=42, film=1)
    again = replace(click, arrival_ts=click.arrival_ts + 5 * MINUTE, traits={"film": 2})
    other = [event(ANN, MON, id=42), event(BOB, MON), event(BOB, MON)]
    store = Oracle(SCHEMA)
    report = store.compact(Run([again, click, *other], TUE))
    assert report == Report(rows_read=5, duplicates=1, events_added=4)
    assert films(store, Pointer(BOB, 0, TUE), TUE) == [0, 0, 1]
    # Among equals the first in order: the smaller event_ts, then the smaller film.
    rivals = [event(BOB, MON + 1, TUE, id=1, film=n) for n in (4, 3)]
    store = built(Run([*rivals, event(BOB, MON + 2, TUE, id=1)], WED))
    assert films(store, Pointer(BOB, 0, WED), WED) == [3]


@pytest.mark.parametrize(("window_ms", "kept"), [(DAY_MS, 1), (HOUR, 2)])
def test_duplicate_next_day(window_ms: int, kept: int) -> None:
    click = event(BOB, MON + 10 * HOUR, id=42)
    again = replace(click, event_ts=TUE + HOUR, arrival_ts=TUE + HOUR)
    store = built(Run([click], TUE))
    report = store.compact(Run([again], WED, dedup_window_ms=window_ms))
    assert report == Report(rows_read=1, duplicates=2 - kept, events_added=kept - 1)
    assert len(store.kept[BOB]) == kept


def test_overlapping_input() -> None:
    first = [event(BOB, MON, id=1, film=1), event(BOB, TUE, id=2, film=2)]
    late = event(BOB, MON + HOUR, film=3)
    store = Oracle(SCHEMA)
    assert store.compact(Run(first, TUE)) == Report(rows_read=2, left_for_later=1, events_added=1)
    skipping = [*first, late, replace(first[0], arrival_ts=TUE + HOUR)]
    # The resent event 1 goes with the late one that it repeats.
    report = store.compact(Run(skipping, WED))
    assert report == Report(rows_read=4, duplicates=1, late=2, events_added=1)
    assert films(store, Pointer(BOB, 0, WED), WED) == [1, 2]


def test_accept_late() -> None:
    first = event(BOB, MON, id=1, film=1)
    late = event(BOB, MON + HOUR, film=3)
    store = built(Run([first], TUE))
    report = store.compact(Run([first, late], WED, accept_late=True))
    assert report == Report(rows_read=2, duplicates=1, events_added=1)
    assert visible(store, BOB) == [MON, TUE]
    assert films(store, Pointer(BOB, 0, TUE), TUE) == [1]


def test_cuts_of_a_run() -> None:
    store = built(Run([event(ANN, MON)], MON + 2 * HOUR, cadence_ms=HOUR))
    assert store.watermarks == [MON + HOUR, MON + 2 * HOUR]
    store.compact(Run([], MON + 4 * HOUR + 5, cadence_ms=HOUR))
    assert store.watermarks[2:] == [MON + 3 * HOUR, MON + 4 * HOUR, MON + 4 * HOUR + 5]
    assert built(Run([], MON + 1, cadence_ms=HOUR)).watermarks == [MON + 1]


def test_window_length_and_truncation() -> None:
    store = built(Run([event(ANN, MON + n, film=n) for n in range(5)], TUE))
    assert films(store, Pointer(ANN, MON + 1, TUE), TUE) == [1, 2, 3, 4]
    assert films(store, Pointer(ANN, MON + 1, TUE, 3), TUE) == [2, 3, 4]
    assert films(store, Pointer(ANN, MON + 1, TUE, 3), TUE, Wanted(2)) == [3, 4]
    assert films(store, Pointer(ANN, MON + 1, TUE, 3), TUE, Wanted(2, head=True)) == [2, 3]
    assert films(store, Pointer(99, 0, TUE), TUE) == []
    snapshot = [event(ANN, TUE, film=5)]
    for wanted, expected in ((Wanted(2), [4, 5]), (Wanted(5, head=True), [0, 1, 2, 3, 4])):
        status, sequence = store.answer(Pointer(ANN, 0, TUE), wanted, snapshot, TUE + 1)
        assert (status, column(sequence, "film", SCHEMA)) == ("OK", expected)


def test_before_1970() -> None:
    store = built(Run([event(ANN, -5, film=1), event(ANN, 5, film=2)], 10))
    assert films(store, Pointer(ANN, 0, 10), 10) == [1, 2]
    assert films(store, Pointer(ANN, -4, 10), 10) == [2]


def test_pointers_that_make_no_sense() -> None:
    store = built(Run([event(ANN, MON)], WED, cadence_ms=DAY_MS))
    noon = TUE + 12 * HOUR
    assert films(store, Pointer(ANN, WED, TUE), WED) == "INVALID"
    assert films(store, Pointer(ANN, 0, TUE, -1), WED) == "INVALID"
    assert films(store, Pointer(ANN, 0, TUE), TUE - 1) == "INVALID"
    # Between two watermarks: only once the generation that ends the interval was cut.
    assert films(store, Pointer(ANN, 0, noon), WED - 1) == "INVALID"
    assert films(store, Pointer(ANN, 0, noon), WED) == [0]
    assert films(store, Pointer(ANN, noon, noon), noon) == []
    assert films(store, Pointer(ANN, 0, WED + 1), THU) == "NOT_READY"
    assert films(store, Pointer(ANN, THU, THU), THU) == []


def test_mutable_events_from_elsewhere() -> None:
    store = built(Run([event(ANN, MON)], TUE))
    for arrival_ts, expected in (
        (TUE - 1, "INVALID"),
        (TUE, "OK"),
        (TUE + 4, "OK"),
        (TUE + 5, "INVALID"),
    ):
        snapshot = [event(ANN, MON, arrival_ts)]
        assert store.answer(Pointer(ANN, 0, TUE), ALL, snapshot, TUE + 5)[0] == expected


def test_retention() -> None:
    events = [event(ANN, MON + n * HOUR, film=n) for n in range(24)]
    store = built(Run(events, TUE, lookback_ms=4 * HOUR))  # drops 0..19
    assert films(store, Pointer(ANN, 0, TUE), TUE) == "EXPIRED"
    assert films(store, Pointer(ANN, MON + 19 * HOUR, TUE), TUE) == "EXPIRED"
    assert films(store, Pointer(ANN, MON + 19 * HOUR + 1, TUE), TUE) == [20, 21, 22, 23]
    assert films(store, Pointer(ANN, 0, TUE, 4), TUE) == [20, 21, 22, 23]
    assert films(store, Pointer(ANN, 0, TUE, 5), TUE) == "EXPIRED"
    assert films(store, Pointer(ANN, 0, TUE, 5), TUE, Wanted(4)) == [20, 21, 22, 23]
    assert films(store, Pointer(ANN, 0, TUE, 5), TUE, Wanted(4, head=True)) == "EXPIRED"
    assert films(store, Pointer(ANN, 0, TUE, 4), TUE, Wanted(2, head=True)) == [20, 21]
    # The snapshot fills what the store need not.
    snapshot = [event(ANN, TUE, film=24)]
    status, sequence = store.answer(Pointer(ANN, 0, TUE), Wanted(5), snapshot, TUE + 1)
    assert (status, len(sequence)) == ("OK", 5)
    # What is dropped stays dropped.
    store.compact(Run([], WED))
    assert films(store, Pointer(ANN, 0, TUE), WED) == "EXPIRED"


def test_erasure() -> None:
    store = built(Run([event(ANN, MON, film=1), event(BOB, MON)], TUE, lookback_ms=1))
    new = [event(ANN, TUE, film=2), event(ANN, WED, film=3)]
    report = store.compact(Run(new, WED, erase=frozenset([ANN, 99])))
    assert report == Report(2, left_for_later=1, erased_users=2, events_added=1)
    assert films(store, Pointer(ANN, 0, TUE), THU) == "ERASED"
    assert films(store, Pointer(99, 0, TUE), THU) == "ERASED"
    assert films(store, Pointer(BOB, 0, TUE), THU) == "EXPIRED"
    assert films(store, Pointer(ANN, 0, WED), THU) == []
    store.compact(Run(new, THU))
    assert films(store, Pointer(ANN, 0, THU), THU) == [3]
    assert films(store, Pointer(ANN, 0, WED), THU) == []


def test_digest() -> None:
    events = [event(ANN, MON + n, film=n) for n in range(3)]
    one, other = built(Run(events, TUE)), built(Run(events[:2], TUE))
    assert one.digest_content(ANN, MON + 2) == other.digest_content(ANN, MON + 2)
    assert one.digest_content(ANN, TUE) != other.digest_content(ANN, TUE)
    assert one.digest_content(BOB, TUE) == ()
    assert one.digest_content(ANN, TUE + 1) is None
    result = one.digest_content(ANN, TUE)
    one.compact(Run([], TUE + 2, lookback_ms=DAY_MS))
    assert one.digest_content(ANN, MON + 2) == result[:2]  # type: ignore[index]
    assert one.digest_content(ANN, MON + 1) is None
    # Not a key trait.
    starry = [replace(old, traits={"film": n, "stars": 1.0}) for n, old in enumerate(events)]
    assert built(Run(starry, TUE)).digest_content(ANN, TUE) == result
    assert one.answer(Pointer(ANN, MON + 2, TUE), ALL, [], TUE, False)[0] == "DIGEST_MISMATCH"
    assert one.answer(Pointer(ANN, TUE, TUE), ALL, [], TUE, False)[0] == "OK"


def test_what_a_request_sees() -> None:
    events = [
        event(ANN, MON + HOUR, film=1),
        event(ANN, MON + 10 * HOUR, WED + 9 * HOUR, film=7),
        event(ANN, WED + HOUR, film=2, id=5),
        event(ANN, WED + HOUR, WED + 2 * HOUR, film=3, id=5),
    ]

    def seen(past: Past, request_ts: int) -> tuple[int, int, list[object]]:
        pointer, mutable, sequence = past.sees(ANN, request_ts)
        shown = column(sequence, "film", SCHEMA)
        assert shown[len(shown) - len(mutable) :] == [old.traits["film"] for old in mutable]
        return pointer.end_ts, len(mutable), list(shown)

    daily = Past(events, SCHEMA, DAY_MS)
    # Before the first generation, and the label's own millisecond.
    assert seen(daily, MON + HOUR) == (0, 0, [])
    assert seen(daily, MON + HOUR + 1) == (0, 1, [1])
    assert seen(daily, TUE - 1) == (0, 1, [1])
    assert seen(daily, TUE) == (TUE, 0, [1])
    assert seen(daily, WED + HOUR) == (WED, 0, [1])
    assert seen(daily, WED + HOUR + 1) == (WED, 1, [1, 2])
    assert seen(daily, WED + 9 * HOUR + 1) == (WED, 2, [1, 7, 2])
    assert seen(daily, THU) == (THU, 0, [1, 7, 2])
    # Published six hours after the cut.
    slow = Past(events, SCHEMA, DAY_MS, publish_delay_ms=6 * HOUR)
    assert seen(slow, TUE + 6 * HOUR - 1) == (0, 1, [1])
    assert seen(slow, TUE + 6 * HOUR) == (TUE, 0, [1])
    assert seen(slow, THU + 6 * HOUR - 1) == (WED, 2, [1, 7, 2])
    # A lookback and a length bound the immutable part only.
    short = Past(events, SCHEMA, DAY_MS, lookback_ms=DAY_MS)
    assert short.sees(ANN, MON + 2 * HOUR).pointer == Pointer(ANN, *(2 * [MON + 2 * HOUR - DAY_MS]))
    assert seen(short, WED + 10 * HOUR) == (WED, 2, [7, 2])
    assert seen(short, THU) == (THU, 0, [7, 2])
    assert seen(Past(events, SCHEMA, DAY_MS, max_length=1), WED + 10 * HOUR) == (WED, 2, [1, 7, 2])
    assert seen(Past(events, SCHEMA, DAY_MS, max_length=1), THU) == (THU, 0, [2])
    hourly = Past(events, SCHEMA, DAY_MS, lookback_ms=HOUR).sees(ANN, WED + 10 * HOUR)
    assert hourly.pointer == Pointer(ANN, WED, WED)
    assert len(hourly.sequence) == 2


def test_store_and_past_agree() -> None:
    events = [
        event(ANN, MON + (7 * n % 50) * HOUR, MON + n * HOUR, film=n, id=n % 60) for n in range(90)
    ]
    past, store = Past(events, SCHEMA, DAY_MS), built(Run(events, FRI, cadence_ms=DAY_MS))
    for request_ts in range(TUE, FRI, 5 * HOUR):
        pointer, mutable, sequence = past.sees(ANN, request_ts)
        status, answer = store.answer(pointer, ALL, mutable, request_ts)
        assert status == "OK"
        assert answer == sequence


def test_order_of_values() -> None:
    nan = float("nan")
    floats = [-nan, -float("inf"), -1.0, -0.0, 0.0, 1.0, float("inf"), nan]
    assert sorted([*floats, None], key=order)[0] is None
    assert [order(value) for value in floats] == sorted(order(value) for value in floats)
    assert order(-0.0) < order(0.0)
    assert order("\uffff") < order("\U00010000")  # UTF-16 has them the other way round
    assert order((1.0, -0.0)) < order((1.0, 0.0))
    assert order(-1) < order(False) < order(True)


def test_columns() -> None:
    schema = Schema({"a": [Trait("x", "int8"), Trait("y", "bool")], "b": [Trait("z", "string")]})
    assert columns(ALL, schema) == ["event_ts", "x", "y", "z"]
    assert columns(Wanted(traits=("y", "visible_ts", "event_ts")), schema) == [
        "event_ts",
        "visible_ts",
        "y",
    ]
    assert columns(Wanted(feature_groups=("b",), traits=("x",)), schema) == ["x", "z"]


def test_fat_rows(tmp_path: Path) -> None:
    requests = pa.table({"user_id": [ANN, 99], "request_ts": [WED, WED], "label": ["a", "b"]})
    past = Past([event(ANN, MON, film=7)], SCHEMA, DAY_MS)
    fat_rows(
        tmp_path / "fat.parquet",
        requests,
        [past.sees(user, WED).sequence for user in (ANN, 99)],
        SCHEMA,
    )
    assert pq.read_table(tmp_path / "fat.parquet").to_pylist() == [
        {
            "user_id": ANN,
            "request_ts": WED,
            "label": "a",
            "uih_status": "OK",
            "event_ts": [MON],
            "film": [7],
            "stars": [None],
        },
        {
            "user_id": 99,
            "request_ts": WED,
            "label": "b",
            "uih_status": "OK",
            "event_ts": [],
            "film": [],
            "stars": [],
        },
    ]
