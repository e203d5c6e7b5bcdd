"""All that a reader can find in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinrow.schema import to_stored
from thinrow.store.generation import Generation

Contents = list[Any]


def contents(store: Path) -> Contents:
    """All that a reader can find in a store: every key and value of every shard."""
    with Generation.open_current(store) as generation:
        return [
            generation.number,
            generation.watermarks.tolist(),
            to_stored(generation.schema),
            *(
                (summary.name, summary.events, summary.users, list(shard.items(summary.keys)))
                for summary, shard in zip(
                    generation.manifest.shards, generation.shards.values(), strict=True
                )
            ),
        ]
