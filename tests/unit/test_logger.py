"""The logger's promises one by one: output, refusals, reports and bounds."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.logged import (
    HOUR_MS,
    LABELS,
    NOW_TS,
    Clock,
    a_row,
    config_in,
    features_of,
    parts,
    published,
    request_ids,
    wait_for,
)
from support.paths import DOCS
from support.worlds import new_world, running_server, some_events
from thinrow.client import connect, read_thin_rows
from thinrow.client.logger import (
    FileOutput,
    JournalError,
    KafkaOutput,
    LoggerFullError,
    ThinRow,
    ThinRowLogger,
    mutable_type,
)
from thinrow.client.logger.schema import Tables
from thinrow.client.logger.values import UNFIT
from thinrow.core.pointers import MutableColumn, MutableEvents
from thinrow.core.thin_row import EventView
from thinrow.errors import DeadlineError, InputError, UsageError
from thinrow.jobs.thin_rows import mutable_type_of
from thinrow.schema import read_schema


def test_a_row_comes_out_as_it_went_in(tmp_path: Path) -> None:
    clock = Clock()
    rows = {n: a_row(n, request_ts=NOW_TS - 1 + n % 2, events=n % 4) for n in range(50)}
    with ThinRowLogger(config_in(tmp_path), clock=clock) as logger:
        for n, row in rows.items():
            logger.log(f"r{n}", row, features_of(n))
        logger.label("r7", {"click": 1, "watch_s": 0.5})
        logger.label("r7", {"click": 3, "said": "oh", "watch_s": None})
        clock.now_ts += 999
        logger.flush()
        time.sleep(0.05)
        assert published(tmp_path) == []
        clock.now_ts += 1
        logger.drain(10)
    found = {row["user_id"]: row for row in published(tmp_path)}
    assert found.keys() == rows.keys()
    pointer = ("start_ts", "end_ts", "max_length", "digest")
    for n, row in rows.items():
        labels = {"click": 1, "watch_s": 0.5, "said": "oh"} if n == 7 else {}
        assert found[n] == {
            "request_id": f"r{n}",
            "user_id": n,
            "request_ts": row.request_ts,
            **features_of(n),
            "click": 0,
            "watch_s": None,
            "said": None,
            **labels,
            "uih": {name: getattr(row, name) for name in pointer},
            "mutable": list(row.mutable),
        }
    for path in parts(tmp_path):
        (hour,) = {row["request_ts"] // HOUR_MS for row in pq.ParquetFile(path).read().to_pylist()}
        assert path.parent.name == {NOW_TS // HOUR_MS: "hour=2027-01-15T08"}.get(
            hour, "hour=2027-01-15T07"
        )
        assert sum(len(thin) for thin, _ in read_thin_rows(path, examples=7)) > 0


def test_the_types_of_events_come_from_the_store(tmp_path: Path) -> None:
    kinds: tuple[str, ...] = (
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    )
    kinds += ("float16", "float32", "float64", "bool", "categorical", "string")
    text = "[all]\n" + "".join(
        f'{kind}_ = {{ type = "{kind}", sparse = true }}\n' for kind in kinds
    )
    text += 'vector = { type = "float16", size = 3, sparse = true }\n'
    world = new_world(tmp_path / "world", text)
    world.compact(some_events().select(["user_id", "event_ts"]), 3)
    with running_server(world.store) as server, connect(server.address) as client:
        mutable = mutable_type(client.describe_store())
    assert mutable == mutable_type_of(read_schema(world.schema))
    event: dict[str, Any] = {"event_ts": 1, "arrival_ts": 2, "event_id": None}
    event |= {f"{kind}_": 1 for kind in kinds} | {"vector": [0.5, 1, 2]}
    event |= {"float16_": 0.5, "bool_": True, "string_": "é"}
    row = ThinRow(
        user_id=1, request_ts=9, start_ts=0, end_ts=0, max_length=0, digest=0, mutable=(event,)
    )
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path, mutable=mutable), clock=clock) as logger:
        logger.log("a", row, features_of(1))
        logger.log("a", row, features_of(1))  # so that rows are picked from their frame
        logger.log("b", row, features_of(1)).wait()
        clock.now_ts += 1000
        logger.drain(10)
    assert [row["mutable"] for row in published(tmp_path)] == [[event]] * 2


GOOD = a_row(1).mutable[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": 1.5}, "float where an integer"),
        ({"user_id": None}, "user_id must not be null"),
        ({"request_ts": 1 << 70}, "too"),
        ({"digest": -1}, "."),
        ({"mutable": ({**GOOD, "event_ts": None},)}, "event_ts must not be null"),
        ({"mutable": ({**GOOD, "rating": 300},)}, "too large"),
        ({"mutable": ({**GOOD, "rating": 1.5},)}, "float where an integer"),
        ({"mutable": ({**GOOD, "brand": 1},)}, "bytes"),
        ({"mutable": ({**GOOD, "more": 1},)}, "fields"),
        ({"mutable": ({"event_ts": 1},)}, "fields event_ts, arrival_ts"),
        ({"features": {"score": 1.0, "place": None}}, "place must not be None"),
        ({"features": {"score": "x", "place": 1}}, "convert"),
        ({"features": {"score": 1.0, "place": 1.5}}, "float where an integer"),
        ({"features": {"score": 1e300, "place": 1}}, "score has 1e\\+300"),
        ({"mutable": ({**GOOD, "brand": "x" * 3000},)}, "at most 2000 are taken"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_alone(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path, row_bytes_max=2000), clock=clock) as logger:
        receipts = []
        for n in range(20):
            row, features = a_row(n), features_of(n)
            if n == 13:
                features = change.get("features", features)
                row = replace(row, **{k: v for k, v in change.items() if k != "features"})
            receipts.append(logger.log(f"r{n}", row, features))
        with pytest.raises(InputError, match=f"'r13' was refused: .*{message}"):
            receipts[13].wait()
        receipts[14].wait()
        with pytest.raises(InputError, match="'r13' was refused"):
            logger.flush()
        logger.flush()
        clock.now_ts += 1000
        logger.drain(10)
        assert (logger.counts.rows, logger.counts.rows_refused) == (19, 1)
    assert request_ids(tmp_path).keys() == {f"r{n}" for n in range(20)} - {"r13"}


def test_what_is_wrong_at_once_is_reported_at_once(tmp_path: Path) -> None:
    with ThinRowLogger(config_in(tmp_path, mutable_events_max=3)) as logger:
        with pytest.raises(InputError, match="features must be place, score, but are score"):
            logger.log("a", a_row(1), {"score": 1.0})
        with pytest.raises(InputError, match="4 mutable events, but mutable_events_max is 3"):
            logger.log("a", a_row(1, events=4), features_of(1))
        for name in ("", "x" * 257, "é" * 129):
            with pytest.raises(InputError, match="1 to 256 bytes"):
                logger.log(name, a_row(1), features_of(1))
        for labels in ({}, {"click": None}, {"clicks": 1}):
            with pytest.raises(InputError, match="labels must be some of click, said, watch_s"):
                logger.label("a", labels)
        receipt = logger.label("a", {"said": "x" * 5000})
        with pytest.raises(InputError, match=r"'a' were refused: it has .* at most 4096"):
            receipt.wait()
    with pytest.raises(UsageError, match="logger is closed"):
        logger.log("a", a_row(1), features_of(1))
    with pytest.raises(UsageError, match="logger is closed"):
        logger.label("a", {"click": 1})


def test_draining_a_closed_logger_is_an_error(tmp_path: Path) -> None:
    """No one publishes any more what a window still holds."""
    with ThinRowLogger(config_in(tmp_path), clock=Clock()) as logger:
        logger.log("a", a_row(1), features_of(1))
    logger.flush()
    with pytest.raises(UsageError, match="logger is closed"):
        logger.drain(60)


def test_rows_without_labels(tmp_path: Path) -> None:
    for policy in ("emit", "drop"):
        clock, folder = Clock(), tmp_path / policy
        with ThinRowLogger(config_in(folder, unlabelled=policy), clock=clock) as logger:
            for n in range(10):
                logger.log(f"r{n}", a_row(n), features_of(n))
            logger.label("r3", {"said": ""})
            clock.now_ts += 1000
            logger.drain(10)
            assert logger.counts.rows_unlabelled == 9
            assert logger.counts.rows_published == {"files": 10 if policy == "emit" else 1}
            assert logger.counts.rows_pending == 0
        assert len(published(folder)) == (10 if policy == "emit" else 1)


def test_late_and_lost_labels_are_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path), clock=clock) as logger:
        logger.label("early", {"click": 1})
        logger.label("never", {"click": 1})
        clock.now_ts += 999
        logger.log("early", a_row(1), features_of(1))
        clock.now_ts += 1000
        logger.drain(10)
        logger.label("early", {"click": 5})
        logger.flush()
        assert logger.counts.labels_unmatched == 1
        assert logger.counts.labels_pending == 1
        clock.now_ts += 1000
        wait_for(lambda: logger.counts.labels_unmatched == 2)
    assert [row["click"] for row in published(tmp_path)] == [1]
    assert "1 calls of label() found no row in the window" in caplog.text


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"queued_events_max": 50}, "queued_events_max"),
        ({"rows_pending_max": 20}, "rows_pending_max"),
        ({"journal_bytes_max": 20_000}, "journal_bytes_max"),
    ],
)
def test_a_full_logger_says_so_and_goes_on_later(
    tmp_path: Path, bound: dict[str, int], message: str
) -> None:
    clock = Clock()
    config = config_in(tmp_path, segment_bytes=1000, **bound)
    taken = []

    def fill(logger: ThinRowLogger, first: int) -> None:
        for n in range(first, first + 20_000):
            logger.log(f"r{n}", a_row(n), features_of(n))
            taken.append(f"r{n}")
            if n % 500 == 0:
                logger.flush()
        raise AssertionError("it took everything")

    with ThinRowLogger(config, clock=clock) as logger:
        with pytest.raises(LoggerFullError, match=message):
            fill(logger, 0)
        first = len(taken)
        assert first
        for _ in range(3):
            # What is needless is released three windows later.
            logger.flush()
            clock.now_ts += 1000
            logger.drain(10)
        wait_for(lambda: logger.counts.journal_bytes < 20_000)
        time.sleep(0.1)
        with pytest.raises(LoggerFullError, match=message):
            fill(logger, first)
        assert len(taken) > first
        clock.now_ts += 1000
        logger.drain(10)
    assert request_ids(tmp_path) == dict.fromkeys(taken, 1)


def test_labels_are_bounded_too(tmp_path: Path) -> None:
    with ThinRowLogger(config_in(tmp_path, labels_pending_max=20)) as logger:
        with pytest.raises(LoggerFullError, match="labels_pending_max"):
            for n in range(100_000):
                logger.label(f"r{n}", {"click": 1})
                if n % 20 == 0:
                    logger.flush()
        logger.log("r0", a_row(0), features_of(0)).wait()


def test_the_journal_is_released(tmp_path: Path) -> None:
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path, segment_bytes=10_000), clock=clock) as logger:
        sizes = []
        for n in range(300):
            clock.now_ts += 50
            logger.log(f"r{n}", a_row(n), features_of(n))
            logger.label(f"r{n}", {"click": 1}).wait()
            sizes.append(logger.counts.journal_bytes)
        assert max(sizes[150:]) < 1.3 * max(sizes[:150])
        assert 3 < len(list((tmp_path / "journal").glob("segment-*"))) < 60
        clock.now_ts += 1000
        logger.drain(10)
        clock.now_ts += 2000
        wait_for(lambda: len(list((tmp_path / "journal").glob("segment-*"))) == 1)
    assert request_ids(tmp_path) == {f"r{n}": 1 for n in range(300)}


def test_what_is_pending_outlives_the_logger(tmp_path: Path) -> None:
    clock = Clock()
    for n in range(10):
        # Each begins where the clock was set back; time goes on all the same.
        clock.now_ts = NOW_TS - 500 * n
        with ThinRowLogger(config_in(tmp_path), clock=clock) as logger:
            logger.log(f"r{n}", a_row(n), features_of(n))
            if n:
                logger.label(f"r{n - 1}", {"click": 1})
            clock.now_ts += 100
    assert published(tmp_path) == []
    with ThinRowLogger(config_in(tmp_path), clock=clock) as logger:
        clock.now_ts += 1000
        logger.drain(10)
    clicks = {row["user_id"]: row["click"] for row in published(tmp_path)}
    assert clicks == {n: int(n < 9) for n in range(10)}


def test_columns_may_change_between_starts(tmp_path: Path) -> None:
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path), clock=clock) as logger:
        logger.log("a", a_row(1), features_of(1))
        logger.label("a", {"said": "x"})
    features = pa.schema([("place", pa.int32()), ("more", pa.float32())])
    labels = pa.schema([*LABELS.remove(0), ("bought", pa.bool_())])
    event = list(config_in(tmp_path).mutable.value_type)
    mutable = pa.list_(pa.struct([*event, ("color", pa.string())]))
    changed = config_in(
        tmp_path,
        features=features,
        labels=labels,
        label_defaults={"bought": False},
        mutable=mutable,
    )
    with ThinRowLogger(changed, clock=clock) as logger:
        logger.label("a", {"bought": True})
        clock.now_ts += 1000
        logger.drain(10)
    (row,) = published(tmp_path)
    assert {name: row[name] for name in ("place", "more", "said", "bought")} == {
        "place": 1,
        "more": None,
        "said": "x",
        "bought": True,
    }
    assert [event["color"] for event in row["mutable"]] == [None, None]
    with ThinRowLogger(changed, clock=clock) as logger:
        events = tuple({**event, "color": "red"} for event in a_row(1).mutable)
        logger.log("b", replace(a_row(1), mutable=events), {"place": 1 << 20, "more": 1.0}).wait()
    for wrong, message in (
        (pa.schema([("place", pa.int8())]), "column place of int32, not int8"),
        (pa.schema([("new", pa.int8())]), "rows without the feature new"),
    ):
        with pytest.raises(UsageError, match=message):
            ThinRowLogger(config_in(tmp_path, features=wrong))


def test_one_logger_a_journal(tmp_path: Path) -> None:
    with ThinRowLogger(config_in(tmp_path)), pytest.raises(JournalError, match="Another logger"):
        ThinRowLogger(config_in(tmp_path))
    ThinRowLogger(config_in(tmp_path)).close()


def test_loggers_may_share_a_folder(tmp_path: Path) -> None:
    clock = Clock()
    for name in ("one", "other"):
        config = config_in(tmp_path, journal=tmp_path / name)
        with ThinRowLogger(config, clock=clock) as logger:
            logger.log(name, a_row(1), features_of(1)).wait()
            clock.now_ts += 1000
            logger.drain(10)
    assert request_ids(tmp_path) == {"one": 1, "other": 1}


def test_many_threads(tmp_path: Path) -> None:
    with ThinRowLogger(config_in(tmp_path, join_window_ms=200)) as logger:

        def serve(thread: int) -> None:
            for n in range(200):
                logger.log(f"r{thread}-{n}", a_row(n), features_of(n))
                logger.label(f"r{thread}-{n}", {"click": 1})
                if n % 50 == 0:
                    logger.flush()

        threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logger.drain(20)
    rows = published(tmp_path)
    assert len(rows) == len(request_ids(tmp_path)) == 800
    assert all(row["click"] for row in rows)


def test_waiting_comes_to_an_end(tmp_path: Path) -> None:
    with ThinRowLogger(config_in(tmp_path, join_window_ms=60_000)) as logger:
        logger.log("a", a_row(1), features_of(1))
        with pytest.raises(DeadlineError, match=r"1 rows are not in all outputs after 0\.1 s"):
            logger.drain(0.1)


def test_a_folder_that_cannot_be_written_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path), clock=clock) as logger:
        (tmp_path / "rows").rmdir()
        (tmp_path / "rows").write_text("in the way")
        logger.log("a", a_row(1), features_of(1))
        clock.now_ts += 1000
        with pytest.raises(DeadlineError, match="because of trouble with files"):
            logger.drain(0.2)
        assert logger.counts.failures["files"] > 0
        assert logger.counts.behind_ms == 0
        clock.now_ts += 77
        logger.flush()
        wait_for(lambda: logger.counts.behind_ms == 77)
        (tmp_path / "rows").unlink()
        logger.drain(10)
    assert request_ids(tmp_path) == {"a": 1}
    assert "publishing failed and is tried again" in caplog.text


def test_metrics(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with ThinRowLogger(config_in(tmp_path), registry=registry) as logger:
        logger.log("a", a_row(1), features_of(1)).wait()
        result = generate_latest(registry).decode()
        assert "thinrow_logger_rows_total 1.0" in result
        assert 'thinrow_logger_rows_published_total{output="files"} 0.0' in result
        assert "thinrow_logger_rows_pending 1.0" in result
    assert "thinrow_logger" not in generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": None}, "no output"),
        ({"join_window_ms": 0}, "join_window_ms is 0"),
        ({"rows_pending_max": 0}, "rows_pending_max is 0"),
        ({"unlabelled": "keep"}, "'emit' or 'drop'"),
        ({"label_defaults": {}}, "label click is int8 and needs one of label_defaults"),
        ({"label_defaults": {"click": "x"}}, "default of label click must be int8"),
        ({"label_defaults": {"click": 0, "clack": 0}}, "clack, which is no label"),
        ({"features": pa.schema([("uih", pa.int8())])}, "uih is there twice or"),
        ({"features": pa.schema([("click", pa.int8())])}, "click is there twice or"),
        ({"mutable": pa.int64()}, "mutable_type.. makes it"),
        ({"mutable": pa.list_(pa.struct([("event_ts", pa.int64())]))}, "no field arrival_ts"),
    ],
)
def test_settings_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_in(tmp_path, **options)
    with pytest.raises(UsageError, match="part_rows is 0"):
        FileOutput(folder=tmp_path, part_rows=0)
    with pytest.raises(UsageError, match="message_rows is 1025"):
        KafkaOutput(topic="t", bootstrap_servers="b:1", message_rows=1025)


def test_the_page_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "guides/logging.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    world = new_world(tmp_path / "world")
    world.compact(some_events(), 3)
    monkeypatch.chdir(tmp_path)
    with running_server(world.store) as server:
        for block in blocks:
            # The window alone is shortened: no one waits ten minutes here.
            code = block.replace("127.0.0.1:7878", server.address).replace("600_000", "100")
            exec(code, {})
    assert re.fullmatch(r"tensor\(\[1\]\) tensor\(\[ *0, +\d\d\]\)\n", capsys.readouterr().out)


def columns_of(events: int) -> dict[str, MutableColumn]:
    there = np.arange(events) % 3 != 1
    texts = np.array([f"é{n}" if there[n] else "" for n in range(events)], object)
    return {
        "event_ts": MutableColumn(np.arange(events)),
        "event_id": MutableColumn(np.arange(events), there),
        "small": MutableColumn(np.arange(events, dtype=np.int8), there),
        "word": MutableColumn(np.arange(events, dtype=np.uint64) + np.uint64(1 << 63)),
        "half": MutableColumn(np.linspace(0, 1, events).astype(np.float16), there),
        "liked": MutableColumn(there.copy()),
        "brand": MutableColumn(texts, there),
        "vector": MutableColumn(np.arange(3 * events, dtype=np.float32).reshape(-1, 3), there),
    }


EVENT_FIELDS = [
    *((name, pa.int64()) for name in ("event_ts", "arrival_ts", "event_id")),
    ("small", pa.int8()),
    ("word", pa.uint64()),
    ("half", pa.float16()),
    ("liked", pa.bool_()),
    ("brand", pa.large_string()),
    ("vector", pa.list_(pa.float32(), 3)),
]


@pytest.mark.parametrize("lengths", [[0], [0, 0], [4], [1, 0, 6, 2], [0, 3]])
@pytest.mark.parametrize(
    "changed", [{}, {"small": pa.int32()}, {"half": pa.float64()}, {"brand": pa.string()}]
)
def test_snapshots_of_columns_are_the_same_as_of_mappings(
    tmp_path: Path, lengths: list[int], changed: dict[str, pa.DataType]
) -> None:
    count = sum(lengths)
    events = MutableEvents(
        np.concatenate([[0], np.cumsum(lengths)]), np.arange(count) + 7, columns_of(count)
    )
    kind = pa.list_(pa.struct([(name, changed.get(name, of)) for name, of in EVENT_FIELDS]))
    tables = Tables(config_in(tmp_path, mutable=kind))
    rows = [
        (1, f"r{n}", replace(a_row(n), mutable=EventView(events, n)), features_of(n))
        for n in range(len(lengths))
    ]
    plain = [(*row[:2], replace(row[2], mutable=tuple(row[2].mutable)), row[3]) for row in rows]
    batch = tables.row_batch(rows)
    batch.validate(full=True)
    assert batch.equals(tables.row_batch(plain))
    assert [len(events) for events in batch["mutable"].to_pylist()] == lengths
    assert rows[0][2] == plain[0][2] and repr(rows[0][2].mutable) == repr(plain[0][2].mutable)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"small": pa.int8(), "half": pa.int64()}, "half has a float"),
        ({"word": pa.int64()}, "too large"),
        ({"brand": pa.int64()}, "é0"),
        ({"other": pa.int64()}, "must have the fields"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, pa.DataType], message: str
) -> None:
    events = MutableEvents(np.array([0, 4]), np.arange(4), columns_of(4))
    kind = pa.list_(pa.struct(list((dict(EVENT_FIELDS) | changed).items())))
    row = (1, "r", replace(a_row(1), mutable=EventView(events, 0)), features_of(1))
    with pytest.raises(UNFIT, match=message):
        Tables(config_in(tmp_path, mutable=kind)).row_batch([row])
