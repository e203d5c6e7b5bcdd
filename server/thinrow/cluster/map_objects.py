"""Objects of the map in the object store of a store.

    cluster/map-000007.json     one version, created once
    cluster/MAP                 names the version that counts, replaced by compare-and-swap

MAP is created before the first version, with version 0. So versions without a MAP mean that it is
lost, and never that there is no map. What a killed command leaves is a version that MAP does not
name; the next command takes a higher number.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import xxhash
from pydantic import Field
from thinrow.cluster.cluster_map import MAP_BYTES_MAX, decode_map
from thinrow.cluster.local_map import LOCAL_MAP
from thinrow.errors import (
    StoreCorruptError,
    StoreLockedError,
    StoreUnavailableError,
    UsageError,
)
from thinrow.store.small_files import reason_of
from thinrow.store.stored_files import Count, Record, Xxh64

if TYPE_CHECKING:
    from thinrow.cluster.cluster_map import ClusterMap
    from thinrow.remote.object_store import Content, ListedObject, ObjectStore

__all__ = [
    "FOLDER",
    "MAP",
    "StoredMap",
    "map_key",
    "map_versions",
    "old_maps",
    "read_map",
    "read_version",
    "restore_map",
    "write_map",
]

FOLDER = "cluster"
MAP = f"{FOLDER}/MAP"
POINTER_BYTES_MAX = 4096
FORMAT = 1
KEPT = 16
"""Versions that stay: the one that counts and those before it, for a look at recent moves."""
CREATIONS_MAX = 16
"""Numbers that are tried for a new version, where other commands take the same ones."""
_VERSION = re.compile(rf"{FOLDER}/map-(\d{{6,18}})\.json")


class _Pointer(Record):
    """Content of the object MAP."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT
    version: Count
    """The version that counts; 0 before the first."""
    map_xxh3: Xxh64 | None
    """XXH3 (64 bits) of its object, hexadecimal; None before the first."""
    write_id: str
    """Identifies this very write, so that no two contents of MAP are equal."""
    xxh3: Xxh64
    """XXH3 (64 bits) of the fields before, hexadecimal."""


@dataclass(frozen=True, slots=True)
class StoredMap:
    """The map that counts, as it was read."""

    map: ClusterMap
    content: Content
    """The object MAP."""


def map_key(version: int) -> str:
    """Returns the key of a version of the map."""
    return f"{FOLDER}/map-{version:06}.json"


def map_versions(store: ObjectStore) -> list[int]:
    """Returns the versions that have an object, ascending, also those that never counted."""
    return sorted(_listed(store))


def _listed(store: ObjectStore) -> dict[int, ListedObject]:
    """Returns the objects of versions, by their number."""
    found = ((_VERSION.fullmatch(one.key), one) for one in store.listed(FOLDER))
    return {int(match[1]): one for match, one in found if match is not None}


def old_maps(store: ObjectStore, until_ts: int) -> list[ListedObject]:
    """Returns the objects of versions that nothing needs any more.

    Args:
        store: The store.
        until_ts: Time up to which they were written, ms, by the object store's clock.

    Raises:
        StoreCorruptError: It is unknown which version counts.
        StoreUnavailableError: The object store does not answer.
    """
    stored = read_map(store)
    if stored is None:
        return []
    before = {number: one for number, one in _listed(store).items() if number <= stored.map.version}
    old = sorted(before)[:-KEPT]
    return [before[number] for number in old if before[number].modified_ts <= until_ts]


def read_map(store: ObjectStore, known: StoredMap | None = None) -> StoredMap | None:
    """Returns the map that counts; None before the first.

    Args:
        store: The store.
        known: The map as it was read before, which is returned if it still counts; then one small
            object is read.

    Raises:
        StoreCorruptError: An object is damaged or gone, or MAP is older than it was.
        StoreUnavailableError: The object store does not answer.
    """
    content = store.read(MAP, POINTER_BYTES_MAX)
    if content is None:
        if known is not None or map_versions(store):
            raise _damaged(store, MAP, "it is gone")
        return None
    if known is not None and content == known.content:
        return known
    pointer = _parsed(store, content)
    if known is not None and pointer.version < known.map.version:
        reason = f"it names version {pointer.version}, and version {known.map.version} counted"
        raise _damaged(store, MAP, reason)
    if pointer.version == 0:
        return None
    found, map_xxh3 = _read_version(store, pointer.version)
    if map_xxh3 != pointer.map_xxh3:
        raise _damaged(store, map_key(pointer.version), "it is another one than MAP names")
    return StoredMap(found, content)


def _parsed(store: ObjectStore, content: Content) -> _Pointer:
    try:
        pointer = _Pointer.model_validate_json(content.data)
        if content.data != _encoded(pointer.version, pointer.map_xxh3, pointer.write_id):
            raise ValueError("its checksum does not fit")
    except ValueError as error:
        raise _damaged(store, MAP, reason_of(error)) from None
    return pointer


def _encoded(version: int, map_xxh3: str | None, write_id: str) -> bytes:
    fields = {"format": FORMAT, "version": version, "map_xxh3": map_xxh3, "write_id": write_id}
    return json.dumps(fields | {"xxh3": _xxh3(json.dumps(fields).encode())}).encode()


def _xxh3(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def read_version(store: ObjectStore, version: int) -> ClusterMap:
    """Returns one version of the map, whether or not it counts.

    Raises:
        StoreCorruptError: Its object is damaged or gone.
        StoreUnavailableError: The object store does not answer.
    """
    return _read_version(store, version)[0]


def _read_version(store: ObjectStore, version: int) -> tuple[ClusterMap, str]:
    """Returns one version of the map, and the hash of its object."""
    key = map_key(version)
    content = store.read(key, MAP_BYTES_MAX)
    if content is None:
        raise _damaged(store, key, "it is gone")
    try:
        found = decode_map(content.data)
    except ValueError as error:
        raise _damaged(store, key, reason_of(error)) from None
    if found.version != version:
        raise _damaged(store, key, f"it is version {found.version}")
    return found, _xxh3(content.data)


def _damaged(store: ObjectStore, key: str, reason: str) -> StoreCorruptError:
    repair = (
        f"write it again with thinrow cluster restore --store {store.url}"
        if key == MAP
        else f"copy {LOCAL_MAP} of a mirror whose server follows this version there"
    )
    return StoreCorruptError(
        f"{store.url}/{key} is damaged ({reason}); {repair}. Servers keep the map that they have."
    )


def restore_map(store: ObjectStore, version: int) -> ClusterMap:
    """Makes MAP name a version, if it is lost, damaged, or names an earlier one.

    Raises:
        UsageError: MAP is whole, and names this version or a later one.
        StoreLockedError: Another command has changed MAP.
        StoreCorruptError: The version's object is damaged or gone.
        StoreUnavailableError: The object store does not answer.
    """
    restored, map_xxh3 = _read_version(store, version)
    content = store.read(MAP, POINTER_BYTES_MAX)
    if content is not None:
        try:
            named = _parsed(store, content).version
        except StoreCorruptError:
            named = 0
        if named >= version:
            raise UsageError(
                f"{store.url}/{MAP} is whole and names version {named}, so there is nothing to "
                f"restore."
            )
    _write_pointer(store, version, map_xxh3, content)
    return restored


def write_map(store: ObjectStore, replaced: StoredMap | None, new: ClusterMap) -> StoredMap:
    """Makes a map the one that counts, if the one that was read still does.

    Args:
        store: The store.
        replaced: The map that was read; None if there was none.
        new: Its successor, whose version is replaced by the next free one.

    Returns:
        The map as it was written.

    Raises:
        StoreLockedError: Another command has changed the map, which stays.
        StoreCorruptError: An object is damaged.
        StoreUnavailableError: The object store does not answer.
    """
    content = _first_content(store) if replaced is None else replaced.content
    written = _create_version(store, replaced, new)
    map_xxh3 = _xxh3(written.encoded())
    return StoredMap(written, _write_pointer(store, written.version, map_xxh3, content))


def _write_pointer(
    store: ObjectStore, version: int, map_xxh3: str, replaced: Content | None
) -> Content:
    """Makes MAP name a version, if MAP is still as it was read; returns its content.

    Raises:
        StoreLockedError: It is another one by now.
        StoreUnavailableError: The object store does not answer.
    """
    data = _encoded(version, map_xxh3, uuid4().hex)
    failure = None
    try:
        store.replace(MAP, data, replaced)
    except StoreUnavailableError as error:
        failure = error
    # The answer may have been lost, or that of a first try: what is there decides.
    found = store.read(MAP, POINTER_BYTES_MAX)
    if found is not None and found.data == data:
        return found
    if failure is not None and found == replaced:
        raise failure
    raise _changed(store)


def _first_content(store: ObjectStore) -> Content:
    """Returns MAP with version 0, and creates it.

    Raises:
        StoreLockedError: There is a map by now.
        StoreCorruptError: The map is damaged, or lost.
    """
    if read_map(store) is not None:
        raise _changed(store)
    content = store.read(MAP, POINTER_BYTES_MAX)
    if content is None:
        store.create(MAP, _encoded(0, None, uuid4().hex))
        content = store.read(MAP, POINTER_BYTES_MAX)
    if content is None or _parsed(store, content).version:
        raise _changed(store)
    return content


def _create_version(store: ObjectStore, replaced: StoredMap | None, new: ClusterMap) -> ClusterMap:
    """Creates the object of a map under the next free number; returns the map with that number."""
    number = max([0 if replaced is None else replaced.map.version, *map_versions(store)])
    for _ in range(CREATIONS_MAX):
        number += 1
        # A copy is not validated again, and only its number differs.
        numbered = new.model_copy(update={"version": number})
        data = numbered.encoded()
        if store.create(map_key(number), data):
            return numbered
        found = store.read(map_key(number), MAP_BYTES_MAX)
        if found is not None and found.data == data:  # by a first try, whose answer was lost
            return numbered
    raise _changed(store)


def _changed(store: ObjectStore) -> StoreLockedError:
    return StoreLockedError(
        f"Another command has changed the map of {store.url} in the meantime; run this one again."
    )
