"""An epoch's order and its states, for any number of ranks and workers, against a naive model."""

from __future__ import annotations

import itertools
from copy import copy
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.epochs import Fleet, lengths_table, model_order, write_tables
from support.scenarios import examples
from thinrow.client.torch import RowFiles
from thinrow.client.torch.rows import order as row_order
from thinrow.client.torch.rows.epoch_place import Dealing
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ORDERS = ("users", "mixed", "rows", "files", "lengths")
PARTS = (0, 0, 1, 2, 4, 16)
"""Numbers of parts, 0 for files without parts."""


def parts_of(counts: list[int]) -> Callable[[int], st.SearchStrategy[list[int]]]:
    """The part of each file, ascending."""

    def drawn(parts: int) -> st.SearchStrategy[list[int]]:
        if not parts:
            return st.just([])
        size = len(counts)
        return st.lists(st.integers(0, parts - 1), min_size=size, max_size=size).map(sorted)

    return drawn


class Epoch:
    """An epoch of drawn files, and its order by the model."""

    def __init__(self, folder: Path, data: st.DataObject) -> None:
        counts = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=4), "counts")
        row_group = data.draw(st.integers(9, 60), "row_group")
        rng = data.draw(st.randoms(use_true_random=False))
        tables = [
            lengths_table(
                [rng.randrange(9) for _ in range(count)],
                [rng.randrange(1, 99) for _ in range(count)],
            )
            for count in counts
        ]
        self.parts = data.draw(st.sampled_from(PARTS).flatmap(parts_of(counts)), "parts")
        self.paths = write_tables(folder, tables, row_group, self.parts)
        self.options: Any = {
            "order": data.draw(st.sampled_from(ORDERS), "order"),
            "seed": data.draw(st.integers(0, 9), "seed"),
            "window_rows": data.draw(st.integers(5, 60), "window_rows"),
        }
        if self.options["order"] == "lengths":
            self.options["length_column"] = "length"
        self.batch = data.draw(st.sampled_from((1, 3, 4, 8, 17)), "batch")
        self.files = RowFiles(self.paths, **self.options)
        self.order = model_order(self.files, tables, row_group, 0, self.batch, self.parts)
        assert sorted(self.order) == list(range(sum(counts)))

    def fleet(self, ranks: int, workers: int, saved: object = None, **dealing: Any) -> Fleet:  # noqa: ANN401
        files = [copy(self.files) for _ in range(ranks)]
        for rank, mine in enumerate(files):
            mine._given_ranks = rank, ranks
        options = {"batch_examples": self.batch, **dealing}
        return Fleet(files, workers, Dealing(**options), saved)


@pytest.fixture(scope="module")
def epoch_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[st.DataObject], Epoch]]:
    def make(data: st.DataObject) -> Epoch:
        return Epoch(tmp_path_factory.mktemp("rows"), data)

    with (
        mock.patch.object(row_order, "FIRST_WINDOW_ROWS", 5),
        mock.patch.object(row_order, "PART_LANE_ROWS_MIN", 6),
    ):
        yield make


SHAPES = st.tuples(st.sampled_from((1, 2, 3, 5, 8)), st.integers(1, 4))
"""Ranks, and workers of each."""


@given(st.data(), st.lists(st.tuples(SHAPES, st.integers(0, 9), st.booleans()), max_size=3), SHAPES)
@examples(25)
def test_any_ranks_and_workers_resume_what_any_others_saved(
    epoch_of: Callable[[st.DataObject], Epoch],
    data: st.DataObject,
    phases: list[tuple[tuple[int, int], int, bool]],
    last: tuple[int, int],
) -> None:
    epoch = epoch_of(data)
    seen: list[int] = []
    saved = None
    for (ranks, workers), steps, of_all in [*phases, (last, len(epoch.order) + 1, True)]:
        fleet = epoch.fleet(ranks, workers, saved)
        for _ in range(steps):
            seen += itertools.chain(*fleet.step())
        states = fleet.states()
        saved = states if of_all else states[0]
    assert seen == epoch.order


@given(st.data(), SHAPES, SHAPES)
@examples(12)
def test_ranks_at_any_positions_are_merged(
    epoch_of: Callable[[st.DataObject], Epoch],
    data: st.DataObject,
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    epoch = epoch_of(data)
    seen: set[int] = set()
    saved: Any = None
    for _ in range(2):  # The second time from a place with gaps.
        fleet = epoch.fleet(*before, saved)
        states = []
        for source in itertools.chain(*fleet.sources):
            rows = [row for chunk in source.chunks(7) for row in chunk.example_ids.tolist()]
            taken = data.draw(st.integers(0, len(rows)), "taken")
            assert not seen & set(rows[:taken])
            seen |= set(rows[:taken])
            source.took(taken)
            states.append(source.state_dict())
        saved = data.draw(st.permutations(states), "states")
    fleet = epoch.fleet(*after, saved)
    rest = [row for _ in range(len(epoch.order) + 1) for batch in fleet.step() for row in batch]
    left = [row for row in epoch.order if row not in seen]
    if before == after and before[1] == 1:
        # As many ranks go on as if nothing had happened, each from its own position.
        rest, left = sorted(rest), sorted(left)
    assert rest == left


@given(st.data(), SHAPES, st.lists(st.integers(0, 5), min_size=8, max_size=8), st.integers(0, 4))
@examples(15)
def test_ranks_that_resumed_at_different_steps_do_not_stand_for_each_other(
    epoch_of: Callable[[st.DataObject], Epoch],
    data: st.DataObject,
    shape: tuple[int, int],
    ahead: list[int],
    steps: int,
) -> None:
    epoch = epoch_of(data)
    first = epoch.fleet(shape[0], 1)
    seen = [
        row
        for rank, batches in zip(first._batches, ahead, strict=False)
        for batch in itertools.islice(rank, batches)
        for row in batch
    ]
    # As many ranks go on from their own positions.
    second = epoch.fleet(shape[0], 1, first.states())
    seen += [row for _ in range(steps) for batch in second.step() for row in batch]
    try:
        third = epoch.fleet(*shape, second.states()[0])
    except UsageError as error:
        assert "have resumed at different steps" in str(error)
        assert len(set(ahead[: shape[0]])) > 1
        third = epoch.fleet(*shape, second.states())
    seen += [row for _ in epoch.order for batch in third.step() for row in batch]
    assert sorted(seen) == sorted(epoch.order)


@given(st.data(), SHAPES, st.integers(0, 12), st.booleans())
@examples(15)
def test_some_of_the_states_are_enough_or_refused(
    epoch_of: Callable[[st.DataObject], Epoch],
    data: st.DataObject,
    shape: tuple[int, int],
    steps: int,
    in_step: bool,
) -> None:
    epoch = epoch_of(data)
    fleet = epoch.fleet(*shape, in_step=in_step)
    seen = [row for _ in range(steps) for batch in fleet.step() for row in batch]
    states = list(itertools.chain(*fleet.states()))
    some = data.draw(st.lists(st.sampled_from(states), min_size=1, unique_by=id), "some")
    try:
        after = epoch.fleet(1, 1, some)
    except UsageError as error:
        assert "give load_state_dict the states of all" in str(error)
        assert len(some) < len(states)
    else:
        rest = [row for _ in range(len(epoch.order) + 1) for row in itertools.chain(*after.step())]
        assert seen + rest == epoch.order
        assert in_step or len(some) == len(states)


@given(st.data(), SHAPES, SHAPES, st.integers(0, 5), st.sampled_from(("drop", "pad")))
@examples(15)
def test_even_ends_give_ranks_equal_numbers_of_batches(
    epoch_of: Callable[[st.DataObject], Epoch],
    data: st.DataObject,
    before: tuple[int, int],
    after: tuple[int, int],
    steps: int,
    even_ends: str,
) -> None:
    epoch = epoch_of(data)
    fleet = epoch.fleet(*before, even_ends=even_ends)
    seen = [row for _ in range(steps) for batch in fleet.step() for row in batch]
    fleet = epoch.fleet(*after, fleet.states()[0], even_ends=even_ends)
    rest: list[list[int]] = []
    while batches := fleet.step():
        assert len(batches) == after[0]
        assert {len(batch) for batch in batches} == {epoch.batch}
        rest += batches
    rows = [*seen, *itertools.chain(*rest)]
    if even_ends == "drop":
        assert rows == epoch.order[: len(rows)]
        assert len(epoch.order) - len(rows) < max(before[0], after[0]) * epoch.batch
    else:
        assert sorted(set(rows)) == sorted(epoch.order)
        assert rows[: len(epoch.order)] == epoch.order
        fill = rows[len(epoch.order) :]
        assert len(fill) < max(before[0], after[0]) * epoch.batch
        assert fill == list(itertools.islice(itertools.cycle(epoch.order), len(fill)))
