"""CURRENT of a store in an object store: which generation serves, replaced by compare-and-swap."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from thinrow.errors import (
    StoreCorruptError,
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
    "CURRENT_BYTES_MAX",
    "Current",
    "CurrentRecord",
    "now_ts",
    "read_current",
    "require_current",
    "swap_current",
]

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

    @property
    def number(self) -> int:
        """Number of the serving generation."""
        return self.history[-1]

    def changed(self, **fields: Any) -> CurrentRecord:  # noqa: ANN401 - what the fields are
        """Returns a record that may follow this one."""
        return CurrentRecord(**{**dict(self), **fields, "write_id": uuid4().hex})


@dataclass(frozen=True, slots=True)
class Current:
    """CURRENT as it was read."""

    record: CurrentRecord
    content: Content


def read_current(store: ObjectStore) -> Current | None:
    """Returns the serving generation; None before the first.

    Raises:
        StoreCorruptError: The object is damaged.
        StoreUnavailableError: The object store does not answer.
    """
    content = store.read(CURRENT, CURRENT_BYTES_MAX)
    if content is None:
        return None
    try:
        record = CurrentRecord.model_validate_json(content.data)
        if record.format != FORMAT:
            raise ValueError(record.format)
    except (ValidationError, ValueError):
        raise StoreCorruptError(
            f"{store.url}/{CURRENT} is damaged, or a later version of ThinRow wrote it; restore it "
            f"from a copy of the bucket."
        ) from None
    return Current(record, content)


def require_current(store: ObjectStore) -> Current:
    """Returns the serving generation. Raises StoreMissingError if nothing was published."""
    current = read_current(store)
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
        if store.replace(CURRENT, record.model_dump_json().encode(), content):
            return
    except StoreUnavailableError as error:
        failure = error
    # The answer may have been lost, or that of a first try: what is there decides.
    found = read_current(store)
    if found is not None and found.record.write_id == record.write_id:
        return
    if failure is not None and (found and found.content) == (replaced and replaced.content):
        raise failure
    raise StoreLockedError(
        f"Another command has changed {store.url} in the meantime; run this one again."
    )


def now_ts() -> int:
    """Returns the time of this machine, ms."""
    return time.time_ns() // 1_000_000
