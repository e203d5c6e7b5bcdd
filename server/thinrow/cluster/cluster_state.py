"""The state of a cluster: its map, the reports of all replicas, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from thinrow.cluster.cluster_map import ClusterMap
    from thinrow.cluster.replica_report import ReplicaReport

__all__ = ["ClusterState", "counted", "listed"]

LISTED_MAX = 10
"""Shards or replicas that a sentence lists; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The map, and the reports of all replicas."""

    map: ClusterMap
    reports: dict[str, ReplicaReport]
    generation: int
    """Number of the generation that serves in the object store."""
    shard_bytes: Sequence[int]
    """Bytes of each shard of that generation."""

    def is_ready(self, name: str, target: str) -> bool:
        """Returns True if a replica has all shards open that clients may request of its group."""
        return self.condition(name, target) == "ready"

    def condition(self, name: str, target: str) -> str:
        """Returns the state of a replica of a group, in one or two words."""
        report = self.reports[target]
        if report.problem is not None:
            return "no response"
        if report.map_version == 0:
            return "no map"
        if report.group not in ("", name):
            return f"group {report.group}"
        if not report.open_shards.issuperset(self.map.groups[name].serving):
            return "opening"
        return "ready"

    def open_of(self, name: str, target: str) -> tuple[int, int]:
        """Returns how many shards a replica has open of those it is to have, and those."""
        wanted = self.map.groups[name].opened
        return len(self.reports[target].open_shards.intersection(wanted)), len(wanted)

    def bytes_of(self, shards: Iterable[int]) -> int:
        """Returns the bytes of shards."""
        return sum(self.shard_bytes[shard] for shard in shards)

    def lag(self, target: str) -> int:
        """Returns how many generations a replica that responds is behind the store."""
        report = self.reports[target]
        return max(0, self.generation - report.generation) if report.generation else 0

    @property
    def replicas(self) -> list[tuple[str, str]]:
        """Group and address of each replica, in the order of the map."""
        return [(name, each) for name, group in self.map.groups.items() for each in group.targets]

    @property
    def unserved(self) -> list[int]:
        """Shards that no ready replica serves, ascending."""
        served: set[int] = set()
        for name, target in self.replicas:
            if self.is_ready(name, target):
                served.update(self.map.groups[name].serving)
        return [shard for shard in range(self.map.shards) if shard not in served]

    @property
    def watermark_ts(self) -> int | None:
        """The minimum over ready replicas, ms; None if there is none."""
        ready = (target for name, target in self.replicas if self.is_ready(name, target))
        return min((self.reports[target].watermark_ts for target in ready), default=None)

    @property
    def problem(self) -> str | None:
        """The worst that is wrong, in one sentence; None if nothing is."""
        unserved = self.unserved
        if unserved:
            return (
                f"{len(unserved):,} of {counted(self.map.shards, 'shard')} "
                f"{'has' if len(unserved) == 1 else 'have'} no ready replica: "
                f"{listed(map(str, unserved))}."
            )
        conditions = {target: self.condition(name, target) for name, target in self.replicas}
        for condition, of_one, of_several in (
            ("no response", "does not respond", "do not respond"),
            (
                "no map",
                "follows no map, so start it with --group",
                "follow no map, so start them with --group",
            ),
            ("opening", "is still opening shards", "are still opening shards"),
        ):
            found = [target for target, each in conditions.items() if each == condition]
            if found:
                return self._some(found, of_one, of_several)
        foreign = [target for target, each in conditions.items() if each != "ready"]
        if foreign:
            return self._some(
                foreign,
                "belongs to another group by its --group",
                "belong to another group by their --group",
            )
        behind = [target for _, target in self.replicas if self.lag(target)]
        if behind:
            earlier = f"an earlier generation than {self.generation}"
            return self._some(behind, f"serves {earlier}", f"serve {earlier}")
        return None

    def _some(self, targets: list[str], of_one: str, of_several: str) -> str:
        return (
            f"{len(targets):,} of {counted(len(self.replicas), 'replica')} "
            f"{of_one if len(targets) == 1 else of_several}: {listed(targets)}."
        )


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """Joins names with commas; of many, the first."""
    every = list(names)
    return ", ".join(every[:LISTED_MAX]) + (", …" if len(every) > LISTED_MAX else "")
