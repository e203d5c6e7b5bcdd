"""The map of a cluster: groups of servers, and the shards of each.

A shard moves in three steps, each a later map: its new group opens it (`loading`), then both groups
serve it and the old one is to give it up (`leaving`), then the old one closes it. So at every
moment each shard is served.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Self
from uuid import uuid4

import numpy as np
import xxhash
from pydantic import Field, StringConstraints, model_validator
from thinrow.core.shards import SHARDS_MAX
from thinrow.store.stored_files import Count, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

__all__ = [
    "FORMAT",
    "GROUPS_MAX",
    "GROUP_NAME",
    "LIFETIME_MS_MAX",
    "MAP_BYTES_MAX",
    "TARGETS_MAX",
    "ClusterMap",
    "Group",
    "GroupName",
    "decode_map",
]

FORMAT = 1
GROUPS_MAX = 4_096
"""Most groups of a map."""
TARGETS_MAX = 16
"""Most replicas of a group."""
LIFETIME_MS_MAX = 86_400_000
"""Longest time for which clients use a map, ms: a day."""
MAP_BYTES_MAX = 32 << 20
"""Limit on the object of a map: the longest addresses of all replicas, and each shard four
times."""
GROUP_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
"""Names of groups, which have no slash, so that they differ from the fixed choice I/G."""
_TARGET = r"^([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$"

GroupName = Annotated[str, StringConstraints(pattern=GROUP_NAME)]
_Target = Annotated[str, StringConstraints(pattern=_TARGET)]
_Shards = tuple[Annotated[int, Field(ge=0, lt=SHARDS_MAX)], ...]


class Group(Record):
    """Replicas that have the same shards."""

    targets: Annotated[tuple[_Target, ...], Field(min_length=1, max_length=TARGETS_MAX)]
    """HOST:PORT of each replica."""
    serving: _Shards = ()
    """Shards that clients may request, ascending."""
    loading: _Shards = ()
    """Shards that the group is opening, ascending; none is in `serving`."""
    leaving: _Shards = ()
    """Shards of `serving` that the group is about to close, ascending."""

    @property
    def opened(self) -> tuple[int, ...]:
        """Shards that each replica is to hold open, ascending."""
        return tuple(sorted({*self.serving, *self.loading}))

    @property
    def final(self) -> frozenset[int]:
        """Shards that the group has once all moves are over."""
        return frozenset(self.serving).difference(self.leaving).union(self.loading)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("serving", "loading", "leaving"):
            shards = getattr(self, name)
            if any(left >= right for left, right in pairwise(shards)):
                raise ValueError(f"the shards of {name} are not ascending")
        if not set(self.serving).isdisjoint(self.loading):
            raise ValueError("a shard is in serving and in loading")
        if not set(self.serving).issuperset(self.leaving):
            raise ValueError("a shard is in leaving and not in serving")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("a target is named twice")
        for target in self.targets:
            if not 0 < int(target.rpartition(":")[2]) < 1 << 16:
                raise ValueError(f"{target} has no port from 1 to 65535")
        return self


class ClusterMap(Record):
    """One version of the map, which never changes."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT
    version: Annotated[Count, Field(ge=1)]
    """A later map has a higher one; numbers may be left out."""
    shards: Annotated[int, Field(ge=1, le=SHARDS_MAX)]
    """Shards of the store: a power of two."""
    lifetime_ms: Annotated[int, Field(ge=1, le=LIFETIME_MS_MAX)]
    """Time for which a client may use this map."""
    changed_ts: Count
    """Time at which this version was written, ms."""
    groups: Annotated[dict[GroupName, Group], Field(min_length=1, max_length=GROUPS_MAX)]
    write_id: str = Field(default_factory=lambda: uuid4().hex, max_length=32)
    """Identifies this very write."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shards & (self.shards - 1):
            raise ValueError(f"{self.shards} shards are no power of two")
        groups = self.groups.values()
        targets = [target for group in groups for target in group.targets]
        if len(set(targets)) < len(targets):
            raise ValueError("two groups name the same target")
        for name, shards in (
            ("is served", (group.serving for group in groups)),
            ("is to stay", (group.final for group in groups)),
        ):
            missing = np.flatnonzero(self._counts(shards) == 0)
            if missing.size:
                raise ValueError(f"shard {missing[0]} {name} nowhere")
        self._counts(group.loading for group in groups)
        return self

    def _counts(self, chosen: Iterable[Iterable[int]]) -> NDArray[np.int64]:
        """Counts the groups that have each shard."""
        numbers = np.fromiter((shard for shards in chosen for shard in shards), np.int64)
        if numbers.size and numbers.max() >= self.shards:
            raise ValueError(f"shard {numbers.max()} is beyond the {self.shards} of the store")
        return np.bincount(numbers, minlength=self.shards)

    @property
    def is_settled(self) -> bool:
        """True if no shard moves."""
        return not any(group.loading or group.leaving for group in self.groups.values())

    def changed(
        self, changed_ts: int, groups: Mapping[str, Group], lifetime_ms: int | None = None
    ) -> ClusterMap:
        """Returns a map that may follow this one; its version is given when it is written."""
        return ClusterMap(
            version=self.version,
            shards=self.shards,
            lifetime_ms=self.lifetime_ms if lifetime_ms is None else lifetime_ms,
            changed_ts=changed_ts,
            groups=dict(groups),
        )

    def encoded(self) -> bytes:
        """Returns the content of the map's object, which ends in its checksum."""
        body = self.model_dump_json().encode()
        return body[:-1] + b',"xxh3":"' + xxhash.xxh3_64_hexdigest(body).encode() + b'"}'


_CHECKSUM = re.compile(rb',"xxh3":"([0-9a-f]{16})"\}$')


def decode_map(data: bytes) -> ClusterMap:
    """Parses the content of a map's object.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    match = _CHECKSUM.search(data)
    if match is None:
        raise ValueError("it has no checksum")
    body = data[: match.start()] + b"}"
    if xxhash.xxh3_64_hexdigest(body).encode() != match[1]:
        raise ValueError("its checksum does not fit")
    return ClusterMap.model_validate_json(body)
