"""The mirror of a server whose store is at a URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.remote.mirror_follower import MirrorFollower

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from thinrow.materialization.config import ServerConfig

__all__ = ["mirror_follower"]


def mirror_follower(config: ServerConfig, registry: CollectorRegistry) -> MirrorFollower:
    """Returns what keeps the mirror of a server's configuration.

    Args:
        config: A configuration with a mirror.
        registry: Registry that gets the mirror's series.
    """
    assert config.mirror is not None
    return MirrorFollower(
        str(config.store), config.mirror, config.shard_choice, config.mirror_poll_s, registry
    )
