"""Connections of a replica to the brokers of its topic, and topics that it refuses."""

from __future__ import annotations

import asyncio
import queue
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from support.certificates import Authority
from support.kafka_broker import needs_broker, running_broker
from support.kafka_topics import TIMEOUT_S, wait_for
from support.scenarios import schema_toml
from support.topic_replicas import SCHEMA
from support.worlds import OWN_HOST, START_TS, THINROW, World, new_world
from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.core.kafka import load_kafka
from thinrow.errors import UnavailableError, UsageError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.online.topic import settings
from thinrow.online.topic.settings import read_connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = [needs_broker, pytest.mark.usefixtures("no_pause_before_goaway")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path, schema_toml(SCHEMA))


def config(world: World, topic: str, servers: str, **options: Any) -> OnlineConfig:  # noqa: ANN401
    return OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        events=f"kafka:{topic}",
        bootstrap_servers=servers,
        **options,
    )


def make_topic(servers: str, topic: str, options: dict[str, str], **own: str) -> None:
    admin: Any = AdminClient({"bootstrap.servers": servers, **own})
    new = NewTopic(topic, num_partitions=2, replication_factor=1, config=options)
    admin.create_topics([new])[topic].result(TIMEOUT_S)


@contextmanager
def tls_in_front(cert: Path, key: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields a port where TLS ends, and a list for the address of what is behind it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    behind: list[str] = []

    ports: queue.Queue[int] = queue.Queue()
    stop = asyncio.Event()

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        finally:
            sink.transport.abort()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_connection(*behind[0].rsplit(":", 1))
            pipes = (pipe(reader, inner[1]), pipe(inner[0], writer))
            await asyncio.gather(*pipes, return_exceptions=True)
        finally:
            writer.transport.abort()

    async def serve() -> None:
        async with await asyncio.start_server(tunnel, "127.0.0.1", ssl=context) as started:
            ports.put(started.sockets[0].getsockname()[1])
            await stop.wait()

    loop = asyncio.new_event_loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner, ThreadPoolExecutor(1) as pool:
        served = pool.submit(runner.run, serve())
        try:
            yield ports.get(timeout=TIMEOUT_S), behind
        finally:
            loop.call_soon_threadsafe(stop.set)
            served.result(TIMEOUT_S)


def test_brokers_behind_tls(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    file = tmp_path / "kafka.toml"
    file.write_text(f'security.protocol = "SSL"\nssl.ca.location = "{authority.ca}"\n')
    with tls_in_front(*authority.issue("broker")) as (port, behind):
        servers = f"127.0.0.1:{port}"
        with running_broker(in_memory=True, advertised=servers) as broker:
            behind.append(broker.address)
            own = {"security.protocol": "SSL", "ssl.ca.location": str(authority.ca)}
            make_topic(servers, "events", {}, **own)
            with (
                OnlineServer(config(world, "events", servers, kafka_settings=file)) as server,
                connect_online(server.address) as client,
            ):
                client.append([1], [START_TS], {"item_id": [1], "brand": ["a"], "taste": [[1, 2]]})
                wait_for(lambda: len(client.snapshot(1, Projection()).thin_row.mutable) == 1)
            monkeypatch.setattr(settings, "CONNECT_TIMEOUT_S", 1.0)
            with (
                pytest.raises(UnavailableError, match="cannot serve topic"),
                OnlineServer(config(world, "events", servers)),
            ):
                pass


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('"acks" = "1"', "has acks; give settings of librdkafka's connections only"),
        ('isolation.level = "read_uncommitted"', "has isolation.level"),
        ('ssl.ca.location = ["a"]', "has ssl.ca.location"),
        ("=", "Cannot read the settings of Kafka"),
        ('security.protocol = "none"', "Kafka refuses the settings"),
    ],
)
def test_wrong_settings(world: World, tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "kafka.toml"
    file.write_text(text)
    with (
        pytest.raises(UsageError, match=match),
        OnlineServer(config(world, "t", "127.0.0.1:1", kafka_settings=file)),
    ):
        pass


def test_settings_are_named_as_in_librdkafka(tmp_path: Path) -> None:
    file = tmp_path / "kafka.toml"
    file.write_text(
        'security.protocol = "SASL_SSL"\n[sasl]\nmechanism = "PLAIN"\n'
        '[enable.ssl]\n"certificate.verification" = false\n'
    )
    assert read_connection(file) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "enable.ssl.certificate.verification": False,
    }
    assert read_connection(None) == {}


def test_a_compacted_topic_is_refused(world: World) -> None:
    with running_broker(in_memory=True) as broker:
        for policy in ("compact", "compact,delete"):
            topic = policy.replace(",", "-")
            make_topic(broker.address, topic, {"cleanup.policy": policy})
            with (
                pytest.raises(UsageError, match=f"has cleanup.policy {policy}"),
                OnlineServer(config(world, topic, broker.address)),
            ):
                pass


def test_a_topic_that_may_delete_messages(world: World, caplog: pytest.LogCaptureFixture) -> None:
    deletes = {"cleanup.policy": "delete"}
    topics = {
        "unknown": ({}, "do not say what the topic deletes"),
        "by-bytes": (deletes | {"retention.bytes": "1000"}, "deletes messages by their bytes"),
    }
    with running_broker(in_memory=True) as broker:
        for topic, (options, match) in topics.items():
            make_topic(broker.address, topic, options)
            data = world.folder / topic
            with OnlineServer(replace(config(world, topic, broker.address), data=data)):
                assert any(match in record.getMessage() for record in caplog.records)
        make_topic(broker.address, "by-age", deletes | {"retention.ms": "1000"})
        with (
            pytest.raises(UsageError, match="keeps messages for 1000 ms"),
            OnlineServer(config(world, "by-age", broker.address)),
        ):
            pass


def test_a_stop_before_any_broker_answers(world: World) -> None:
    command = [*THINROW, "online", "--store", world.store, "--schema", world.schema]
    command += ["--events", "kafka:events", "--bootstrap-servers", f"{OWN_HOST}:1"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it looks for brokers
        time.sleep(0.5)
        process.terminate()
        try:
            assert process.wait(10) == 0
        finally:
            process.kill()
        assert b"Traceback" not in process.stderr.read()


def test_the_log_stays_short_while_brokers_are_away(caplog: pytest.LogCaptureFixture) -> None:
    kafka, seconds = load_kafka(), 4
    with running_broker(in_memory=True) as broker:
        topic = broker.topic(2).name
        consumer = settings.make_client(
            kafka.Consumer, settings.consumer_settings(broker.address, {}), lambda _: None
        )
        consumer.assign([kafka.TopicPartition(topic, number, 0) for number in range(2)])
        try:
            consumer.poll(2)
            broker.kill()
            caplog.clear()
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                consumer.poll(0.1)
            assert 0 < len(caplog.records) < 6 * seconds
        finally:
            consumer.close()
