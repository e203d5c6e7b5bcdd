"""CURRENT of a store in an object store: which generation serves, replaced by compare-and-swap.

CURRENT-COPY follows it, and shows where CURRENT is lost, or set back to an older content: a run
that believed it would begin another history, and gc would remove the first one.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import xxhash
from pydantic import BaseModel, ConfigDict, Field
from thinrow.errors import (
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
    StoreUnavailableError,
)
from thinrow.store.layout import CURRENT
from thinrow.store.manifest import StoredVocabulary
from thinrow.store.stored_files import Count

if TYPE_CHECKING:
    from thinrow.remote.object_store import Content, ObjectStore

__all__ = [
    "COPY",
    "CURRENT_BYTES_MAX",
    "Current",
    "CurrentRecord",
    "now_ts",
    "read_current",
    "recovered_current",
    "require_current",
    "swap_current",
]

COPY = f"{CURRENT}-COPY"
COPIES_MAX = 5
"""Times that the copy is written again after another command has written it."""
CURRENT_BYTES_MAX = 1 << 20
FORMAT = 1


class CurrentRecord(BaseModel):
    """Content of the object CURRENT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    history: Annotated[list[Count], Field(min_length=1)]
    """Numbers of the generations in the store's history, ascending; the last one serves."""
    manifest_xxh3: str
    """XXH3 (64 bits) of the manifest of the serving generation, hexadecimal."""
    changed_ts: int
    """Time at which another generation began to serve, ms."""
    withdrawn: list[Count] = []
    """Generations that a rollback set aside, ascending."""
    highest: Count
    """The highest number that is published, or that gc has removed; no later run takes it."""
    vocabularies: list[StoredVocabulary] = []
    """The longest vocabularies of generations that were set aside, whose codes stay in use."""
    write_id: str
    """Identifies this very write, so that no two contents of CURRENT are equal."""
    xxh3: str | None = None
    """XXH3 (64 bits) of the content without this field, which is the last, hexadecimal."""

    @property
    def number(self) -> int:
        """Number of the serving generation."""
        return self.history[-1]

    def changed(self, **fields: Any) -> CurrentRecord:  # noqa: ANN401 - what the fields are
        """Returns a record that may follow this one."""
        return CurrentRecord(**{**dict(self), **fields, "write_id": uuid4().hex})

    def encoded(self) -> bytes:
        """Returns the content of CURRENT."""
        body = self.model_dump_json(exclude={"xxh3"}).encode()
        return body[:-1] + f',"xxh3":"{xxhash.xxh3_64_hexdigest(body)}"}}'.encode()


@dataclass(frozen=True, slots=True)
class Current:
    """CURRENT as it was read."""

    record: CurrentRecord
    content: Content | None
    """None where it is gone, and only its copy was read."""
    is_intact: bool = True
    """False where CURRENT is damaged, and the record is that of its copy."""


def read_current(store: ObjectStore, known: Current | None = None) -> Current | None:
    """Returns the serving generation; None before the first.

    Args:
        store: The store.
        known: CURRENT as it was read before, which is returned if it is still the same.

    Raises:
        StoreCorruptError: The object is damaged, gone, or older than it was.
        StoreUnavailableError: The object store does not answer.
    """
    content = store.read(CURRENT, CURRENT_BYTES_MAX)
    if known is not None and content == known.content:
        return known
    found, problem = _parsed(store, content), None
    last = _read_copy(store)
    if last is not None and (problem := _older(found, last)) is not None:
        # A command may have replaced CURRENT, and then its copy, between the two reads.
        found = _parsed(store, store.read(CURRENT, CURRENT_BYTES_MAX))
        problem = _older(found, last)
    if problem is not None:
        raise _damaged(store, problem)
    return found


def recovered_current(store: ObjectStore) -> Current:
    """Returns what served last, where CURRENT is damaged, gone or set back, to replace it.

    Raises:
        StoreMissingError: Nothing was published.
        StoreCorruptError: CURRENT is damaged, and its copy is, too.
    """
    try:
        return require_current(store)
    except StoreCorruptError:
        last = _read_copy(store)
        if last is None:
            raise
        return Current(last, store.read(CURRENT, CURRENT_BYTES_MAX), is_intact=False)


def _parsed(store: ObjectStore, content: Content | None) -> Current | None:
    if content is None:
        return None
    try:
        return Current(_record(content.data), content)
    except ValueError:
        raise _damaged(store, "or a later version of ThinRow wrote it") from None


def _record(data: bytes) -> CurrentRecord:
    """Parses the content of CURRENT. Raises ValueError if it is damaged."""
    record = CurrentRecord.model_validate_json(data)
    if record.format != FORMAT or (record.xxh3 is not None and record.encoded() != data):
        raise ValueError(data)
    return record


def _read_copy(store: ObjectStore) -> CurrentRecord | None:
    """Returns the copy of CURRENT; None if there is none, or it is damaged itself."""
    try:
        content = store.read(COPY, CURRENT_BYTES_MAX)
        return None if content is None else _record(content.data)
    except (StoreCorruptError, ValueError):
        return None


def _older(found: Current | None, last: CurrentRecord) -> str | None:
    """Returns why CURRENT is not what it was; None if it may be."""
    if found is None:
        return "it is gone"
    if found.record.highest < last.highest:
        return (
            f"it is older than it was: it knows generations up to {found.record.highest}, and "
            f"{last.highest} was published"
        )
    return None


def _damaged(store: ObjectStore, reason: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{store.url}/{CURRENT} is damaged ({reason}); choose a generation with `thinrow store "
        f"rollback --store {store.url} --to NUMBER --newer keep`, or restore it from a copy of the "
        f"bucket."
    )


def require_current(store: ObjectStore, known: Current | None = None) -> Current:
    """Returns the serving generation, as `read_current` does.

    Raises:
        StoreMissingError: Nothing was published.
    """
    current = read_current(store, known)
    if current is None:
        raise StoreMissingError(
            f"{store.url} holds no published generation; check the URL, or build one with thinrow "
            f"compact … --store {store.url}."
        )
    return current


def swap_current(store: ObjectStore, replaced: Current | None, record: CurrentRecord) -> None:
    """Replaces CURRENT if it is still as it was read.

    Raises:
        StoreLockedError: Another command has replaced it.
        StoreUnavailableError: The object store does not answer.
    """
    failure = None
    try:
        content = None if replaced is None else replaced.content
        if store.replace(CURRENT, record.encoded(), content):
            _keep_copy(store)
            return
    except StoreUnavailableError as error:
        failure = error
    # The answer may have been lost, or that of a first try: what is there decides.
    found = store.read(CURRENT, CURRENT_BYTES_MAX)
    if found is not None and _has_write(found, record.write_id):
        _keep_copy(store)
        return
    if failure is not None and found == (replaced and replaced.content):
        raise failure
    raise StoreLockedError(
        f"Another command has changed {store.url} in the meantime; run this one again."
    )


def _has_write(content: Content, write_id: str) -> bool:
    try:
        return _record(content.data).write_id == write_id
    except ValueError:
        return False


def _keep_copy(store: ObjectStore) -> None:
    """Makes the copy like CURRENT. Reading the copy first keeps a newer one from being replaced."""
    with suppress(StoreError):  # CURRENT is replaced, and the next command copies it
        for _ in range(COPIES_MAX):
            copy = store.read(COPY, CURRENT_BYTES_MAX)
            content = store.read(CURRENT, CURRENT_BYTES_MAX)
            if content is None or store.replace(COPY, content.data, copy):
                return


def now_ts() -> int:
    """Returns the time of this machine, ms."""
    return time.time_ns() // 1_000_000
