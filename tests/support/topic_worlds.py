"""Logs of a topic, the stores that they are handed over to, and what both mean; no broker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow as pa
from support.event_topics import encoded, partition
from support.oracle import Event, Oracle, Run, Schema
from support.scenarios import events_table
from support.topic_logs import PARTITIONS
from support.topic_meaning import TopicMeaning
from support.worlds import START_TS
from thinrow.compaction import compact as compaction
from thinrow.compaction.compact import compact
from thinrow.online.topic.tier import ReadMessage
from thinrow.store.generation import Generation
from thinrow.store.manifest import TopicSeal

if TYPE_CHECKING:
    import random

    from support.worlds import World

TOPIC_USERS = range(1, 9)


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
            user = rng.choice(TOPIC_USERS)
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
