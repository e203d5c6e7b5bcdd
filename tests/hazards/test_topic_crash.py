"""A replica's tier killed while it applies a log: places and events are durable together."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from dataclasses import astuple
from typing import TYPE_CHECKING

from support.paths import TESTS
from support.topic_logs import PARTITIONS, apply_all, contents, messages, opened_topic
from support.worlds import let_work

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = 12_000
KILLS = 6


def test_a_kill_neither_loses_nor_doubles(tmp_path: Path) -> None:
    rng = random.Random(7)
    log = messages(7, MESSAGES)
    file = tmp_path / "log"
    file.write_bytes(pickle.dumps([astuple(message) for message in log]))
    command = [sys.executable, TESTS / "support" / "topic_logs.py", tmp_path / "killed", file]
    ends = [0]
    for kill in range(KILLS):
        with subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(TESTS)},
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"opened\n"
            let_work(process, rng.uniform(0.02, 0.15))
            process.kill()
        # As after the kill: what is there is the log up to the places.
        with (
            opened_topic(tmp_path / "killed") as killed,
            opened_topic(tmp_path / f"prefix-{kill}") as prefix,
        ):
            places = killed.places.now
            before = [each for each in log if each.offset < places[each.partition].offset]
            apply_all(prefix, before, rng)
            assert contents(killed) == contents(prefix)
            ends.append(len(before))
    assert ends == sorted(ends)
    assert any(0 < end < MESSAGES for end in ends), "no kill came in the middle"
    with opened_topic(tmp_path / "killed") as killed, opened_topic(tmp_path / "whole") as whole:
        apply_all(killed, log, rng)
        apply_all(whole, log, rng)
        assert contents(killed) == contents(whole)


def test_groups_of_any_sizes_give_the_same_bytes(tmp_path: Path) -> None:
    log = messages(3, 2000)
    by_partition = sorted(log, key=lambda message: message.partition)
    found = []
    for number, order in enumerate((log, log, by_partition)):
        with opened_topic(tmp_path / str(number)) as tier:
            apply_all(tier, order, random.Random(number))
            apply_all(tier, order, random.Random(number))  # delivered again
            found.append(contents(tier))
    assert found[0] == found[1] == found[2] and len(found[0]) > 2000
    # A replica of one partition has what the others have of it.
    for number in range(PARTITIONS):
        with opened_topic(tmp_path / f"only-{number}", [number]) as tier:
            apply_all(tier, [each for each in log if each.partition == number], random.Random(1))
            assert set(contents(tier)) <= set(found[0])
