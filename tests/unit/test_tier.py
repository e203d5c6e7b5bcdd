"""The mutable tier by itself: its log under several threads, its ceiling, its seals and epochs."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from support.tiers import append, in_threads, opened
from support.worlds import START_TS
from thinrow.errors import StoreError
from thinrow.online.clock import LEASE_MS, Lease
from thinrow.online.database import WriteAheadLog
from thinrow.online.records import Batch
from thinrow.store.directory import NEVER_TS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.online.tier import MutableTier

THREADS = 4
SEALS = 200
BATCHES = 200


@pytest.fixture
def now() -> list[int]:
    return [START_TS]


def test_the_log_turns_over_while_threads_sync(tmp_path: Path) -> None:
    log, ended = WriteAheadLog(tmp_path), threading.Event()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)

    def sync() -> None:
        while not ended.is_set():
            log.sync()

    def turn() -> None:
        try:
            for number in range(300):
                path = tmp_path / f"{number:06d}.log"
                path.write_bytes(b"x")
                log.sync()
                path.unlink()
        finally:
            ended.set()

    try:
        in_threads(turn, *[sync] * THREADS)
        log.sync()
        assert log._files == {}
    finally:
        sys.setswitchinterval(interval_s)
        log.close()


def test_the_ceiling_on_disk_never_goes_back(tmp_path: Path, now: list[int]) -> None:
    """A slow commit writes its ceiling after a request that began much later wrote its own."""
    with opened(tmp_path / "tier", now) as tier:
        append(tier, 1, "a", 1)
        moments: list[int] = []
        request = threading.Thread(target=lambda: moments.append(tier.begin(0).request_ts))
        write = Lease.write

        def slow(lease: Lease, ceiling_ts: int) -> None:
            if threading.current_thread() is not request:
                now[0] += 60_000
                request.start()
                end_s = time.monotonic() + 60
                while stored_ceiling(tier) < now[0] and time.monotonic() < end_s:
                    time.sleep(0.001)
            write(lease, ceiling_ts)

        with mock.patch.object(Lease, "write", slow):
            append(tier, 1, "b", 2)
        request.join()
        assert stored_ceiling(tier) > moments[0]
        # As after a SIGKILL, on a machine whose clock went back.
        shutil.copytree(tmp_path / "tier", tmp_path / "killed" / "tier")
        with opened(tmp_path / "killed" / "tier", [START_TS]) as again:
            assert again.now_ts > moments[0]
            assert append(again, 1, "c", 3) >= moments[0]


def stored_ceiling(tier: MutableTier) -> int:
    return int(tier.database.get(b"mceiling") or 0)


def test_the_ceiling_under_many_writers_and_restarts(tmp_path: Path, now: list[int]) -> None:
    given = 0
    for _ in range(3):
        with opened(tmp_path / "tier", now) as tier:
            assert tier.now_ts >= given
            seen = [stored_ceiling(tier)]

            def appends(tier: MutableTier = tier) -> None:
                for number in range(20):
                    now[0] += 400
                    append(tier, 1, "x", now[0] + number)
                    tier.renew_lease()

            def requests(tier: MutableTier = tier, seen: list[int] = seen) -> None:
                for _ in range(40):
                    seen.append(stored_ceiling(tier))
                    assert tier.begin(tier.now_ts + 900).request_ts < stored_ceiling(tier)

            in_threads(appends, requests)
            assert seen == sorted(seen)
            given = tier.now_ts
        now[0] -= 100_000


def test_a_failed_write_of_the_ceiling_stops_the_tier(tmp_path: Path, now: list[int]) -> None:
    with pytest.raises(StoreError), opened(tmp_path / "tier", now) as tier:
        moment_ts = tier.begin(0).request_ts
        now[0] += 10 * LEASE_MS

        def fail() -> None:
            raise OSError(5, "Input/output error")

        sync, tier.database.sync = tier.database.sync, fail  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            tier.begin(0)
        tier.database.sync = sync  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            append(tier, 1, "a", 1)
        tier.begin(0)
    with opened(tmp_path / "tier", [START_TS]) as again:
        assert again.now_ts >= moment_ts


def test_seals_at_once_never_go_back(tmp_path: Path, now: list[int]) -> None:
    with opened(tmp_path / "tier", now) as tier:
        for _ in range(20):
            now[0] += 100
            later = [now[0] + ahead for ahead in (0, 50, 100)]
            in_threads(
                *[lambda ts=ts: tier.seal(ts) for ts in later],
                lambda: append(tier, 1, "a", now[0]),
            )
            assert tier.sealed_ts == later[-1]
        starts = tier.state.now.epoch_starts
        assert list(starts) == sorted(starts)


def reads(tier: MutableTier, from_ts: int, until_ts: int) -> int:
    """Counts the runs of keys that a request reads."""
    with mock.patch.object(tier.database, "items", wraps=tier.database.items) as items:
        tier.read(1, from_ts, until_ts)
    return items.call_count


def exported(tier: MutableTier, from_ts: int, until_ts: int) -> list[Any]:
    return list(tier.scan(from_ts, until_ts))


def test_requests_read_as_much_after_many_exports(tmp_path: Path, now: list[int]) -> None:
    """Exports stay repeatable meanwhile, also over a restart."""
    first: list[Any] = []
    with opened(tmp_path / "tier", now) as tier:
        for number in range(SEALS):
            now[0] += 1000
            append(tier, 1 + number % 3, str(number), number)
            tier.seal(now[0])
            if number == 20:
                first = exported(tier, 0, now[0])
                at_first = reads(tier, 0, tier.begin(0).request_ts)
                cut_ts = now[0]
        assert len(first[0][0]) == 20
        assert exported(tier, 0, cut_ts) == first
        assert reads(tier, 0, tier.begin(0).request_ts) == at_first <= 2
    with opened(tmp_path / "tier", now) as tier:
        assert exported(tier, 0, cut_ts) == first
        assert reads(tier, 0, tier.begin(0).request_ts) == at_first


def test_epochs_are_forgotten_with_their_generations(tmp_path: Path, now: list[int]) -> None:
    watermarks: list[int] = []
    with opened(tmp_path / "tier", now, retention_ms=10_000) as tier:
        for number in range(50):
            now[0] += 1000
            append(tier, 1, str(number), number)
            published_ts = watermarks[-1] if watermarks else NEVER_TS
            tier.seal(now[0], published_ts)
            part = exported(tier, published_ts, now[0])
            assert exported(tier, published_ts, now[0]) == part
            watermarks.append(now[0])
            assert tier.accept_generation(watermarks)
            assert reads(tier, watermarks[-1], tier.begin(0).request_ts) <= 2
        assert len(tier.state.now.epoch_starts) <= 13
        until_ts = tier.begin(0).request_ts
        kept = tier.read(1, tier.kept_from_ts, until_ts)
    with opened(tmp_path / "tier", now, retention_ms=10_000) as tier:
        assert tier.read(1, tier.kept_from_ts, until_ts) == kept
        assert len(kept[0]) >= 10


class CountedUsers(dict[bytes, str]):
    """Users, and how many of them were read."""

    read = 0

    def get(self, key: bytes, default: Any = None) -> Any:  # noqa: ANN401
        self.read += 1
        return super().get(key, default)

    def __getitem__(self, key: bytes) -> str:
        self.read += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[bytes]:
        for key in super().__iter__():
            self.read += 1
            yield key


def test_a_user_of_a_batch_is_compared_with_one_other(tmp_path: Path, now: list[int]) -> None:
    """Many small batches are committed together: none copies the users of those before it."""
    users = CountedUsers()
    with opened(tmp_path / "tier", now) as tier:
        for number in range(BATCHES):
            key, text = b"%08d" % number, f"user-{number}"
            batch = Batch([key, key], [None, None], [b"", b""], [text, text])
            assert tier.collision(batch, users) is None
        assert users.read <= 2 * BATCHES
        known, new = b"%08d" % 7, b"%08d" % BATCHES
        other = Batch([new, known], [None, None], [b"", b""], ["new", "other"])
        refused = tier.collision(other, users)
    assert refused is not None and "'other' and 'user-7' have the same key" in str(refused)
    assert len(users) == BATCHES and new not in users
