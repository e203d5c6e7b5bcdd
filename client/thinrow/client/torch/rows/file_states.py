"""States of files of thin rows: how far each shard has come, and what several of them say together.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinrow.client.torch.rows.epoch_place import AHEAD_MAX, Deal, Place, Range
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.client.torch.rows.epoch_place import EvenEnds

__all__ = ["STATE_VERSION", "ShardState", "are_in_step", "joint_progress", "saved_states"]

STATE_VERSION = 2

ALL_RANKS = "give load_state_dict the states of all ranks, as a list"


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """The position of one shard in an epoch."""

    epoch: int
    interleave_rows: int
    """See EpochOrder; the batch size at the start of the epoch."""
    start: int
    ahead: tuple[Range, ...]
    """Part, with `start`, of the Place where the deal to this number of shards began."""
    batch_examples: int
    even_ends: EvenEnds | None
    world_size: int
    shard: int
    shards: int
    done: int
    """Rows of the shard that are counted since."""
    batches: int
    """Batches that those rows made."""
    in_step: bool
    """All ranks have made as many batches, each of which counts `batch_examples` rows."""

    @classmethod
    def from_fields(cls, state: dict[str, Any], rows: int) -> ShardState:
        """Takes a state apart.

        Raises:
            UsageError: The state is damaged.
        """
        try:
            ahead = tuple(Range(int(start), int(stop)) for start, stop in state["ahead"])
            found = cls(**{name: state[name] for name in FIELDS} | {"ahead": ahead})
            edges = [found.start, *(edge for part in ahead for edge in part), rows]
            counts = [found.epoch, found.done, found.batches, found.start, found.shard]
            is_whole = (
                all(isinstance(count, int) and count >= 0 for count in counts)
                and found.even_ends in (None, "drop", "pad")
                and min(found.interleave_rows, found.batch_examples, found.world_size) > 0
                and found.shards % found.world_size == 0
                and found.shard < found.shards
                and len(ahead) <= AHEAD_MAX
                and edges == sorted(edges)
                and found.done <= found.deal(rows).count(found.shard)
            )
        except (KeyError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise UsageError(
                "The state is damaged: it needs an epoch, and the rows done in it; load one that "
                "was saved whole, or restart the epoch."
            )
        return found

    def deal(self, rows: int) -> Deal:
        """Returns the deal that the shard is of."""
        return Deal(
            Place(self.start, self.ahead),
            rows,
            self.batch_examples,
            self.world_size,
            self.shards,
            self.even_ends,
        )

    @property
    def run(self) -> tuple[object, ...]:
        """The fields that states saved together have in common, besides their epoch."""
        return self.world_size, self.shards, self.batch_examples, self.even_ends

    @property
    def is_fresh(self) -> bool:
        """Returns True if no row of the epoch is done."""
        return not (self.start or self.ahead or self.done)


FIELDS = tuple(ShardState.__dataclass_fields__)


def saved_states(saved: object) -> Iterator[dict[str, Any]]:
    """Yields the states of shards that a saved object holds.

    Args:
        saved: A state, or that of a StatefulDataLoader, or a list of either.

    Raises:
        UsageError: A StatefulDataLoader has counted batches since it saved its workers' states.
    """
    if isinstance(saved, dict) and "version" in saved:
        yield saved
    elif isinstance(saved, dict):
        if saved.get("_steps_since_snapshot"):
            raise UsageError(
                "The StatefulDataLoader has the states of its workers for every few batches only; "
                "save with snapshot_every_n_steps=1, or load the state into a StatefulDataLoader."
            )
        for value in saved.values():
            yield from saved_states(value)
    elif isinstance(saved, list | tuple):
        for value in saved:
            yield from saved_states(value)


def joint_progress(states: Sequence[ShardState], rows: int) -> tuple[ShardState, dict[int, int]]:
    """Returns one of some states saved together, and the rows done of each shard.

    The states of all shards are merged, wherever each of them is. Those of some ranks say where the
    others are if all ranks are in step.

    Raises:
        UsageError: The states do not fit each other, or some are missing.
    """
    epoch = min(state.epoch for state in states)
    current = [state for state in states if state.epoch == epoch]
    later = [state for state in states if state.epoch != epoch]
    first = current[0]
    begin = (first.start, first.ahead, first.interleave_rows)
    if (
        any(state.run != first.run for state in states)
        or any((state.start, state.ahead, state.interleave_rows) != begin for state in current)
        or any(state.epoch != epoch + 1 or not state.is_fresh for state in later)
    ):
        raise UsageError(
            "The states were not saved at the same step of the same run; give load_state_dict "
            "those that all ranks saved at one step, as a list."
        )
    deal = first.deal(rows)
    done: dict[int, int] = {}
    for state in states:
        # The states of other ranks may be of the next epoch already: they had no batch left.
        count = state.done if state.epoch == epoch else deal.count(state.shard)
        if done.setdefault(state.shard, count) != count:
            raise UsageError(
                f"Two states of shard {state.shard} differ; give load_state_dict one of each rank "
                f"and worker."
            )
    if len(done) < deal.shards:
        done = with_ranks_in_step(states, deal, done)
    return first, done


def are_in_step(states: Sequence[ShardState], deal: Deal, done: dict[int, int]) -> bool:
    """Returns True if ranks that go on from their own positions have made as many batches.

    Args:
        states: What was saved.
        deal: The deal that the states are of.
        done: The rows done of each shard; of one alone, if its rank loads no other state.
    """
    if not all(state.in_step for state in states):
        return False
    if len(done) < deal.shards:
        return True
    size, ranks = deal.batch_examples, deal.ranks
    for first in range(0, deal.shards, ranks):
        of_worker = range(first, first + ranks)
        most = -(-max(done[shard] for shard in of_worker) // size) * size
        if any(done[shard] != min(deal.count(shard), most) for shard in of_worker):
            return False
    return True


def with_ranks_in_step(
    states: Sequence[ShardState], deal: Deal, done: dict[int, int]
) -> dict[int, int]:
    """Adds the shards of other ranks, which have made as many batches.

    Raises:
        UsageError: The ranks are not in step, or one cannot say where the others are.
    """
    ranks = deal.ranks
    rank = min(state.shard % ranks for state in states)
    workers = range(deal.shards // ranks)
    missing = [worker for worker in workers if worker * ranks + rank not in done]
    if missing:
        raise UsageError(
            f"The state of worker {missing[0]} of rank {rank} is missing; give load_state_dict "
            f"the states of all {len(workers)} workers of each rank, as a list."
        )
    size = deal.batch_examples
    in_step = all(
        state.in_step
        and (state.batches * size == state.done or state.done == deal.count(state.shard))
        for state in states
    )
    if not in_step:
        raise UsageError(
            f"The state of rank {rank} of {ranks} does not say where the other ranks are, because "
            f"batches count different numbers of rows (batch_events, or examples skipped), or "
            f"ranks have resumed at different steps; {ALL_RANKS}."
        )
    if rank and not deal.even_ends and any(state.epoch and state.is_fresh for state in states):
        raise UsageError(
            f"Rank {rank} of {ranks} has begun an epoch, but another rank may have a batch left of "
            f"the one before; load the state of rank 0, or {ALL_RANKS}."
        )
    both = dict(done)
    for worker in workers:
        mine = worker * ranks + rank
        batches = -(-done[mine] // size)
        for other in range(worker * ranks, (worker + 1) * ranks):
            count = deal.count(other)
            if other < mine and done[mine] == deal.count(mine) and count > batches * size:
                raise UsageError(
                    f"Rank {rank} of {ranks} has no batch left, but rank {other % ranks} may have; "
                    f"load the state of rank 0, or {ALL_RANKS}."
                )
            rows = min(count, batches * size)
            if both.setdefault(other, rows) != rows:
                raise UsageError(f"The ranks are not at the same step; {ALL_RANKS}.")
    return both
