"""Publication: a generation that was built in a local folder becomes the serving one of a store.

Files go first, then the manifests of shards, then the root manifest, created once, then CURRENT by
compare-and-swap. Killed in between, a run leaves objects that no reader looks at, and gc removes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
from thinrow.store.layout import VOCABULARIES
from thinrow.store.manifest import (
    MANIFEST_BYTES_MAX,
    encode_manifest,
    read_manifest,
    shard_manifest,
)
from thinrow.store.shard_manifest import encode_shard_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.remote.current import Current
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.manifest import ShardSummary
    from thinrow.store.shard_manifest import ShardManifest
    from thinrow.store.stored_files import StoredFile

__all__ = ["SWAPS_MAX", "UPLOADS_AT_ONCE", "highest_number", "publish"]

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
    generation, uploads = _with_objects(folder, previous)
    _upload(store, generation, uploads, progress)
    _create_root(store, root_key(generation.manifest.number), generation.body)
    _swap(store, base, generation)
    return generation


def _with_objects(
    folder: Path, previous: RemoteGeneration | None
) -> tuple[RemoteGeneration, dict[str, tuple[Path, StoredFile]]]:
    """Gives every file an object: the last generation's where it is the same, else a new one."""
    manifest = read_manifest(folder)
    run_id = manifest.run_id
    assert run_id is not None
    known = {} if previous is None else dict(previous.files)
    uploads: dict[str, tuple[Path, StoredFile]] = {}

    def stored(place: str, file: StoredFile) -> StoredFile:
        before = known.get(place)
        if before is not None and before.has_content_of(file):
            return file.model_copy(update={"object": before.object})
        key = file_key(run_id.hex, place.split("/")[0], file.name)
        uploads[key] = folder / place, file
        return file.model_copy(update={"object": key})

    summaries: list[ShardSummary] = []
    shards: dict[int, ShardManifest] = {}
    texts: dict[int, str] = {}
    for number, summary in enumerate(manifest.shards):
        shard = shard_manifest(folder, manifest, number)
        files = [stored(f"{shard.name}/{file.name}", file) for file in shard.files]
        shards[number] = shard.model_copy(update={"files": files})
        texts[number], xxh3 = encode_shard_manifest(shards[number])
        summaries.append(summary.model_copy(update={"manifest_xxh3": xxh3}))
    vocabularies = [
        one.model_copy(update={"file": stored(f"{VOCABULARIES}/{one.file.name}", one.file)})
        for one in manifest.vocabularies
    ]
    manifest = manifest.model_copy(update={"shards": summaries, "vocabularies": vocabularies})
    generation = RemoteGeneration(
        manifest=manifest,
        body=encode_manifest(manifest).encode(),
        shards=shards,
        texts=texts,
    )
    return generation, uploads


def _upload(
    store: ObjectStore,
    generation: RemoteGeneration,
    uploads: dict[str, tuple[Path, StoredFile]],
    progress: Callable[[str, int, int], None],
) -> None:
    """Uploads files and manifests of shards, several at once, and checks that the store lists each
    with its size."""
    manifests = {
        shard_manifest_key(generation.manifest, number): text.encode()
        for number, text in generation.texts.items()
    }
    threads = ThreadPoolExecutor(UPLOADS_AT_ONCE)
    try:
        done = threads.map(lambda key: store.upload(key, uploads[key][0]), uploads)
        for count, _ in enumerate(done, 1):
            progress("Uploading files", count, len(uploads))
        # Results are awaited, so that an error is raised.
        list(threads.map(lambda key: store.write(key, manifests[key]), manifests))
    finally:
        threads.shutdown(cancel_futures=True)
    # A run that was paused for longer than gc's grace period has lost its objects.
    run_id = generation.manifest.run_id
    assert run_id is not None
    listed = {one.key: one.bytes for one in store.listed(f"{RUNS}/{run_id.hex}")}
    expected = {key: file.bytes for key, (_, file) in uploads.items()}
    expected |= {key: len(data) for key, data in manifests.items()}
    for key, byte_count in expected.items():
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
