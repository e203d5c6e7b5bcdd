"""The cluster of a store: plans, moves of shards, drains, and the state of every replica."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.cluster.cluster_state import ClusterState
from thinrow.cluster.desired import DesiredCluster
from thinrow.cluster.map_objects import (
    map_versions,
    read_map,
    read_version,
    restore_map,
    write_map,
)
from thinrow.cluster.moves import current_owners, first_map, next_step, wanted_placement
from thinrow.cluster.placement import placement
from thinrow.errors import StoreError, StoreMissingError, UnavailableError, UsageError
from thinrow.jobs.replicas import replica_reports
from thinrow.remote.current import now_ts, require_current
from thinrow.remote.generation_objects import require_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from thinrow.cluster.cluster_map import ClusterMap
    from thinrow.cluster.map_objects import StoredMap
    from thinrow.cluster.replica_report import ReplicaReport
    from thinrow.jobs.connecting import Access
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.manifest import Manifest

__all__ = [
    "GroupPlan",
    "apply_cluster",
    "cluster_state",
    "drained",
    "plan_cluster",
    "restore_cluster",
]

POLL_S = 0.5
"""Pause between two rounds of requests to the replicas."""
QUIET_S = 5.0
"""Time without progress after which the reasons for it are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The change of one group."""

    name: str
    before: int
    """Shards that it has, or is opening."""
    after: int
    arriving: int
    leaving: int
    arriving_bytes: int
    """Bytes of the serving generation that it copies."""
    after_bytes: int


def plan_cluster(store: ObjectStore, desired: DesiredCluster) -> list[GroupPlan]:
    """Returns what applying the desired state would move; changes nothing.

    Raises:
        UsageError: The desired state cannot be reached.
        StoreError: The store or its map cannot be read.
    """
    manifest = _manifest(store)
    stored = read_map(store)
    if stored is None:
        owners: dict[int, str] = {}
        placed = placement(manifest.shard_count, list(desired.targets))
    else:
        _check_shards(stored.map, manifest)
        owners = current_owners(stored.map)
        placed = wanted_placement(stored.map, desired)
    stored_bytes = [shard.stored_bytes for shard in manifest.shards]
    plans = []
    for name in dict.fromkeys([*placed, *owners.values()]):
        before = {shard for shard, owner in owners.items() if owner == name}
        after = set(placed.get(name, ()))
        plans.append(
            GroupPlan(
                name=name,
                before=len(before),
                after=len(after),
                arriving=len(after - before),
                leaving=len(before - after),
                arriving_bytes=sum(stored_bytes[shard] for shard in after - before),
                after_bytes=sum(stored_bytes[shard] for shard in after),
            )
        )
    return plans


def apply_cluster(
    store: ObjectStore,
    desired: DesiredCluster,
    access: Access,
    *,
    wait_s: float,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    written: Callable[[ClusterMap], None] = lambda _: None,
    waiting: Callable[[Sequence[str]], None] = lambda _: None,
) -> ClusterMap:
    """Moves shards, step by step, until the map is as desired; returns it.

    If the process is killed, the next one goes on from the map that it left.

    Args:
        store: The store.
        desired: The groups as they are to be.
        access: Credentials for replicas.
        wait_s: Longest time without progress.
        progress: Receives stage, done and total.
        written: Receives each map that was written.
        waiting: Receives the reasons, a sentence each, once there is no progress for a while.

    Raises:
        UsageError: The desired state cannot be reached.
        UnavailableError: There was no progress for too long; the map serves as it is.
        StoreLockedError: Another command changed the map; this one has changed nothing since.
        StoreError: The store or its map cannot be read.
    """
    stored = read_map(store)
    manifest = _manifest(store)
    if stored is None:
        stored = write_map(store, None, first_map(manifest.shard_count, desired, now_ts()))
        written(stored.map)
    seen_s = moved_s = time.monotonic()
    opened_before = -1
    is_quiet = True
    pause = threading.Event()
    while True:
        _check_shards(stored.map, manifest)
        reports = replica_reports(_targets(stored.map, desired), access)
        opened = _show_loading(stored.map, reports, progress)
        now_s = time.monotonic()
        if opened > opened_before:
            moved_s, is_quiet = now_s, True
        opened_before = opened
        # Of two machines' clocks one may be wrong, so the time that was waited here counts, too.
        age_ms = max(now_ts() - stored.map.changed_ts, int((now_s - seen_s) * 1000))
        step = next_step(stored.map, desired, reports, age_ms, now_ts())
        if step.map is not None:
            stored = write_map(store, stored, step.map)
            written(stored.map)
            seen_s = moved_s = time.monotonic()
            opened_before, is_quiet = -1, True
            continue
        if not step.waits:
            return stored.map
        if is_quiet and now_s - moved_s > QUIET_S:
            waiting(step.waits)
            is_quiet = False
        if now_s - moved_s > wait_s + stored.map.lifetime_ms / 1000:
            raise UnavailableError(
                f"No progress for {wait_s:.0f} s: {' '.join(step.waits[:4])} Version "
                f"{stored.map.version} of the map serves as it is; run the command again once this "
                f"is corrected."
            )
        pause.wait(POLL_S)
        stored = _reread(store, stored)


def _reread(store: ObjectStore, known: StoredMap) -> StoredMap:
    """Reads the map again, which only this command may have changed."""
    found = read_map(store, known)
    if found is not known:
        raise StoreError(
            f"Another command has changed the map of {store.url} in the meantime; run this one "
            f"again once the other has ended."
        )
    return known


def drained(store: ObjectStore, what: str) -> DesiredCluster:
    """Returns the groups of the map without one group, or without one replica.

    Args:
        store: The store.
        what: Name of the group, or HOST:PORT of the replica.

    Raises:
        UsageError: The map has no such group or replica, or nothing would be left.
    """
    current = _require_map(store).map
    staying = set(current_owners(current).values())
    targets = {name: group.targets for name, group in current.groups.items() if name in staying}
    if what in current.groups:
        targets.pop(what, None)
        if not targets:
            raise UsageError(f"{what} is the only group that has shards; add another one first.")
        return DesiredCluster(current.lifetime_ms, targets)
    for name, addresses in targets.items():
        if what in addresses:
            if len(addresses) == 1:
                raise UsageError(
                    f"{what} is the only replica of group {name}; drain the group, or add a "
                    f"replica first."
                )
            targets[name] = tuple(each for each in addresses if each != what)
            return DesiredCluster(current.lifetime_ms, targets)
    raise UsageError(f"The map has no group and no replica {what}; see thinrow cluster status.")


def cluster_state(store: ObjectStore, access: Access) -> ClusterState:
    """Returns the map and the reports of all replicas.

    Raises:
        StoreMissingError: There is no map.
        StoreError: The store or its map cannot be read.
    """
    current = _require_map(store).map
    manifest = _manifest(store)
    _check_shards(current, manifest)
    targets = [target for group in current.groups.values() for target in group.targets]
    return ClusterState(
        current,
        replica_reports(targets, access),
        manifest.number,
        [shard.stored_bytes for shard in manifest.shards],
    )


def restore_cluster(store: ObjectStore, access: Access) -> ClusterMap:
    """Makes MAP name again the version that counted, once it is lost, damaged or set back.

    That is the newest version that a replica follows; if no replica answers, the newest that the
    store has, which a killed command may have left, and which serves all the same.

    Raises:
        UsageError: MAP names that version, or a later one.
        StoreMissingError: The store has no version of a map.
        StoreError: The store or the version cannot be read.
    """
    versions = map_versions(store)
    if not versions:
        raise _no_map(store)
    newest = read_version(store, versions[-1])
    targets = [target for group in newest.groups.values() for target in group.targets]
    followed = [report.map_version for report in replica_reports(targets, access).values()]
    known = [version for version in followed if version in versions]
    return restore_map(store, max(known, default=newest.version))


def _require_map(store: ObjectStore) -> StoredMap:
    stored = read_map(store)
    if stored is None:
        raise _no_map(store)
    return stored


def _no_map(store: ObjectStore) -> StoreMissingError:
    return StoreMissingError(
        f"{store.url} has no map of a cluster; write one with thinrow cluster apply."
    )


def _targets(current: ClusterMap, desired: DesiredCluster) -> list[str]:
    known = [target for group in current.groups.values() for target in group.targets]
    return list(
        dict.fromkeys([*known, *(each for one in desired.targets.values() for each in one)])
    )


def _manifest(store: ObjectStore) -> Manifest:
    record = require_current(store).record
    return require_generation(
        store, record.number, record.manifest_xxh3, choose=lambda _: ()
    ).manifest


def _check_shards(current: ClusterMap, manifest: Manifest) -> None:
    """Checks that the map is one of this store, whose number of shards never changes."""
    if current.shards != manifest.shard_count:
        raise StoreError(
            f"The map was made for {current.shards:,} shards, and generation {manifest.number} has "
            f"{manifest.shard_count:,}: it is another store's; publish the generation at a URL of "
            f"its own, and give its servers that URL."
        )


def _show_loading(
    current: ClusterMap,
    reports: dict[str, ReplicaReport],
    progress: Callable[[str, int, int], None],
) -> int:
    """Shows how many of the shards that groups load are open; returns the sum over replicas."""
    opened = 0
    for name, group in current.groups.items():
        if not group.loading:
            continue
        counts = [
            len(reports[target].open_shards.intersection(group.loading))
            for target in group.targets
            if reports[target].problem is None
        ]
        opened += sum(counts)
        progress(f"Group {name} opens shards", min(counts, default=0), len(group.loading))
    return opened
