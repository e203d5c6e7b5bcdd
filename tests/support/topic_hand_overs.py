"""Hand-overs from a topic to a store, driven by a seeded scheduler.

Processes are killed, disks are lost, partitions are reassigned, and producers' clocks are wrong.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from support.event_topics import TopicOnline, partition
from support.hand_overs import SCHEMA, HandOvers
from support.kafka_topics import wait_for
from support.online_worlds import some_events
from support.oracle import Run
from support.scenarios import CROWD
from support.worlds import THINROW, running_online
from thinrow.client.online import OnlineClient, connect_online
from thinrow.errors import ThinRowError
from thinrow.store.current import current_folder
from thinrow.store.manifest import Manifest, read_manifest
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from support.oracle import Wanted
    from thinrow.client.online import Snapshot

USERS = sorted(set(CROWD))
SKEWS_MS = (0, 0, 0, 20, -20, 400, -5000, -3_600_000)
"""Errors of the clocks of producers."""


def wall_ts() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Replica:
    """A server of the topic, which is killed and started again, with its disk or without."""

    folder: Path
    first: int
    last: int
    client: OnlineClient | None = None
    opened: int = 0
    """The newest generation that it serves from for certain."""
    stack: ExitStack = field(default_factory=ExitStack)

    def stop(self) -> None:
        self.client = None
        self.stack.close()

    def reads(self, number: int) -> bool:
        return self.first <= number <= self.last

    def answer(self, user: int, request_ts: int) -> online_pb2.SnapshotResponse | None:
        """The whole answer; None where the server has not come to the moment, or forgot it."""
        assert self.client is not None
        request = online_pb2.SnapshotRequest(user_id=user, request_ts=request_ts)
        request.projection.SetInParent()
        try:
            answer: online_pb2.SnapshotResponse = self.client.stub.Snapshot(request)
        except grpc.RpcError as error:
            is_behind = "has applied the topic" in (error.details() or "")
            assert is_behind or error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
            return None
        return answer


@dataclass
class TopicHandOvers(HandOvers, TopicOnline):
    """Producers, replicas and compactions of one topic, and the oracle over its log."""

    replicas: list[Replica] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    """Ids of events that brokers acknowledged."""
    next_id: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in "abc":
            folder = self.world.folder / f"replica-{name}"
            self.replicas.append(Replica(folder, 0, self.partitions - 1))

    @property
    def up(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.client is not None]

    @property
    def erases(self) -> bool:
        """True in worlds that erase users; in the others events are delivered again.

        An event that is delivered again after its user was erased is new to the store.
        """
        return self.seed % 2 == 1

    def act(self) -> None:
        """One step of the schedule."""
        rng = self.rng
        step = rng.random()
        down = [replica for replica in self.replicas if replica.client is None]
        if down and (step < 0.1 or len(down) == len(self.replicas)):
            self.start(rng.choice(down))
        elif step < 0.14:
            self.kill(rng.choice(self.up))
        elif step < 0.16:
            self.let_broker_hang()
        elif step < 0.22:
            self.compact_topic()
        elif step < 0.5:
            self.send()
        else:
            self.look_somewhere()

    def send(self) -> None:
        """Events through a server, or from a producer with a clock of its own; some twice."""
        rng = self.rng
        events = []
        for event in some_events(rng, SCHEMA, wall_ts()):
            events.append(replace(event, event_id=self.next_id))
            self.next_id += 1
        for _ in range(1 if self.erases else rng.choice((1, 1, 1, 2))):
            if self.up and rng.random() < 0.4:
                self.use(rng.choice(self.up))
                try:
                    self.append(events)
                except ThinRowError:
                    self.counts["appends in doubt"] += 1
                    continue
            else:
                self.produce(events, wall_ts() + rng.choice(SKEWS_MS))
            self.acknowledged.update(int(event.event_id or 0) for event in events)

    def let_broker_hang(self) -> None:
        """Stops the broker for a while: killed, it would lose its memory."""
        self.broker.pause()
        time.sleep(self.rng.uniform(0.1, 2))
        self.broker.go_on()
        self.counts["broker hung"] += 1

    def start(self, replica: Replica) -> None:
        """Starts a replica, at times over an empty disk, or with other partitions."""
        rng = self.rng
        if rng.random() < 0.3:
            shutil.rmtree(replica.folder, ignore_errors=True)
            self.counts["rebuilds"] += 1
        if rng.random() < 0.3:
            replica.first = rng.randrange(self.partitions)
            replica.last = rng.randrange(replica.first, self.partitions)
            self.counts["reassigned"] += 1
        else:
            replica.first, replica.last = 0, self.partitions - 1
        options: list[object] = [
            "--events",
            f"kafka:{self.topic}",
        ]
        options += ["--bootstrap-servers", self.broker.address, "--data", replica.folder]
        options += ["--partitions", f"{replica.first}-{replica.last}"]
        replica.stack = ExitStack()
        server = replica.stack.enter_context(running_online(self.world, *options))
        replica.client = replica.stack.enter_context(connect_online(server.address))
        replica.opened = 0

    def kill(self, replica: Replica) -> None:
        replica.stop()  # SIGKILL
        self.counts["kills"] += 1

    def close(self) -> None:
        for replica in self.replicas:
            replica.stop()
        super().close()

    def use(self, replica: Replica) -> None:
        assert replica.client is not None
        self.client, self.opened = replica.client, replica.opened

    def reads(self, replica: Replica, user: int) -> bool:
        return replica.reads(partition(user, self.schema.user_ids, self.partitions))

    def look_somewhere(self) -> None:
        """Snapshots of one replica, and whole answers of all replicas for one moment."""
        one = self.rng.choice(self.up)
        self.use(one)
        self.looked_at = one
        self.look_about()
        user = self.rng.choice(USERS)
        readers = [each for each in self.up if self.reads(each, user)]
        if not readers:
            return
        first = readers[0].answer(user, 0)
        assert first is not None
        for other in readers[1:]:
            answer = other.answer(user, first.request_ts)
            if answer is not None and comparable(answer)[0] == comparable(first)[0]:
                assert comparable(answer) == comparable(first), (user, first.request_ts)
                self.counts["equal answers"] += 1

    def look(
        self, user_id: int, moment_ts: int, lookback_ms: int, max_length: int, wanted: Wanted
    ) -> Snapshot | None:
        """Looks as without a topic, for a user whom the replica knows."""
        if not self.reads(self.looked_at, user_id):
            return None
        return super().look(user_id, moment_ts, lookback_ms, max_length, wanted)

    def check_refusal(self, error: ThinRowError, moment_ts: int, before_ts: int) -> None:
        """A moment that is not applied yet, or is forgotten, is refused."""
        if "has applied the topic" in str(error):
            assert moment_ts > before_ts, error
            return
        kept_from_ts = self.client.describe().kept_from_ts
        assert "kept" in str(error) and moment_ts < kept_from_ts, error

    def compact_topic(self) -> None:
        """Publishes the log up to now, or to an earlier moment; killed at times, and run again."""
        rng = self.rng
        if not any((each.first, each.last) == (0, self.partitions - 1) for each in self.up):
            return  # no server would seal the partitions
        last = self.oracle.watermarks[-1] if self.oracle.watermarks else 0
        watermark_ts = max(last + 1, wall_ts() - rng.choice((0, 0, 50, 1000)))
        erase = frozenset(rng.sample(USERS, 1) if self.erases and rng.random() < 0.15 else ())
        users = self.world.folder / "erase.txt"
        users.write_text("".join(f"{user}\n" for user in erase), encoding="utf-8")
        command: list[object] = [*THINROW, "compact", "--events", f"kafka:{self.topic}"]
        command += ["--bootstrap-servers", self.broker.address, "--store", self.world.store]
        command += ["--schema", self.world.schema, "--watermark", watermark_ts]
        command += ["--erase", users] if erase else []
        while rng.random() < 0.3:
            with subprocess.Popen([*map(str, command)], **QUIET) as process:
                time.sleep(rng.uniform(0.5, 4))
                process.kill()
            self.counts["kills of compactions"] += 1
        for _ in range(rng.choice((1, 1, 2))):  # a second run does nothing twice
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        self.read_to_seal(watermark_ts)
        due = [event for event in self.arrived if last <= event.arrival_ts < watermark_ts]
        expected = self.oracle.compact(Run(due, watermark_ts, erase=erase))
        assert expected.duplicates == 0
        self.generations.append(len(self.oracle.watermarks))
        manifest = self.published()
        assert manifest.number == len(self.generations) - 1
        assert manifest.watermark_ts == watermark_ts
        assert manifest.event_count == self.oracle.event_count
        self.counts["hand-overs"] += 1
        if erase:  # a replica that has not opened the generation still knows the user
            for replica in self.up:
                wait_for(partial(has_opened, replica, manifest.number))

    def published(self) -> Manifest:
        folder = current_folder(self.world.store)
        assert folder is not None
        return read_manifest(folder)

    def read_to_seal(self, watermark_ts: int) -> None:
        """Reads the log until nothing more can arrive before the watermark."""
        for user in USERS:
            self.log.read_until(user, watermark_ts)

    def settle(self) -> None:
        """Starts every replica, and waits until they serve from the newest generation."""
        for replica in self.replicas:
            if replica.client is None:
                self.start(replica)
        for replica in self.replicas:
            for user in USERS:
                if self.reads(replica, user):
                    wait_for(partial(serves_from, replica, user, self.oracle.watermarks[-1]))
            replica.opened = len(self.generations) - 1


def has_opened(replica: Replica, generation: int) -> bool:
    assert replica.client is not None
    return replica.client.describe().generation >= generation


def serves_from(replica: Replica, user: int, watermark_ts: int) -> bool:
    answer = replica.answer(user, 0)
    return answer is not None and answer.end_ts == watermark_ts


def comparable(answer: online_pb2.SnapshotResponse) -> tuple[tuple[int, int], bytes]:
    """Returns what served an answer, and its bytes less how late and how slow the server is."""
    answer.immutable.ClearField("server_us")
    answer.ClearField("as_of_ts")
    answer.ClearField("lag_ms")
    served_from = (answer.immutable.generation, answer.end_ts)
    return served_from, answer.SerializeToString(deterministic=True)


QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
