"""Messages of a topic that cost far more than their bytes: time and memory stay within bounds."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from support.event_topics import partition
from support.topic_logs import PARTITIONS, START_TS, opened_topic
from thinrow import _native
from thinrow.online.topic.reader import GROUP_BYTES_MAX
from thinrow.online.topic.settings import DECODED_BYTES_MAX
from thinrow.online.topic.tier import ReadMessage
from thinrow.v1 import event_topic_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = 1000


def scan_s(messages: list[bytes]) -> float:
    """The time of a scan, seconds."""
    began_s = time.perf_counter()
    _native.scan_events(messages, [("l", 0, True)], EVENTS)
    return time.perf_counter() - began_s


def test_many_short_lists_take_time_by_their_bytes() -> None:
    message = wire.UserEvents(user_id=1)
    for _ in range(EVENTS):
        message.events.add(event_ts=START_TS).traits["l"].elements.integers.extend([1, 2])
    value = message.SerializeToString()
    # Where each list moved all elements before it, this took a minute.
    assert scan_s([value] * (GROUP_BYTES_MAX // len(value))) < 5


def test_records_much_larger_than_their_messages_are_not_all_held(tmp_path: Path) -> None:
    message = wire.UserEvents(user_id=1)
    for _ in range(EVENTS):
        message.events.add(event_ts=START_TS)
    value = message.SerializeToString()
    place = partition(1, "int64", PARTITIONS)
    toml = '[g]\nx = { type = "float32", size = 1024, sparse = true }\n'
    group = [ReadMessage(place, number, START_TS, value) for number in range(60)]
    with opened_topic(tmp_path, toml=toml) as tier:
        tracemalloc.start()
        try:
            assert tier.apply(group).events == 60 * EVENTS  # 240 MB of records
            assert tracemalloc.get_traced_memory()[1] < DECODED_BYTES_MAX
        finally:
            tracemalloc.stop()


def test_a_partition_far_ahead_is_seen(tmp_path: Path) -> None:
    """One fast producer does not hide behind the partitions that are right."""
    with opened_topic(tmp_path) as tier:
        tier.apply([ReadMessage(number, 0, START_TS, None) for number in range(PARTITIONS)])
        tier.apply([ReadMessage(1, 1, 2 * START_TS, None)])
        assert (tier.now_ts, tier.latest_ts) == (START_TS, 2 * START_TS)


def test_a_trait_with_several_values_is_refused() -> None:
    """Protobuf would merge them."""
    value = wire.TraitValue(integer=1).SerializeToString()
    name = b"\x0a\x01l"
    one = b"\x12" + bytes([len(value)]) + value

    def scanned(entry: bytes) -> None:
        event = b"\x08\x01\x22" + bytes([len(entry)]) + entry
        message = b"\x08\x01\x1a" + bytes([len(event)]) + event
        assert wire.UserEvents.FromString(message).events[0].traits["l"].integer == 1
        _native.scan_events([message], [("l", 0, False)], EVENTS)

    scanned(name + one)
    for entry in (name + one + one, name + name + one):
        with pytest.raises(ValueError, match="several names or values"):
            scanned(entry)
