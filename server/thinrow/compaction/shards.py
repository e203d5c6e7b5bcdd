"""Writing of every shard of a generation, each finished and measured while the next is made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from thinrow.compaction.pair_writer import PreviousShard
from thinrow.store.layout import shard_name
from thinrow.store.manifest import ShardSummary, shard_manifest
from thinrow.store.shard import LAYERS_MAX
from thinrow.store.shard_manifest import ShardManifest, write_shard_manifest
from thinrow.store.small_files import damaged
from thinrow.store.stored_files import StoredFile, file_summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from thinrow.compaction.shard import ShardCounts
    from thinrow.events.split import Progress
    from thinrow.store.generation import Generation
    from thinrow.store.shard import ShardWriter

__all__ = [
    "ENGINE",
    "WHOLE_EVERY",
    "finish_shard",
    "is_whole_due",
    "previous_shard",
    "write_shards",
]

ENGINE = "embedded"
"""Name of the engine that this module is, in manifests."""
WHOLE_EVERY = LAYERS_MAX + 1
"""Generations in which each shard is written whole once, about a seventh of the shards in each."""


def is_whole_due(generation: int, shard: int) -> bool:
    """Returns True if a generation writes a shard whole, whatever its layers.

    The numbers alone decide, so that every engine does the same, and rewrites spread over days.
    """
    return (generation + shard) % WHOLE_EVERY == 0


def write_shards(
    shards: int,
    write: Callable[[int, PreviousShard | None], tuple[ShardCounts, ShardWriter]],
    previous: Generation | None,
    progress: Progress,
) -> tuple[list[ShardCounts], list[ShardSummary]]:
    """Writes every shard of the next generation; one at a time is held in memory.

    Args:
        shards: Number of shards.
        write: Receives the number of a shard, and the shard so far; writes it, and returns what it
            counted, and the writer to be finished.
        previous: The last generation; None in a first build.
        progress: Receives the shards written.

    Raises:
        StoreError: the disk is full, or a file that is shared with the last generation is another
            one than its manifest has.
    """
    totals: list[ShardCounts] = []
    summaries: list[Future[ShardSummary]] = []
    with ThreadPoolExecutor(1) as background:
        for number in range(shards):
            progress("Writing shards", number, shards)
            below = previous_shard(previous, number)
            counts, writer = write(number, below)
            totals.append(counts)
            # Much of finishing is waiting for the disk: the next shard is sorted meanwhile.
            summaries.append(background.submit(_finished, number, writer, counts, below))
        progress("Writing shards", shards, shards)
        return totals, [summary.result() for summary in summaries]


def _finished(
    number: int, writer: ShardWriter, counts: ShardCounts, previous: PreviousShard | None
) -> ShardSummary:
    """Finishes a shard, and writes its manifest beside it."""
    summary, manifest = finish_shard(number, writer, counts, previous)
    xxh3 = write_shard_manifest(writer.path.parent, number, manifest)
    return summary.model_copy(update={"manifest_xxh3": xxh3})


def previous_shard(previous: Generation | None, number: int) -> PreviousShard | None:
    """Returns a shard as the last generation left it; None in a first build."""
    if previous is None:
        return None
    return PreviousShard(
        shard=previous.shard(number),
        summary=previous.manifest.shards[number],
        manifest=shard_manifest(previous.folder, previous.manifest, number),
    )


def finish_shard(
    number: int, writer: ShardWriter, counts: ShardCounts, previous: PreviousShard | None
) -> tuple[ShardSummary, ShardManifest]:
    """Finishes a shard, and measures it.

    Returns:
        Its part of the root manifest, without the checksum of its own, and its own.

    Raises:
        StoreError: the disk is full, or a file that it shares with the last generation is another
            one than its manifest has.
    """
    writer.finish()
    name = shard_name(number)
    assert writer.path.name == name
    files = [
        _shared_file(file, previous, is_linked=writer.shared[file.name])
        if previous is not None and file.name in writer.shared
        else file_summary(file)
        for file in sorted(writer.path.iterdir())
    ]
    value_bytes_max = writer.value_bytes_max
    if previous is not None and writer.shared:
        largest = previous.summary.value_bytes_max
        value_bytes_max = largest and max(largest, value_bytes_max)
    manifest = ShardManifest(name=name, files=files)
    summary = ShardSummary(
        name=name,
        keys=counts.keys,
        events=counts.events,
        users=counts.users,
        value_bytes_max=value_bytes_max,
        stored_bytes=manifest.stored_bytes,
        kv_xxh3_128=writer.kv_xxh3_128,
    )
    return summary, manifest


def _shared_file(path: Path, previous: PreviousShard, *, is_linked: bool) -> StoredFile:
    """Returns the record of a table that a layer shares with the shard below.

    A table that is one file in both is not read again, which every day would be the whole store:
    its blocks have checksums that each reading verifies, and it is read and written again within
    WHOLE_EVERY generations.

    Raises:
        StoreCorruptError: It is not the file that the manifest of the shard below has.
    """
    below = {file.name: file for file in previous.manifest.files}.get(path.name)
    if is_linked and below is not None:
        now = StoredFile(name=path.name, bytes=path.stat().st_size, xxh3=below.xxh3)
    else:
        now = file_summary(path)
    if below is None or not now.has_content_of(below):
        raise damaged(previous.shard.path / path.name, "it is not the file of its manifest")
    return now
