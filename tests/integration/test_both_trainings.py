"""A streaming trainer seconds behind the requests and a batch trainer see the same tensors."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from support.kafka_topics import CountedSource, wait_for
from support.logged import HOUR_MS, config_in, parts
from support.tensor_examples import by_request
from support.thin_rows import rows_table, shown, write_rows
from support.worlds import built_world, running_server
from thinrow.client import Projection, connect
from thinrow.client.logger import (
    FileOutput,
    KafkaOutput,
    LoggerConfig,
    ThinRow,
    ThinRowLogger,
    mutable_type,
)
from thinrow.client.torch import LoaderConfig, RowFiles, TensorBatch, ThinRowLoader
from thinrow.client.torch.kafka import KafkaConfig

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from thinrow.client.torch import RowSource

ROWS = 600
WINDOW_MS = 400
PROJECTION = Projection(sequence_length=20)


def train(address: str, source: RowFiles | RowSource) -> Iterable[TensorBatch]:
    with ThinRowLoader(source, address, PROJECTION, LoaderConfig(batch_examples=32)) as loader:
        yield from loader


@pytest.mark.timeout(120)
def test_both_trainings_see_the_same(tmp_path: Path) -> None:
    world = built_world(tmp_path / "world")
    mock = {"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0}
    producer = Producer(mock)
    (broker,) = producer.list_topics(timeout=60).brokers.values()
    servers = f"{broker.host}:{broker.port}"
    producer.list_topics("thin-rows", timeout=60)
    table = rows_table(ROWS)
    rng = random.Random(0)
    with running_server(world.store) as server:
        with connect(server.address) as client:
            mutable = mutable_type(client.describe_store())
        config: LoggerConfig = config_in(
            tmp_path,
            mutable=mutable,
            features=table.select(["row", "label"]).schema,
            join_window_ms=WINDOW_MS,
            files=FileOutput(folder=tmp_path / "rows", part_ms=300, part_rows=100),
            kafka=KafkaOutput(
                topic="thin-rows", bootstrap_servers=servers, linger_ms=50, message_rows=16
            ),
        )
        streamed: list[TensorBatch] = []
        arrived_s: list[float] = []

        def follow() -> None:
            source = CountedSource(
                KafkaConfig(
                    topic="thin-rows",
                    bootstrap_servers=servers,
                    group="follower",
                    linger_ms=20,
                ),
                ROWS,
            )
            for batch in train(server.address, source):
                streamed.append(batch)
                arrived_s.append(time.monotonic())

        follower = threading.Thread(target=follow)
        follower.start()
        logged_s = {}
        clicked = set()
        with ThinRowLogger(config) as logger:
            for n, row in enumerate(table.to_pylist()):
                if n == ROWS // 2:
                    wait_for(lambda: bool(arrived_s))
                request_id = f"request-{n}"
                uih, request_ts = row.pop("uih"), row["request_ts"] + n % 3 * HOUR_MS
                thin = ThinRow(
                    user_id=row["user_id"],
                    request_ts=request_ts,
                    mutable=tuple(row["mutable"]),
                    **uih,
                )
                if n % 7 == 0:
                    logger.label(request_id, {"watch_s": n / 3})
                logger.log(request_id, thin, {"row": n, "label": row["label"]})
                logged_s[n] = time.monotonic()
                if n % 5 == 0:
                    clicked.add(n)
                    logger.label(f"request-{n}", {"click": 1, "said": f"ü{n}"})
                    logger.label(f"request-{n}", {"click": 2})
                time.sleep(rng.uniform(0, 0.01))
            logger.drain(30)
            counts = logger.counts
        follower.join(120)
        assert not follower.is_alive()
        assert counts.rows_published == {"files": ROWS, "kafka": ROWS}

        assert arrived_s[0] < logged_s[ROWS - 1], "the trainer did not run beside the requests"
        streams = by_request(streamed)
        replayed = by_request(
            train(server.address, RowFiles([str(path) for path in parts(tmp_path)]))
        )
        assert len(parts(tmp_path)) > 6
        assert len({path.parent for path in parts(tmp_path)}) == 3
        assert streams.keys() == {f"request-{n}" for n in range(ROWS)}
        assert streams == replayed

        # And what is the same is right: as from a file that no logger wrote.
        (tmp_path / "plain").mkdir()
        plain = train(
            server.address, RowFiles(write_rows(tmp_path / "plain", [ROWS]), order="files")
        )
        expected = [(status, traits) for batch in plain for _, status, traits, _ in shown(batch)]
        seen = {
            columns["row"]: (status, traits, columns)
            for batch in streamed
            for _, status, traits, columns in shown(batch)
        }
    for n, (status, traits) in enumerate(expected):
        assert seen[n][:2] == (status, traits)
        columns = seen[n][2]
        assert columns["click"] == (n in clicked)
        assert columns["said"] == (f"ü{n}" if n in clicked else None)
        assert (columns["watch_s"] == columns["watch_s"]) == (n % 7 == 0)
