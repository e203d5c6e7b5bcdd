"""Publication: a generation that was built in a local folder becomes the serving one of a store.

Files go first, then the manifests of shards, then the root manifest, created once, then CURRENT by
compare-and-swap. Killed in between, a run leaves objects that no reader looks at, and gc removes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from thinrow.errors import StoreError, StoreLockedError, StoreUnavailableError
from thinrow.remote.current import (
    CurrentRecord,
    now_ts,
    require_current,
    swap_current,
)
from thinrow.remote.generation_objects import (
    RUNS,
    RemoteGeneration,
    file_key,
    listed_roots,
    root_key,
    shard_manifest_key,
)
from thinrow.remote.threads import map_in_threads
from thinrow.store.layout import VOCABULARIES
from thinrow.store.manifest import (
    MANIFEST_BYTES_MAX,
    encode_manifest,
    read_manifest,
    shard_manifest,
)
from thinrow.store.shard_manifest import encode_shard_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from uuid import UUID

    from thinrow.remote.current import Current
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.manifest import Manifest, ShardSummary
    from thinrow.store.shard_manifest import ShardManifest
    from thinrow.store.stored_files import StoredFile

__all__ = [
    "SWAPS_MAX",
    "UPLOADS_AT_ONCE",
    "Placement",
    "commit",
    "complete_generation",
    "highest_number",
    "publish",
    "upload_files",
]

UPLOADS_AT_ONCE = 8
SWAPS_MAX = 5
"""Times that CURRENT is replaced again after gc has changed it."""


def highest_number(store: ObjectStore, current: Current | None) -> int:
    """Returns the highest number of a generation ever used here; 0 for none."""
    return max([*listed_roots(store), 0 if current is None else current.record.highest])


def publish(
    store: ObjectStore,
    base: Current | None,
    previous: RemoteGeneration | None,
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> RemoteGeneration:
    """Uploads a complete generation and makes it the serving one.

    Args:
        store: The store.
        base: CURRENT as it was when the run began; None for a new store.
        previous: The generation that it named, whose objects are shared.
        folder: The generation's folder.
        progress: Receives stage, files done and files in all.

    Returns:
        The generation as it is stored.

    Raises:
        StoreLockedError: Another run has published in the meantime.
        StoreCorruptError: An object that was written is not there.
        StoreUnavailableError: The object store does not answer.
    """
    generation, placement = _with_objects(folder, previous)
    upload_files(store, placement.uploads, progress)
    commit(store, base, generation, placement.uploaded)
    return generation


def commit(
    store: ObjectStore,
    base: Current | None,
    generation: RemoteGeneration,
    uploaded: Mapping[str, int],
) -> None:
    """Makes a generation whose files were uploaded the serving one.

    Args:
        store: The store.
        base: CURRENT as it was when the run began; None for a new store.
        generation: The generation, with all of its shards.
        uploaded: Bytes of each object that the run uploaded for it, by key.

    Raises:
        StoreLockedError: Another run has published in the meantime.
        StoreCorruptError: An object that was written is not there.
        StoreUnavailableError: The object store does not answer.
    """
    _write_manifests(store, generation, uploaded)
    _create_root(store, root_key(generation.manifest.number), generation.body)
    _swap(store, base, generation)


class Placement:
    """Gives files their objects: the last generation's where they are the same, else new ones.

    Args:
        run_id: Identity of the run.
        before: Files of the last generation, by their paths in its folder.
    """

    def __init__(self, run_id: UUID, before: Mapping[str, StoredFile]) -> None:
        self._run_id, self._before = run_id, before
        self.uploads: dict[str, tuple[Path, StoredFile]] = {}
        """Files that are to be uploaded, by the keys of their objects."""

    @property
    def uploaded(self) -> dict[str, int]:
        """Bytes of the new objects, by key."""
        return {key: file.bytes for key, (_, file) in self.uploads.items()}

    def place(self, file: StoredFile, path: Path, attempt: str = "") -> StoredFile:
        """Returns a file with its object.

        Args:
            file: The file.
            path: The folder that has it, named as in the generation.
            attempt: Name of the attempt of a task, for the key of a new object; "" for none.
        """
        old = self._before.get(f"{path.name}/{file.name}")
        if old is not None and old.has_content_of(file):
            return file.model_copy(update={"object": old.object})
        folder = f"{path.name}/{attempt}" if attempt else path.name
        key = file_key(self._run_id.hex, folder, file.name)
        self.uploads[key] = path / file.name, file
        return file.model_copy(update={"object": key})


def _with_objects(
    folder: Path, previous: RemoteGeneration | None
) -> tuple[RemoteGeneration, Placement]:
    """Gives every file of a generation an object."""
    manifest = read_manifest(folder)
    assert manifest.run_id is not None
    placement = Placement(manifest.run_id, {} if previous is None else dict(previous.files))
    shards: dict[int, ShardManifest] = {}
    for number in range(manifest.shard_count):
        shard = shard_manifest(folder, manifest, number)
        files = [placement.place(file, folder / shard.name) for file in shard.files]
        shards[number] = shard.model_copy(update={"files": files})
    vocabularies = [
        one.model_copy(update={"file": placement.place(one.file, folder / VOCABULARIES)})
        for one in manifest.vocabularies
    ]
    manifest = manifest.model_copy(update={"vocabularies": vocabularies})
    return complete_generation(manifest, shards), placement


def complete_generation(manifest: Manifest, shards: dict[int, ShardManifest]) -> RemoteGeneration:
    """Returns a generation as it will be stored.

    Args:
        manifest: The root manifest, whose checksums of shards are set here.
        shards: Manifests of all shards, whose files have objects.
    """
    texts: dict[int, str] = {}
    summaries: list[ShardSummary] = []
    for number, summary in enumerate(manifest.shards):
        texts[number], xxh3 = encode_shard_manifest(shards[number])
        summaries.append(summary.model_copy(update={"manifest_xxh3": xxh3}))
    manifest = manifest.model_copy(update={"shards": summaries})
    return RemoteGeneration(
        manifest=manifest, body=encode_manifest(manifest).encode(), shards=shards, texts=texts
    )


def upload_files(
    store: ObjectStore,
    uploads: Mapping[str, tuple[Path, StoredFile]],
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
    """Uploads files by key, several at once."""
    done = map_in_threads(lambda key: store.upload(key, uploads[key][0]), uploads, UPLOADS_AT_ONCE)
    for count, _ in enumerate(done, 1):
        progress("Uploading files", count, len(uploads))


def _write_manifests(
    store: ObjectStore, generation: RemoteGeneration, uploaded: Mapping[str, int]
) -> None:
    """Uploads manifests of shards, and checks that the store lists all objects of the run with
    their sizes."""
    manifests = {
        shard_manifest_key(generation.manifest.run_id, number): text.encode()
        for number, text in generation.texts.items()
    }
    # Results are read, so that an error is raised.
    list(map_in_threads(lambda key: store.write(key, manifests[key]), manifests, UPLOADS_AT_ONCE))
    # A run that was paused for longer than gc's grace period has lost its objects.
    run_id = generation.manifest.run_id
    assert run_id is not None
    listed = {one.key: one.bytes for one in store.listed(f"{RUNS}/{run_id.hex}")}
    for key, byte_count in {**uploaded, **{k: len(text) for k, text in manifests.items()}}.items():
        if listed.get(key) != byte_count:
            raise store.damaged(key, "it is gone, or its size differs")


def _create_root(store: ObjectStore, key: str, body: bytes) -> None:
    """Creates the root manifest; only one run can create that of a number.

    Raises:
        StoreLockedError: Another run has.
        StoreError: The object store does not refuse to create what there is.
    """
    failure = None
    try:
        if store.create(key, body):
            if store.create(key, body):
                raise StoreError(
                    f"The server of {store.url} ignores If-None-Match, so two runs could both "
                    f"publish; use an object store with conditional writes."
                )
            return
    except StoreUnavailableError as error:
        failure = error
    # The answer may have been lost, or that of a first try: what is there decides.
    found = store.read(key, MANIFEST_BYTES_MAX)
    if found is None:
        raise failure or store.damaged(key, "it is gone")
    if found.data != body:
        raise _overtaken(store)


def _swap(store: ObjectStore, base: Current | None, generation: RemoteGeneration) -> None:
    """Makes the generation the serving one, if the one that it was built on still serves."""
    manifest = generation.manifest
    for _ in range(SWAPS_MAX):
        fields: dict[str, Any] = {
            "history": [manifest.number],
            "manifest_xxh3": generation.xxh3,
            "changed_ts": now_ts(),
            "highest": manifest.number,
        }
        if base is None:
            record = CurrentRecord(**fields, write_id=uuid4().hex)
        else:
            fields["history"] = [*base.record.history, manifest.number]
            record = base.record.changed(**fields)
        try:
            swap_current(store, base, record)
            return
        except StoreLockedError:
            if base is None:
                raise _overtaken(store) from None
        # gc changes CURRENT as well, but not which generation serves.
        now = require_current(store)
        is_same = now.record.manifest_xxh3 == base.record.manifest_xxh3
        if not is_same or now.record.highest >= manifest.number:
            raise _overtaken(store)
        base = now
    raise _overtaken(store)


def _overtaken(store: ObjectStore) -> StoreLockedError:
    return StoreLockedError(
        f"Another run has published a generation of {store.url} in the meantime; run this one "
        f"again, which builds on it."
    )
