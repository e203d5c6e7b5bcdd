"""A server's place in its cluster: the shards that it opens, and its answer to DescribeCluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.cluster.local_map import LocalMap
from thinrow.core.ids import to_wire_kind
from thinrow.errors import ShardMissingError
from thinrow.store.completeness import stored_shards
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.cluster.cluster_map import ClusterMap, Group
    from thinrow.store.generation import Generation

__all__ = ["ClusterMember"]

_NOTHING: frozenset[int] = frozenset()


class ClusterMember:
    """A member of a group, by the copy of the map that its mirror has. It is a `ShardSource`.

    One thread opens shards; any may read what is known.

    Args:
        mirror: Folder of the mirror.
        group: Name of the server's group.
    """

    def __init__(self, mirror: Path, group: str) -> None:
        self.group = group
        self._local = LocalMap(mirror)
        self._known = _Known(None, group)
        self._description: tuple[_Known, Generation, bytes] | None = None

    @property
    def version(self) -> int:
        """Version of the map; 0 before the first."""
        return self._known.version

    @property
    def is_in_map(self) -> bool:
        """True if the map has this server's group."""
        return self._known.group is not None

    @property
    def wanted(self) -> frozenset[int]:
        """Shards that the map gives the group, those that it is loading included."""
        return self._known.wanted

    @property
    def moving_count(self) -> int:
        """Number of the cluster's shards that are on the move, whichever group they belong to."""
        return self._known.moving_count

    def to_open(self, folder: Path) -> frozenset[int]:
        """Returns those shards of the group that the mirror has; all that it has for no group."""
        self._refresh()
        here = frozenset(stored_shards(folder))
        return self.wanted & here if self.is_in_map else here

    def has_changed(self, generation: Generation) -> bool:
        """Returns True if shards were added or have left; a group that the map lacks keeps its."""
        self._refresh()
        if not self.is_in_map or generation.shards.keys() == self.wanted:
            return False
        return generation.shards.keys() != self.wanted & stored_shards(generation.folder)

    def is_ready(self, generation: Generation) -> bool:
        """Returns True if every shard that clients may request is open."""
        return self.is_in_map and self._known.serving <= generation.shards.keys()

    def description(self, generation: Generation) -> bytes:
        """Returns an encoded DescribeClusterResponse.

        Raises:
            ShardMissingError: There is no map yet.
        """
        known, last = self._known, self._description
        if last is not None and last[0] is known and last[1] is generation:
            return last[2]
        if known.described is None:
            raise ShardMissingError(
                f"This server waits for the cluster's map, which gives its group {self.group} "
                f"shards; write the map with thinrow cluster apply, or use another replica."
            )
        described = wire.DescribeClusterResponse()
        described.CopyFrom(known.described)
        described.generation = generation.number
        described.watermark_ts = generation.watermark_ts
        described.open_shards.extend(generation.shards)
        described.user_id_kind = to_wire_kind(generation.schema.user_ids)
        encoded = described.SerializeToString()
        self._description = known, generation, encoded
        return encoded

    def _refresh(self) -> None:
        latest = self._local.refresh()
        if latest is not self._known.map:
            self._known = _Known(latest, self.group)


class _Known:
    """A map as a group sees it, made once."""

    def __init__(self, latest: ClusterMap | None, name: str) -> None:
        self.map = latest
        self.version = 0 if latest is None else latest.version
        self.group: Group | None = None if latest is None else latest.groups.get(name)
        self.wanted = _NOTHING if self.group is None else frozenset(self.group.opened)
        self.serving = _NOTHING if self.group is None else frozenset(self.group.serving)
        groups = [] if latest is None else latest.groups.values()
        self.moving_count = len(
            {shard for each in groups for shard in (*each.loading, *each.leaving)}
        )
        self.described: wire.DescribeClusterResponse | None = None
        """The map in a response of DescribeCluster."""
        if latest is not None:
            self.described = wire.DescribeClusterResponse(
                map_version=latest.version,
                shards=latest.shards,
                groups=[
                    wire.ClusterGroup(
                        name=each,
                        targets=group.targets,
                        serving=group.serving,
                        loading=group.loading,
                        leaving=group.leaving,
                    )
                    for each, group in latest.groups.items()
                ],
                map_lifetime_ms=latest.lifetime_ms,
                group="" if self.group is None else name,
            )
