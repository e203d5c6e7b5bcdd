"""SIGKILL to compactions and exports of a Kafka topic: repeated, they end as if none had died."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from support.kafka_broker import needs_broker, running_broker
from support.small_topics import Small, digests, manifest_of
from support.tried import SEED, Tried, times
from support.worlds import thinrow

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_broker
LAST_S = 2.5
"""Such a run takes a second or two."""


def killed(command: list[object], rng: random.Random) -> None:
    run = subprocess.Popen([sys.executable, "-m", "thinrow.cli.entry", *map(str, command)])
    with suppress(subprocess.TimeoutExpired):
        run.wait(rng.uniform(0.6, LAST_S))
    run.kill()
    run.wait()


def test_whatever_is_killed_each_message_counts_once(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    kills = times(2, 25)
    with running_broker(in_memory=True) as broker:
        small = Small(broker, tmp_path)
        schema, store, out = small.folder / "schema.toml", tmp_path / "store", tmp_path / "out"
        marks = [small.step(40) for _ in range(2)]
        options = ["--bootstrap-servers", broker.address, "--schema", schema, "--store", store]
        for number, watermark_ts in enumerate(marks, 1):
            small.compact("whole", watermark_ts)
            more = ["--events", small.name, *options, "--watermark", watermark_ts]
            command: list[object] = ["compact", *more]
            if number == 2:
                export: list[object] = ["export", "--out", out, *more]
                for _ in range(kills):
                    killed(export, rng)
                done = thinrow(*export)
                assert done.returncode == 0, done.stderr
                assert not list(tmp_path.glob(".out*"))
                command = ["compact", out, *options[2:], "--watermark", watermark_ts]
            for _ in range(kills):
                killed(command, rng)
            done = thinrow(*command)
            assert done.returncode == 0, done.stderr
            assert manifest_of(store).number == number
            assert "already built" in thinrow(*command).stdout
        assert digests(store) == digests(tmp_path / "whole")
        assert manifest_of(store).topic == manifest_of(tmp_path / "whole").topic
        listed = thinrow("store", "list", "--store", store).stdout
        seals = ", ".join(map(str, small.topic.seals(marks[-1])))
        assert f"Topic {small.topic.name}: 3 partitions, sealed at offsets {seals}" in listed
    Tried(
        "`thinrow compact` and `export` of a Kafka topic: SIGKILL at any moment",
        3 * kills,
        "Run again, each builds the generation that one run builds, with the same offsets",
        "0 messages lost or doubled",
    ).keep()
