"""Settings of a reader: the sizes of its batches and lookups."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinrow.client.config import ClientConfig
from thinrow.core.settings import require_bounds

__all__ = ["ReadConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConfig:
    """Settings of a reader.

    Memory is at most one record batch, the narrow answer to one lookup, and the responses that the
    client has in flight.

    Raises:
        UsageError: A value is out of its range.
    """

    batch_rows: int = 4096
    """Most rows of a record batch."""

    batch_bytes_max: int = 64 << 20
    """Most bytes of values in a record batch, where each text counts as 16 bytes; a row with more
    forms a batch alone."""

    lookup_rows: int = 4096
    """Rows looked up together: among them a user's events travel once. Files are read by as many,
    and record batches are cut from the answers."""

    client: ClientConfig = field(default_factory=ClientConfig)
    """Deadlines, retries and credentials of the client."""

    def __post_init__(self) -> None:
        require_bounds(self, "batch_rows", "batch_bytes_max", "lookup_rows")
