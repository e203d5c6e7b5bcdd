"""One client of several servers of a topic: routes, answers, moments, refusals, lag, access."""

from __future__ import annotations

import random
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.certificates import Authority
from support.cluster import free_port
from support.event_topics import partition, user_key
from support.id_kinds import KINDS, known_id
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import wait_for
from support.online_replicas import ALL, QUICK, connected, contents, new_online
from support.scenarios import CROWD, STRANGER
from support.tenants_files import hashed
from support.topic_replicas import EVENT, PARTITIONS, SCHEMA, USERS, act, replica, settled, use
from support.worlds import OWN_HOST, START_TS
from thinrow.access.tenants_file import read_tenants
from thinrow.client import ClientConfig, online_topology, tls_credentials
from thinrow.client.online import connect_online
from thinrow.core.shards import xxh3_of
from thinrow.core.user_keys import key_of
from thinrow.errors import (
    InputError,
    LaggingError,
    PartitionMissingError,
    PermissionDeniedError,
    RequestError,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
)
from thinrow.online.server import OnlineServer
from thinrow.online.topic.reader import TopicReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.event_topics import TopicOnline
    from thinrow.client.online import OnlineClient, Snapshot

pytestmark = [needs_broker, pytest.mark.usefixtures("no_pause_before_goaway")]
DEAD = "127.0.0.1:1"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker(in_memory=True) as broker:
        yield broker


@pytest.fixture
def online(broker: Broker, tmp_path: Path) -> Iterator[TopicOnline]:
    made = new_online(broker, tmp_path, SCHEMA, PARTITIONS)
    yield made
    made.close()


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_the_client_finds_partitions_by_the_documented_function(kind: str) -> None:
    for user in (*CROWD, STRANGER, 0, 1, 2**63 - 1):
        known = known_id(user, kind)
        key = known if isinstance(known, str) else (known ^ 1 << 63) - (1 << 63)
        assert key_of(key) % (1 << 64) == user_key(user, kind)
        for count in (1, 3, 16, 4096):
            assert xxh3_of(key_of(key)) % count == partition(user, kind, count)


def test_routed_answers_equal_those_of_one_server(online: TopicOnline) -> None:
    """Partitions lie on different servers, some on two; a batch is joined in its order."""
    rng = random.Random(1)
    with ExitStack() as stack:
        whole = stack.enter_context(replica(online, "whole"))
        parts = [
            stack.enter_context(replica(online, name, partitions=name))
            for name in ("0-1", "1-3", "4")
        ]
        addresses = [part.server.address for part in parts]
        client = stack.enter_context(connected(*addresses, DEAD, config=QUICK))
        use(online, whole)
        act(online, rng, 30)
        online.client = client  # appends through the routed client, whatever the partition
        act(online, rng, 30)
        assert client.describe().topic == online.topic
        moments = settled(online, whole)
        for part in parts:
            read = {each.number for each in part.client.describe().partitions}
            for user, moment_ts in moments.items():
                if partition(user, SCHEMA.user_ids, PARTITIONS) in read:
                    wait_for(
                        partial(lambda one, user, ts: one.as_of(user) >= ts, part, user, moment_ts)
                    )
        assert client.routing.servers == 4
        moment_ts = min(moments.values())
        alone = {
            user: contents(whole.client.snapshot(user, ALL, request_ts=moment_ts)) for user in USERS
        }
        for user in USERS:
            seen = client.snapshot(user, ALL, request_ts=moment_ts)
            assert contents(seen) == alone[user]
            assert seen.as_of_ts >= moment_ts and seen.lag_ms >= 0
            seen = client.snapshot(user, ALL)  # of the newest moment, exact for it
            assert seen.as_of_ts == seen.thin_row.request_ts
            again = whole_at(whole.client.snapshot, user, seen.thin_row.request_ts)
            assert contents(again) == contents(seen)
        for users in (USERS, USERS[::-1], [*USERS, *USERS], [USERS[0]] * 3, []):
            mixed = rng.sample(users, len(users))
            together = client.snapshot_batch(mixed, ALL, request_ts=moment_ts)
            expected = whole.client.snapshot_batch(mixed, ALL, request_ts=moment_ts)
            assert repr(together.thin_rows) == repr(expected.thin_rows)
            assert len(together.as_of_ts) == len(together.lag_ms) == len(mixed)
            assert together.batch.statuses.tolist() == expected.batch.statuses.tolist()
            for name in expected.batch.values:
                lists = expected.batch.to_lists(name)
                assert repr(together.batch.to_lists(name)) == repr(lists)
        together = client.snapshot_batch(USERS, ALL)
        rows = together.thin_rows
        assert [row.request_ts for row in rows] == together.as_of_ts.tolist()
        for user, row in zip(USERS, rows, strict=True):  # each exact for its own moment
            again = whole_at(whole.client.snapshot, user, row.request_ts)
            assert repr(again.thin_row) == repr(row)
        with pytest.raises(RequestError, match="There is no trait"):
            client.snapshot(USERS[0], replace(ALL, traits=("missing",)))
        with pytest.raises(RequestError, match="has applied the topic"):
            client.snapshot(USERS[0], ALL, request_ts=int(time.time() * 1000) + 3_600_000)


def whole_at(snapshot: Callable[..., Snapshot], user: int, request_ts: int) -> Snapshot:
    """A snapshot at a moment, once the server has come to it."""
    end_s = time.monotonic() + 60
    while True:
        try:
            return snapshot(user, ALL, request_ts=request_ts)
        except LaggingError:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_what_does_not_belong_together_is_refused(online: TopicOnline, broker: Broker) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(replica(online, "one"))
        own = replace(
            online.config,
            events=None,
            bootstrap_servers=None,
            data=online.world.folder / "own",
        )
        alone = stack.enter_context(OnlineServer(own))
        client = stack.enter_context(connected(one.server.address, alone.address))
        with pytest.raises(UsageError, match="has a log of its own"):
            client.snapshot(1, ALL)
        other = new_online(broker, online.world.folder / "other", SCHEMA, 2)
        stack.callback(other.close)
        two = stack.enter_context(replica(other, "two"))
        client = stack.enter_context(connected(one.server.address, two.server.address))
        with pytest.raises(UsageError, match="name servers of one topic"):
            client.append([1], [START_TS], {"item_id": [1], "brand": ["a"], "taste": [[1, 2]]})
        for wrong in ("", "one,", "http://one:1", ["one"]):
            with pytest.raises(UsageError, match="no address of an online server"):
                connect_online(wrong)
        with pytest.raises(UsageError, match="travel in the clear to far:1"):
            connect_online("127.0.0.1:1,far:1", ClientConfig(token="t"))  # noqa: S106
        # A single address is as it was: a server says which partitions it does not read.
        some = stack.enter_context(replica(online, "some", partitions="0"))
        away = next(user for user in USERS if partition(user, SCHEMA.user_ids, PARTITIONS))
        with pytest.raises(PartitionMissingError, match="whose --partitions include it"):
            some.client.snapshot(away, ALL)


def test_no_server_left_is_one_sentence(online: TopicOnline) -> None:
    number = {user: partition(user, SCHEMA.user_ids, PARTITIONS) for user in USERS}
    at_zero = next(user for user in USERS if number[user] == 0)
    away = next(user for user in USERS if number[user] != 0)
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(replica(online, name, partitions="0")) for name in ("one", "two")
        ]
        addresses = [each.server.address for each in replicas]
        client = stack.enter_context(connected(*addresses, config=QUICK))
        assert client.snapshot(at_zero, ALL).batch.statuses.tolist() == [1]
        unread = rf"None of the servers .* reads partition {number[away]} of topic"
        with pytest.raises(UnavailableError, match=unread):
            client.snapshot(away, ALL)
        with pytest.raises(UnavailableError, match=unread):
            client.snapshot_batch([at_zero, away], ALL)
    with connected(*addresses, config=QUICK) as client:
        for call in (
            lambda: client.snapshot(1, ALL),
            lambda: client.snapshot_batch([1], ALL),
            lambda: client.traits,
            lambda: client.append([1], [START_TS], {}),
        ):
            with pytest.raises(UnavailableError, match="No server answer") as caught:
                call()
            assert all(address in str(caught.value) for address in addresses)
            assert str(caught.value).count(". ") == 0


def test_servers_that_change_their_partitions_and_come_back(online: TopicOnline) -> None:
    listen = [f"{OWN_HOST}:{free_port()}" for _ in range(2)]
    with connected(*listen) as client, ExitStack() as stack:
        first, second = ExitStack(), ExitStack()
        stack.callback(first.close)
        stack.callback(second.close)
        first.enter_context(replica(online, "one", partitions="0-2", listen=listen[0]))
        one = second.enter_context(replica(online, "two", partitions="3-4", listen=listen[1]))
        use(online, one)
        online.client = client
        act(online, random.Random(2), 10)
        for user in USERS:
            assert client.snapshot(user, ALL).batch.statuses.tolist() == [1]
        first.close()
        second.close()  # and then each reads what the other one has read
        first.enter_context(replica(online, "one", partitions="3-4", listen=listen[0]))
        second.enter_context(replica(online, "two", partitions="0-2", listen=listen[1]))
        for user in USERS:
            assert client.snapshot(user, ALL).batch.statuses.tolist() == [1]
        assert len(client.snapshot_batch(USERS, ALL).thin_rows) == len(USERS)
        online.append([EVENT])


def test_a_name_stands_for_all_its_addresses(
    online: TopicOnline, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, hosts = free_port(), ["127.0.0.2", "127.0.0.3"]
    now = list(hosts)

    known = socket.getaddrinfo

    def resolved(host: str, number: int, *rest: Any, **options: Any) -> list[Any]:  # noqa: ANN401
        if host != "online":
            return known(host, number, *rest, **options)
        return [(socket.AF_INET, 1, 6, "", (each, number)) for each in now]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(online_topology, "RESOLVE_PAUSE_S", 0.0)
    monkeypatch.setattr(online_topology, "DROPPED_S", 0.0)
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(replica(online, "one", listen=f"{hosts[0]}:{port}"))
        stack.enter_context(replica(online, "two", listen=f"{hosts[1]}:{port}"))
        client = stack.enter_context(connected(f"dns:///online:{port}"))
        assert client.snapshot(1, ALL).batch.statuses.tolist() == [1]
        assert client.routing.servers == 2
        now.remove(hosts[0])
        wait_for(lambda: client.routing.servers == 1)
        first.close()
        for user in USERS:
            assert client.snapshot(user, ALL).batch.statuses.tolist() == [1]
        now[:] = hosts
        wait_for(lambda: client.routing.servers == 2)
        now.clear()  # a failure to resolve changes nothing
        time.sleep(3 * online_topology.POLL_PAUSE_S / 2)
        assert client.routing.servers == 2
    with connect_online(f"online:{port}", QUICK) as client:
        assert client.routing.servers == 1


def test_a_lag_beyond_the_bound(tmp_path: Path) -> None:
    """A replica that its brokers do not reach refuses; others answer, and none is said at once."""
    tenants = tmp_path / "tenants.toml"
    tenants.write_text('[strict]\nlag_max = "4s"\n[patient]\nlag_max = "1h"\n')
    with running_broker(in_memory=True) as paused, ExitStack() as stack:
        online = new_online(paused, tmp_path / "world", SCHEMA, PARTITIONS)
        stack.callback(online.close)
        options = {"tenants": tenants, "lag_max_ms": 6000}
        replicas = [
            stack.enter_context(replica(online, name, **options)) for name in ("one", "two")
        ]
        addresses = [each.server.address for each in replicas]
        client = stack.enter_context(connected(*addresses, config=QUICK))
        use(online, replicas[0])
        act(online, random.Random(3), 10)
        moments = settled(online, *replicas)
        seen = client.snapshot(1, "strict")
        assert seen.lag_ms <= 4000
        paused.pause()
        try:
            wait_for(lambda: client.snapshot(1, "patient").lag_ms > 4000)
            with pytest.raises(LaggingError, match="allows a lag of 4000 ms"):
                client.snapshot(1, "strict")
            with pytest.raises(LaggingError, match=addresses[1]):
                client.snapshot_batch([1], "strict")
            wait_for(lambda: client.snapshot(1, "patient").lag_ms > 6000)
            with pytest.raises(LaggingError, match="allows a lag of 6000 ms"):
                client.snapshot(1, ALL)  # the server's own bound
            patient = client.snapshot_batch([1], "patient")
            assert (patient.lag_ms > 6000).all()
            # The past is exact however far a replica is behind.
            for user in USERS:
                past = client.snapshot(user, "strict", request_ts=moments[user])
                assert past.thin_row.request_ts == moments[user] <= past.as_of_ts
            for one in replicas:
                refusals = one.server.metrics.errors.labels("LAGGING")._value.get()
                assert refusals >= 2
        finally:
            paused.go_on()
        # In time all is as it was.
        wait_for(partial(is_fresh, client, "strict"))
    wrong = tmp_path / "wrong.toml"
    for text, match in (("lag_max = 5", "no duration"), ('lag_max = "0s"', "greater than")):
        wrong.write_text(f"[one]\n{text}\n")
        with pytest.raises(InputError, match=match):
            read_tenants(wrong)
    with pytest.raises(UsageError, match="lag_max_ms is for a topic"):
        replace(online.config, events=None, bootstrap_servers=None, lag_max_ms=1)


def is_fresh(client: OnlineClient, tenant: str) -> bool:
    try:
        return client.snapshot(1, tenant).lag_ms <= 4000
    except LaggingError:
        return False


def test_one_replica_that_lags_is_left(
    online: TopicOnline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bound, too."""
    poll = TopicReader._groups

    def groups(reader: TopicReader) -> Iterator[Any]:
        if reader._settings.folder.name != "one":
            yield from poll(reader)
        time.sleep(0.01)

    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(online, name)) for name in ("one", "two")]
        client = stack.enter_context(connected(*[each.server.address for each in replicas]))
        use(online, replicas[0])
        act(online, random.Random(4), 10)
        settled(online, *replicas)
        monkeypatch.setattr(TopicReader, "_groups", groups)
        before = replicas[0].server.metrics.snapshots._value.get

        def is_left() -> bool:
            count = before()
            seen = [client.snapshot(user, ALL) for user in USERS]
            return before() == count and max(each.lag_ms for each in seen) < 3000

        wait_for(is_left)


def test_access_is_that_of_each_server(online: TopicOnline, tmp_path: Path) -> None:
    """TLS by an authority, tokens, rights and quotas hold at both replicas."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(
        f'[ranker]\nprojections = "any"\nonline = ["append"]\n{hashed("t")}\n'
        f'[narrow]\ntraits = ["item_id"]\nlag_max = "1ms"\n{hashed("n")}\n'
    )
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        config = replace(online.config, tls_cert=cert, tls_key=key, tenants=tenants)
        servers = [
            holder.enter_context(OnlineServer(replace(config, data=tmp_path / name)))
            for holder, name in ((first, "one"), (stack, "two"))
        ]
        addresses = [server.address for server in servers]

        def client(token: str | None) -> OnlineClient:
            trusted = replace(QUICK, credentials=tls_credentials(authority.ca), token=token)
            return stack.enter_context(connected(*addresses, config=trusted))

        ranker, narrow = client("t"), client("n")
        online.client, online.server = ranker, servers[0]
        online.append([EVENT])
        wait_for(lambda: len(ranker.snapshot(1, ALL).thin_row.mutable) == 1)
        with pytest.raises(PermissionDeniedError, match="may not append"):
            narrow.append([1], [START_TS], {"item_id": [1], "brand": ["a"], "taste": [[1, 2]]})
        with pytest.raises(PermissionDeniedError):
            narrow.snapshot(1, ALL)
        with pytest.raises(LaggingError, match="allows a lag of 1 ms"):
            wait_for(lambda: narrow.snapshot(1, "narrow") is None)
        for token in ("wrong", None):
            for call in ("snapshot", "snapshot_batch"):
                with pytest.raises(UnauthenticatedError):
                    getattr(client(token), call)([1] if call.endswith("h") else 1, ALL)
        plain = stack.enter_context(connected(*addresses, config=QUICK))
        with pytest.raises(UnavailableError, match="No server answer"):
            plain.snapshot(1, ALL)
        first.close()  # drains
        for user in USERS:
            assert ranker.snapshot(user, ALL).batch.statuses.tolist() == [1]
        online.append([replace(EVENT, event_id=2)])
