"""`thinrow online` as a replica of a Kafka topic: rebuilds, refusals, other producers."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError
from support.event_topics import TopicOnline, partition
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import wait_for
from support.online_replicas import new_online
from support.online_worlds import same, some_events
from support.oracle import Event
from support.topic_replicas import (
    EVENT,
    PARTITIONS,
    SCHEMA,
    USERS,
    Replica,
    act,
    compared,
    refuses,
    replica,
    settled,
    use,
)
from support.worlds import START_TS, running_online, thinrow
from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.errors import (
    PartitionMissingError,
    RequestError,
    StoreError,
    UnavailableError,
    UsageError,
)
from thinrow.online.server import OnlineServer
from thinrow.online.topic import settings
from thinrow.online.topic.reader import TopicReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [needs_broker, pytest.mark.usefixtures("no_pause_before_goaway")]

ALL = Projection()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker(in_memory=True) as broker:
        yield broker


@pytest.fixture
def online(broker: Broker, tmp_path: Path) -> Iterator[TopicOnline]:
    made = new_online(broker, tmp_path, SCHEMA, PARTITIONS)
    yield made
    made.close()


def test_replicas_rebuilds_and_restarts_answer_the_same_bytes(online: TopicOnline) -> None:
    rng = random.Random(1)
    with replica(online, "one") as one, replica(online, "two") as two:
        use(online, one)
        act(online, rng, 40)
        use(online, two)
        act(online, rng, 40)
        seen = compared(online, one, two)
        refused = len(online.log.refused)
        assert refused and online.log.meaning.repeated
    shutil.rmtree(online.world.folder / "one")  # a lost disk
    with replica(online, "one") as one, replica(online, "two") as two:
        for (user, moment_ts), answer in seen.items():
            # At once: a server is ready with everything that was in the log before it started.
            assert one.response(user, moment_ts) == two.response(user, moment_ts) == answer
        use(online, one)
        act(online, rng, 20)
        compared(online, one, two)


def test_a_replica_of_some_partitions(online: TopicOnline) -> None:
    with replica(online, "all") as whole, replica(online, "some", partitions="1-2") as some:
        use(online, whole)
        act(online, random.Random(2), 40)
        moments = settled(online, whole)
        numbers = {user: partition(user, SCHEMA.user_ids, PARTITIONS) for user in USERS}
        mine = [user for user, number in numbers.items() if number in (1, 2)]
        assert 0 < len(mine) < len(USERS)
        for user in mine:
            wait_for(partial(lambda user: some.as_of(user) >= moments[user], user))
            assert some.response(user, moments[user]) == whole.response(user, moments[user])
        for user in set(USERS) - set(mine):
            with pytest.raises(PartitionMissingError, match=f"read partition {numbers[user]}"):
                some.client.snapshot(user, ALL)
        batch = some.client.snapshot_batch(mine, ALL)
        assert len({row.request_ts for row in batch.thin_rows}) == 1
        # Appends go to the topic, whose partitions are not this replica's.
        other = next(user for user in USERS if user not in mine)
        use(online, some)
        online.append(
            [Event(other, START_TS, 0, 77, {"item_id": 5, "brand": "z", "taste": (1, 2)})]
        )
        compared(online, whole)
    # More partitions than at the last start: they are rebuilt from their beginning.
    with replica(online, "all") as whole, replica(online, "some") as some:
        compared(online, whole, some)


def test_a_batch_is_at_one_moment_that_all_its_users_have_come_to(online: TopicOnline) -> None:
    with replica(online, "one") as one:
        use(online, one)
        act(online, random.Random(3), 20)
        settled(online, one)
        rows = one.client.snapshot_batch(USERS, ALL).thin_rows
        (moment_ts,) = {row.request_ts for row in rows}
        for user, row in zip(USERS, rows, strict=True):
            _, mutable = online.pointer(user, moment_ts, 0, 0)
            assert same([dict(e) for e in row.mutable], [online.logged(e) for e in mutable])


def test_events_that_are_acknowledged_become_visible_without_others(online: TopicOnline) -> None:
    with replica(online, "one") as one:
        use(online, one)
        for number in range(3):
            online.append([replace(EVENT, event_id=number)])
            wait_for(partial(shows, one, number + 1))
        online.append([EVENT])  # its id was there
        settled(online, one)
        assert len(one.client.snapshot(1, ALL).thin_row.mutable) == 3


def shows(one: Replica, events: int) -> bool:
    return len(one.client.snapshot(1, ALL).thin_row.mutable) == events


def test_a_timestamp_of_another_unit(online: TopicOnline) -> None:
    """A producer that gives microseconds moves no arrival to the year 50000."""
    with replica(online, "one") as one:
        use(online, one)
        online.produce([EVENT], START_TS * 1000)
        online.produce([replace(EVENT, event_id=2)], START_TS)
        compared(online, one)
        assert all(event.arrival_ts < 2 * START_TS for event in online.arrived)


def test_refusals(online: TopicOnline, broker: Broker) -> None:
    with replica(online, "one") as one:
        use(online, one)
        online.append(some_events(random.Random(4), SCHEMA, START_TS))
        out = online.world.folder / "out.parquet"
        ended = thinrow(
            "export", "--online", one.server.address, "--watermark", START_TS, "--out", out
        )
        assert ended.returncode != 0
        assert f"thinrow export --events kafka:{online.topic}" in ended.stderr
        assert "Traceback" not in ended.stderr and not out.exists()
        with pytest.raises(RequestError, match="has applied the topic"):
            one.client.snapshot(1, ALL, request_ts=one.as_of(1) + 60_000)
    own = replace(online.config, events=None, bootstrap_servers=None)
    with (
        pytest.raises(UsageError, match="holds events of topic"),
        OnlineServer(replace(own, data=online.world.folder / "one")),
    ):
        pass
    own = replace(own, data=online.world.folder / "own")
    with OnlineServer(own) as server, connect_online(server.address) as client:
        client.append([1], [START_TS], {"item_id": [1], "brand": ["a"], "taste": [[1, 2]]})
    refuses(online, "own", UsageError, "of the log of this server")
    other = broker.topic(PARTITIONS).name
    refuses(online, "one", UsageError, "holds events of topic", events=f"kafka:{other}")
    refuses(online, "two", UsageError, "has 5 partitions", partitions="3-5")
    refuses(online, "two", UsageError, "cannot be read", events="kafka:missing")
    refuses(online, "two", UsageError, "give --schema FILE", schema=None)
    schema = online.world.folder / "other.toml"
    schema.write_text(online.world.schema.read_text() + '[more]\nx = "int8"\n')
    refuses(online, "one", UsageError, "another one than the tier's", schema=schema)


def test_an_event_that_no_message_holds_is_refused_by_itself(online: TopicOnline) -> None:
    with replica(online, "one") as one:
        use(online, one)
        large = {**EVENT.traits, "brand": "z" * 950_000}
        with pytest.raises(RequestError, match="which may have 900,000"):
            online.append([EVENT, replace(EVENT, event_id=2, traits=large)])
        online.append([replace(EVENT, event_id=3)])
        compared(online, one)
        assert [event.event_id for event in online.arrived] == [3]


def test_a_broker_that_is_killed_and_comes_back(online: TopicOnline) -> None:
    with running_broker() as dying, ExitStack() as stack:
        own = TopicOnline(
            online.world, SCHEMA, online.config, [], broker=dying, partitions=PARTITIONS
        )
        stack.callback(own.close)
        one = stack.enter_context(replica(own, "one"))
        use(own, one)
        own.append([EVENT])
        for number in range(2, 4):
            dying.kill()
            dying.start()
            own.append([replace(EVENT, event_id=number)])  # waits for the brokers
            compared(own, one)
        assert {event.event_id for event in own.arrived} == {1, 2, 3}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"events": "kafka:"}, "give kafka:TOPIC"),
        ({"events": "topic"}, "give kafka:TOPIC"),
        ({"bootstrap_servers": None}, "give --bootstrap-servers"),
        ({"partitions": "3-1"}, "give FIRST-LAST"),
        ({"events": None}, "give --events"),
    ],
)
def test_wrong_options(online: TopicOnline, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        replace(online.config, **options)


def test_brokers_that_do_not_answer(online: TopicOnline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "CONNECT_TIMEOUT_S", 0.5)
        refuses(
            online, "one", UnavailableError, "cannot serve topic", bootstrap_servers="127.0.0.1:1"
        )
    # Nothing is acknowledged that the brokers did not acknowledge, and requests go on.
    monkeypatch.setattr(settings, "DELIVERY_TIMEOUT_MS", 4000)
    with running_broker(in_memory=True) as dying:
        own = TopicOnline(
            online.world, SCHEMA, online.config, [], broker=dying, partitions=PARTITIONS
        )
        with ExitStack() as stack:
            stack.callback(own.close)
            one = stack.enter_context(replica(own, "dying"))
            use(own, one)
            act(own, random.Random(5), 10)
            seen = compared(own, one)
            dying.kill()
            with pytest.raises(UnavailableError, match="cannot serve topic"):
                own.append(some_events(random.Random(6), SCHEMA, START_TS))
            for (user, moment_ts), answer in seen.items():
                assert one.response(user, moment_ts) == answer


class Broken:
    """An error of librdkafka in the place of messages."""

    def __init__(self, code: int, number: int) -> None:
        self._error = KafkaError(code)
        self._number = number

    def error(self) -> KafkaError:
        return self._error

    def partition(self) -> int:
        return self._number


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (KafkaError._AUTO_OFFSET_RESET, "the topic has lost messages"),  # and there is no store
        # librdkafka reports a wrong checksum, and goes on behind the batch.
        (KafkaError._BAD_MSG, "partition 2 has messages that cannot be read"),
        (KafkaError._BAD_COMPRESSION, "cannot be read"),
    ],
)
def test_messages_that_do_not_come(online: TopicOnline, code: int, match: str) -> None:
    """A rebuild without them would give short histories: the server does not start."""
    with replica(online, "one") as one:
        use(online, one)
        act(online, random.Random(7), 10)
        settled(online, one)

    poll = TopicReader._groups

    def groups(reader: TopicReader) -> Iterator[Any]:
        reader._check(Broken(code, 2))
        yield from poll(reader)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TopicReader, "_groups", groups)
        refuses(online, "two", StoreError, match)
    with replica(online, "one") as one, replica(online, "two") as two:
        compared(online, one, two)


def test_a_stop_while_brokers_are_away(online: TopicOnline) -> None:
    """Calls that wait for the brokers end, and so does the process."""
    with running_broker(in_memory=True) as dying, ExitStack() as stack:
        topic = dying.topic(PARTITIONS).name
        options = ["--events", f"kafka:{topic}", "--bootstrap-servers", dying.address]
        server = stack.enter_context(running_online(online.world, *options, "--drain", "1s"))
        client = stack.enter_context(connect_online(server.address))
        online.client = client
        online.append([EVENT])
        dying.kill()
        pool = stack.enter_context(ThreadPoolExecutor(1))
        appended = pool.submit(online.append, [replace(EVENT, event_id=2)])
        with pytest.raises(TimeoutError):
            appended.result(1)
        server.process.terminate()
        assert server.process.wait(15) == 0
        with pytest.raises(UnavailableError):
            appended.result(1)
