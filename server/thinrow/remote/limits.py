"""Limits on copying objects, apart from the code that needs libraries."""

from __future__ import annotations

__all__ = ["CONNECTION_BYTES", "COPIES_AT_ONCE", "COPY_MEMORY_BYTES", "PIECE_BYTES"]

PIECE_BYTES = 1 << 20
"""Bytes of a request that are received together; so few that a processor's cache still has them
when they are hashed and written."""
COPIES_AT_ONCE = 8
"""Objects that are copied at once, each with a piece in memory."""
CONNECTION_BYTES = 4 << 20
"""Memory of a connection in the library, for what is received and not yet read."""
COPY_MEMORY_BYTES = COPIES_AT_ONCE * (3 * PIECE_BYTES + CONNECTION_BYTES)
"""Memory of copying: a piece is received, joined, and written."""
