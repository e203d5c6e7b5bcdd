"""Tiers of a topic over generations, without brokers: any log, window, hand-over and rebuild."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from support.oracle import DAY_MS, Schema, Trait, event_order
from support.scenarios import examples, schema_toml
from support.topic_logs import apply_all, opened_topic
from support.topic_worlds import TOPIC_USERS, Topic
from support.worlds import new_world
from thinrow.online import event_tier
from thinrow.online.erasure import erase_from_tier

if TYPE_CHECKING:
    from support.topic_meaning import TopicMeaning
    from thinrow.online.topic.tier import TopicTier


def check(tier: TopicTier, meaning: TopicMeaning, schema: Schema, from_ts: int) -> None:
    """Holds what a tier shows of each user to what its log means."""
    for user in TOPIC_USERS:
        until_ts = tier.begin(0, [user]).request_ts
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
            users = (
                frozenset(rng.sample(TOPIC_USERS, 2)) if rng.random() < 0.3 else frozenset[int]()
            )
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
                for user in set(TOPIC_USERS) - topic.oracle.erased_at.keys():
                    until_ts = first.begin(0, [user]).request_ts
                    assert first.read(user, from_ts, until_ts) == again.read(
                        user, from_ts, until_ts
                    )
