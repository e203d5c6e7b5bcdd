"""The join of rows and labels, against an oracle that looks at everything at once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from support.logged import NOW_TS, Clock, a_row, config_in, features_of, published
from support.worlds import REPEATS
from thinrow.client.logger import ThinRowLogger
from thinrow.client.logger.join import Join

WINDOW_MS = 10


@dataclass(frozen=True)
class Call:
    at_ms: int
    request: int
    labels: tuple[tuple[str, int], ...] | None
    """None for a row."""


calls = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.integers(0, 3),
        st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 5), min_size=1),
    ),
    max_size=40,
)


def in_time(drawn: list[tuple[int, int, dict[str, int] | None]]) -> list[Call]:
    """Calls at times that never go back; of one ms, rows go before labels."""
    at_ms, placed = 0, []
    for pause_ms, request, labels in drawn:
        at_ms += pause_ms
        placed.append(Call(at_ms, request, None if labels is None else tuple(labels.items())))
    return sorted(placed, key=lambda call: (call.at_ms, call.labels is not None))


def oracle(placed: list[Call]) -> tuple[list[tuple[int, dict[str, int] | None]], Counter[str]]:
    """Rows by number of the call, with their labels; everything is compared with everything."""
    counts: Counter[str] = Counter()
    rows: list[int] = []
    for n, call in enumerate(placed):
        if call.labels is None:
            repeated = any(
                placed[m].request == call.request and call.at_ms < placed[m].at_ms + WINDOW_MS
                for m in rows
            )
            counts["rows_repeated" if repeated else "rows"] += 1
            if not repeated:
                rows.append(n)
    joined: dict[int, list[Call]] = {n: [] for n in rows}
    for n, call in enumerate(placed):
        if call.labels is None:
            continue
        counts["labels"] += 1
        near = [
            m
            for m in rows
            if placed[m].request == call.request and abs(placed[m].at_ms - call.at_ms) < WINDOW_MS
        ]
        before = [m for m in near if m < n]
        # An open row comes first, then the next one to be logged.
        mine = before[-1:] or near[:1]
        for m in mine:
            joined[m].append(call)
        counts["labels_unmatched"] += not mine
    out: list[tuple[int, dict[str, int] | None]] = []
    for m in rows:
        labels: dict[str, int] = {}
        for call in joined[m]:
            assert call.labels is not None
            counts["labels_repeated"] += any(name in labels for name, _ in call.labels)
            for name, value in call.labels:
                labels.setdefault(name, value)
        counts["rows_unlabelled"] += not labels
        out.append((m, labels or None))
    return out, counts


@given(drawn=calls, pauses=st.randoms(use_true_random=False))
@settings(max_examples=500 * REPEATS, deadline=None)
def test_the_join_is_what_the_oracle_says(
    drawn: list[tuple[int, int, dict[str, int] | None]], pauses: random.Random
) -> None:
    placed = in_time(drawn)
    join = Join(WINDOW_MS)
    last_ms = 0
    for n, call in enumerate(placed):
        if call.labels is None:
            join.row(call.at_ms, str(call.request), n)
        else:
            join.label(call.at_ms, str(call.request), dict(call.labels))
        last_ms = call.at_ms
        if n + 1 < len(placed) and pauses.random() < 0.5:
            # When windows are looked at makes no difference.
            join.advance(pauses.randint(last_ms, placed[n + 1].at_ms))
    join.advance(last_ms + WINDOW_MS)
    assert join.open_rows == join.labels_pending == 0
    rows, counts = oracle(placed)
    assert [(row.number, row.labels) for row in join.closed] == rows
    assert join.counts == +counts


@given(drawn=calls, seed=st.integers(0, 1 << 32))
@settings(max_examples=25 * REPEATS, deadline=None)
def test_the_files_are_what_the_oracle_says(
    drawn: list[tuple[int, int, dict[str, int] | None]], seed: int
) -> None:
    """Through the whole logger, closed and opened again at any place, its clock going back."""
    rng = random.Random(seed)
    # Each request once: reuse within three windows is not promised across restarts.
    seen: set[int] = set()
    placed = []
    for call in in_time(drawn):
        if call.labels is not None or call.request not in seen:
            placed.append(call)
        if call.labels is None:
            seen.add(call.request)
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = config_in(folder, join_window_ms=WINDOW_MS, segment_bytes=rng.choice((1, 1 << 20)))
        clock = Clock()
        logger = ThinRowLogger(config, clock=clock)
        for n, call in enumerate(placed):
            if rng.random() < 0.1:
                logger.close()
                clock.now_ts = NOW_TS + call.at_ms
                logger = ThinRowLogger(config, clock=clock)
            clock.now_ts = NOW_TS + call.at_ms
            request_id = f"r{call.request}"
            if call.labels is None:
                logger.log(request_id, a_row(n), features_of(n))
            else:
                names = {"a": "click", "b": "watch_s", "c": "said"}
                values = {
                    names[label]: str(value) if label == "c" else value
                    for label, value in call.labels
                }
                logger.label(request_id, values)
            if rng.random() < 0.2:
                logger.flush()
            if rng.random() < 0.1:
                clock.now_ts -= rng.randrange(5)
        clock.now_ts = NOW_TS + 1_000_000
        logger.drain(10)
        logger.close()
        rows, _ = oracle(placed)
        got = {
            row["user_id"]: (row["click"], row["watch_s"], row["said"]) for row in published(folder)
        }
        assert len(published(folder)) == len(rows)
        want = {}
        for n, labels in rows:
            given_labels = labels or {}
            said = given_labels.get("c")
            want[n] = (
                given_labels.get("a", 0),
                given_labels.get("b"),
                None if said is None else str(said),
            )
        assert got == want
