"""Files in parts, without, and in other parts: a batch is finished in the folders that it began in,
and a release that would not do so refuses the journal.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from support.logged import (
    HOUR_MS,
    NOW_TS,
    Clock,
    a_row,
    check_layout,
    config_in,
    features_of,
    parts,
    pending,
    request_ids,
    segments,
    wait_for,
)
from thinrow.client.logger import FileOutput, JournalError, ThinRowLogger, outputs
from thinrow.client.logger import journal as journals

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from thinrow.client.logger import LoggerConfig


def in_layout(folder: Path, row_parts: int) -> LoggerConfig:
    files = FileOutput(folder=folder / "rows", part_ms=0, row_parts=row_parts)
    return config_in(folder, files=files, close_ms=300)


def interrupted(folder: Path, row_parts: int, written: int, clock: Clock) -> None:
    """Logs 60 rows, whose only batch fails after some files."""
    write, left = outputs.write_part, [written]

    def failing(table: pa.Table, path: Path) -> None:
        if not left[0]:
            raise OSError("no more")
        left[0] -= 1
        write(table, path)

    with (
        mock.patch.object(outputs, "write_part", failing),
        ThinRowLogger(in_layout(folder, row_parts), clock=clock) as logger,
    ):
        for n in range(60):
            row = a_row(n, request_ts=NOW_TS + n % 3 * HOUR_MS)
            logger.log(f"r{n}", row, features_of(n))
        logger.flush()
        clock.now_ts += 1000
        wait_for(lambda: logger.counts.failures["files"] > 0)
    assert len(parts(folder)) == written


def finished(folder: Path, row_parts: int, clock: Clock) -> None:
    """Goes on in another layout, with 60 more rows."""
    with ThinRowLogger(in_layout(folder, row_parts), clock=clock) as logger:
        for n in range(60, 120):
            logger.log(f"r{n}", a_row(n), features_of(n))
        logger.flush()
        clock.now_ts += 1000
        logger.drain(60)


def versions(folder: Path) -> list[int]:
    firsts = [journals.frame_at(path.read_bytes(), 0) or b"" for path in segments(folder)]
    return [json.loads(first[1:])["version"] for first in firsts]


@pytest.mark.parametrize(("before", "after"), [(0, 4), (4, 0), (4, 16), (16, 4)])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_interrupted_batch_keeps_its_layout(
    tmp_path: Path, before: int, after: int, written: int
) -> None:
    clock = Clock()
    interrupted(tmp_path, before, written, clock)
    finished(tmp_path, after, clock)
    assert request_ids(tmp_path) == {f"r{n}": 1 for n in range(120)}
    assert check_layout(tmp_path, (0, 4, 16)) == {before: 1, after: 1}


def test_a_release_without_parts_refuses_journals_of_parts_alone(tmp_path: Path) -> None:
    clock = Clock()
    interrupted(tmp_path, 4, 1, clock)
    with (
        mock.patch.object(journals, "VERSION_OF_PARTS", journals.VERSION),
        pytest.raises(JournalError, match=r"has version 2, .* finish it with the release that"),
    ):
        pending(tmp_path)
    # The first segment of the next start has the interrupted batch, and so parts, too.
    finished(tmp_path, 0, clock)
    assert versions(tmp_path)[-1] == 2
    assert pending(tmp_path) == 0
    assert versions(tmp_path)[-1] == 1
    with ThinRowLogger(in_layout(tmp_path, 0), clock=clock):
        clock.now_ts += 2000  # two windows
    assert set(versions(tmp_path)) == {1}


def test_a_batch_of_a_release_without_parts_is_finished_by_hour(tmp_path: Path) -> None:
    clock = Clock()
    interrupted(tmp_path, 0, 1, clock)
    (segment,) = segments(tmp_path)
    data, offset, end = segment.read_bytes(), 0, 0
    file = os.open(segment, os.O_RDWR | os.O_TRUNC)
    while (payload := journals.frame_at(data, offset)) is not None:
        offset += journals.HEAD.size + len(payload)
        if payload[:1] == b"C":
            record = json.loads(payload[1:])
            assert record.pop("row_parts") in ({}, 0)
            payload = b"C" + json.dumps(record).encode()
        end = journals.write_frame(file, end, payload)
    os.close(file)
    finished(tmp_path, 4, clock)
    assert request_ids(tmp_path) == {f"r{n}": 1 for n in range(120)}
    assert check_layout(tmp_path, (0, 4)) == {0: 1, 4: 1}
