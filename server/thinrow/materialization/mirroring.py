"""The mirror of a server whose store is at a URL, and the map of its cluster."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from thinrow.cluster.map_follower import MapFollower
from thinrow.remote.mirror_follower import MirrorFollower

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from thinrow.materialization.config import ServerConfig

__all__ = ["mirror_follower"]


@contextmanager
def mirror_follower(config: ServerConfig, registry: CollectorRegistry) -> Iterator[None]:
    """Keeps the mirror of a server's configuration until the block ends.

    Args:
        config: A configuration with a mirror.
        registry: Registry that gets the mirror's series.

    Raises:
        UsageError: The URL, the folder or the choice of shards cannot be used.
        StoreError: There is no generation in the mirror, and none can be copied.
    """
    url, folder, poll_s = str(config.store), config.mirror, config.mirror_poll_s
    assert folder is not None
    if config.group_name is None:
        with MirrorFollower(url, folder, config.shard_choice, poll_s, registry):
            yield
        return
    with closing(MapFollower(url, folder, config.group_name, poll_s, registry)) as cluster_map:
        mirror = MirrorFollower(
            url,
            folder,
            cluster_map.to_mirror,
            poll_s,
            registry,
            may_lack=True,
            prepare=lambda: cluster_map.start(mirror.wake),
        )
        with mirror:
            yield
