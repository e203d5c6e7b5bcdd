"""Compaction and exports of a Kafka topic, against an oracle over its log."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import thinrow as thinrow_package
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, new_folder
from support.drawn_topics import DrawnTopic
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import PARTITIONS, mock_cluster
from support.oracle import Oracle, Run
from support.scenarios import World, events_table, examples, schema_toml, worlds
from support.small_topics import Small, brokers, digests, manifest_of
from support.topic_replicas import SCHEMA
from support.worlds import START_TS, thinrow
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_compact
from thinrow.errors import InputError, UsageError
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill
from thinrow.jobs.config import ExportConfig
from thinrow.jobs.connected_jobs import run_export
from thinrow.jobs.connecting import Access
from thinrow.jobs.topic import sealed
from thinrow.jobs.topic.config import BrokersConfig
from thinrow.online.clock import wall_ts
from thinrow.online.topic import cleanup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from thinrow.compaction.report import CompactionReport

pytestmark = needs_broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker(in_memory=True) as broker:
        yield broker


def compact_topic(broker: Broker, config: CompactionConfig) -> CompactionReport:
    return run_compact(config, EngineConfig(), brokers=brokers(broker))


def export(broker: Broker, topic: DrawnTopic, built: Built, watermark_ts: int, **more: Any) -> Path:  # noqa: ANN401
    path = built.folder / f"export-{watermark_ts}.parquet"
    options = {"store": built.store, "schema": built.schema} | more
    config = ExportConfig(
        topic_events=f"kafka:{topic.name}", watermark_ts=watermark_ts, events=path, **options
    )
    report = run_export(config, Access(), brokers(broker))
    first = path.read_bytes()
    run_export(config, Access(), brokers(broker))
    assert path.read_bytes() == first
    before_ts = report.from_ts or 0
    assert report.events == len(topic.arrived(before_ts, watermark_ts))
    assert report.messages_refused == topic.refused(before_ts, watermark_ts)
    assert report.duplicates == topic.repeated(before_ts, watermark_ts)
    return path


@given(worlds(coded=True, least_runs=2, most_runs=3), st.integers(0, 2**32))
@examples(12)
def test_generations_of_a_topic_are_those_of_its_events(
    broker: Broker, world: World, seed: int
) -> None:
    """Each run reads the topic, or an export of it, and has what files of its arrivals give."""
    rng = random.Random(seed)
    topic = DrawnTopic(broker, world.schema, rng, partitions=rng.choice((1, 2, 5)))
    with new_folder() as folder:
        one, twin = Built(folder / "one", world), Built(folder / "twin", world)
        last_ts = 0
        for number, drawn in enumerate(world.runs):
            topic.act(rng.choice((0, 4, 25)))
            watermark_ts = max(last_ts, topic.now_ts + rng.choice((-3, 0, 1, 40))) + 1
            topic.seal(watermark_ts)
            topic.act(rng.choice((0, 6)))
            arrived = topic.arrived(last_ts, watermark_ts)
            run = replace(drawn, events=arrived, watermark_ts=watermark_ts)
            if any(event.arrival_ts == 0 for event in arrived):
                run = replace(run, cadence_ms=None)
            config = replace(one.compaction(run, []), time_unit=None)
            is_direct = rng.random() < 0.6
            if is_direct:
                config = replace(config, events=f"kafka:{topic.name}")
            else:
                config = replace(config, events=[export(broker, topic, one, watermark_ts)])
            with mock.patch("thinrow.compaction.rewrite.STRIPE_EVENTS_MAX", world.stripe_events):
                result = compact_topic(broker, config) if is_direct else compact(config)
            repeated = topic.repeated(last_ts, watermark_ts) if is_direct else 0
            one.check(
                run,
                replace(
                    result,
                    rows_read=result.rows_read - repeated,
                    duplicates=result.duplicates - repeated,
                ),
            )
            assert result.messages_refused == (
                topic.refused(last_ts, watermark_ts) if is_direct else 0
            )
            manifest = manifest_of(one.store)
            assert manifest.topic is not None
            assert manifest.topic.name == topic.name
            assert manifest.topic.offsets == topic.seals(watermark_ts)
            twin.compact(run)
            assert digests(one.store) == digests(twin.store)
            again = compact_topic(broker, config) if is_direct else compact(config)
            assert again.already_published and again.generation == number + 1
            assert manifest_of(one.store) == manifest
            last_ts = watermark_ts


@pytest.fixture
def small(broker: Broker, tmp_path: Path) -> Small:
    return Small(broker, tmp_path)


def test_a_partition_that_is_not_sealed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "SEAL_WAIT_S", 0.5)
    first_ts = small.step()
    watermark_ts = small.topic.now_ts + 10**6
    with pytest.raises(UsageError, match=r"got no message of .* start a server") as refused:
        small.compact("store", watermark_ts)
    assert not (small.folder / "store" / "CURRENT").exists()
    with pytest.raises(UsageError, match="got no message"):
        small.export("export", watermark_ts, schema=small.folder / "schema.toml")
    assert not (small.folder / "export").exists()
    found = re.search(r"--watermark of at most (\d+)", str(refused.value))
    assert found is not None
    assert int(found[1]) >= first_ts
    report = small.compact("store", int(found[1]))
    assert report.events_added
    small.topic.seal(watermark_ts)
    small.compact("store", watermark_ts)
    whole = small.compact("whole", watermark_ts)
    assert whole.event_count == manifest_of(small.folder / "store").event_count


def test_an_empty_topic_is_never_sealed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "SEAL_WAIT_S", 0.2)
    with pytest.raises(
        UsageError, match=r"Partition 0 of .*, and 2 others, .* earlier --watermark\.$"
    ):
        small.compact("store", START_TS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda offsets: offsets[:-1], "has 3 partitions, and had 2"),
        (lambda offsets: [n - (n > 0) for n in offsets], "the topic was made again"),
    ],
)
def test_a_topic_that_does_not_continue(
    small: Small, change: Callable[[list[int]], list[int]], match: str
) -> None:
    small.compact("store", small.step())
    small.set_offsets("store", change)
    watermark_ts = small.step()
    with pytest.raises(UsageError, match=match):
        small.compact("store", watermark_ts)
    with pytest.raises(UsageError, match=match):
        small.export("export", watermark_ts, store=small.folder / "store")
    assert manifest_of(small.folder / "store").number == 1
    assert not (small.folder / "export").exists()


def test_messages_that_a_topic_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that keep 5 MB of each partition drop the oldest messages, before and after a run."""
    # These brokers do not say what a topic deletes, and do not answer that either.
    monkeypatch.setattr(cleanup, "DESCRIBE_TIMEOUT_S", 0.1)
    with mock_cluster() as (producer, servers):

        def send(values: Sequence[bytes | None], timestamp_ts: int) -> None:
            for number in range(PARTITIONS):
                for value in values:
                    producer.produce("lost", value, partition=number, timestamp=timestamp_ts)
            assert producer.flush(60) == 0

        def run(store: str, watermark_ts: int) -> CompactionReport:
            config = CompactionConfig(
                events="kafka:lost",
                store=tmp_path / store,
                schema=tmp_path / "schema.toml",
                watermark_ts=watermark_ts,
            )
            options = BrokersConfig(bootstrap_servers=servers)
            return run_compact(config, EngineConfig(), brokers=options)

        (tmp_path / "schema.toml").write_text(schema_toml(SCHEMA))
        send([b"no events", None], START_TS)
        send([None], START_TS + 1)
        assert run("store", START_TS + 1).messages_refused == PARTITIONS
        send([b"x" * 800_000] * 8, START_TS + 2)
        send([None], START_TS + 3)
        for store, match in (("new", "offset 0, where the topic begins"), ("store", "offset 2, ")):
            with pytest.raises(InputError, match=f"{match}.*: it has lost messages"):
                run(store, START_TS + 3)
        assert manifest_of(tmp_path / "store").number == 1
        assert not (tmp_path / "new" / "CURRENT").exists()


def test_what_a_store_of_a_topic_refuses(small: Small) -> None:
    store, schema = small.folder / "store", small.folder / "schema.toml"
    times = [small.step()]
    small.compact("store", times[0])
    times.append(small.step())
    plain = small.folder / "plain"
    pq.write_table(events_table(small.topic.arrived(*times), SCHEMA, plain=True), plain)
    whole = small.export("whole", times[1], schema=schema)
    rest = small.export("rest", times[1], store=store)
    other = Small(small.broker, small.folder)
    other.step()
    later_ts = other.step()
    foreign = other.export("foreign", later_ts, schema=schema)
    tries: list[tuple[dict[str, Any], str]] = [
        ({"events": [plain]}, "would not say how far it holds the topic"),
        ({"events": [plain, rest]}, "and some are not"),
        ({"events": [whole]}, r"begins at offsets \(0, 0, 0\), and what is there before ends at"),
        ({"events": [rest], "watermark_ts": times[1] - 1}, "give that as --watermark"),
        ({"events": other.name}, f"come from topic {small.topic.name}, and {other.topic.name} is"),
        ({"watermark_ts": times[0] - 1}, "already has watermark"),
        ({"watermark_ts": wall_ts() + 10**6}, "lies ahead of the clock"),
        ({"events": [small.name, str(rest)]}, "from one topic, or from files"),
        ({"events": "kafka:no/name"}, "give kafka:TOPIC"),
        ({"time_unit": "s"}, "in milliseconds"),
    ]
    for options, match in tries:
        with pytest.raises(UsageError, match=match):
            small.compact("store", **({"watermark_ts": times[1]} | options))
    with pytest.raises(UsageError, match="come from topic"):
        small.compact("store", later_ts, events=[foreign])
    with pytest.raises(UsageError, match="lack what arrived before"):
        small.compact("new", times[1], events=[rest])
    with pytest.raises(UsageError, match="give --schema FILE"):
        small.compact("new", times[1], schema=None)
    with pytest.raises(UsageError, match="already has watermark"):
        small.export("again", times[0], store=store)
    with pytest.raises(UsageError, match="no schema of their own"):
        small.export("again", times[0], store=small.folder / "none")
    assert manifest_of(store).number == 1
    small.compact("store", times[1], events=[rest])
    small.compact("new", times[1], events=[whole])
    assert manifest_of(store).topic == manifest_of(small.folder / "new").topic


def test_a_store_of_files_goes_on_with_a_topic(small: Small) -> None:
    """Events that arrived before the files' watermark are in them, and late in the topic."""
    first_ts, second_ts = small.step(), small.step()
    before = small.topic.arrived(0, first_ts)
    plain = small.folder / "plain"
    pq.write_table(events_table(before, SCHEMA, plain=False), plain)
    small.compact("store", first_ts, events=[plain])
    assert manifest_of(small.folder / "store").topic is None
    report = small.compact("store", second_ts)
    oracle = Oracle(SCHEMA)
    oracle.compact(Run(before, first_ts))
    expected = oracle.compact(Run(small.topic.arrived(0, second_ts), second_ts))
    assert report.late == expected.late > 10
    assert (report.events_added, report.duplicates) == (
        expected.events_added,
        expected.duplicates + small.topic.repeated(0, second_ts),
    )
    job: dict[str, Any] = {
        "store": small.folder / "whole",
        "schema": small.folder / "schema.toml",
        "bootstrap_servers": small.broker.address,
    }
    thinrow_package.compact(small.name, watermark=first_ts, **job)
    out = small.folder / "out"
    thinrow_package.export(events=small.name, watermark=second_ts, out=out, **job)
    small.compact("whole", second_ts, events=[out])
    with pytest.raises(UsageError, match="export it to a file first"):
        thinrow_package.backfill(plain, store=job["store"], events=small.name, out=out)
    assert digests(small.folder / "store") == digests(small.folder / "whole")
    assert manifest_of(small.folder / "store").topic == manifest_of(small.folder / "whole").topic


def test_a_fill_keeps_the_offsets(small: Small) -> None:
    small.compact("store", small.step())
    store = small.folder / "store"
    topic = manifest_of(store).topic
    event = small.topic.arrived(0, small.topic.now_ts)[0]
    rows = pa.table({"item_id": [event.traits["item_id"]], "cents": [5]})
    pq.write_table(rows, small.folder / "cents")
    toml = '[price]\ncents = { type = "int64", sparse = true }\n'
    schema = small.folder / "filled.toml"
    schema.write_text(schema_toml(SCHEMA) + toml)
    fill(
        FillConfig(
            values=small.folder / "cents", store=store, by="item_id", schema=schema, group="price"
        )
    )
    assert manifest_of(store).is_fill
    assert manifest_of(store).topic == topic is not None
    assert small.compact("store", small.step(), schema=None).events_added


def test_the_command_says_what_it_refused(small: Small) -> None:
    small.topic.act(60)
    watermark_ts = small.step()
    store, out = small.folder / "store", small.folder / "events.parquet"
    options = ["--watermark", watermark_ts, "--schema", small.folder / "schema.toml"]
    options += ["--bootstrap-servers", small.broker.address]
    exported = thinrow("export", "--events", small.name, "--out", out, *options)
    built = thinrow("compact", small.name, "--store", store, *options)
    count = small.topic.refused(0, watermark_ts)
    assert count > 1
    for done in (exported, built):
        assert done.returncode == 0, done.stderr
        assert f"{count} messages of the topic hold no events of this schema" in done.stdout
        assert re.search(r"\npartition \d, offset \d+: ", done.stdout)
    wrong: list[tuple[tuple[object, ...], str]] = [
        (("compact", "--store", store, *options), "Give EVENTS..., or --events in its place"),
        (("compact", out, "--events", small.name, "--store", store, *options), "Give EVENTS..."),
        (("compact", out, "--store", store, *options), "are for a topic"),
        (("compact", small.name, "--store", store, *options[:4]), "give --bootstrap-servers"),
        (("export", "--out", out, *options), "one of the two"),
    ]
    for command, match in wrong:
        failed = thinrow(*command)
        assert (failed.returncode, match in failed.stderr) == (2, True), failed.stderr
