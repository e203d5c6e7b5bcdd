"""Events that are too new for the store, in a RocksDB of their own, whichever log they come from.

Keys by their first byte::

    e    events                                          event_log.py
    i    ids of events, to find duplicates               ids.py
    x    users whose events an erasure deleted           erased_users.py
    m    the log, the state, the clock, offsets          here, state.py, clock.py, topic/places.py
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from thinrow.errors import RequestError, UsageError
from thinrow.online.database import TierDatabase
from thinrow.online.erased_users import check_not_erased
from thinrow.online.event_log import EventLog
from thinrow.online.formats import RecordFormats
from thinrow.online.ids import IdIndex
from thinrow.online.state import StoredState
from thinrow.schema.evolution import check_id_kinds
from thinrow.store.user_texts import collision

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.online.handover import HandOver
    from thinrow.online.records import Batch, RecordFormat
    from thinrow.schema import Schema
    from thinrow.store.generation import Generation
    from thinrow.store.manifest import Manifest

__all__ = ["EventTier", "RequestMoment", "TakeUp"]

BUCKET_MS_MIN = 3600 * 1000
"""Shortest span of arrivals whose ids are forgotten together."""
OWN_LOG = "the log of this server"
"""Name of the log of a tier that is its own."""
_LOG_KEY = b"mlog"


class RequestMoment(NamedTuple):
    """The moment at which a request is answered."""

    request_ts: int
    """Everything that the request sees arrived before, ms."""
    as_of_ts: int = 0
    """Latest moment that the users' partitions of a topic have come to, ms; 0 without a topic."""
    lag_ms: int = 0
    """Time from then until now."""


class TakeUp(NamedTuple):
    """Outcome of showing a published generation to a tier."""

    is_accepted: bool
    """True if requests are served from it; else from older watermarks."""
    refusal: str = ""
    """The reason, if it will never be accepted; empty if it may be later."""


class EventTier(ABC):
    """Keeps events and answers what arrived before a moment; how events come in is the subclass'.

    Reads are thread-safe. Every method may raise StoreError.

    Args:
        folder: Folder of the RocksDB; made if it is missing.
        dedup_window_ms: Shortest span of arrivals for which ids are kept.
        from_ts: A moment before which no event arrives in a new tier, ms.
        log: Name of the log that the events come from.

    Raises:
        StoreLockedError: Another process has the tier open.
        UsageError: The folder's events come from another log.
    """

    topic = ""
    """Name of the topic that is its log; empty for a log of its own."""
    partition_count = 0
    """Partitions of that topic."""
    _hand_over: HandOver

    def __init__(
        self, folder: Path, dedup_window_ms: int, from_ts: int, log: str = OWN_LOG
    ) -> None:
        self._changed = threading.Condition()
        self.database = TierDatabase(folder)
        """The RocksDB."""
        bucket_ms = max(dedup_window_ms, BUCKET_MS_MIN)
        self.state = StoredState(self.database, bucket_ms, from_ts)
        """Watermarks and epochs."""
        self.formats = RecordFormats(self.state)
        self.ids = IdIndex(self.database, self.formats)
        self.events = EventLog(self.database, self.state, self.formats)
        try:
            self._check_log(folder, log)
        except BaseException:
            self.database.close()
            raise

    def _check_log(self, folder: Path, log: str) -> None:
        with self.database.reading():
            stored = self.database.get(_LOG_KEY)
        if stored is None and self.state.is_new and log != OWN_LOG:
            with self.database.storing():
                self.database.put(_LOG_KEY, log.encode())
                self.database.sync()
            return
        known = OWN_LOG if stored is None else stored.decode()
        if known != log:
            raise UsageError(
                f"{folder} holds events of {known}, and this server reads {log}; give another "
                f"folder as --data."
            )

    @abstractmethod
    def begin(
        self, request_ts: int, users: Sequence[int] = (), lag_max_ms: int | None = None
    ) -> RequestMoment:
        """Returns the moment of a request; a ``request_ts`` of 0 stands for the newest.

        From now on no event of these users arrives before that moment, and those that did can be
        read.

        Args:
            request_ts: The moment, ms.
            users: Keys of the request's users; none for all users.
            lag_max_ms: Lag that the request allows; None for any.

        Raises:
            RequestError: The moment lies too far ahead.
            LaggingError: The tier lags more, or has not come to the moment yet.
            PartitionMissingError: The tier does not have a user.
            StoreError: The disk failed, so that earlier arrivals are unknown.
        """

    def partitions(self) -> list[tuple[int, RequestMoment]]:
        """Returns each partition of the topic that the tier has, and its latest moment."""
        return []

    @property
    @abstractmethod
    def now_ts(self) -> int:
        """The tier's clock, ms."""

    @property
    def latest_ts(self) -> int:
        """The latest clock of the tier's users, ms."""
        return self.now_ts

    @abstractmethod
    def close(self) -> None:
        """Closes the files."""

    def source_refusal(self, manifest: Manifest) -> str:  # noqa: ARG002 - for subclasses
        """Returns why a generation has events of another log; empty if that is not known."""
        return ""

    @abstractmethod
    def take_up(self, generation: Generation) -> TakeUp:
        """Serves requests from a published generation if it can lack no event of this tier.

        Called again for a generation that was accepted before: retention goes on.
        """

    @abstractmethod
    def forget_ids(self) -> None:
        """Forgets ids that are not needed any more, before the first generation."""

    def user_runs(self, until_ts: int) -> Iterator[tuple[int, int, int]]:
        """Yields epoch, user and first arrival of runs of events; see `EventLog.user_runs`."""
        return self.events.user_runs(until_ts)

    def erase(self, runs: Sequence[tuple[int, int, int]]) -> None:
        """Deletes events of users; see `HandOver.erase`."""
        self._hand_over.erase(runs)

    def may_lack_erased(self, from_ts: int) -> bool:
        """Returns whether events of some users that arrived since were deleted by an erasure."""
        return from_ts < self.state.now.erased_until_ts

    def check_not_erased(self, users: Sequence[int], from_ts: int) -> None:
        """Checks that no event of users that arrived since ``from_ts`` was deleted by an erasure.

        Called after the events were read, since marks are written before events are deleted.

        Raises:
            StoreError: Some were.
        """
        if self.may_lack_erased(from_ts):
            check_not_erased(self.database, users, from_ts)

    def purge(self) -> None:
        """Removes deleted events from all files."""
        self._hand_over.purge()

    def use_schema(self, schema: Schema) -> RecordFormat:
        """Returns the format of events of this schema, durably registered if it is new.

        Raises:
            SchemaError: Its ids are of another kind than those of the tier.
        """
        with self._changed:
            known = self.formats.newest
            if known is not None:
                check_id_kinds(known.schema, schema)
            return self.formats.add(schema)

    @property
    def format(self) -> RecordFormat | None:
        """The format of new events; None before the tier has a schema."""
        return self.formats.newest

    def to_wire(self, arrivals: Sequence[int], records: list[bytes]) -> bytes:
        """Encodes events of any schemas as a MutableEvents of the newest schema."""
        return self.formats.to_wire(arrivals, records)

    @property
    def sealed_ts(self) -> int:
        """No event arrives before this watermark any more; NEVER_TS if nothing was sealed."""
        return self.state.now.sealed_ts

    @property
    def kept_from_ts(self) -> int:
        """The tier has all events since this watermark; NEVER_TS if it has all events."""
        return self.state.now.kept_from_ts

    def collision(self, batch: Batch, users: dict[bytes, str]) -> RequestError | None:
        """Returns the error of a batch with a user whose key another text has; None for others.

        The thread that commits calls it, before.

        Args:
            batch: The batch.
            users: Texts of users by key, from batches to be committed together; those of this one
                are added.
        """
        added: dict[bytes, str] = {}
        for key, text in zip(batch.users, batch.texts, strict=False):
            known = users.get(key, added.get(key))
            if known is None:
                stored = self.events.text_of(key)
                known = added[key] = text if stored is None else stored.decode()
            if known != text:
                return RequestError(str(collision(known, text)))
        users.update(added)
        return None

    def read(
        self,
        user_id: int,
        from_ts: int,
        until_ts: int,
        bytes_max: int = sys.maxsize,
        text: bytes | None = None,
    ) -> tuple[list[int], list[bytes]]:
        """Returns a user's events that arrived in a window; see `EventLog.read`."""
        return self.events.read(user_id, from_ts, until_ts, bytes_max, text)

    def measure(
        self,
        user_id: int,
        from_ts: int,
        until_ts: int,
        bytes_max: int,
        text: bytes | None = None,
    ) -> tuple[int, int]:
        """Returns the number and bytes of events that `read` would return."""
        return self.events.measure(user_id, from_ts, until_ts, bytes_max, text)
