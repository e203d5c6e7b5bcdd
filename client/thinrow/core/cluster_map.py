"""The map of a cluster, as a server describes it: checked, and in arrays."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow import _native as native
from thinrow.core.ids import from_wire_kind
from thinrow.core.shards import SHARDS_MAX, shard_of
from thinrow.core.wire.malformed import require
from thinrow.errors import InputError, ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind

__all__ = ["ClusterMap", "Group", "ServerState"]

STATE_BYTES_MAX = 8 << 20
"""Limit on a description: its addresses, and up to three bytes wherever a shard is listed."""
GROUPS_MAX = 4096
TARGETS_MAX = 16
"""Limit on the replicas of one group."""
NAME_LENGTH_MAX = 128
TARGET_LENGTH_MAX = 256
LIFETIME_MS_MAX = 24 * 3_600_000

TARGET = re.compile(r"([^\s/:@\[\]]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}")
GROUPS = wire.DescribeClusterResponse.GROUPS_FIELD_NUMBER
TARGETS = wire.ClusterGroup.TARGETS_FIELD_NUMBER
PARTS_MAX = (([GROUPS], GROUPS_MAX), ([GROUPS, TARGETS], GROUPS_MAX * TARGETS_MAX))


class Group(NamedTuple):
    """Replicas that have the same shards."""

    name: str
    targets: tuple[str, ...]


class ClusterMap(NamedTuple):
    """The group of each shard."""

    version: int
    """Number of the map, from 1; a later map has a higher one."""
    lifetime_s: float
    """Time for which a client may use the map."""
    user_ids: IdKind
    groups: tuple[Group, ...]
    owners: NDArray[np.int64]
    """Shape (2, shards): the group to request each shard from, and one that also serves it while it
    moves; the same where none does."""

    def groups_of(self, keys: NDArray[np.int64], attempt: int = 0) -> NDArray[np.int64]:
        """Returns the number of each user's group; shape (users,).

        Args:
            keys: The users' keys, as `user_keys` returns them.
            attempt: Number of the attempt: odd ones go to the other group of a moving shard.
        """
        owners: NDArray[np.int64] = self.owners[attempt % 2]
        return owners[shard_of(keys, len(owners))]


class ServerState(NamedTuple):
    """One server's description of the cluster and of itself."""

    version: int
    """Version of its map; 0 if it belongs to no cluster."""
    generation: int
    """Number of the generation that it serves."""
    message: wire.DescribeClusterResponse

    @staticmethod
    def read(message: bytes) -> ServerState:
        """Decodes a DescribeClusterResponse.

        Raises:
            MalformedError: It is none, or has too many parts.
        """
        require(len(message) <= STATE_BYTES_MAX, f"its map has {len(message):,} bytes")
        try:
            for path, most in PARTS_MAX:
                parts = native.count_fields(message, path)
                require(parts <= most, f"its map lists {parts:,} groups or replicas")
            decoded = wire.DescribeClusterResponse.FromString(message)
        except ThinRowError:
            raise
        except Exception as error:  # protobuf's, which has no public name
            require(False, f"its map cannot be decoded ({error})")
            raise
        return ServerState(decoded.map_version, decoded.generation, decoded)

    def map(self) -> ClusterMap:
        """Checks the map.

        Raises:
            MalformedError: It contradicts itself.
        """
        message = self.message
        shards, lifetime_ms = message.shards, message.map_lifetime_ms
        require(
            0 < shards <= SHARDS_MAX and shards & (shards - 1) == 0,
            f"its map has {shards} shards, which is no power of two up to {SHARDS_MAX:,}",
        )
        require(0 < lifetime_ms <= LIFETIME_MS_MAX, f"its map is to be used for {lifetime_ms:,} ms")
        try:
            user_ids = from_wire_kind(message.user_id_kind)
        except InputError as error:
            require(False, f"its users are of an unknown kind: {error}")
            raise
        groups, owners = [], np.full((2, shards), -1, np.int64)
        # A shard that is leaving a group is requested from its new one.
        leaving = np.zeros(shards, np.bool_)
        for number, each in enumerate(message.groups):
            groups.append(_group(each))
            serving = _shards(each.name, each.serving, shards)
            leaves = np.zeros(shards, np.bool_)
            leaves[_shards(each.name, each.leaving, shards)] = True
            _shards(each.name, each.loading, shards)
            taken = owners[0, serving]
            better = (taken < 0) | (leaving[serving] & ~leaves[serving])
            owners[1, serving] = np.where(better, taken, number)
            owners[0, serving[better]] = number
            leaving[serving] = leaves[serving] & ((taken < 0) | leaving[serving])
        names = {group.name for group in groups}
        require(len(names) == len(groups), "its map has two groups of one name")
        unserved = np.flatnonzero(owners[0] < 0)
        require(not len(unserved), f"no group of its map serves {len(unserved)} of its shards")
        owners[1] = np.where(owners[1] < 0, owners[0], owners[1])
        return ClusterMap(self.version, lifetime_ms / 1000, user_ids, tuple(groups), owners)


def _group(message: wire.ClusterGroup) -> Group:
    """Checks the name and the replicas of a group."""
    name = message.name
    require(0 < len(name) <= NAME_LENGTH_MAX, f"a group's name has {len(name)} characters")
    targets = tuple(message.targets)
    require(
        0 < len(targets) <= TARGETS_MAX and len(set(targets)) == len(targets),
        f"the group {name!r} lists {len(targets)} replicas, or one twice",
    )
    for target in targets:
        require(
            len(target) <= TARGET_LENGTH_MAX and TARGET.fullmatch(target) is not None,
            f"the group {name!r} has a replica at {target[:80]!r}, which is not HOST:PORT",
        )
    return Group(name, targets)


def _shards(name: str, listed: object, shards: int) -> NDArray[np.int64]:
    """Checks a list of shards."""
    numbers = np.array(listed, np.int64)
    require(
        not len(numbers) or (numbers[-1] < shards and (np.diff(numbers) > 0).all()),
        f"the group {name!r} lists shards that do not ascend below {shards}",
    )
    return numbers
