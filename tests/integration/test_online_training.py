"""Both kinds of training from the rows of real requests: what each gets is what inference saw.

Events are appended, requests answered and logged, generations built and published, all at once; a
trainer follows the topic meanwhile, another reads the files afterwards, from a later generation.
"""

from __future__ import annotations

import random
import re
import threading
import time
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from support.kafka_topics import CountedSource, wait_for
from support.logged import config_in, parts
from support.tensor_examples import by_request
from support.thin_rows import shown
from support.worlds import SCHEMA, World, new_world, running_online
from thinrow.client import Projection, connect
from thinrow.client.logger import FileOutput, KafkaOutput, ThinRowLogger, mutable_type
from thinrow.client.online import connect_online
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.client.torch.kafka import KafkaConfig
from thinrow.compaction.compact import compact
from thinrow.jobs.export import export_events
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.client.online import OnlineClient, Snapshot
    from thinrow.client.torch import RowSource, TensorBatch

ROWS = 250
USERS = range(1, 9)
PROJECTION = Projection(sequence_length=20)
LISTS = """
[lists]
tags = { type = "list<string>", length_max = 3, sparse = true }
codes = { type = "list<uint16>", length_max = 300 }
"""


def train(address: str, source: RowFiles | RowSource) -> Iterator[TensorBatch]:
    """Nothing but OK will do; a generation that is not there yet is waited for."""
    config = LoaderConfig(batch_examples=32, policies={"ERASED": "fail"}, not_ready_wait_s=30)
    with ThinRowLoader(source, address, PROJECTION, config) as loader:
        yield from loader


def append_some(online: OnlineClient, rng: random.Random, first_id: int) -> None:
    """A few events, some late and some from clocks that run ahead."""
    now_ts, count = time.time_ns() // 1_000_000, rng.choice((1, 3))
    online.append(
        [rng.choice(USERS) for _ in range(count)],
        [now_ts + rng.choice((0, 0, -5, -400, -(10**8), 300, 10**8)) for _ in range(count)],
        {
            "item_id": [rng.getrandbits(60) for _ in range(count)],
            "brand": [rng.choice(("a", "é", "")) for _ in range(count)],
            "rating": [rng.choice((None, 1, 5)) for _ in range(count)],
            "price": [rng.random() for _ in range(count)],
            "tags": [rng.choice((None, [], ["a"], ["é", "", "a"])) for _ in range(count)],
            "codes": [[rng.getrandbits(16)] * rng.randrange(4) for _ in range(count)],
        },
        [first_id + place for place in range(count)],
    )


def hand_over(world: World, online: OnlineClient) -> int:
    """Export, compact, publish; the generation."""
    watermark_ts = online.describe().now_ts
    path = world.folder / f"export-{watermark_ts}.parquet"
    export_events(online, watermark_ts, path)
    config = replace(world.compaction([path], 0), watermark_ts=watermark_ts)
    return compact(config).generation


@pytest.mark.timeout(120)
def test_both_trainings_get_what_inference_saw(tmp_path: Path) -> None:
    world = new_world(tmp_path / "world", SCHEMA + LISTS)
    mock = {"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0}
    producer = Producer(mock)
    (broker,) = producer.list_topics(timeout=60).brokers.values()
    kafka = f"{broker.host}:{broker.port}"
    producer.list_topics("thin-rows", timeout=60)
    rng = random.Random(0)
    with (
        running_online(world, "--retention", "10m") as online_server,
        connect_online(online_server.address) as online,
    ):
        append_some(online, rng, 0)
        hand_over(world, online)
        # Slower to take up than the requests: fresh rows point at what it does not have yet.
        serving = ServerConfig(
            store=world.store, listen="127.0.0.1:0", metrics="127.0.0.1:0", poll_s=2
        )
        with Server(serving) as server, connect(server.address) as client:
            streamed: list[TensorBatch] = []
            arrived_s: dict[str, float] = {}
            stop = threading.Event()
            failures: list[BaseException] = []
            generations = []

            def follow() -> None:
                source = CountedSource(
                    KafkaConfig(
                        topic="thin-rows",
                        bootstrap_servers=kafka,
                        group="follower",
                        linger_ms=20,
                    ),
                    ROWS,
                )
                for batch in train(server.address, source):
                    streamed.append(batch)
                    now_s = time.monotonic()
                    arrived_s.update(dict.fromkeys(batch.columns["request_id"], now_s))

            def keep_handing_over() -> None:
                while not stop.wait(0.3):
                    generations.append(hand_over(world, online))

            def guarded(work: Any) -> None:  # noqa: ANN401
                try:
                    work()
                except BaseException as error:
                    failures.append(error)

            threads = [
                threading.Thread(target=guarded, args=(work,))
                for work in (follow, keep_handing_over)
            ]
            for thread in threads:
                thread.start()
            config = config_in(
                tmp_path,
                mutable=mutable_type(online.describe()),
                features=pa.schema([("row", pa.int64())]),
                join_window_ms=200,
                files=FileOutput(folder=tmp_path / "rows", part_ms=300, part_rows=100),
                kafka=KafkaOutput(
                    topic="thin-rows", bootstrap_servers=kafka, linger_ms=50, message_rows=16
                ),
            )
            seen: dict[str, Snapshot] = {}
            logged_s: dict[str, float] = {}
            clicked = set()
            with ThinRowLogger(config) as logger:
                for n in range(ROWS):
                    if n == ROWS // 2:
                        wait_for(lambda: bool(arrived_s or failures))
                    # Hand-overs go on beside requests, however slow the machine is.
                    wait_for(lambda n=n: len(generations) >= 5 * n // ROWS or bool(failures))  # type: ignore[misc]
                    append_some(online, rng, 10 * n + 10)
                    request_id, user_id = f"request-{n}", rng.choice((*USERS, 99))
                    lookback_ms, max_length = rng.choice((0, 0, 500)), rng.choice((0, 0, 7))
                    snapshot = online.snapshot(
                        user_id, PROJECTION, lookback_ms=lookback_ms, max_length=max_length
                    )
                    seen[request_id] = snapshot
                    logger.log(request_id, snapshot.thin_row, {"row": n})
                    logged_s[request_id] = time.monotonic()
                    if n % 3 == 0:
                        clicked.add(request_id)
                        logger.label(request_id, {"click": 1, "said": f"ü{n}"})
                    time.sleep(rng.uniform(0, 0.008))
                stop.set()
                logger.drain(30)
            for thread in threads:
                thread.join(120)
                assert not thread.is_alive()
            assert not failures, failures

            # Later: more has happened, and other generations answer.
            for _ in range(2):
                append_some(online, rng, 1 << 40 | rng.getrandbits(30))
                newest = hand_over(world, online)
            while client.describe_store().generation != newest:
                time.sleep(0.01)
            files = RowFiles([str(path) for path in parts(tmp_path)])
            replayed = list(train(server.address, files))
            with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as metrics:
                not_ready = re.findall(
                    r'_total\{[^\n]*"NOT_READY"[^\n]*\} ([0-9.]+)', metrics.read().decode()
                )

    assert by_request(streamed) == by_request(replayed)
    for batches in (streamed, replayed):
        found = {
            columns["request_id"]: (traits, columns)
            for batch in batches
            for _, _, traits, columns in shown(batch)
        }
        assert found.keys() == seen.keys()
        for request_id, (traits, columns) in found.items():
            batch = seen[request_id].batch
            assert repr(traits) == repr({name: batch.to_lists(name)[0] for name in batch.values})
            assert columns["click"] == (request_id in clicked)
            assert columns["user_id"] == seen[request_id].thin_row.user_id

    rows = [snapshot.thin_row for snapshot in seen.values()]
    watermarks = {row.end_ts for row in rows if row.start_ts < row.end_ts}
    lags_s = sorted(arrived_s[request_id] - logged_s[request_id] for request_id in seen)
    print(
        f"{len(generations)} hand-overs beside {ROWS} requests from {len(watermarks)} watermarks; "
        f"the stream was {lags_s[ROWS // 2]:.1f} s behind (at most {lags_s[-1]:.1f}), "
        f"{float(not_ready[0]):.0f} times an example was NOT_READY"
    )
    assert len(generations) > 3 and len(watermarks) > 3
    assert any(row.mutable for row in rows)
    assert min(arrived_s.values()) < max(logged_s.values()), "the trainer did not run beside"
    assert float(not_ready[0]) > 0, "the trainer never had to wait for a generation"
