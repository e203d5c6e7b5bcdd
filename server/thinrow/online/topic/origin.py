"""The origin of a replica's tier: the partitions that it reads, and where it began."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from thinrow.store.directory import NEVER_TS

if TYPE_CHECKING:
    from thinrow.online.database import TierDatabase

__all__ = ["Origin"]

_KEY = b"morigin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The origin of a tier."""

    partitions: tuple[int, ...]
    """The partitions that it reads, ascending."""
    built_ts: int = NEVER_TS
    """Watermark of the generation that it began with: events that arrived before are not in it.
    NEVER_TS if it began with the first message."""
    first_ts: int | None = None
    """Arrival of the first message that it applied, ms; None before."""

    @classmethod
    def stored(cls, database: TierDatabase) -> Origin | None:
        """Returns the origin that a database has; None for a new one."""
        with database.reading():
            data = database.get(_KEY)
        if data is None:
            return None
        fields = json.loads(data)
        return cls(**fields | {"partitions": tuple(fields["partitions"])})

    def write(self, database: TierDatabase) -> None:
        """Writes it; durable after a sync."""
        database.put(_KEY, json.dumps(asdict(self)).encode())
