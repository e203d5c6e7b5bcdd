"""The next step from a map to the desired state, as a pure function of what replicas report.

Each step keeps this: every shard is in `serving`, and not in `leaving`, of a group whose replicas
have it open. So a command that is killed between two steps leaves a map that serves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinrow.cluster.cluster_map import TARGETS_MAX, ClusterMap, Group
from thinrow.cluster.placement import owners_of, placement
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from thinrow.cluster.desired import DesiredCluster
    from thinrow.cluster.replica_report import ReplicaReport

__all__ = ["Step", "current_owners", "first_map", "next_step", "wanted_placement"]


@dataclass(frozen=True, slots=True)
class Step:
    """The next step."""

    map: ClusterMap | None
    """The map to write; None where there is nothing to change for now."""
    waits: tuple[str, ...] = ()
    """Reasons for which the desired state is not reached yet, a sentence each; empty once it is."""


def first_map(shards: int, desired: DesiredCluster, now_ts: int) -> ClusterMap:
    """Returns the map of a store that has none: each group serves its shards at once."""
    placed = placement(shards, list(desired.targets))
    groups = {
        name: Group(targets=targets, serving=tuple(placed[name]))
        for name, targets in desired.targets.items()
    }
    return ClusterMap(
        version=1,
        shards=shards,
        lifetime_ms=desired.lifetime_ms,
        changed_ts=now_ts,
        groups=groups,
    )


def current_owners(current: ClusterMap) -> dict[int, str]:
    """Returns the group that each shard is in, or is on its way to."""
    owners: dict[int, str] = {}
    for name, group in current.groups.items():
        for shard in set(group.serving).difference(group.leaving):
            owners.setdefault(shard, name)
    for name, group in current.groups.items():
        owners.update(dict.fromkeys(group.loading, name))
    return owners


def wanted_placement(current: ClusterMap, desired: DesiredCluster) -> dict[str, list[int]]:
    """Returns the shards that each desired group is to have.

    Raises:
        UsageError: There are too many groups, or an address is to change its group.
    """
    for name, group in current.groups.items():
        for target in group.targets:
            for other, targets in desired.targets.items():
                if other != name and target in targets:
                    raise UsageError(
                        f"{target} is a replica of group {name} and cannot become one of "
                        f"group {other} at once; give {other} another address, or drain the "
                        f"replica first."
                    )
    return placement(current.shards, list(desired.targets), current_owners(current))


def next_step(
    current: ClusterMap,
    desired: DesiredCluster,
    reports: Mapping[str, ReplicaReport],
    age_ms: int,
    now_ts: int,
) -> Step:
    """Returns the map that may follow, and what the desired state waits for.

    Args:
        current: The map that counts.
        desired: The groups as they are to be.
        reports: The report of each target of the map, and of each desired target.
        age_ms: Time since this version of the map was written.
        now_ts: Time of the new map, ms.

    Raises:
        UsageError: The desired state cannot be reached from this map.
    """
    wanted = owners_of(wanted_placement(current, desired))
    move = _Move(current, desired, reports, wanted)
    move.change_targets()
    move.start_loading()
    move.promote()
    move.mark_leaving()
    move.drop(age_ms)
    return move.result(now_ts)


@dataclass(slots=True)
class _Shards:
    """Shards of one group, while a step changes them."""

    targets: tuple[str, ...]
    serving: set[int]
    loading: set[int]
    leaving: set[int]

    @property
    def staying(self) -> set[int]:
        """Shards that clients may request after the next drop."""
        return self.serving - self.leaving


@dataclass(slots=True)
class _Move:
    """One step."""

    current: ClusterMap
    desired: DesiredCluster
    reports: Mapping[str, ReplicaReport]
    wanted: dict[int, str]
    """The group that each shard is to have."""
    groups: dict[str, _Shards] = field(init=False)
    waits: list[str] = field(default_factory=list)
    blocked: set[str] = field(default_factory=set)
    """Groups whose wait is named already."""

    def __post_init__(self) -> None:
        self.groups = {
            name: _Shards(group.targets, set(group.serving), set(group.loading), set(group.leaving))
            for name, group in self.current.groups.items()
        }

    def change_targets(self) -> None:
        """Adds new groups and replicas, and removes those that are not desired.

        The last replica that has a group's shards open stays until another one has them.
        """
        for name, targets in self.desired.targets.items():
            group = self.groups.get(name)
            if group is None:
                self.groups[name] = _Shards(targets, set(), set(), set())
                continue
            removed = [target for target in group.targets if target not in targets]
            if removed and not any(self._has_open(each, name, group.serving) for each in targets):
                kept = [each for each in removed if self._may_serve(each, group.serving)]
                if kept:
                    self.waits.append(
                        f"{', '.join(kept)} of group {name} stays until another replica has the "
                        f"group's shards open."
                    )
                group.targets = (*targets, *kept[: TARGETS_MAX - len(targets)])
            else:
                group.targets = targets

    def start_loading(self) -> None:
        """Lets groups load what they are to have, and no longer what they are not."""
        for name, group in self.groups.items():
            mine = {shard for shard, owner in self.wanted.items() if owner == name}
            group.loading = (group.loading | mine - group.serving) & mine
            group.leaving -= mine

    def promote(self) -> None:
        """Serves what a group was given to load, once its replicas have all of it open."""
        for name, group in self.groups.items():
            if not group.loading:
                continue
            given = name in self.current.groups and group.loading <= set(
                self.current.groups[name].loading
            )
            if self._is_open(name, group.loading) and given:
                group.serving |= group.loading
                group.loading = set()

    def mark_leaving(self) -> None:
        """Marks shards that their new group serves."""
        for name, group in self.groups.items():
            going = {shard for shard in group.staying if self.wanted[shard] != name}
            for owner in sorted({self.wanted[shard] for shard in going}):
                moving = {shard for shard in going if self.wanted[shard] == owner}
                moving &= self.groups[owner].staying
                if moving and self._is_open(owner, moving):
                    group.leaving |= moving

    def drop(self, age_ms: int) -> None:
        """Drops what was leaving for a lifetime, if the group that stays has it open."""
        rest_ms = self.current.lifetime_ms - age_ms
        for name, group in self.groups.items():
            if not group.leaving:
                continue
            if name not in self.current.groups or rest_ms > 0:
                self.waits.append(
                    f"Clients may use the last map for {max(rest_ms, 0) / 1000:.1f} s more, before "
                    f"group {name} closes {len(group.leaving):,} shards."
                )
                continue
            marked = group.leaving & set(self.current.groups[name].leaving)
            for owner in sorted({self.wanted[shard] for shard in marked}):
                leaving = {shard for shard in marked if self.wanted[shard] == owner}
                leaving &= self.groups[owner].staying
                if leaving and self._is_open(owner, leaving):
                    group.serving -= leaving
                    group.leaving -= leaving

    def result(self, now_ts: int) -> Step:
        """Returns the step as a map, or none if it changes nothing."""
        for name in [name for name in self.groups if name not in self.desired.targets]:
            if not self.groups[name].serving and not self.groups[name].loading:
                del self.groups[name]
        groups = {
            name: Group(
                targets=group.targets,
                serving=tuple(sorted(group.serving)),
                loading=tuple(sorted(group.loading)),
                leaving=tuple(sorted(group.leaving)),
            )
            for name, group in self.groups.items()
        }
        is_settled = not any(group.loading or group.leaving for group in groups.values())
        lifetime_ms = self.desired.lifetime_ms
        if not is_settled:  # clients may still use a map with the longer one
            lifetime_ms = max(lifetime_ms, self.current.lifetime_ms)
        waits = tuple(dict.fromkeys(self.waits))
        if groups == self.current.groups and lifetime_ms == self.current.lifetime_ms:
            return Step(None, waits)
        changed = self.current.changed(now_ts, groups, lifetime_ms)
        rest = () if is_settled else ("The moves of shards go on.",)
        return Step(changed, waits or rest)

    def _has_open(self, target: str, name: str, shards: set[int]) -> bool:
        """Returns True if a replica follows this map and has shards open."""
        report = self.reports.get(target)
        return report is not None and not self._problem(report, name, shards)

    def _may_serve(self, target: str, shards: set[int]) -> bool:
        """Returns True if clients may find shards at a replica, whatever map it follows."""
        report = self.reports.get(target)
        return (
            report is not None
            and report.problem is None
            and (not shards or not shards.isdisjoint(report.open_shards))
        )

    def _problem(self, report: ReplicaReport, name: str, shards: set[int]) -> str | None:
        """Returns why a replica that may answer is not to be counted on; None if it is."""
        if report.problem is not None:
            return f"{report.target} does not answer ({report.problem})."
        if report.map_version == 0:
            return f"{report.target} follows no map; start it with --group {name}."
        if report.group not in ("", name):
            return (
                f"{report.target} belongs to group {report.group} and not to {name}; correct its "
                f"--group, or the address in the file."
            )
        if report.map_version < self.current.version:
            return (
                f"{report.target} follows version {report.map_version} of the map, and not yet "
                f"{self.current.version}."
            )
        if report.map_version > self.current.version:
            return (
                f"{report.target} follows version {report.map_version} of the map, and the store "
                f"has {self.current.version}; if no other command has just changed the map, it was "
                f"set back: run thinrow cluster restore."
            )
        missing = len(shards - report.open_shards)
        if missing:
            return f"{report.target} has yet to open {missing:,} of {len(shards):,} shards."
        return None

    def _is_open(self, name: str, shards: set[int]) -> bool:
        """Returns True if all replicas of a group that answer have shards open, one at least.

        Otherwise the waits get the reasons, once for each group.
        """
        targets = self.groups[name].targets
        reports = [self.reports[each] for each in targets if each in self.reports]
        answering = [report for report in reports if report.problem is None]
        problems = [self._problem(report, name, shards) for report in answering or reports]
        found = [problem for problem in problems if problem is not None]
        if not found and answering:
            return True
        if name not in self.blocked:
            self.blocked.add(name)
            if not answering:
                found = [f"No replica of group {name} answers.", *found]
            self.waits += found
        return False
