"""Reading a store wherever it is: in its folder, or in a temporary copy of its last generation."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.store.layout import ROOTS
from thinrow.store.place import SCHEMES, is_url

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
    store: str | Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    mirror: Path | None = None,
) -> Iterator[Path]:
    """Yields the folder of a store, or of a copy of it.

    Args:
        store: Folder or URL.
        progress: Receives stage, bytes copied and bytes to copy.
        mirror: Folder that keeps the copy; None for one that lasts until the block ends.

    Raises:
        StoreError: The store cannot be copied.
    """
    if not is_url(store):
        yield Path(store)
        return

    def show(pull: Pull) -> None:
        progress("Copying the store", pull.bytes_received, pull.bytes_missing)

    with ExitStack() as stack:
        folder = mirror
        if folder is None:
            # After an interrupt a thread may still write, for which no cleanup waits.
            temporary = tempfile.TemporaryDirectory(suffix="-thinrow", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary))
        copy = stack.enter_context(Mirror(ObjectStore(str(store)), folder, report=show))
        copy.pull()
        yield copy.folder
