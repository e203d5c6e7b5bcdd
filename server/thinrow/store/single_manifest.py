"""Manifests of formats 2 and 3, which have the files of all shards in the root manifest.

Format 3 was that of stores with ids that are not int64. Both are read, and no longer written.
"""

from __future__ import annotations

from typing import Any

from thinrow.store.shard_manifest import ShardManifest

__all__ = ["SINGLE_FORMATS", "split_single"]

SINGLE_FORMATS = (2, 3)


def split_single(body: dict[str, Any], part_function: str) -> tuple[ShardManifest, ...]:
    """Makes a manifest of one file a root manifest, in place.

    Args:
        body: The manifest's JSON.
        part_function: Name of the function that gave users their shards.

    Returns:
        What was its part of each shard.

    Raises:
        ValueError: The part of a shard cannot be what it is.
    """
    manifests = []
    for shard in body["shards"]:
        manifest = ShardManifest.model_validate(
            {"name": shard["name"], "files": shard.pop("files")}
        )
        shard["stored_bytes"] = manifest.stored_bytes
        manifests.append(manifest)
    body |= {
        "shard_count": len(manifests),
        "part_function": part_function,
        "run_id": None,
        "engine": None,
    }
    return tuple(manifests)
