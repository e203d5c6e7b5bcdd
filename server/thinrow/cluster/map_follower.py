"""The cluster's map as the store has it, followed into a mirror, and the shards to mirror by it."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from thinrow.cluster.local_map import LocalMap
from thinrow.cluster.map_metrics import MapMetrics
from thinrow.cluster.map_objects import MAP, read_map
from thinrow.errors import StoreCorruptError, StoreError, StoreUnavailableError, ThinRowError
from thinrow.remote.object_store import ObjectStore
from thinrow.store.completeness import stored_shards
from thinrow.store.current import current_folder
from thinrow.store.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from thinrow.cluster.cluster_map import ClusterMap
    from thinrow.cluster.map_objects import StoredMap

__all__ = ["MapFollower"]

log = logging.getLogger("thinrow.cluster")

STOP_S = 2.0
"""Longest time that closing waits for a request to an object store that does not answer."""


class MapFollower:
    """Keeps a mirror's copy of the map like the store's, from `start` to `close`.

    It has a thread of its own: a mirror that copies for minutes must not keep the map from those
    who request it from this server. Whatever is wrong with the store's map, the copy stays.

    Args:
        url: URL of the store.
        mirror: Folder of the mirror.
        group: Name of the server's group.
        poll_s: Mean interval at which the map is read; each wait is drawn from half to three halves
            of it.
        registry: Registry that gets the series.

    Raises:
        UsageError: The URL cannot be used.
    """

    def __init__(
        self, url: str, mirror: Path, group: str, poll_s: float, registry: CollectorRegistry
    ) -> None:
        self._store = ObjectStore(url)
        self._mirror = mirror
        self._group = group
        self._poll_s = poll_s
        self._metrics = MapMetrics(registry)
        self._local = LocalMap(mirror)
        self._stored: StoredMap | None = None
        self._failed: str | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._stopping = threading.Event()
        # A daemon, since a request to an object store that does not answer takes a minute to fail.
        self._thread = threading.Thread(target=self._follow, name="thinrow-map", daemon=True)

    def start(self, on_change: Callable[[], None]) -> None:
        """Begins to follow; the mirror's folder is this process's own.

        Where the mirror has no copy of the map, the store's is read first.

        Args:
            on_change: Called after each change of the map.
        """
        self._on_change = on_change
        try:
            self._local.refresh()
        except StoreCorruptError as error:
            self._fail(error)
            self._local.path.unlink(missing_ok=True)
        if self._local.map is None:
            self._look()
            if self._local.map is None:
                log.warning("waiting for the cluster's map", extra={"group": self._group})
        self._report_group()
        self._thread.start()

    def close(self) -> None:
        """Stops following."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def to_mirror(self, shard_count: int) -> Collection[int]:
        """Returns the shards to mirror of a generation with `shard_count`.

        A group that the map lacks keeps what its mirror has.

        Raises:
            StoreError: The map is of another number of shards.
        """
        latest = self._local.map
        group = None if latest is None else latest.groups.get(self._group)
        if latest is None or group is None:
            folder = current_folder(self._mirror)
            here = set() if folder is None else stored_shards(folder)
            return here & set(range(shard_count))
        if latest.shards != shard_count:
            raise StoreError(_other_count(self._store.url, latest, shard_count))
        return group.opened

    def _follow(self) -> None:
        while not self._stopping.wait(self._poll_s * random.uniform(0.5, 1.5)):
            self._look()

    def _look(self) -> None:
        """Reads the map, and replaces the copy if there is a later one."""
        try:
            stored = read_map(self._store, self._stored)
            if stored is None and self._local.map is not None:
                raise _damaged(self._store, "it is gone")
            if stored is not None and stored is not self._stored and not self._stopping.is_set():
                self._accept(stored)
        except (ThinRowError, OSError) as error:
            self._fail(error)
            return
        if self._failed is not None:
            log.info("the cluster's map is followed again")
        self._failed = None
        self._metrics.failing.set(0)
        self._metrics.checked.set(time.time())

    def _accept(self, stored: StoredMap) -> None:
        """Makes the store's map the mirror's.

        Raises:
            StoreCorruptError: It is older than the mirror's, or another one of the same version.
            StoreError: It is of another number of shards than the generation that is here.
        """
        old, new = self._local.map, stored.map
        if old is not None and new.version < old.version:
            reason = f"it names version {new.version}, and version {old.version} counted"
            raise _damaged(self._store, reason)
        if old is not None and new.version == old.version and new != old:
            raise _damaged(self._store, f"version {new.version} has changed")
        folder = current_folder(self._mirror)
        if folder is not None:
            shard_count = read_manifest(folder).shard_count
            if new.shards != shard_count:
                raise StoreError(_other_count(self._store.url, new, shard_count))
        if new != old:
            self._local.write(new)
            self._report_group()
        self._stored = stored
        if new != old:
            self._on_change()

    def _report_group(self) -> None:
        latest = self._local.map
        if latest is None:
            return
        group = latest.groups.get(self._group)
        extra = {"version": latest.version, "group": self._group}
        if group is None:
            log.error("the cluster's map lacks this group; what is open serves on", extra=extra)
            return
        shards = {name: len(getattr(group, name)) for name in ("serving", "loading", "leaving")}
        log.info("cluster map", extra={**extra, **shards})

    def _fail(self, error: Exception) -> None:
        """Counts a failure; the log names each reason once, and the map that is here counts on."""
        if self._stopping.is_set():
            return
        kind = "other"
        if isinstance(error, StoreUnavailableError):
            kind = "unreachable"
        elif isinstance(error, StoreCorruptError):
            kind = "damaged"
        self._metrics.failures.labels(kind).inc()
        self._metrics.failing.set(1)
        if str(error) != self._failed:
            self._failed = str(error)
            log.error(
                "the cluster's map cannot be followed; the one that is here counts on",
                extra={"kind": kind, "reason": self._failed},
            )


def _damaged(store: ObjectStore, reason: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{store.url}/{MAP} is damaged ({reason}); write it again with thinrow cluster restore "
        f"--store {store.url}."
    )


def _other_count(url: str, found: ClusterMap, shard_count: int) -> str:
    return (
        f"Version {found.version} of the cluster's map of {url} is for {found.shards} shards, and "
        f"the store has {shard_count}; write the map of this store with thinrow cluster apply."
    )
