"""Replicas of a topic over generations: hand-overs, erasure, rebuilds of a shortened topic."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError
from support.hand_overs import has_erased
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import wait_for
from support.online_replicas import new_online
from support.oracle import DAY_MS
from support.topic_replicas import (
    EVENT,
    PARTITIONS,
    SCHEMA,
    WANTED,
    Replica,
    act,
    compared,
    refuses,
    replica,
    settled,
    use,
)
from support.worlds import START_TS, thinrow
from thinrow.client import Projection
from thinrow.errors import RequestError, StoreError, UsageError
from thinrow.online.topic import cleanup
from thinrow.online.topic.reader import TopicReader
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.event_topics import TopicOnline

pytestmark = [needs_broker, pytest.mark.usefixtures("no_pause_before_goaway")]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker(in_memory=True) as broker:
        yield broker


@pytest.fixture
def online(broker: Broker, tmp_path: Path) -> Iterator[TopicOnline]:
    made = new_online(broker, tmp_path, SCHEMA, PARTITIONS, poll_s=0.05)
    yield made
    made.close()


def hand_over(online: TopicOnline, *replicas: Replica, erase: frozenset[int] = frozenset()) -> None:
    """Publishes a generation, which all replicas take up."""
    settled(online, *replicas)
    use(online, replicas[0])
    online.hand_over(erase)
    for one in replicas:
        use(online, one)
        wait_for(online.has_taken_up)


def same_from_now(online: TopicOnline, *replicas: Replica) -> None:
    """Holds replicas to the oracle and to each other at the newest moment of each user."""
    for user, moment_ts in settled(online, *replicas).items():
        for one in replicas:
            use(online, one)
            assert online.check(user, moment_ts, 0, 0, WANTED) is not None
        answers = {one.response(user, moment_ts) for one in replicas}
        assert len(answers) == 1, [online_pb2.SnapshotResponse.FromString(a) for a in answers]


def test_hand_overs_rebuilds_and_restarts(online: TopicOnline) -> None:
    rng = random.Random(1)
    with replica(online, "one") as one:
        use(online, one)
        act(online, rng, 20)
        with replica(online, "two") as two:
            for _ in range(2):
                hand_over(online, one, two)
                use(online, one)
                act(online, rng, 10)
                same_from_now(online, one, two)
        # The other one is away during a hand-over, and loses its disk.
        hand_over(online, one)
        act(online, rng, 10)
        with replica(online, "two") as two:
            same_from_now(online, one, two)
        shutil.rmtree(online.world.folder / "two")
        with replica(online, "two", partitions="1-2"):
            pass
        # With more partitions than before it begins behind the generation again.
        with replica(online, "two", schema=None) as two:
            assert two.client.describe().kept_from_ts == online.oracle.watermarks[-1]
            assert one.client.describe().kept_from_ts == 0
            same_from_now(online, one, two)
            with pytest.raises(RequestError, match="has kept events since"):
                two.client.snapshot(1, Projection(), request_ts=online.oracle.watermarks[-1] - 1)
    # Nothing is published meanwhile; a restart knows what it served from.
    with replica(online, "one") as one, replica(online, "two") as two:
        same_from_now(online, one, two)
        act(online, rng, 10)
        same_from_now(online, one, two)
    shutil.rmtree(online.world.store)
    refuses(online, "one", StoreError, "has served from one of watermark")


def test_erased_users(online: TopicOnline) -> None:
    with replica(online, "one") as one:
        use(online, one)
        now_ts = time.time_ns() // 1_000_000
        event = replace(EVENT, event_ts=now_ts)
        online.append([event, replace(event, user_id=2)])
        hand_over(online, one)
        online.append([replace(event, event_id=2)])
        hand_over(online, one, erase=frozenset([1]))
        assert one.client.snapshot(1, Projection()).batch.to_lists("item_id") == [[]]
        # The store does not have them any more: delivered again they are new.
        online.append([event, replace(event, user_id=2)])
        moments = settled(online, one)
        assert (
            len(one.client.snapshot(1, Projection(), request_ts=moments[1]).thin_row.mutable) == 1
        )
        assert not one.client.snapshot(2, Projection(), request_ts=moments[2]).thin_row.mutable
        with replica(online, "two") as two:
            same_from_now(online, one, two)
        hand_over(online, one)
        assert len(one.client.snapshot(1, Projection()).batch.to_lists("item_id")[0] or ()) == 1


def roll_back(online: TopicOnline, *replicas: Replica) -> None:
    done = thinrow("store", "rollback", "--store", online.world.store, "--to", 1, "--newer", "keep")
    assert done.returncode == 0, done.stderr
    for one in replicas:
        wait_for(partial(serves_first, one))


def serves_first(one: Replica) -> bool:
    return one.client.describe().generation == 1


def catch_up(online: TopicOnline, one: Replica) -> None:
    moment_ts = max(online.mark().values())
    wait_for(lambda: one.client.describe().now_ts >= moment_ts)


def items(one: Replica, user_id: int) -> list[int]:
    """Items of a user's whole history, as a request at the newest moment sees it."""
    seen = one.client.snapshot(user_id, Projection())
    [past] = seen.batch.to_lists("item_id")
    assert past is not None
    return past


def test_an_erasure_that_is_rolled_back(online: TopicOnline) -> None:
    """A server that has deleted events says so, and never gives a short history."""
    with replica(online, "one") as one:
        use(online, one)
        event = replace(EVENT, event_ts=time.time_ns() // 1_000_000)
        online.append([event, replace(event, user_id=2)])
        hand_over(online, one)
        online.append([replace(event, event_id=2, user_id=user) for user in (1, 2)])
        hand_over(online, one, erase=frozenset([1]))
        wait_for(partial(has_erased, one.server))
        roll_back(online, one)
        online.append([replace(event, event_id=3, user_id=user) for user in (1, 2)])
        catch_up(online, one)
        for _ in range(2):
            with pytest.raises(StoreError, match="has deleted what arrived of the user"):
                one.client.snapshot(1, Projection())
            assert len(items(one, 2)) == 3
            with pytest.raises(StoreError, match="has deleted what arrived of the user"):
                one.client.snapshot_batch([2, 1], Projection())
            assert one.client.snapshot_batch([2], Projection()).batch.statuses.tolist() == [1]
        # One that begins now reads the topic, which has the events.
        with replica(online, "two") as two:
            catch_up(online, two)
            assert len(items(two, 1)) == len(items(two, 2)) == 3
    with (
        replica(online, "one") as one,
        pytest.raises(StoreError, match="has deleted what arrived of the user"),
    ):
        one.client.snapshot(1, Projection())


def test_a_replica_behind_a_generation_that_is_withdrawn(online: TopicOnline) -> None:
    with replica(online, "one") as one:
        use(online, one)
        event = replace(EVENT, event_ts=time.time_ns() // 1_000_000)
        online.append([event])
        hand_over(online, one)
        online.append([replace(event, event_id=2)])
        hand_over(online, one)
        with replica(online, "two") as two:
            assert len(items(two, 1)) == 2
            roll_back(online, one, two)
            catch_up(online, one)
            assert len(items(one, 1)) == 2
            # It lacks what arrived between the two watermarks.
            with pytest.raises(StoreError, match="start this server again"):
                two.client.snapshot(1, Projection())
        online.append([replace(event, event_id=3)])
        with replica(online, "two") as two:
            catch_up(online, one)
            catch_up(online, two)
            assert len(items(one, 1)) == len(items(two, 1)) == 3


class Broken:
    """librdkafka's report that a partition has no message at an offset."""

    def __init__(self, number: int) -> None:
        self._number = number

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._AUTO_OFFSET_RESET)

    def partition(self) -> int:
        return self._number


def without_messages_before(firsts: dict[int, int]) -> Any:  # noqa: ANN401
    """Reads of a topic whose messages before these offsets, by partition, are deleted."""
    groups = TopicReader._groups

    def shortened(reader: TopicReader) -> Iterator[Any]:
        for number, first in firsts.items():
            if reader._tier.places.now[number].offset < first:
                reader._check(Broken(number))
        yield from groups(reader)

    return shortened


def test_a_topic_that_deletes_what_generations_have(online: TopicOnline) -> None:
    rng = random.Random(2)
    with replica(online, "one") as one:
        use(online, one)
        act(online, rng, 20)
        with replica(online, "far behind"):
            pass
        hand_over(online, one)
        act(online, rng, 20)
        settled(online, one)
        watermark_ts = online.oracle.watermarks[-1]
        firsts = {
            number: online.log.meaning.sealing_offset(number, watermark_ts)
            for number in range(PARTITIONS)
        }
        assert all(firsts.values())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TopicReader, "_groups", without_messages_before(firsts))
            with replica(online, "new") as new, replica(online, "far behind") as behind:
                assert behind.client.describe().kept_from_ts == watermark_ts
                same_from_now(online, one, new, behind)
            firsts[2] += 1  # one more than the generation has
            refuses(online, "newer", StoreError, "has lost messages")
            refuses(online, "one-to-be", StoreError, "no generation up to a later one")
        with replica(online, "new") as new:
            same_from_now(online, one, new)


def test_generations_of_other_events(online: TopicOnline) -> None:
    with replica(online, "one") as one:
        use(online, one)
        act(online, random.Random(3), 10)
        before = compared(online, one)
        watermark_ts = max(settled(online, one).values())
        online.mark(watermark_ts)
        topic, online.topic = online.topic, "other"
        generation = online.compact(list(online.arrived), watermark_ts)
        online.topic = topic
        failures = partial(
            one.server.metrics.registry.get_sample_value, "thinrow_generation_open_failures_total"
        )
        wait_for(lambda: failures() == 1)
        assert one.server.published.number == generation.generation
        # Served on from the one before: from none.
        for (user, moment_ts), answer in before.items():
            row = one.client.snapshot(user, Projection(), request_ts=moment_ts).thin_row
            assert row.end_ts == 0 and answer
    refuses(online, "two", UsageError, "come from topic other of 5 partitions")
    shutil.rmtree(online.world.store)


def test_a_store_of_another_topic_is_not_read(online: TopicOnline) -> None:
    """A store whose watermarks the tier knows, and whose histories are of other events."""
    with replica(online, "one") as one:
        use(online, one)
        online.append([EVENT])
        hand_over(online, one)
        assert len(one.client.snapshot(1, Projection()).batch.to_lists("item_id")[0] or ()) == 1
        watermark_ts = online.oracle.watermarks[-1]
        online.mark(watermark_ts + 1)
        online.topic = "other"
        generation = online.compact([], watermark_ts + 1)
        wait_for(lambda: one.server.published.number == generation.generation)
        with pytest.raises(StoreError, match="come from topic other of 5 partitions"):
            one.client.snapshot(1, Projection())
        # Before its watermarks nothing of it is needed.
        row = one.client.snapshot(1, Projection(), request_ts=watermark_ts - 1).thin_row
        assert row.end_ts == 0 and len(row.mutable) == 1
    online.config = replace(online.config, schema=None)
    refuses(online, "one", UsageError, "come from topic other of 5 partitions")


def test_a_store_of_files_before_the_topic(online: TopicOnline) -> None:
    """Events that arrived before its watermark are there already, and count once."""
    window_ms = online.log.meaning.window_ms = 3650 * DAY_MS  # it is long ago
    online.config = replace(online.config, dedup_window_ms=window_ms)
    events = [replace(EVENT, event_id=number) for number in range(3)]
    online.produce(events, START_TS)
    watermark_ts = START_TS + 100
    online.mark(watermark_ts)
    with replica(online, "early") as early, replica(online, "idle", partitions="0") as idle:
        use(online, early)
        settled(online, early)
        online.compact(list(online.arrived), watermark_ts, has_offsets=False)
        failures = partial(
            early.server.metrics.registry.get_sample_value,
            "thinrow_generation_open_failures_total",
        )
        wait_for(lambda: failures() == 1)
        assert early.client.describe().sealed_ts == 0
        assert len(early.client.snapshot(1, Projection()).thin_row.mutable) == 3
        # One without events can lack none.
        wait_for(lambda: idle.client.describe().sealed_ts == watermark_ts)
    online.log.meaning.know(online.oracle)
    with replica(online, "late") as late, replica(online, "later") as later:
        assert late.client.describe().kept_from_ts == watermark_ts
        use(online, late)
        online.append([*events, replace(EVENT, event_id=3)])
        same_from_now(online, late, later)
        seen = late.client.snapshot(1, Projection())
        assert len(seen.thin_row.mutable) == 1 and seen.batch.to_lists("item_id") == [[5] * 4]


def test_a_topic_that_keeps_messages_for_too_short(
    online: TopicOnline, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: dict[str, str] = {"cleanup.policy": "delete", "retention.ms": str(DAY_MS)}
    monkeypatch.setattr(cleanup, "_described", lambda _: described)
    refuses(online, "one", UsageError, "which is less than --retention of 172800000 ms")
    with replica(online, "one", retention_ms=DAY_MS // 2) as one:
        use(online, one)
        used = partial(
            one.server.metrics.registry.get_sample_value,
            "thinrow_online_topic_retention_used_ratio",
        )
        online.produce([EVENT], START_TS)
        assert 0 <= (used() or 0) < 1  # since the first message, a heartbeat of this server
        described["retention.ms"] = "-1"
    with replica(online, "one") as one:
        assert (
            one.server.metrics.registry.get_sample_value(
                "thinrow_online_topic_retention_used_ratio"
            )
            == 0
        )
    described["cleanup.policy"] = "compact,delete"
    refuses(online, "one", UsageError, "set it to delete")
