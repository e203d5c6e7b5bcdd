"""Configuration of the commands of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from thinrow.core.settings import check, setting
from thinrow.errors import UsageError
from thinrow.remote.object_store import ObjectStore
from thinrow.store.place import is_url

__all__ = [
    "ApplyConfig",
    "DrainConfig",
    "PlanConfig",
    "RestoreConfig",
    "StatusConfig",
    "store_objects",
]

WAIT_MS = 30 * 60_000
_FILE = setting("The groups as they are to be, such as cluster.toml.", argument="FILE")
_STORE = setting("URL of the store.", metavar="URL")
_WAIT = setting("Longest time without progress, in which servers may start and copy shards.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """One plan of moves."""

    file: str | Path = field(metadata=_FILE)
    store: str | Path = field(metadata=_STORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyConfig:
    """One change of a cluster to what a file says.

    Raises:
        UsageError: A value is out of its range.
    """

    file: str | Path = field(metadata=_FILE)
    store: str | Path = field(metadata=_STORE)
    wait_ms: int = field(default=WAIT_MS, metadata=_WAIT)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    """One drain.

    Raises:
        UsageError: A value is out of its range.
    """

    what: str = field(
        metadata=setting("The group, or one replica.", argument="GROUP|HOST:PORT"),
    )
    store: str | Path = field(metadata=_STORE)
    wait_ms: int = field(default=WAIT_MS, metadata=_WAIT)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusConfig:
    """One look at every replica."""

    store: str | Path = field(metadata=_STORE)
    html: Path | None = field(
        default=None, metadata=setting("Write a page for browsers, too.", metavar="FILE")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreConfig:
    """One restoration of the object that names the map."""

    store: str | Path = field(metadata=_STORE)


def store_objects(store: str | Path) -> ObjectStore:
    """Returns the objects of a cluster's store.

    Raises:
        UsageError: It is a folder, or a URL that cannot be used.
    """
    if not is_url(store):
        raise UsageError(
            f"A cluster has its store at a URL, and {store} is a folder; give "
            f"{Path(store).absolute().as_uri()} if all servers share its file system."
        )
    return ObjectStore(str(store))
