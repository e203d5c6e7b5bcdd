"""Reading a store wherever it is: in its folder, or in a temporary copy of its last generation."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import SCHEMES, ObjectStore
from thinrow.store.layout import ROOTS
from thinrow.store.place import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from thinrow.remote.copies import Pull

__all__ = ["is_remote_store", "local_store"]


def is_remote_store(target: str) -> bool:
    """Returns True if a target is the URL of a store that has to be copied to be read."""
    scheme, _, path = target.partition("://")
    if scheme == "file":
        return (Path(path) / ROOTS).is_dir()
    return is_url(target) and scheme in SCHEMES


@contextmanager
def local_store(
    store: str | Path, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[Path]:
    """Yields the folder of a store, or of a copy that lasts until the block ends.

    Args:
        store: Folder or URL.
        progress: Receives stage, bytes copied and bytes to copy.

    Raises:
        StoreError: The store cannot be copied.
    """
    if not is_url(store):
        yield Path(store)
        return

    def show(pull: Pull) -> None:
        progress("Copying the store", pull.bytes_received, pull.bytes_missing)

    with (
        tempfile.TemporaryDirectory(suffix="-thinrow", ignore_cleanup_errors=True) as folder,
        Mirror(ObjectStore(str(store)), Path(folder), report=show) as mirror,
    ):
        mirror.pull()
        yield mirror.folder
