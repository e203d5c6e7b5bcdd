"""A replica's tier killed while it applies a log: places and events are durable together."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from typing import TYPE_CHECKING

from support.oracle import Schema, Trait
from support.paths import TESTS
from support.topic_logs import (
    DAY_MS,
    PARTITIONS,
    SCHEMA,
    apply_all,
    contents,
    messages,
    opened_topic,
)
from support.topic_worlds import TOPIC_USERS, Topic
from support.worlds import let_work, new_world

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = 12_000
KILLS = 6


def test_a_kill_neither_loses_nor_doubles(tmp_path: Path) -> None:
    rng = random.Random(7)
    log = messages(7, MESSAGES)
    file = tmp_path / "log"
    file.write_bytes(pickle.dumps([tuple(message) for message in log]))
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


def test_a_kill_around_a_hand_over(tmp_path: Path) -> None:
    """Once a generation is taken up, no crash takes back what arrived before it, or was erased."""
    rng = random.Random(5)
    schema = Schema({"g": [Trait("x", "int64"), Trait("t", "string", sparse=True)]})
    topic = Topic(new_world(tmp_path / "world", SCHEMA), rng, DAY_MS, schema)
    topic.produce(4000)
    erased = frozenset((1, 2))
    with topic.hand_over(erased) as generation:
        watermark_ts = generation.watermark_ts
        topic.produce(4000)
        file = tmp_path / "log"
        file.write_bytes(pickle.dumps([tuple(message) for message in topic.log]))
        program = [sys.executable, TESTS / "support" / "topic_logs.py"]
        taken_up = []
        for kill in range(KILLS):
            folder = tmp_path / f"killed-{kill}"
            with subprocess.Popen(
                [*map(str, (*program, folder, file, topic.world.store))],
                stdout=subprocess.PIPE,
                env={"PYTHONPATH": str(TESTS)},
            ) as process:
                assert process.stdout is not None and process.stdout.readline() == b"opened\n"
                let_work(process, 0.01 + 0.07 * kill)
                process.kill()
            with opened_topic(folder) as killed:
                taken_up.append(killed.sealed_ts == watermark_ts)
                assert killed.now_ts >= watermark_ts or not taken_up[-1]
                apply_all(killed, topic.log, rng, generation)
                for user in TOPIC_USERS:
                    arrivals, _ = killed.read(user, 0, killed.begin(0, [user]).request_ts)
                    expected = [
                        event.arrival_ts
                        for event in topic.meaning.arrived
                        if event.user_id == user
                        and event.arrival_ts < killed.begin(0, [user]).request_ts
                        and (user not in erased or event.arrival_ts >= watermark_ts)
                    ]
                    if user not in erased:
                        assert sorted(arrivals) == sorted(expected)
                    else:  # some of what came again was new, by when the erasure was known
                        assert min(arrivals) >= watermark_ts and len(arrivals) >= len(expected)
    assert len(set(taken_up)) == 2, "no kill came before the hand-over, or none after it"


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
