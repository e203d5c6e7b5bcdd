"""Tiers of a topic over generations, without brokers: any log, window, hand-over and rebuild."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from support.event_topics import encoded, partition
from support.oracle import DAY_MS, Event, Oracle, Run, Schema, Trait, event_order
from support.scenarios import events_table, examples, schema_toml
from support.topic_logs import PARTITIONS, apply_all, opened_topic
from support.topic_meaning import TopicMeaning
from support.worlds import START_TS, World, new_world
from thinrow.compaction import compact as compaction
from thinrow.compaction.compact import compact
from thinrow.online import event_tier
from thinrow.online.erasure import erase_from_tier
from thinrow.online.topic.tier import ReadMessage
from thinrow.store.generation import Generation
from thinrow.store.manifest import TopicSeal

if TYPE_CHECKING:
    import random

    from thinrow.online.topic.tier import TopicTier

USERS = range(1, 9)


class Topic:
    """A log, the store that it is handed over to, and what both mean."""

    def __init__(self, world: World, rng: random.Random, window_ms: int, schema: Schema) -> None:
        self.world, self.rng, self.window_ms, self.schema = world, rng, window_ms, schema
        self.oracle = Oracle(schema)
        self.log: list[ReadMessage] = []
        self.decoded: list[list[Event]] = []
        self.meaning = TopicMeaning(window_ms)
        self.ends = [0] * PARTITIONS
        self.now_ts = START_TS
        self.generations = 0

    def add(self, place: int, timestamp_ts: int, events: list[Event]) -> None:
        value = encoded(events[0].user_id, events, self.schema) if events else None
        self.log.append(ReadMessage(place, self.ends[place], timestamp_ts, value))
        self.decoded.append(events)
        self.meaning.read(place, self.ends[place], timestamp_ts, events)
        self.ends[place] += 1

    def produce(self, count: int) -> None:
        """Messages of skewed clocks, late events and ids that come again."""
        rng = self.rng
        for _ in range(count):
            self.now_ts += rng.choice((0, 1, 1, 5, 300))
            user = rng.choice(USERS)
            events = [
                Event(
                    user,
                    self.now_ts + rng.choice((0, 0, -3, -40, -5000, 60)),
                    0,
                    rng.choice((None, *range(6))),
                    {"x": rng.randrange(1000)},
                )
                for _ in range(rng.choice((1, 1, 3)))
            ]
            timestamp_ts = self.now_ts + rng.choice((0, 0, 20, -20))
            self.add(partition(user, "int64", PARTITIONS), timestamp_ts, events)

    def hand_over(self, erase: frozenset[int]) -> Generation:
        """Publishes a generation whose watermark lies before the end of each partition."""
        last_ts = self.oracle.watermarks[-1] if self.oracle.watermarks else 0
        watermark_ts = max(last_ts + 1, self.now_ts - self.rng.choice((0, 10)))
        for place in range(PARTITIONS):
            if self.meaning.as_of[place] < watermark_ts:
                self.add(place, watermark_ts + self.rng.choice((0, 2)), [])
        due = [
            event for event in self.meaning.arrived if last_ts <= event.arrival_ts < watermark_ts
        ]
        path = self.world.write("events.parquet", events_table(due, self.schema, plain=False))
        erased = self.world.write("erase.parquet", pa.table({"user_id": sorted(erase)}))
        offsets = [self.meaning.sealing_offset(n, watermark_ts) for n in range(PARTITIONS)]
        seal = TopicSeal(name="events", offsets=offsets)
        config = self.world.compaction(
            [path], 0, dedup_window_ms=self.window_ms, erase_users=erased if erase else None
        )
        with mock.patch.object(compaction, "files_seal", lambda *_: seal):
            compact(replace(config, watermark_ts=watermark_ts))
        self.oracle.compact(Run(due, watermark_ts, dedup_window_ms=self.window_ms, erase=erase))
        return Generation.open_current(self.world.store)

    def rest(self, offsets: list[int]) -> list[ReadMessage]:
        return [message for message in self.log if message.offset >= offsets[message.partition]]

    def rebuilt(self, offsets: list[int]) -> TopicMeaning:
        """Meaning of the log for a replica that begins behind the newest generation."""
        meaning = TopicMeaning(self.window_ms)
        meaning.begin_behind(self.oracle)
        for message, events in zip(self.log, self.decoded, strict=True):
            if message.offset >= offsets[message.partition]:
                meaning.read(message.partition, message.offset, message.timestamp_ts, events)
        return meaning


def check(tier: TopicTier, meaning: TopicMeaning, schema: Schema, from_ts: int) -> None:
    """Holds what a tier shows of each user to what its log means."""
    for user in USERS:
        until_ts = tier.begin(0, [user])
        arrivals, records = tier.read(user, from_ts, until_ts)
        shown = tier.formats.newest.decode(records) if records else {}  # type: ignore[union-attr]
        expected = sorted(
            (
                event
                for event in meaning.arrived
                if event.user_id == user and from_ts <= event.arrival_ts < until_ts
            ),
            key=lambda event: event_order(event, schema),
        )
        assert arrivals == [event.arrival_ts for event in expected]
        if records:
            assert shown["event_ts"].to_list() == [event.event_ts for event in expected]
            assert shown["event_id"].to_list() == [event.event_id for event in expected]
            assert shown["x"].to_list() == [event.traits["x"] for event in expected]


@examples(12)
@given(st.data())
def test_replicas_agree_with_the_log_and_with_each_other(data: st.DataObject) -> None:
    rng = data.draw(st.randoms(use_true_random=True))
    # Long beside the time between hand-overs, as it should be, or not.
    window_ms = data.draw(st.sampled_from((DAY_MS, 1000, 100, 0)))
    schema = Schema({"g": [Trait("x", "int64")]})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(mock.patch.object(event_tier, "BUCKET_MS_MIN", 1000))
        topic = Topic(new_world(Path(folder) / "w", schema_toml(schema)), rng, window_ms, schema)
        toml = schema_toml(schema)
        first = stack.enter_context(
            opened_topic(Path(folder) / "first", toml=toml, dedup_window_ms=window_ms)
        )
        live = [(first, topic.meaning)]
        from_ts = 0
        for number in range(rng.choice((2, 4))):
            topic.produce(rng.choice((5, 40)))
            for tier, _ in live:
                apply_all(tier, topic.log, rng)
            users = frozenset(rng.sample(USERS, 2)) if rng.random() < 0.3 else frozenset[int]()
            generation = stack.enter_context(topic.hand_over(users))
            from_ts = generation.watermark_ts
            for tier, meaning in live:
                tier.histories = partial(nullcontext, generation)
                if rng.random() < 0.5:
                    assert not tier.take_up(generation).is_accepted or tier.now_ts >= from_ts
                apply_all(tier, topic.log, rng)
                assert tier.take_up(generation).is_accepted
                erase_from_tier(tier, generation)
                tier.purge()
                meaning.know(topic.oracle)
            seal = generation.manifest.topic
            assert seal is not None
            topic.produce(rng.choice((0, 10)))
            again = stack.enter_context(
                opened_topic(
                    Path(folder) / f"again-{number}",
                    toml=toml,
                    dedup_window_ms=window_ms,
                    generation=generation,
                )
            )
            assert again.kept_from_ts == from_ts
            apply_all(again, topic.rest(seal.offsets), rng)
            apply_all(first, topic.log, rng)
            check(first, topic.meaning, schema, from_ts)
            check(again, topic.rebuilt(seal.offsets), schema, from_ts)
            if window_ms == DAY_MS:
                # A replica that does not know yet of an erasure drops what comes again.
                for user in set(USERS) - topic.oracle.erased_at.keys():
                    until_ts = first.begin(0, [user])
                    assert first.read(user, from_ts, until_ts) == again.read(
                        user, from_ts, until_ts
                    )
