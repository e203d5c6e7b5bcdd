"""Logs with ids, lists and codes as people have them, through every path, held to the oracle."""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import thinrow
from support.id_kinds import event_id_array, id_array, known_id
from support.kafka_topics import mock_cluster
from support.online_worlds import Online
from support.oracle import (
    DAY_MS,
    Event,
    Oracle,
    Past,
    Pointer,
    Run,
    Schema,
    Trait,
    Wanted,
    columns,
    event_order,
    fat_rows,
    order,
)
from support.scenarios import STRANGER, USERS, events_table, schema_toml, values
from support.thin_rows import shown as shown_tensors
from support.worlds import START_TS, as_of, new_world
from thinrow.client import Projection, connect, read_thin_rows
from thinrow.client.logger import (
    FileOutput,
    KafkaOutput,
    LoggerConfig,
    ThinRowLogger,
    mutable_type,
)
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource
from thinrow.compaction.compact import compact
from thinrow.errors import InputError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.oracle import Entry
    from support.worlds import World
    from thinrow.client import Client
    from thinrow.core.thin_row import ThinRow

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("no_pause_before_goaway")]

FEEDBACK = [Trait("stars", "int8"), Trait("price", "float32", sparse=True)]
LOGS = {
    "texts of items with lists of categories": Schema(
        {
            "item": [
                Trait("asin", "string", key=True),
                Trait("categories", "string", length_max=6, sparse=True),
            ],
            "feedback": FEEDBACK,
        },
        user_ids="string",
        event_ids="string",
    ),
    "sessions": Schema(
        {"page": [Trait("url", "string", key=True), Trait("query", "string", sparse=True)]},
        user_ids="uuid",
        event_ids="uuid",
    ),
    "hashes with semantic codes": Schema(
        {
            "item": [
                Trait("item", "uint64", coded=True),
                Trait("shop", "string", sparse=True, coded=True),
                Trait("semantic", "uint16", length_max=4),
            ],
            "feedback": FEEDBACK,
        },
        user_ids="uint64",
        event_ids="uint64",
    ),
}
ALL = Projection()
WANTED = Wanted()
EVENTS = 120
WHOLE_DAYS = 2
"""Days before the online half takes over."""


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_cluster() as (_, servers):
        yield servers


def drawn_events(schema: Schema, rng: random.Random) -> list[Event]:
    """Events of some days, a few of which come twice, late, or at one time."""
    made = []
    for number in range(EVENTS):
        arrival_ts = START_TS + rng.randrange(WHOLE_DAYS * DAY_MS // 1000) * 1000
        made.append(
            Event(
                rng.choice(USERS),
                arrival_ts - rng.choice((0, 0, 0, 5000, DAY_MS)),
                arrival_ts,
                known_id(number, schema.event_ids),
                {trait.name: values(trait, rng) for trait in schema.traits},
            )
        )
    return made + made[::20]


def bits(batch: Any, n: int) -> dict[str, Any]:  # noqa: ANN401 - of a client
    """An example's columns as bits, so that NaNs and zeros differ."""
    lists = {name: batch.to_lists(name)[n] or [] for name in batch.values}
    return {name: as_bits(column) for name, column in lists.items()}


def as_bits(shown: Sequence[Any]) -> list[Any]:
    return [order(tuple(value) if isinstance(value, list) else value) for value in shown]


def expected_bits(oracle: Oracle, entries: Sequence[Entry]) -> dict[str, Any]:
    names = columns(WANTED, oracle.schema)
    return {name: as_bits(oracle.column(entries, name)) for name in names}


def materialized(client: Client, rows: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns the status and the columns of every row of a file."""
    found = []
    for piece, _ in read_thin_rows(rows, examples=7):
        batch = client.materialize(piece, ALL)
        found += [(int(status), bits(batch, n)) for n, status in enumerate(batch.statuses)]
    return found


def differing_rows(rows: Path, store: Path, fat: Path) -> int:
    """Counts the thin rows of which `verify` says that they differ from fat ones."""
    report = thinrow.verify(rows, server=str(store), against=fat)
    assert report.values
    return report.rows_that_differ


def check_offline(world: World, oracle: Oracle, events: list[Event], raw: Path) -> None:
    """Backfills requests, and takes them through clients, loader, verify, materialize and slim."""
    schema, rng = oracle.schema, random.Random(1)
    past = Past(events, schema, DAY_MS, last_cut=as_of(WHOLE_DAYS))
    requested = [
        (rng.choice((*USERS, STRANGER)), START_TS + rng.randrange(1, WHOLE_DAYS * DAY_MS))
        for _ in range(24)
    ]
    seen = [past.sees(user, request_ts).sequence for user, request_ts in requested]
    assert sum(map(len, seen)) > len(requested)
    requests = pa.table(
        {
            "user_id": id_array([user for user, _ in requested], schema.user_ids),
            "request_ts": [request_ts for _, request_ts in requested],
            "label": range(len(requested)),
        }
    )
    rows = world.folder / "rows.parquet"
    thinrow.backfill(requests, store=world.store, events=raw, out=rows)
    expected = [(wire.STATUS_OK, expected_bits(oracle, entries)) for entries in seen]
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with (
        Server(config) as server,
        connect(server.address) as remote,
        connect(world.store) as local,
    ):
        for client in (remote, local):
            assert materialized(client, rows) == expected
    fat, again = world.folder / "fat.parquet", world.folder / "again.parquet"
    fat_rows(fat, requests, seen, schema)
    ids = pa.array(
        [[entry.event.event_id for entry in entries] for entries in seen],
        pa.list_(event_id_array([], schema.event_ids).type),
    )
    pq.write_table(pq.read_table(fat).append_column("event_id", ids), fat)
    assert differing_rows(rows, world.store, fat) == 0
    thinrow.materialize(rows, server=str(world.store), out=again)
    assert differing_rows(rows, world.store, again) == 0
    refused = {"out_events": world.folder / "e.parquet", "out_rows": world.folder / "r.parquet"}
    if any(trait.coded for trait in schema.traits):
        with pytest.raises(InputError, match=r"again\.parquet has codes of item and no values"):
            thinrow.slim(again, schema=world.schema, **refused)
    slim = new_world(world.folder / "slim", schema_toml(schema))
    outputs = {"out_events": slim.folder / "e.parquet", "out_rows": slim.folder / "r.parquet"}
    report = thinrow.slim(fat, schema=slim.schema, order="arrival", **outputs)
    thinrow.compact(
        outputs["out_events"],
        store=slim.store,
        schema=slim.schema,
        watermark=report.watermark_ts,
        cadence="1d",
    )
    assert differing_rows(outputs["out_rows"], slim.store, fat) == 0


def log_rows(folder: Path, online: Online, rows: Sequence[ThinRow], brokers: str) -> Path:
    """Logs rows to files and to a topic of the folder's name; returns the folder of files."""
    config = LoggerConfig(
        journal=folder / "journal",
        mutable=mutable_type(online.client.describe()),
        user_ids=online.schema.user_ids,  # type: ignore[arg-type]
        features=pa.schema([("number", pa.int64())]),
        labels=pa.schema([("label", pa.int64())]),
        label_defaults={"label": 0},
        join_window_ms=1,
        files=FileOutput(folder=folder / "logged", part_ms=0),
        kafka=KafkaOutput(topic=folder.name, bootstrap_servers=brokers, linger_ms=0),
    )
    with ThinRowLogger(config) as logger:
        for number, row in enumerate(rows):
            logger.log(str(number), row, {"number": number})
        logger.drain(60)
    return folder / "logged"


def loaded(source: Any, store: Path, rows: int) -> dict[int, Any]:  # noqa: ANN401 - files, or a topic
    """Returns the status and tensors of each row by its number."""
    config = LoaderConfig(batch_examples=1, columns=("number",))
    found = {}
    with ThinRowLoader(source, store, ALL, config) as loader:
        for batch in islice(loader, rows):
            [(_, status, traits, beside)] = shown_tensors(batch)
            found[beside["number"]] = status, traits
    return found


def check_online(online: Online, folder: Path, rng: random.Random, brokers: str) -> None:
    """Appends, takes snapshots, logs them, hands over, erases, and trains from what was logged."""
    schema, oracle = online.schema, online.oracle
    rows: list[ThinRow] = []
    with online.running():
        for number in range(6):
            online.now[0] += 1000
            online.append(
                [
                    Event(
                        user,
                        online.now[0] - rng.choice((0, 500, DAY_MS)),
                        0,
                        known_id(EVENTS + 10 * number + place, schema.event_ids),
                        {trait.name: values(trait, rng) for trait in schema.traits},
                    )
                    for place, user in enumerate(USERS)
                ]
            )
            if number == 3:
                online.hand_over()
            online.now[0] += 1000
            seen = online.check(USERS[number % 3], 0, 0, 0, WANTED)
            assert seen is not None
            rows.append(seen.thin_row)
        logged = log_rows(folder, online, rows, brokers)
        online.now[0] += 1000
        online.hand_over()
        erased = USERS[0]
        online.now[0] += 1000
        online.hand_over(frozenset({erased}))
    world, expected = online.world, {}
    for number, row in enumerate(rows):
        user = USERS[number % 3]
        own = [
            event
            for event in online.arrived
            if event.user_id == user and row.end_ts <= event.arrival_ts < row.request_ts
        ]
        own.sort(key=lambda event: event_order(event, schema))
        pointer = Pointer(user, row.start_ts, row.end_ts)
        status, entries = oracle.answer(pointer, WANTED, own, row.request_ts)
        assert status == ("ERASED" if user == erased else "OK")
        expected[number] = wire.Status.Value(f"STATUS_{status}"), expected_bits(oracle, entries)
    found: dict[int, tuple[int, dict[str, Any]]] = {}
    with connect(world.store) as client:
        for path in logged.rglob("*.parquet"):
            numbers = pq.ParquetFile(path).read().column("number").to_pylist()
            found.update(zip(numbers, materialized(client, path), strict=True))
    assert found == expected
    kept = {n: one for n, one in expected.items() if one[0] == wire.STATUS_OK}
    topic = KafkaConfig(topic=folder.name, bootstrap_servers=brokers, group="trainers")
    for source in (str(logged / "**/*.parquet"), KafkaSource(topic)):
        for number, (status, traits) in loaded(source, world.store, len(kept)).items():
            assert (status, {n: as_bits(column) for n, column in traits.items()}) == kept[number]


@pytest.mark.parametrize("name", LOGS)
def test_every_path_is_what_the_oracle_says(tmp_path: Path, name: str, brokers: str) -> None:
    schema, rng = LOGS[name], random.Random(name)
    world = new_world(tmp_path / "world", schema_toml(schema))
    oracle = Oracle(schema)
    events = drawn_events(schema, rng)
    raw = world.write("raw.parquet", events_table(events, schema, plain=False))
    report = compact(world.compaction([raw], WHOLE_DAYS, cadence_ms=DAY_MS))
    expected = oracle.compact(Run(events, as_of(WHOLE_DAYS), DAY_MS))
    assert report.events_added == expected.events_added == EVENTS
    assert report.duplicates == expected.duplicates
    check_offline(world, oracle, events, raw)
    now = [as_of(WHOLE_DAYS)]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=0.02,
        drain_s=1,
        wall=lambda: now[0],
    )
    online = Online(world, schema, config, now)
    online.oracle = oracle
    check_online(online, tmp_path / f"log-{len(name)}", rng, brokers)
