"""Writing of every shard of a generation, each finished and measured while the next is made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from thinrow.compaction.shard import PreviousShard, ShardCounts
from thinrow.errors import StoreCorruptError
from thinrow.store.manifest import ShardSummary
from thinrow.store.shard import LAYERS_MAX
from thinrow.store.stored_files import file_summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from thinrow.events.split import Progress
    from thinrow.store.generation import Generation
    from thinrow.store.shard import ShardWriter

__all__ = ["WHOLE_EVERY", "is_whole_due", "previous_shard", "write_shards"]

WHOLE_EVERY = LAYERS_MAX + 1
"""Generations in which each shard is written whole once, about a seventh of the shards in each."""


def is_whole_due(generation: int, shard: int) -> bool:
    """Returns True if a generation writes a shard whole, whatever its layers.

    The numbers alone decide, so that every engine does the same, and rewrites spread over days.
    """
    return (generation + shard) % WHOLE_EVERY == 0


def write_shards(
    shards: int,
    write: Callable[[int], tuple[ShardCounts, ShardWriter]],
    previous: Generation | None,
    progress: Progress,
) -> tuple[list[ShardCounts], list[ShardSummary]]:
    """Writes every shard of the next generation; one at a time is held in memory.

    Args:
        shards: Number of shards.
        write: Writes the shard of a number; returns what it counted, and the writer to be finished.
        previous: The last generation; None in a first build.
        progress: Receives the shards written.

    Raises:
        StoreError: the disk is full, or a file that is shared with the last generation is damaged.
    """
    totals: list[ShardCounts] = []
    summaries: list[Future[ShardSummary]] = []
    with ThreadPoolExecutor(1) as background:
        for number in range(shards):
            progress("Writing shards", number, shards)
            counts, writer = write(number)
            totals.append(counts)
            # Much of finishing is waiting for the disk: the next shard is sorted meanwhile.
            summaries.append(background.submit(_finished, writer, counts, previous))
        progress("Writing shards", shards, shards)
        return totals, [summary.result() for summary in summaries]


def previous_shard(previous: Generation | None, number: int) -> PreviousShard | None:
    """Returns a shard as the last generation left it; None in a first build."""
    if previous is None:
        return None
    summary = previous.manifest.shards[number]
    return PreviousShard(
        shard=previous.shard(number),
        key_count=summary.keys,
        event_count=summary.events,
        user_count=summary.users,
    )


def _finished(
    writer: ShardWriter, counts: ShardCounts, previous: Generation | None
) -> ShardSummary:
    """Finishes a shard and measures it.

    Raises:
        StoreError: the disk is full, or a file that it shares with the last generation is damaged.
    """
    writer.finish()
    name = writer.path.name
    files = [file_summary(file) for file in sorted(writer.path.iterdir())]
    value_bytes_max = writer.value_bytes_max
    if previous is not None:
        (before,) = (shard for shard in previous.manifest.shards if shard.name == name)
        found = {file.name: file for file in files}
        for file in before.files:
            if file.name in writer.linked and not found[file.name].has_content_of(file):
                raise StoreCorruptError(
                    f"{previous.folder / name / file.name} is damaged (its checksum differs); "
                    f"restore it from a replica or build the generation again."
                )
        if writer.linked:
            below = before.value_bytes_max
            value_bytes_max = below and max(below, value_bytes_max)
    return ShardSummary(
        name=name,
        keys=counts.keys,
        events=counts.events,
        users=counts.users,
        files=files,
        value_bytes_max=value_bytes_max,
    )
