"""Ids, ties, requests, splits and cuts of `thinrow research`, against plain Python."""

from __future__ import annotations

import gzip
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.thin_rows import ids_of
from thinrow.client.torch import RowFiles, splits
from thinrow.compaction.config import CompactionConfig
from thinrow.core.files.arrow import mutable_type, uih_type
from thinrow.errors import InputError, ThinRowError, UsageError
from thinrow.jobs.interaction_log import LogColumns, read_log
from thinrow.jobs.interactions import (
    Interactions,
    fewest_cuts,
    interactions,
    requests_of,
    split_leave_one_out,
    split_time,
    thinned,
)
from thinrow.jobs.research import research
from thinrow.jobs.research_config import ResearchConfig

START_TS = 1_600_000_000_000
NAMES = LogColumns(user="user_id", item="item_id", time="timestamp")
LOGS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "Bob", "7", "007"]),
        st.sampled_from(["x", "y", "z"]),
        st.integers(0, 4).map(START_TS.__add__),
    ),
    min_size=1,
    max_size=30,
)


def found_in(log: list[tuple[Any, Any, int]]) -> Interactions:
    users, items, times = zip(*log, strict=True)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    return interactions(read_log(frame, NAMES, "ms", lambda *_: None))


@given(LOGS)
def test_a_history_is_what_the_log_has_before(log: list[tuple[str, str, int]]) -> None:
    """Equal times keep the order of the log, and every request sees all events before it."""
    found = found_in(log)
    assert found.users is not None
    users, items = (dict(table.iter_rows()) for table in (found.users, found.items))
    for names, at in ((users, 0), (items, 1)):
        assert names == dict(enumerate(sorted({row[at] for row in log}), 1))
    requests = requests_of(found.events)
    assert len(requests) == len(log) - len(users)
    cuts = fewest_cuts(requests, len(log))
    for user, name in users.items():
        expected = sorted((row for row in log if row[0] == name), key=lambda row: row[2])
        own = found.events.filter(user_id=user).sort("event_id")
        assert [items[item] for item in own["item_id"]] == [row[1] for row in expected]
        assert own["event_ts"].to_list() == [row[2] for row in expected]
        # No earlier than it happened, and no two in one millisecond.
        arrivals = own["arrival_ts"].to_list()
        assert arrivals == sorted(set(arrivals)) and (own["arrival_ts"] >= own["event_ts"]).all()
        answered = requests.filter(user_id=user).sort("request_ts")
        assert answered["request_ts"].to_list() == arrivals[1:]
        assert [items[item] for item in answered["label_item_id"]] == [
            row[1] for row in expected[1:]
        ]
        for before, request in pairwise(arrivals):
            assert any(before < cut <= request for cut in cuts)


@given(LOGS, st.integers(1, 3))
def test_splits_leave_nothing_out(log: list[tuple[str, str, int]], every: int) -> None:
    requests = requests_of(found_in(log).events)
    if not len(requests):
        return
    rows = list(requests.select("user_id", "request_ts").iter_rows())
    parts = split_leave_one_out(requests)
    kept = thinned(requests, parts, every)
    for user in {user for user, _ in rows}:
        newest_first = sorted((n for n in range(len(rows)) if rows[n][0] == user), reverse=True)
        assert [parts[n] for n in newest_first[:2]] == [2, 1][: len(newest_first)]
        assert all(parts[n] == 0 for n in newest_first[2:])
        assert [n for n in newest_first if kept[n]] == [
            *newest_first[:2],
            *newest_first[2::every],
        ]
    times = [ts for _, ts in rows]
    by_time = split_time(requests, (0.5, 0.25, 0.25))
    ends = [times[min(round(share * len(times)), len(times) - 1)] for share in (0.5, 0.75)]
    assert by_time.tolist() == [sum(ts >= end for end in ends) for ts in times]


def test_splits_are_those_of_the_loader() -> None:
    log = [(n % 7, n % 5, START_TS + n * n % 101) for n in range(200)]
    requests = requests_of(found_in(log).events)
    pointer = {"start_ts": 0, "end_ts": 0, "max_length": 0, "digest": 0}
    rows = pa.table(
        {
            "user_id": requests["user_id"].to_arrow(),
            "request_ts": requests["request_ts"].to_arrow(),
            "uih": pa.array([pointer] * len(requests), uih_type()),
            "mutable": pa.array([[]] * len(requests), mutable_type([])),
        }
    )
    parts = split_leave_one_out(requests)
    for number, files in enumerate(splits.leave_one_out(RowFiles(rows, order="files"))):
        assert sorted(ids_of(files.source())) == [
            n for n in range(len(parts)) if parts[n] == number
        ]


def test_limit_on_cuts() -> None:
    requests = requests_of(found_in([("ann", "x", START_TS + n) for n in range(50)]).events)
    every = fewest_cuts(requests, 100)
    assert every == [START_TS + n for n in range(1, 50)]
    few = fewest_cuts(requests, 7)
    assert len(few) <= 7 and set(few) < set(every)


def test_columns_become_traits_by_their_types(tmp_path: Path) -> None:
    """Ids in text files are texts unless all are integers as people write them."""
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,timestamp,stars,day,note,nothing\n"
        "1,007,1600000000,4.5,2020-09-13,good,\n1,7,1600000001,,2020-09-14,,\n"
    )
    log = read_log(path, NAMES, None, lambda *_: None)
    assert log.time_unit == "s"
    found = interactions(log)
    assert found.users is None and found.items["original"].to_list() == ["007", "7"]
    assert found.events["user_id"].to_list() == [1, 1]
    assert found.events["event_ts"].to_list() == [START_TS, START_TS + 1000]
    assert found.events["day"].to_list() == [1599955200000, 1600041600000]
    assert re.findall(r"^(\w+) = \{ (.*) \}$", found.schema, re.MULTILINE) == [
        ("item_id", 'type = "int64", key = true'),
        ("stars", 'type = "float64", sparse = true'),
        ("day", 'type = "int64"'),
        ("note", 'type = "string", sparse = true'),
        ("nothing", 'type = "string", sparse = true'),
    ]


@pytest.mark.parametrize(
    ("texts", "expected_ts"),
    [
        (["2020-09-13", "2020-09-14"], [1599955200000, 1600041600000]),
        (["2020-09-13 12:26:40", "2020-09-13 12:26:41.5"], [START_TS, START_TS + 1500]),
        (["2020-09-13T12:26:40Z", "2020-09-13T12:26:41Z"], [START_TS, START_TS + 1000]),
        (["2020-09-13T14:26:40+02:00", "2020-09-13T12:26:41+00:00"], [START_TS, START_TS + 1000]),
    ],
)
def test_times_of_text_files(texts: list[str], expected_ts: list[int], tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"1,2,{text}\n" for text in texts))
    log = read_log(path, NAMES, None, lambda *_: None)
    assert log.rows["event_ts"].to_list() == expected_ts


GOOD = {"user_id": ["a", "a", "a", "a"], "item_id": [1, 2, 3, 4], "timestamp": [START_TS] * 4}


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"user": "who"}, "has no column who, but user_id, item_id, timestamp; name the right"),
        ({}, {"user": "who", "time": "at"}, "no column who, at, but user_id, item_id, timestamp;"),
        ({"item_id": [1, None, 3, 4]}, {}, "item_id has 1 nulls"),
        ({"item_id": [1.5] * 4}, {}, "ids are integers or texts"),
        ({}, {"time_unit": "s"}, "as seconds most of its times lie after 2100"),
        ({"timestamp": [START_TS // 1000] * 4}, {"time_unit": "ms"}, "so give --time-unit s."),
        ({"timestamp": [3, 4, 5, 6]}, {}, "as milliseconds most of its times lie before 1990"),
        ({"timestamp": [*[START_TS] * 3, 5 * 10**12]}, {}, "timestamp reaches 2128"),
        ({"user_id": list("abcd")}, {}, "No user has two interactions"),
        ({"user_id": list("aaab")}, {}, "leaves nothing to train on"),
        ({"a b": [1] * 4}, {}, "a column a b, which no trait can be named"),
        ({"event_id": [1] * 4}, {}, "a column event_id, which no trait can be named"),
        ({}, {"split": "time:0.5,0.5"}, "three shares above 0"),
        ({}, {"split": "random"}, "--split is random"),
        ({}, {"item": "user_id"}, "one column twice"),
        ({}, {"every": 0}, "every is 0"),
    ],
)
def test_mistakes(
    changes: dict[str, list[Any]], options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    log = pl.DataFrame({**GOOD, **changes})
    with pytest.raises(ThinRowError, match=re.escape(says)) as raised:
        research(ResearchConfig(events=log, out=tmp_path / "out", **options))
    assert isinstance(raised.value, InputError | UsageError)
    assert not list(tmp_path.iterdir())


def test_files_of_a_folder_keep_their_order(tmp_path: Path) -> None:
    for name, item in (("b.csv", "late"), ("a.csv.gz", "early")):
        text = f"user_id,item_id,timestamp\n1,{item},{START_TS}\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (tmp_path / "notes.gz").write_bytes(b"no log")
    log = read_log(tmp_path, NAMES, None, lambda *_: None)
    assert log.rows["item"].to_list() == ["early", "late"]
    (tmp_path / "c.csv").write_text("user_id,item_id,when\n")
    with pytest.raises(InputError, match="give files of one log"):
        read_log(tmp_path, NAMES, None, lambda *_: None)


@pytest.mark.parametrize("cuts_ts", [(5, 3), (3, 3), (0, 3), (3, START_TS)])
def test_cuts_that_do_not_ascend_are_refused(cuts_ts: tuple[int, ...]) -> None:
    path = Path("unused")
    with pytest.raises(UsageError, match="cuts_ts stands instead of a cadence"):
        CompactionConfig(
            events=path, store=path, schema=path, watermark_ts=START_TS, cuts_ts=cuts_ts
        )
