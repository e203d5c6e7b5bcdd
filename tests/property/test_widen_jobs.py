"""The native loops say what plain numpy says, and refuse what reaches out of bounds."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.numpy_stripes import joined, widened
from thinrow.core.wire import widen_jobs
from thinrow.core.wire.malformed import MalformedError
from thinrow.core.wire.widen_jobs import Views
from thinrow.store.narrow import NarrowBlocks, narrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORDS = st.integers(0, (1 << 64) - 1)
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


class Run(NamedTuple):
    """Narrow blocks as they travel, and the words they hold."""

    data: NDArray[np.uint8]
    blocks: NarrowBlocks
    words: NDArray[np.uint64]


@st.composite
def runs(draw: st.DrawFn, most: int = 200) -> Run:
    counts = np.array(draw(st.lists(st.integers(0, 40), max_size=most // 40)), np.int64)
    parts = []
    for count in counts.tolist():
        base, span = draw(WORDS), draw(st.sampled_from([1, 200, 60_000, 1 << 31, 1 << 63]))
        seed = np.random.default_rng(draw(st.integers(0, 1000)))
        offsets = seed.integers(0, span, count, dtype=np.uint64)
        parts.append(np.uint64(base) + offsets)
    words = np.concatenate([np.empty(0, np.uint64), *parts])
    blocks, stored = narrow(words, counts)
    order = np.argsort(blocks.widths, kind="stable")
    data = joined(stored, blocks.starts[order], blocks.byte_lengths[order])
    return Run(np.frombuffer(data, np.uint8), blocks, words)


@st.composite
def views_of(draw: st.DrawFn, *events: int) -> Views:
    """Slices of runs that have that many events."""
    runs = draw(st.lists(st.integers(0, len(events) - 1), max_size=8))
    slices = [sorted(draw(st.tuples(*2 * [st.integers(0, events[run])]))) for run in runs]
    starts = np.array([a for a, _ in slices], np.int64)
    lengths = np.array([b - a for a, b in slices], np.int64)
    gaps = np.array(draw(st.lists(st.integers(0, 3), min_size=len(slices), max_size=len(slices))))
    places = np.cumsum(lengths + gaps.astype(np.int64)) - lengths
    return Views(np.array(runs, np.int64), starts, lengths, places)


def picked(runs: list[NDArray[Any]], views: Views, out: NDArray[Any]) -> NDArray[Any]:
    """The same by plain slices."""
    for run, start, length, place in zip(*(part.tolist() for part in views), strict=True):
        out[place : place + length] = runs[run][start : start + length]
    return out


def room_for(views: Views) -> int:
    return int((views.places + views.lengths).max(initial=0)) + 2


@given(st.data(), st.lists(runs(), min_size=1, max_size=3), st.sampled_from(INTEGERS))
def test_widening(data: st.DataObject, drawn: list[Run], name: str) -> None:
    dtype = np.dtype(name)
    views = data.draw(views_of(*(len(run.words) for run in drawn)))
    targets = [dtype, np.dtype(np.int64)] if name != "u8" else [dtype]
    words = [run.words.astype(f"u{dtype.itemsize}").view(dtype) for run in drawn]
    narrow = [
        widen_jobs.Run(run.data, run.blocks.widths, run.blocks.bases, run.blocks.counts)
        for run in drawn
    ]
    for target in targets:
        want = picked(words, views, np.full(room_for(views), 77, target))
        got = np.full(room_for(views), 77, target)
        widen_jobs.run_jobs([widen_jobs.Job("t", narrow, dtype, views, got)])
        np.testing.assert_array_equal(got, want)


@given(
    st.data(),
    st.integers(0, 60),
    hnp.arrays(
        st.sampled_from(["?", "i2", "f4", "f8", "u8"]),
        st.tuples(st.integers(0, 60)) | st.tuples(st.integers(0, 60), st.integers(1, 3)),
        elements={"allow_nan": False},
    ),
)
def test_copying(data: st.DataObject, cut: int, values: NDArray[Any]) -> None:
    runs = [values[:cut], values[cut:]]
    views = data.draw(views_of(*map(len, runs)))
    shape = (room_for(views), *values.shape[1:])
    got, want = np.zeros(shape, values.dtype), np.zeros(shape, values.dtype)
    items = [widen_jobs.run_of_items(run) for run in runs]
    widen_jobs.run_jobs([widen_jobs.Job("t", items, values.dtype, views, got)])
    np.testing.assert_array_equal(got, picked(runs, views, want))


@given(runs())
def test_the_stores_own_widening_agrees(run: Run) -> None:
    blocks, stored = narrow(run.words, run.blocks.counts)
    np.testing.assert_array_equal(widened(stored, blocks), run.words)


ONE = np.ones(1, np.int64)
FIRST = 0 * ONE
INT64 = np.dtype(np.int64)
NARROW = (np.arange(4, dtype=np.uint8), np.ones(1, np.uint8), ONE, 4 * ONE)


@pytest.mark.parametrize(
    ("error", "narrow", "views"),
    [
        (IndexError, NARROW, (FIRST, ONE, 4 * ONE, 0 * ONE)),
        (IndexError, NARROW, (FIRST, -ONE, ONE, 0 * ONE)),
        (IndexError, NARROW, (FIRST, ONE, -ONE, 0 * ONE)),
        (IndexError, NARROW, (FIRST, ONE, ONE, 4 * ONE)),
        (IndexError, NARROW, (FIRST, ONE, ONE, -ONE)),
        (IndexError, NARROW, (FIRST, ONE, np.array([1 << 62]), 0 * ONE)),
        (IndexError, NARROW, (ONE, ONE, ONE, ONE)),
        (IndexError, NARROW, (-ONE, ONE, ONE, ONE)),
        (ValueError, NARROW, (FIRST, ONE, np.ones(2, np.int64), ONE)),
        (ValueError, (NARROW[0][:3], *NARROW[1:]), (FIRST, ONE, ONE, ONE)),
        (ValueError, (NARROW[0], np.full(1, 3, np.uint8), *NARROW[2:]), (FIRST, ONE, ONE, ONE)),
        (ValueError, (*NARROW[:3], -ONE), (FIRST, ONE, ONE, ONE)),
    ],
)
def test_what_reaches_out_of_bounds_is_refused(
    error: type[Exception], narrow: tuple[Any, ...], views: tuple[Any, ...]
) -> None:
    with pytest.raises(error):
        job = widen_jobs.Job(
            "t", [widen_jobs.Run(*narrow)], INT64, Views(*views), np.zeros(4, np.int64)
        )
        widen_jobs.run_jobs([job])


def test_looked_up_values_are_those_of_each_runs_own_dictionary() -> None:
    def run(words: list[int], *entries: int) -> widen_jobs.Run:
        narrow = np.array(words, np.uint8), np.ones(1, np.uint8), np.zeros(1, np.int64)
        return widen_jobs.Run(*narrow, np.array([len(words)]), np.array(entries, np.int64))

    views = Views(*np.array([[1, 0, 1], [0, 1, 2], [3, 2, 1], [0, 3, 5]], np.int64))
    one, other = [1, 0, 1], [0, 2, 1]
    right = [run(one, 7, -8), run(other, 5, 6, 1 << 30)]
    for dtype in ("i4", "i8"):
        out = np.zeros(6, dtype)
        widen_jobs.run_jobs([widen_jobs.Job("t", right, INT64, views, out)])
        assert out.tolist() == [5, 1 << 30, 6, 7, -8, 6]
    for wrong in ([right[0], run(other, 5, 6)], [run(one), right[1]]):
        jobs = [
            widen_jobs.Job(trait, runs, INT64, views, np.zeros(6, np.int64))
            for trait, runs in (("right", right), ("wrong", wrong), ("later", wrong))
        ]
        with pytest.raises(MalformedError, match="wrong has a value"):
            widen_jobs.run_jobs(jobs)
    with pytest.raises(IndexError):
        widen_jobs.run_jobs([widen_jobs.Job("t", right, INT64, views, np.zeros(5, np.int64))])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_large_work(threads: int) -> None:
    rng = np.random.default_rng(threads)
    lengths = rng.integers(0, 3000, 700)
    words = rng.integers(0, 250, 5000, dtype=np.uint8)
    starts = rng.integers(0, 2000, 700)
    ends = np.cumsum(lengths)
    views = Views(np.zeros(700, np.int64), starts, lengths, ends - lengths)
    outs = [np.zeros(ends[-1], np.int64) for _ in range(3)]
    narrow = words, np.ones(1, np.uint8), ONE, np.array([5000])
    plain = widen_jobs.Run(*narrow)
    short = widen_jobs.Run(*narrow, dictionary=np.arange(100))
    jobs = [
        widen_jobs.Job(trait, [run], INT64, views, out)
        for trait, run, out in zip("abc", (plain, plain, short), outs, strict=True)
    ]
    with pytest.raises(MalformedError, match="c has a value"):
        widen_jobs.run_jobs(jobs, threads)
    want = np.concatenate(
        [words[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    )
    for out in outs[:2]:
        np.testing.assert_array_equal(out, want.astype(np.int64) + 1)


def test_lookups_of_several_threads_do_not_wait_for_each_other() -> None:
    """The loops released the interpreter's lock: another thread runs meanwhile."""
    script = """
import threading, time
import numpy as np
from thinrow.core.wire import widen_jobs
n = 30_000_000
one, zero = np.array([n]), np.zeros(1, np.int64)
out = np.zeros(n, np.int64)
done = threading.Event()
def work():
    run = widen_jobs.Run(np.zeros(n, np.uint8), np.ones(1, np.uint8), zero, one)
    views = widen_jobs.Views(zero, zero, one, zero)
    widen_jobs.run_jobs([widen_jobs.Job("t", [run], out.dtype, views, out)])
    done.set()
thread = threading.Thread(target=work)
switch = 1000.0
import sys
sys.setswitchinterval(switch)  # only a released lock lets the main thread run
thread.start()
ticks = 0
while not done.is_set():
    ticks += 1
    time.sleep(0)
thread.join()
print(ticks)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(result.stdout) > 10
