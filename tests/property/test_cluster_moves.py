"""Placement of shards, and their moves while replicas die and lag and the desired state changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinrow.cluster.desired import DesiredCluster
from thinrow.cluster.moves import current_owners, first_map, next_step, wanted_placement
from thinrow.cluster.placement import dealing_order, owners_of, placement
from thinrow.cluster.replica_report import ReplicaReport
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from thinrow.cluster.cluster_map import ClusterMap

SHARDS = st.integers(0, 7).map(lambda bits: 1 << bits)
LIFETIME_MS = 1000


def names(count: int, first: int = 0) -> list[str]:
    return [str(first + each) for each in range(count)]


def moved(before: dict[int, str], after: dict[int, str]) -> int:
    return sum(before[shard] != after[shard] for shard in before)


@given(st.data())
def test_placement_is_even_and_moves_the_fewest_shards(data: st.DataObject) -> None:
    shards = data.draw(SHARDS)
    before_names = names(data.draw(st.integers(1, shards)))
    owners = owners_of(placement(shards, before_names))
    for _ in range(3):
        drawn = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=shards, unique=True))
        groups = [str(each) for each in drawn]
        placed = placement(shards, groups, owners)
        sizes = {name: len(numbers) for name, numbers in placed.items()}
        assert sum(sizes.values()) == shards and list(sizes) == groups
        assert max(sizes.values()) - min(sizes.values()) <= 1
        after = owners_of(placed)
        assert sorted(after) == list(range(shards))
        # No assignment of these sizes moves fewer: kept are at most the sizes, the largest first.
        counts = sorted((list(owners.values()).count(name) for name in groups), reverse=True)
        best = [
            shards // len(groups) + (each < shards % len(groups)) for each in range(len(counts))
        ]
        assert moved(owners, after) == shards - sum(map(min, counts, best))
        assert placement(shards, groups, after) == placed, "a second plan moves nothing"
        owners = after


@pytest.mark.parametrize("bits", range(8))
def test_parts_lie_in_one_group_and_doubling_moves_half(bits: int) -> None:
    shards = 128
    groups = names(1 << bits)
    placed = placement(shards, groups)
    owners = owners_of(placed)
    for part_bits in range(bits, 8):
        for part in range(1 << part_bits):
            assert len({owners[shard] for shard in range(part, shards, 1 << part_bits)}) == 1
    if bits < 7:
        doubled = owners_of(placement(shards, names(2 << bits), owners))
        assert moved(owners, doubled) == shards // 2
        for part in range(2 << bits):
            assert len({doubled[shard] for shard in range(part, shards, 2 << bits)}) == 1
    assert dealing_order(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_more_groups_than_shards_are_refused() -> None:
    with pytest.raises(UsageError, match="too few for 5 groups"):
        placement(4, names(5))


@dataclass
class Replica:
    """A server as the commands see it: alive or not, with the map and the shards of some moment."""

    group: str
    is_alive: bool = True
    version: int = 0
    opened: frozenset[int] = frozenset()

    def follow(self, current: ClusterMap) -> None:
        """Reads the map, closes what it does not name, and keeps the rest."""
        group = current.groups.get(self.group)
        self.version = current.version
        if group is not None:
            self.opened &= set(group.opened)

    def load(self, current: ClusterMap) -> None:
        """Opens all that the map names."""
        self.follow(current)
        group = current.groups.get(self.group)
        if group is not None:
            self.opened = frozenset(group.opened)

    def report(self, target: str) -> ReplicaReport:
        if not self.is_alive:
            return ReplicaReport(target, problem="UNAVAILABLE")
        return ReplicaReport(target, None, self.group, self.version, 1, 0, self.opened)


@dataclass
class Simulation:
    """A cluster and its map; `now_ts` passes between steps."""

    current: ClusterMap
    replicas: dict[str, Replica] = field(default_factory=dict)
    now_ts: int = 0

    def start(self, desired: DesiredCluster) -> None:
        for name, targets in desired.targets.items():
            for target in targets:
                self.replicas.setdefault(target, Replica(name)).is_alive = True

    def reports(self) -> dict[str, ReplicaReport]:
        return {target: replica.report(target) for target, replica in self.replicas.items()}

    def step(self, desired: DesiredCluster) -> tuple[str, ...] | None:
        """Makes one step; returns what it waits for, or None if the map changed."""
        age_ms = self.now_ts - self.current.changed_ts
        step = next_step(self.current, desired, self.reports(), age_ms, self.now_ts)
        if step.map is None:
            return step.waits
        before = self.served()
        self.current = step.map.model_copy(update={"version": self.current.version + 1})
        # The constructor of the map has checked that each shard is served and will stay somewhere.
        assert self.served() >= before, "a step took a shard from all replicas that had it"
        return None

    def served(self) -> set[int]:
        """Shards that clients find open at a replica of a group that serves them, and keep it."""
        return {
            shard
            for name, group in self.current.groups.items()
            for target in group.targets
            if target in self.replicas and self.replicas[target].is_alive
            for shard in self.replicas[target].opened
            if shard in group.serving and shard not in group.leaving
        }


@st.composite
def desired_clusters(draw: st.DrawFn, shards: int) -> DesiredCluster:
    groups = draw(st.lists(st.integers(0, 6), min_size=1, max_size=min(5, shards), unique=True))
    copies = {each: draw(st.sets(st.integers(0, 2), min_size=1)) for each in groups}
    return DesiredCluster(
        draw(st.sampled_from([LIFETIME_MS, 10])),
        {str(g): tuple(f"r{copy}-{g}:1" for copy in sorted(copies[g])) for g in groups},
    )


@given(st.data())
def test_no_step_takes_a_shard_from_clients(data: st.DataObject) -> None:
    """Steps stand between anything: kills, other desired states, replicas that lag and die."""
    shards = data.draw(st.sampled_from([4, 16]))
    desired = data.draw(desired_clusters(shards))
    world = Simulation(first_map(shards, desired, 0))
    world.start(desired)
    for replica in world.replicas.values():
        replica.load(world.current)
    for _ in range(data.draw(st.integers(0, 40))):
        kind = data.draw(st.sampled_from(["step", "step", "load", "follow", "wait", "die", "want"]))
        if kind == "step":
            world.step(desired)
        elif kind == "wait":
            world.now_ts += data.draw(st.sampled_from([1, LIFETIME_MS]))
        elif kind == "want":
            desired = data.draw(desired_clusters(shards))
            world.start(desired)
        else:
            replica = world.replicas[data.draw(st.sampled_from(sorted(world.replicas)))]
            if kind == "die":
                replica.is_alive = False
                replica.opened = frozenset()
            else:
                replica.is_alive = True
                getattr(replica, kind)(world.current)
    # Once everything is well, the moves end, and at the desired placement.
    world.start(desired)
    for target in [each for group in world.current.groups.values() for each in group.targets]:
        world.replicas[target].is_alive = True
    wanted = wanted_placement(world.current, desired)
    for _ in range(40):
        for replica in world.replicas.values():
            if replica.is_alive:
                replica.load(world.current)
        world.now_ts += LIFETIME_MS
        if world.step(desired) == ():
            break
    else:
        pytest.fail("the moves do not end")
    assert world.current.is_settled and current_owners(world.current) == owners_of(wanted)
    assert {name: set(group.targets) for name, group in world.current.groups.items()} == {
        name: set(targets) for name, targets in desired.targets.items()
    }
    assert {name: group.serving for name, group in world.current.groups.items()} == {
        name: tuple(numbers) for name, numbers in wanted.items()
    }
    assert world.served() == set(range(shards))


def grown() -> tuple[Simulation, DesiredCluster]:
    first = DesiredCluster(LIFETIME_MS, {"0": ("a0:1", "b0:1")})
    world = Simulation(first_map(4, first, 0))
    world.start(first)
    for replica in world.replicas.values():
        replica.load(world.current)
    desired = DesiredCluster(LIFETIME_MS, {**first.targets, "1": ("a1:1", "b1:1")})
    world.start(desired)
    assert world.step(desired) is None
    return world, desired


def test_a_move_waits_for_every_replica_that_answers_and_for_no_other() -> None:
    world, desired = grown()
    assert world.current.groups["1"].loading == (1, 3)
    for replica in world.replicas.values():
        replica.follow(world.current)
    waits = world.step(desired)
    assert waits is not None and "a1:1 has yet to open 2 of 2 shards." in waits
    world.replicas["a1:1"].load(world.current)
    waits = world.step(desired)
    assert waits == ("b1:1 has yet to open 2 of 2 shards.",)
    world.replicas["b1:1"].is_alive = False
    assert world.step(desired) is None
    assert world.current.groups["1"].serving == world.current.groups["0"].leaving == (1, 3)
    for replica in world.replicas.values():
        replica.load(world.current)
    waits = world.step(desired)
    assert waits == (
        "Clients may use the last map for 1.0 s more, before group 0 closes 2 shards.",
    )
    world.now_ts += LIFETIME_MS
    world.replicas["a1:1"].is_alive = False
    waits = world.step(desired)
    assert waits is not None and waits[0] == "No replica of group 1 answers."
    group = world.current.groups["0"]
    assert group.serving == (0, 1, 2, 3), "it is the last that has them open"
    world.replicas["a1:1"].is_alive = True
    assert world.step(desired) is None
    group = world.current.groups["0"]
    assert group.serving == (0, 2) and world.current.is_settled


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"version": 1}, "follows version 1 of the map, and not yet 2."),
        ({"version": 7}, "follows version 7 of the map, and the store has 2;"),
        ({"version": 0}, "follows no map; start it with --group 1."),
        ({"group": "7"}, "belongs to group 7 and not to 1"),
    ],
)
def test_a_replica_that_would_misroute_holds_a_move_up(
    fault: dict[str, object], sentence: str
) -> None:
    world, desired = grown()
    world.current = world.current.model_copy(update={"version": 2})
    for replica in world.replicas.values():
        replica.load(world.current)
    for name, value in fault.items():
        setattr(world.replicas["a1:1"], name, value)
    waits = world.step(desired)
    assert waits is not None and any(sentence in wait for wait in waits)
    assert world.current.groups["1"].loading == (1, 3)


def test_an_address_cannot_change_its_group_at_once() -> None:
    world, _ = grown()
    swapped = DesiredCluster(LIFETIME_MS, {"0": ("a1:1",), "1": ("a0:1",)})
    with pytest.raises(UsageError, match="a0:1 is a replica of group 0 and cannot become"):
        world.step(swapped)
