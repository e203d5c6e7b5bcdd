"""A mirror's copy of the cluster's map: servers start and serve by it, also without the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.cluster.cluster_map import MAP_BYTES_MAX, decode_map
from thinrow.errors import StoreCorruptError
from thinrow.store.small_files import read_small, reason_of, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.cluster.cluster_map import ClusterMap

__all__ = ["LOCAL_MAP", "LocalMap"]

LOCAL_MAP = "cluster-map.json"


class LocalMap:
    """The copy, read again when it has changed. One process writes it; any may read it.

    Args:
        mirror: Folder of the mirror.
    """

    def __init__(self, mirror: Path) -> None:
        self.path = mirror / LOCAL_MAP
        self.map: ClusterMap | None = None
        """The map as it was last read or written; None before the first."""
        self._signature: tuple[int, ...] | None = None

    def refresh(self) -> ClusterMap | None:
        """Returns the map; None if there is no copy yet.

        Raises:
            StoreCorruptError: The copy is damaged; the map that was read before stays.
        """
        try:
            signature = self._stat()
            if signature != self._signature:
                self.map = decode_map(read_small(self.path, MAP_BYTES_MAX).encode())
                self._signature = signature
        except FileNotFoundError:
            return self.map
        except (OSError, ValueError) as error:
            raise StoreCorruptError(
                f"{self.path} is damaged ({reason_of(error)}); restart the server, which copies "
                f"the cluster's map again."
            ) from error
        return self.map

    def write(self, new: ClusterMap) -> None:
        """Replaces the copy. Raises OSError."""
        write_atomically(self.path, new.encoded().decode())
        self.map, self._signature = new, self._stat()

    def _stat(self) -> tuple[int, ...]:
        found = self.path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
