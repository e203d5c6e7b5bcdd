"""The mutable tier: events that are too new for the store, in a RocksDB of their own.

Keys, numbers big-endian, times and users as unsigned numbers::

    e epoch(4) user(8) arrival_ts(8) sequence(4)    an event's record
    i bucket(4) user(8) event_id(8)                 that this id was seen
    m name                                          what the tier must not forget

Every seal begins an epoch, so that a user's events of an epoch are one run, and an epoch that
everything has moved on from is one range. Ids are remembered in buckets of a dedup window of
arrivals each, forgotten one bucket at a time.

Events arrive when they are expected to be durable, a little after now. So requests need not wait
for the disk, unless it is slower than it was lately.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from bisect import bisect_right
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rocksdict import Rdict, ReadOptions, WriteBatch
from thinrow import _native
from thinrow.core.files.permissions import make_folder
from thinrow.errors import (
    AnswerTooLargeError,
    RequestError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from thinrow.online.clock import HybridClock, Wall, wall_ts
from thinrow.online.database import WriteAheadLog, options
from thinrow.online.purge import EVERYTHING, Range, rewrite_files
from thinrow.online.records import RecordFormat, schema_number
from thinrow.schema import Schema
from thinrow.store.directory import NEVER_TS
from thinrow.store.shard import storage_error
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.online.records import Columns

LEASE_MS = 1000
"""Times are given out up to here beyond what is on disk, so that no restart gives them again; after
a crash the clock may stand still for so long."""
AHEAD_MS_MAX = 1000
"""How far ahead of the clock a request or a watermark may lie."""
WRITE_PAIRS_MAX = 64
"""Pairs written at once: RocksDB's binding holds the interpreter's lock for it, some 0.15 ms."""
IDS_MAX = 512
"""Ids looked up at once, without that lock."""
LEAD_MS_MAX = 500
"""The longest that events wait for their arrival, however slow the disk."""
SLOWEST_KEPT = 0.98
"""What stays, at each commit, of the time that the slowest one lately took."""
SCAN_EVENTS_MAX = 2048
SCAN_BYTES_MAX = 1024 * 1024
"""Limits on the events of an export held at once; one record may exceed the latter."""
BUCKET_MS_MIN = 3600 * 1000
"""Ids are forgotten in steps of this or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """One tier."""

    folder: Path
    """Where its RocksDB lies; made where there is none."""
    retention_ms: int = 2 * 24 * 3600 * 1000
    """How long after their arrival requests can be answered at least; longer than the cadence."""
    dedup_window_ms: int = 7 * 24 * 3600 * 1000
    """How far back ids are remembered, at least; not shorter than compaction's."""
    commit_lead_ms: int = 50
    """How long events are expected to take to the disk, at least; 0: requests wait for the disk."""
    wall: Wall = wall_ts
    """The clock on the wall."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events ready to be committed, of one schema."""

    users: Sequence[bytes]
    ids: Sequence[bytes | None]
    """User and id of each event, as in a key; None where it has none."""
    records: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def size(self) -> int:
        """Bytes of the records."""
        return sum(map(len, self.records))


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a batch."""

    appended: int
    duplicates: int
    arrival_ts: int


@dataclass(slots=True)
class _State:
    """What of the tier is on disk, but for events."""

    bucket_ms: int
    """Arrivals of so long share a bucket of ids."""
    first_bucket: int
    """Buckets of ids before are gone."""
    kept_from_ts: int = NEVER_TS
    """Events that arrived before may be gone; a watermark."""
    sealed_ts: int = NEVER_TS
    """No event arrives before any more; a watermark."""
    first_epoch: int = 0
    """Epochs before are gone."""
    epoch_starts: list[int] = field(default_factory=list)
    """First arrival_ts of each epoch after that, ascending."""
    epoch_sealed_ts: int = NEVER_TS
    """The watermark whose seal began the newest epoch."""
    purge_due: bool = False
    """Files may still hold events that were deleted."""
    erased_until_ts: int = NEVER_TS
    """Events of erased users that arrived before are gone."""
    schemas: list[dict[str, Any]] = field(default_factory=list)
    """As Schema.to_json has them; records name theirs by its place."""


class MutableTier:
    """Holds events from their arrival until a generation has them and retention has passed.

    Thread-safe, but for `commit`, which one thread calls. Every method may raise StoreError.
    """

    def __init__(self, config: TierConfig) -> None:
        """Opens it; raises StoreLockedError where another process has it open."""
        self._config = config
        try:
            make_folder(config.folder)
        except OSError as error:
            raise storage_error(error, config.folder) from error
        try:
            self._database = Rdict(str(config.folder), options())
        except Exception as error:
            if "lock" in str(error).lower():
                raise StoreLockedError(
                    f"Another process has {config.folder} open; a tier has one writer."
                ) from error
            raise storage_error(error, config.folder) from error
        self._by_user = self._read_options(total_order=False)
        self._log = WriteAheadLog(config.folder)
        try:
            stored = self._database.get(b"mstate")
            # Later than any time that was given out.
            self._ceiling_ts = int(self._database.get(b"mceiling") or 0)
            self._id_buckets = self._find_id_buckets()
        except Exception as error:
            raise storage_error(error, config.folder) from error
        self.is_new = stored is None
        """True where nothing was ever kept here."""
        if stored is None:
            bucket_ms = max(config.dedup_window_ms, BUCKET_MS_MIN)
            self._state = _State(bucket_ms, config.wall() // bucket_ms)
        else:
            self._state = _State(**json.loads(stored))
        self._to_purge: list[Range] = [EVERYTHING] if self._state.purge_due else []
        # Replaced, never changed: requests read it without the lock.
        self._epoch_table = (self._state.first_epoch, tuple(self._state.epoch_starts))
        self._formats = [
            RecordFormat(Schema.from_json(schema), number)
            for number, schema in enumerate(self._state.schemas)
        ]
        self._clock = HybridClock(config.wall, self._ceiling_ts)
        self._ceiling_lock = threading.Lock()
        self._written_ceiling_ts = self._ceiling_ts
        self._changed = threading.Condition()
        self._committing_ts: int | None = None
        self._slowest_ms = 0.0
        self._sequence = (0, 0)
        self._failed: StoreError | None = None

    def close(self) -> None:
        """Closes the files. What was committed is durable already."""
        with self._changed:
            was_failed = self._failed is not None
            if not was_failed:
                self._end_lease()
        self._log.close()
        try:
            self._database.close()
        except Exception as error:
            if self._failed is None:  # otherwise it was reported
                raise storage_error(error, self._config.folder) from error
        if self._failed is not None and not was_failed:
            raise self._failed

    def _end_lease(self) -> None:
        """Writes the lowest ceiling that all times given out allow, the last of this process.

        The next start need not wait for the lease to pass.
        """
        with suppress(StoreError), self._storing(), self._ceiling_lock:
            self._ceiling_ts = max(self._clock.floor_ts, self._clock.now_ts()) + 1
            self._written_ceiling_ts = self._ceiling_ts
            self._database[b"mceiling"] = b"%d" % self._ceiling_ts
            self._log.sync()

    # Schemas

    def use_schema(self, schema: Schema) -> RecordFormat:
        """The format of events of this schema, kept for good."""
        with self._changed:
            if not self._formats or self._formats[-1].schema != schema:
                self._formats.append(RecordFormat(schema, len(self._formats)))
                self._state.schemas.append(schema.to_json())
                self._save()
            return self._formats[-1]

    @property
    def format(self) -> RecordFormat | None:
        """The format of new events; None before there is a schema."""
        return self._formats[-1] if self._formats else None

    @property
    def text_count(self) -> int:
        """Traits of text that an event has."""
        return self._formats[-1].text_count if self._formats else 0

    def to_wire(self, arrivals: Sequence[int], records: list[bytes]) -> bytes:
        """The bytes of a MutableEvents: events of any schemas as columns of the newest."""
        newest = self._formats[-1]
        message = newest.to_wire(arrivals, records)
        if message is None:
            current = [
                record if schema_number(record) == newest.number else self._rewritten(record)
                for record in records
            ]
            message = newest.to_wire(arrivals, current)
            assert message is not None
        return message

    def _rewritten(self, record: bytes) -> bytes:
        newest = self._formats[-1]
        old = self._formats[schema_number(record)].decode([record])
        names = {"event_ts", "event_id", *(trait.name for trait in newest.schema.traits)}
        known = {name: column for name, column in old.items() if name in names}
        return newest.encode(newest.checked(known, 1), 1)[0]

    # Time

    @property
    def now_ts(self) -> int:
        """The tier's clock, ms."""
        with self._changed:
            return self._clock.now_ts()

    @property
    def sealed_ts(self) -> int:
        """No event arrives before this any more; NEVER_TS where nothing was sealed."""
        return self._state.sealed_ts

    @property
    def kept_from_ts(self) -> int:
        """A watermark: what arrived since is here; NEVER_TS where everything is."""
        return self._state.kept_from_ts

    def begin(self, request_ts: int) -> int:
        """The moment of a request, ms; `request_ts` of 0 stands for now.

        From now on no event arrives before it, and those that did can be read.

        Raises:
            RequestError: it lies too far ahead of the clock.
            StoreError: the disk failed, so that nobody knows what arrived before.
        """
        with self._changed:
            now_ts = self._clock.now_ts()
            moment_ts = request_ts or now_ts
            self._check_ahead(moment_ts, now_ts, "The request")
            self._promise(moment_ts)
            return moment_ts

    def seal(self, watermark_ts: int, published_ts: int = NEVER_TS) -> None:
        """Lets no event arrive before a watermark, for good. Doing so again changes nothing.

        `published_ts` is the watermark that is published at this moment, taken up or not.

        Raises:
            RequestError: it lies too far ahead of the clock, or what is published lacks events.
        """
        with self._changed:
            if watermark_ts <= self._state.sealed_ts:
                return
            # Sealed over, such a generation would pass for one that was exported.
            if not self._is_covered(published_ts):
                raise RequestError(
                    f"The store has a generation of watermark {published_ts} already, which this "
                    f"tier never sealed and which may lack events it holds; take that generation "
                    f"back, and export before compacting."
                )
            self._check_ahead(watermark_ts, self._clock.now_ts(), "The watermark")
            self._seal(watermark_ts, published_ts)

    def _seal(self, watermark_ts: int, published_ts: int) -> None:
        self._promise(watermark_ts)
        if watermark_ts <= self._state.sealed_ts:
            return  # another thread sealed a later one meanwhile
        state = self._state
        state.sealed_ts = watermark_ts
        # However many watermarks are sealed before one is published, they begin one epoch:
        # requests read all epochs since the published watermark.
        if state.epoch_sealed_ts <= published_ts:
            state.epoch_sealed_ts = watermark_ts
            # Events that arrived before keep their epoch.
            first, starts = self._epoch_table
            self._epoch_table = (first, (*starts, max(watermark_ts, self._clock.floor_ts + 1)))
        self._save()

    def _check_ahead(self, moment_ts: int, now_ts: int, what: str) -> None:
        if moment_ts > now_ts + AHEAD_MS_MAX:
            raise RequestError(
                f"{what} lies {moment_ts - now_ts} ms ahead of this server's clock, which takes "
                f"at most {AHEAD_MS_MAX}; set the clocks, and give times in milliseconds."
            )

    def _promise(self, moment_ts: int) -> None:
        self._clock.promise(moment_ts)
        if moment_ts >= self._ceiling_ts:
            self._renew(moment_ts + LEASE_MS)
        self._changed.wait_for(
            lambda: self._committing_ts is None or self._committing_ts >= moment_ts
        )
        if self._failed is not None:
            raise self._failed

    def renew_lease(self) -> None:
        """Keeps the lease ahead of the clock; for the thread that commits, when it is idle."""
        ceiling_ts = self.now_ts + LEASE_MS
        if ceiling_ts >= self._ceiling_ts + LEASE_MS // 2:
            self._renew(ceiling_ts)

    def _renew(self, ceiling_ts: int) -> None:
        with self._storing():
            self._write_ceiling(ceiling_ts)
            self._log.sync()
        self._raise_ceiling(ceiling_ts)

    def _write_ceiling(self, ceiling_ts: int) -> None:
        """Writes a ceiling, unless another thread wrote a higher one."""
        with self._ceiling_lock:
            self._written_ceiling_ts = max(self._written_ceiling_ts, ceiling_ts)
            self._database[b"mceiling"] = b"%d" % self._written_ceiling_ts

    def _raise_ceiling(self, ceiling_ts: int) -> None:
        """Records that a ceiling is on disk."""
        with self._ceiling_lock:
            self._ceiling_ts = max(self._ceiling_ts, ceiling_ts)

    def _save(self) -> None:
        with self._storing():
            self._state.first_epoch, starts = self._epoch_table
            self._state.epoch_starts = list(starts)
            self._database[b"mstate"] = json.dumps(asdict(self._state)).encode()
            self._log.sync()

    # Events in

    def commit(self, batches: Sequence[Batch]) -> list[Committed]:
        """Makes batches durable together: they arrive at one moment.

        Raises:
            StoreError: the disk failed; it then refuses all that follows, since what is durable is
                not known before the next start.
        """
        started_s = time.monotonic()
        with self._changed:
            if self._failed is not None:
                raise self._failed
            arrival_ts = self._clock.arrival_ts(self._lead_ms())
            self._committing_ts = arrival_ts
            epoch = self._epoch(arrival_ts)
        try:
            with self._storing():
                chosen = self._without_known(batches)
                # First, so that a log torn behind some events still has it.
                self._write_ceiling(arrival_ts + LEASE_MS)
                self._write(batches, chosen, epoch, arrival_ts)
                self._log.sync()
            self._raise_ceiling(arrival_ts + LEASE_MS)
            took_ms = 1000 * (time.monotonic() - started_s)
            self._slowest_ms = max(SLOWEST_KEPT * self._slowest_ms, took_ms)
        finally:
            with self._changed:
                self._committing_ts = None
                self._changed.notify_all()
        return [
            Committed(len(rows), len(batch) - len(rows), arrival_ts)
            for batch, rows in zip(batches, chosen, strict=True)
        ]

    def _lead_ms(self) -> int:
        """How long a commit may take: twice as long as one took lately, so that requests, which
        need what arrived before them, seldom wait for it."""
        least_ms = self._config.commit_lead_ms
        return max(least_ms, min(round(2 * self._slowest_ms), LEAD_MS_MAX)) if least_ms else 0

    def _bucket(self, arrival_ts: int) -> int:
        return arrival_ts // self._state.bucket_ms

    def _epoch(self, arrival_ts: int) -> int:
        first, starts = self._epoch_table
        return first + bisect_right(starts, arrival_ts)

    def _without_known(self, batches: Sequence[Batch]) -> list[list[int]]:
        """Of each batch the rows to take: of equal ids the first arrival, or the first in order."""
        first: dict[bytes, tuple[int, int]] = {}
        chosen: list[list[int]] = []
        for number, batch in enumerate(batches):
            rows = []
            for row, event_id in enumerate(batch.ids):
                if event_id is None:
                    rows.append(row)
                    continue
                rival = first.setdefault(event_id, (number, row))
                if rival != (number, row) and self._order(batch, row) < self._order(
                    batches[rival[0]], rival[1]
                ):
                    first[event_id] = (number, row)
            chosen.append(rows)
        wanted = list(first)
        known: set[bytes] = set()
        for bucket in self._id_buckets:
            prefix = b"i" + bucket.to_bytes(4, "big")
            for at in range(0, len(wanted), IDS_MAX):
                part = wanted[at : at + IDS_MAX]
                found = self._database.get([prefix + event_id for event_id in part]) or ()
                known.update(
                    event_id
                    for event_id, value in zip(part, found, strict=True)
                    if value is not None
                )
                time.sleep(0)  # lets requests have the interpreter
        for event_id, (number, row) in first.items():
            if event_id not in known:
                chosen[number].append(row)
        for rows in chosen:
            rows.sort()
        return chosen

    def _order(self, batch: Batch, row: int) -> tuple[object, ...]:
        return self._newest_order(batch.records[row])

    def _newest_order(self, record: bytes) -> tuple[object, ...]:
        """By the newest schema: that is what people are shown, and compares with all others."""
        newest = self._formats[-1]
        known = schema_number(record) == newest.number
        return newest.order(record if known else self._rewritten(record))

    def _find_id_buckets(self) -> list[int]:
        """Those that hold ids. Where the clock was far off there may be ages between two."""
        iterator = self._database.iter(self._read_options(total_order=True))
        found: list[int] = []
        iterator.seek(b"i")
        while iterator.valid() and iterator.key().startswith(b"i"):
            found.append(int.from_bytes(iterator.key()[1:5], "big"))
            iterator.seek(b"i" + (found[-1] + 1).to_bytes(4, "big"))
        iterator.status()
        return found

    def _write(
        self,
        batches: Sequence[Batch],
        chosen: Sequence[Sequence[int]],
        epoch: int,
        arrival_ts: int,
    ) -> None:
        at, sequence = self._sequence
        if at != arrival_ts:
            sequence = 0
        prefix = b"e" + epoch.to_bytes(4, "big")
        bucket = self._bucket(arrival_ts)
        if bucket not in self._id_buckets:
            with self._changed:  # others may be forgotten at the same time
                self._id_buckets = [*self._id_buckets, bucket]
        id_prefix = b"i" + bucket.to_bytes(4, "big")
        arrived = _unsigned(arrival_ts)
        part = WriteBatch(raw_mode=True)
        for batch, rows in zip(batches, chosen, strict=True):
            for row in rows:
                key = prefix + batch.users[row] + arrived + sequence.to_bytes(4, "big")
                part.put(key, batch.records[row])
                event_id = batch.ids[row]
                if event_id is not None:
                    part.put(id_prefix + event_id, b"")
                sequence += 1
                if part.len() >= WRITE_PAIRS_MAX:
                    self._database.write(part)
                    part = WriteBatch(raw_mode=True)
                    time.sleep(0)  # lets requests have the interpreter
        self._database.write(part)
        self._sequence = (arrival_ts, sequence)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failure = storage_error(error, self._config.folder)
            if isinstance(failure, StoreUnavailableError):
                failure = StoreError(str(failure))  # it stays until the next start
            self._failed = failure
            raise failure from error

    # Events out

    def read(
        self, user_id: int, from_ts: int, until_ts: int, bytes_max: int = sys.maxsize
    ) -> tuple[list[int], list[bytes]]:
        """A user's events that arrived in [from_ts, until_ts): arrival times and records, in order.

        `until_ts` is one that `begin` gave.

        Raises:
            RequestError: Retention dropped some of them.
            AnswerTooLargeError: Their records have more than `bytes_max` bytes.
        """
        arrivals: list[int] = []
        records: list[bytes] = []
        number = int.from_bytes
        for key, record in self._events_of(user_id, from_ts, until_ts):
            arrivals.append(number(key[-12:-4], "big"))
            records.append(record)
            bytes_max -= len(record)
            if bytes_max < 0:
                raise _too_large()
        self.check_kept(from_ts)
        if len(records) > 1:
            order = self._ordered(records)
            arrivals = [arrivals[row] for row in order]
            records = [records[row] for row in order]
        return arrivals, records

    def measure(self, user_id: int, from_ts: int, until_ts: int, bytes_max: int) -> tuple[int, int]:
        """Returns the number of events that `read` would return, and the bytes of their records.

        Raises:
            RequestError: Retention dropped some of them.
            AnswerTooLargeError: Their records have more than `bytes_max` bytes.
        """
        count = size = 0
        for _, record in self._events_of(user_id, from_ts, until_ts):
            count += 1
            size += len(record)
            if size > bytes_max:
                raise _too_large()
        self.check_kept(from_ts)
        return count, size

    def _events_of(
        self, user_id: int, from_ts: int, until_ts: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and records of a user's events that arrived in [from_ts, until_ts)."""
        user = _unsigned(user_id)
        first, last = _unsigned(max(from_ts, 0)), _unsigned(max(until_ts, 0))
        for epoch in self._epochs(from_ts, until_ts):
            prefix = b"e" + epoch.to_bytes(4, "big") + user
            iterator = self._database.iter(self._by_user)
            iterator.seek(prefix + first)
            valid, key_of, value_of, step = (
                iterator.valid,
                iterator.key,
                iterator.value,
                iterator.next,
            )
            end = prefix + last
            while valid() and (key := key_of()) < end:
                yield key, value_of()
                step()
            iterator.status()

    def _ordered(self, records: list[bytes]) -> list[int]:
        order = _native.record_order(records)
        if order:
            return order
        full = [self._newest_order(record) for record in records]
        return sorted(range(len(full)), key=full.__getitem__)

    def scan(
        self, from_ts: int, until_ts: int
    ) -> Iterator[tuple[list[int], list[int], list[bytes]]]:
        """All events that arrived in [from_ts, until_ts): users, arrival times, records.

        Comes in parts of at most SCAN_EVENTS_MAX events and about SCAN_BYTES_MAX bytes, the same
        each time once `until_ts` is sealed.
        """
        users: list[int] = []
        arrivals: list[int] = []
        records: list[bytes] = []
        size = 0
        for epoch in self._epochs(from_ts, until_ts):
            iterator = self._database.iter(self._read_options(total_order=True))
            prefix = b"e" + epoch.to_bytes(4, "big")
            iterator.seek(prefix)
            while iterator.valid():
                key = iterator.key()
                if not key.startswith(prefix):
                    break
                arrival_ts = int.from_bytes(key[-12:-4], "big")
                if from_ts <= arrival_ts < until_ts:
                    users.append(int.from_bytes(key[5:13], "big", signed=True))
                    arrivals.append(arrival_ts)
                    records.append(iterator.value())
                    size += len(records[-1])
                if len(records) == SCAN_EVENTS_MAX or size >= SCAN_BYTES_MAX:
                    yield users, arrivals, records
                    users, arrivals, records, size = [], [], [], 0
                iterator.next()
            iterator.status()
        self.check_whole(from_ts)
        if records:
            yield users, arrivals, records

    def _epochs(self, from_ts: int, until_ts: int) -> range:
        first = max(from_ts, self._state.kept_from_ts)
        return range(self._epoch(first), self._epoch(until_ts - 1) + 1)

    @staticmethod
    def _read_options(*, total_order: bool) -> ReadOptions:
        chosen = ReadOptions()
        chosen.set_total_order_seek(total_order)
        chosen.set_prefix_same_as_start(not total_order)
        return chosen

    def check_kept(self, from_ts: int) -> None:
        """Raises RequestError where events that arrived since `from_ts` may be gone."""
        kept_from_ts = self._state.kept_from_ts
        if from_ts < kept_from_ts:
            raise RequestError(
                f"The tier has kept events since {readable_time(kept_from_ts)} ({kept_from_ts}) "
                f"only; ask for a later moment, or keep a longer --retention from now on."
            )

    def check_whole(self, from_ts: int) -> None:
        """Raises RequestError where events of any user that arrived since may be gone."""
        self.check_kept(from_ts)
        erased_ts = self._state.erased_until_ts
        if from_ts < erased_ts:
            raise RequestError(
                f"The tier has kept events of all users since {readable_time(erased_ts)} "
                f"({erased_ts}) only, where a generation erased some; export from then on, or "
                f"compact the file of an earlier export."
            )

    # The hand-over

    def take_up(self, watermarks: Sequence[int]) -> bool:
        """Learns that a generation of these watermarks is published; forgets what may be forgotten.

        False where events may have arrived before its watermark that it cannot have, since it
        was not sealed here: requests must then be served from older watermarks.
        """
        with self._changed:
            newest = watermarks[-1]
            if not self._is_covered(newest):
                return False
            if newest > self._state.sealed_ts:
                if self.is_new:
                    self._state.kept_from_ts = newest
                self._seal(newest, newest)
            self.is_new = False
            self._forget(watermarks)
            return True

    def _is_covered(self, watermark_ts: int) -> bool:
        """Whether no event here can be missing from a generation of that watermark."""
        if watermark_ts <= self._state.sealed_ts:
            return True
        # What is on its way to the disk may have arrived before.
        self._changed.wait_for(
            lambda: self._committing_ts is None or self._committing_ts >= watermark_ts
        )
        return watermark_ts <= self._state.sealed_ts or self._is_empty_since(self._state.sealed_ts)

    def _is_empty_since(self, seal_ts: int) -> bool:
        """Its epoch and all later ones; some events of the first may have arrived before it."""
        iterator = self._database.iter(self._read_options(total_order=True))
        iterator.seek(b"e" + self._epoch(seal_ts).to_bytes(4, "big"))
        return not (iterator.valid() and iterator.key().startswith(b"e"))

    def _forget(self, watermarks: Sequence[int]) -> None:
        state = self._state
        kept_from_ts = _newest_before(watermarks, self._clock.now_ts() - self._config.retention_ms)
        # Compaction looks for duplicates no further back than this; so they are found here first.
        ids_from_ts = _newest_before(watermarks, watermarks[-1] - self._config.dedup_window_ms)
        first_bucket = self._bucket(ids_from_ts)  # below every bucket where there is none
        if kept_from_ts <= state.kept_from_ts and first_bucket <= state.first_bucket:
            return
        state.kept_from_ts = max(state.kept_from_ts, kept_from_ts)
        state.first_bucket = max(state.first_bucket, first_bucket)
        epoch = self._epoch(state.kept_from_ts)
        first, starts = self._epoch_table
        self._epoch_table = (epoch, starts[epoch - first :])
        state.purge_due = True
        # Only what is on disk as gone may go.
        self._save()
        self._id_buckets = [bucket for bucket in self._id_buckets if bucket >= state.first_bucket]
        with self._storing():
            for kind, end in ((b"e", epoch), (b"i", state.first_bucket)):
                if end:
                    gone = (kind + bytes(4), kind + end.to_bytes(4, "big"))
                    self._database.delete_range(*gone)
                    self._to_purge.append(gone)

    def user_runs(self, until_ts: int) -> Iterator[tuple[int, int, int]]:
        """Yields epoch, user and first arrival of all runs of events that begin before a moment."""
        for epoch in self._epochs(NEVER_TS, until_ts):
            iterator = self._database.iter(self._read_options(total_order=True))
            prefix = b"e" + epoch.to_bytes(4, "big")
            iterator.seek(prefix)
            while iterator.valid() and (key := iterator.key()).startswith(prefix):
                arrival_ts = int.from_bytes(key[-12:-4], "big")
                yield epoch, int.from_bytes(key[5:13], "big", signed=True), arrival_ts
                iterator.seek(key[:13] + b"\xff" * 12)
            iterator.status()

    def erase(self, runs: Sequence[tuple[int, int, int]]) -> None:
        """Deletes, of each epoch and user, what arrived before a time; `purge` must follow."""
        with self._changed:
            self._state.purge_due = True
            latest_ts = max(until_ts for _, _, until_ts in runs)
            self._state.erased_until_ts = max(self._state.erased_until_ts, latest_ts)
            self._save()
        with self._storing():
            for epoch, user_id, until_ts in runs:
                prefix = b"e" + epoch.to_bytes(4, "big") + _unsigned(user_id)
                gone = (prefix, prefix + _unsigned(until_ts))
                self._database.delete_range(*gone)
                self._to_purge.append(gone)

    def purge(self) -> None:
        """Removes from all files what was forgotten or erased; one thread calls it."""
        with self._changed:
            ranges, self._to_purge = self._to_purge, []
        if not ranges:
            return
        with self._storing():
            rewrite_files(self._database, self._log, ranges)
        with self._changed:
            if not self._to_purge:
                self._state.purge_due = False
                self._save()

    def property_value(self, name: str) -> int:
        """A number that RocksDB keeps, 0 where it keeps none."""
        return int(self._database.property_int_value(name) or 0)


def _too_large() -> AnswerTooLargeError:
    return AnswerTooLargeError(
        "The mutable events would take more bytes than this server sends (response_bytes_max); ask "
        "for fewer users at once, and publish generations more often."
    )


def _newest_before(watermarks: Sequence[int], moment_ts: int) -> int:
    place = bisect_right(watermarks, moment_ts)
    return watermarks[place - 1] if place else NEVER_TS


def _unsigned(number: int) -> bytes:
    return (number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def batch_of(user_ids: Sequence[int], columns: Columns, record_format: RecordFormat) -> Batch:
    """Events of checked columns, ready to be committed."""
    events = len(user_ids)
    users = np.array(user_ids, np.int64).astype(">i8")
    ids = columns["event_id"]
    pairs = np.empty((events, 2), ">i8")
    pairs[:, 0], pairs[:, 1] = users, ids.values
    data, keys = users.tobytes(), pairs.tobytes()
    known = [True] * events if ids.present is None else ids.present.tolist()
    return Batch(
        [data[at : at + 8] for at in range(0, len(data), 8)],
        [keys[16 * n : 16 * n + 16] if has else None for n, has in enumerate(known)],
        record_format.encode(columns, events),
    )
