"""A logger that is killed, whose journal is damaged, whose disk is full or whose brokers are away:
nothing acknowledged is lost, nothing is doubled in the files, and damage is named.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from support.crashing_logger import ROWS
from support.logged import (
    Clock,
    a_row,
    check_layout,
    config_in,
    features_of,
    pending,
    published,
    request_ids,
    segments,
)
from support.paths import SUPPORT
from support.small_disks import ROOMY, small_disk
from support.worlds import REPEATS, flipped
from thinrow.client.logger import (
    FileOutput,
    JournalError,
    KafkaOutput,
    LoggerFullError,
    ThinRowLogger,
)
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource
from thinrow.errors import DeadlineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

CRASHING = SUPPORT / "crashing_logger.py"


def logged_once(crashing: subprocess.Popen[str], *place: int) -> tuple[int, set[int]]:
    """Starts a logger, waits for its end, and returns its exit status and what it acknowledged."""
    assert crashing.stdin is not None
    assert crashing.stdout is not None
    print(*place, file=crashing.stdin, flush=True)
    acknowledged: set[int] = set()
    for line in crashing.stdout:
        if line.startswith("ended"):
            return int(line.split()[1]), acknowledged
        acknowledged |= {int(number) for number in line.split()}
    raise AssertionError(f"{CRASHING} itself ended")


@pytest.mark.parametrize("layouts", [(0,), (4,), (0, 4, 16)])
@pytest.mark.parametrize("seed", range(2 * REPEATS))
def test_killed_at_any_moment(tmp_path: Path, seed: int, layouts: tuple[int, ...]) -> None:
    """Starts choose one of some numbers of parts; each batch is in those that it began in."""
    rng = random.Random(seed)
    touches_max = 150 if layouts == (0,) else 500  # with parts there are more files to write
    acknowledged: set[int] = set()
    killed = 0
    command = [sys.executable, CRASHING, tmp_path, *layouts]
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as crashing:
        for start in range(8):
            countdown = rng.randrange(1, touches_max) if start < 7 else 0
            status, numbers = logged_once(crashing, start * ROWS, countdown, rng.getrandbits(30))
            assert status in (0, -9)
            killed += status == -9
            acknowledged |= numbers
            assert set(request_ids(tmp_path).values()) <= {1}
            check_layout(tmp_path, layouts)
    assert killed > 3
    assert len(acknowledged) > ROWS
    rows = {row["user_id"]: row for row in published(tmp_path)}
    assert set(request_ids(tmp_path).values()) == {1}
    assert acknowledged <= rows.keys()
    assert {rows[number]["click"] for number in acknowledged} == {1}
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A folder with the journal of ten rows, each a frame of its own, in two segments."""
    for half in range(2):
        with ThinRowLogger(config_in(tmp_path), clock=Clock()) as logger:
            for n in range(5):
                logger.log(f"r{half * 5 + n}", a_row(n), features_of(n)).wait()
    return tmp_path


def frame_starts(segment: Path) -> list[int]:
    data, magic = segment.read_bytes(), segment.read_bytes()[:4]
    return [offset for offset in range(len(data)) if data[offset : offset + 4] == magic]


def copies(folder: Path, count: int) -> Iterator[Path]:
    for number in range(count):
        copy = folder / f"copy-{number}"
        shutil.copytree(folder / "journal", copy / "journal")
        yield copy
        shutil.rmtree(copy)


def test_a_torn_end_is_cut_off_and_reported(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(segments(journal)) == 2
    *_, start = frame_starts(segments(journal)[1])
    size = segments(journal)[1].stat().st_size
    rng = random.Random(1)
    for n, copy in enumerate(copies(journal, 12)):
        path = segments(copy)[1]
        keep = start + (0, 1, 15, 16, size - start - 1)[n] if n < 5 else rng.randrange(start, size)
        with path.open("r+b") as file:
            file.truncate(keep)
            if n % 2:
                file.seek(0, 2)
                file.write(b"\0" * rng.randrange(100))
        torn = path.stat().st_size - start
        caplog.clear()
        assert pending(copy) == 9
        result = [record.getMessage() for record in caplog.records if "tore" in record.message]
        assert result == [
            f"{path} ends in {torn} bytes that a crash tore, none of them acknowledged: cut off"
        ] * bool(torn)
        # And what is logged then is not lost behind the tear.
        with ThinRowLogger(config_in(copy), clock=Clock()) as logger:
            logger.log("more", a_row(1), features_of(1)).wait()
        assert pending(copy) == 10


def test_a_segment_that_was_being_made_is_no_damage(journal: Path) -> None:
    for name, data in (("", b""), ("torn", segments(journal)[1].read_bytes()[:100])):
        copy = journal / f"copy{name}"
        shutil.copytree(journal / "journal", copy / "journal")
        (copy / "journal" / "segment-0000000002.journal").write_bytes(data)
        assert pending(copy) == 10


def test_damage_before_the_end_names_the_file(journal: Path) -> None:
    rng = random.Random(2)
    for copy in copies(journal, 40):
        path = rng.choice(segments(copy))
        end = path.stat().st_size
        if path == segments(copy)[1]:
            *_, end = frame_starts(path)
        flipped(path, rng.randrange(8 * end))
        with pytest.raises(JournalError, match=f"{path} is damaged at byte") as raised:
            pending(copy)
        assert "bring the file back" in str(raised.value)
    for copy in copies(journal, 1):
        path = segments(copy)[0]
        with path.open("r+b") as file:
            file.truncate(frame_starts(path)[-1])
        with pytest.raises(JournalError, match=f"{path} is damaged"):
            pending(copy)


def test_a_frame_that_failed_to_be_written_does_not_count(journal: Path) -> None:
    """It may be there all the same; it was written again into the next segment."""
    with ThinRowLogger(config_in(journal / "other"), clock=Clock()) as logger:
        logger.log("ghost", a_row(1), features_of(1)).wait()
    (other,) = segments(journal / "other")
    ghost = other.read_bytes()[frame_starts(other)[-1] :]
    with segments(journal)[0].open("ab") as file:
        file.write(ghost)
    assert pending(journal) == 10


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    with ThinRowLogger(config_in(tmp_path, segment_bytes=1), clock=Clock()) as logger:
        for n in range(5):
            logger.log(f"r{n}", a_row(n), features_of(n)).wait()
    missing = segments(tmp_path)[2]
    missing.unlink()
    with pytest.raises(JournalError, match=missing.name):
        pending(tmp_path)


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        config = config_in(disk.path, queued_events_max=3000, join_window_ms=50)
        with ThinRowLogger(config) as logger:
            logger.log("first", a_row(1), features_of(1)).wait()
            disk.leave(0)
            taken = ["first"]
            with pytest.raises(LoggerFullError, match="No space left"):
                for n in range(100_000):
                    logger.log(f"r{n}", a_row(n), features_of(n))
                    taken.append(f"r{n}")
                    time.sleep(0.0005)
            assert len(taken) > 100
            with pytest.raises(DeadlineError, match=r"trouble with the journal: .*No space left"):
                logger.flush(0.1)
            assert logger.counts.failures["journal"] > 0
            disk.resize(ROOMY)
            logger.flush()
            logger.drain(10)
        assert request_ids(disk.path) == dict.fromkeys(taken, 1)


def test_a_full_disk_while_closing_is_reported(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        logger = ThinRowLogger(config_in(disk.path, close_ms=200, join_window_ms=60_000))
        logger.log("first", a_row(1), features_of(1)).wait()
        disk.leave(0)
        for n in range(3000):
            logger.log(f"r{n}", a_row(n), features_of(n))
        with pytest.raises(DeadlineError, match="not durable"):
            logger.close()
        disk.resize(ROOMY)
        assert 1 <= pending(disk.path) < 3001


def test_brokers_that_are_away_hold_up_nothing_else(tmp_path: Path) -> None:
    producer = Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=60).brokers.values()
    servers = f"{broker.host}:{broker.port}"
    clock = Clock()
    settings = {"log_level": "0"}

    def topic(servers: str, **options: int) -> KafkaOutput:
        return KafkaOutput(
            topic="rows", bootstrap_servers=servers, linger_ms=0, settings=settings, **options
        )

    away = config_in(tmp_path, kafka=topic("127.0.0.1:1", deadline_ms=300), close_ms=500)
    with ThinRowLogger(away, clock=clock) as logger:
        for n in range(50):
            logger.log(f"r{n}", a_row(n), features_of(n))
        logger.label("r7", {"click": 1})
        logger.flush()
        clock.now_ts += 1000
        with pytest.raises(DeadlineError, match="trouble with kafka: Kafka at 127"):
            logger.drain(3)
        assert logger.counts.rows_published == {"files": 50, "kafka": 0}
    # Messages are as small as they must be, and none is larger than allowed.
    small = topic(servers, message_rows=20, message_bytes_max=4000)
    there = config_in(tmp_path, kafka=small, row_bytes_max=2000)
    with ThinRowLogger(there, clock=clock) as logger:
        logger.drain(10)
        assert logger.counts.rows_published == {"files": 0, "kafka": 50}
    source = KafkaSource(
        KafkaConfig(topic="rows", bootstrap_servers=servers, group="g", idle_timeout_s=1)
    )
    seen = [
        (request_id, click)
        for chunk in source.chunks(100)
        if len(chunk.rows)
        for request_id, click in zip(
            chunk.columns.column("request_id").to_pylist(),
            chunk.columns.column("click").to_pylist(),
            strict=True,
        )
    ]
    source.close()
    assert sorted(seen) == sorted((f"r{n}", int(n == 7)) for n in range(50))
    assert request_ids(tmp_path) == {f"r{n}": 1 for n in range(50)}
    with pytest.raises(UsageError, match=r"leave out enable\.idempotence"):
        ThinRowLogger(
            config_in(
                tmp_path / "other",
                kafka=KafkaOutput(
                    topic="t", bootstrap_servers="b:1", settings={"enable.idempotence": "false"}
                ),
            )
        )


def test_an_unfinished_part_is_finished_whatever_the_settings_are_now(tmp_path: Path) -> None:
    clock = Clock()
    with ThinRowLogger(config_in(tmp_path, close_ms=300), clock=clock) as logger:
        shutil.rmtree(tmp_path / "rows")
        (tmp_path / "rows").write_text("in the way")
        for n in range(50):
            logger.log(f"r{n}", a_row(n), features_of(n))
            clock.now_ts += 5
        logger.flush()
        clock.now_ts += 1000
        with pytest.raises(DeadlineError):
            logger.drain(0.2)
    (tmp_path / "rows").unlink()
    files = FileOutput(folder=tmp_path / "rows", part_rows=7, part_ms=0)
    longer = config_in(tmp_path, join_window_ms=100_000, files=files)
    with ThinRowLogger(longer, clock=clock) as logger:
        logger.log("more", a_row(51), features_of(51)).wait()
        clock.now_ts += 100_000
        logger.drain(10)
    assert request_ids(tmp_path) == {f"r{n}": 1 for n in range(50)} | {"more": 1}
