"""Counters of a server: documented, bounded, and right, with one process or several."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from support.paths import DOCS
from support.server_processes import AT_ONCE, TWO, pids, until
from support.worlds import ALL, World, built_world, days, pointers_to, running_server, some_events
from thinrow.access.metrics import TENANT_LABELS_MAX
from thinrow.access.metrics_endpoint import MetricsEndpoint
from thinrow.client import Pointers, connect
from thinrow.cluster.map_metrics import MapMetrics, MemberSeries
from thinrow.cluster.member import ClusterMember
from thinrow.errors import RequestError, UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.metrics import METHODS, STAGES, Metrics
from thinrow.materialization.server import Server
from thinrow.remote.mirror_metrics import MirrorMetrics
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.worlds import Running

TENANTS = '[ranker]\nsequence_length = 3\ntraits = ["brand"]\n[idle]\nsequence_length = 1\n'
OPERATIONS = DOCS / "operations/operations.md"
ONLY_OF_SEVERAL = {"thinrow_processes", "thinrow_process_deaths_total"}
ONLY_OF_VOCABULARIES = {"thinrow_vocabulary_values", "thinrow_vocabulary_values_max"}
"""Series of stores that have some; see test_vocabularies.py."""
MIRRORED = "thinrow_mirror_"
"""Begins the names of series of servers that have a mirror."""
CLUSTERED = "thinrow_cluster_"
"""Begins the names of series of servers that belong to a cluster."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = built_world(tmp_path_factory.mktemp("world"))
    (world.folder / "tenants.toml").write_text(TENANTS, encoding="utf-8")
    return world


@contextmanager
def serving(world: World) -> Iterator[Server]:
    """A server in this process."""
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, poll_s=0.05)
    with Server(config) as server:
        yield server


def value(server: Server, name: str, **labels: str) -> float:
    found = server.metrics.registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def exported(server: Running) -> dict[str, set[str]]:
    """Every series, named as the documentation names it, with its labels."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in families
        if not family.name.endswith("_created")
    }


def documented() -> dict[str, set[str]]:
    """Every series in the tables of operations.md, with its labels."""
    text = OPERATIONS.read_text(encoding="utf-8").split("## Metrics\n")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    found = re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", " ".join(first_cells))
    assert len({name for name, _ in found}) == len(found), "one line for each"
    return {name: set(labels.split(",")) - {""} for name, labels in found}


@pytest.mark.parametrize("options", [(), TWO], ids=["one", "two"])
def test_every_series_is_documented_and_every_documented_one_is_there(
    world: World, options: tuple[object, ...]
) -> None:
    tenants = world.folder / "tenants.toml"
    with running_server(world.store, "--tenants", tenants, *options) as server:
        with connect(server.address, AT_ONCE) as client:
            client.materialize(pointers_to(days(3)), "ranker")
            with pytest.raises(RequestError):
                client.materialize(pointers_to(days(3)), "nobody")
        result = documented()
        if not options:
            assert result.keys() >= ONLY_OF_SEVERAL
            result = {
                name: labels for name, labels in result.items() if name not in ONLY_OF_SEVERAL
            }
        assert result.keys() >= ONLY_OF_VOCABULARIES
        result = {
            name: labels for name, labels in result.items() if name not in ONLY_OF_VOCABULARIES
        }
        of_others = {name for name in result if name.startswith((MIRRORED, CLUSTERED))}
        assert of_others
        assert exported(server) == {
            name: labels for name, labels in result.items() if name not in of_others
        }


def series_of(registry: CollectorRegistry) -> set[str]:
    """Names of the series of a registry, as a scrape has them."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }


def test_series_of_mirrors_are_documented() -> None:
    registry = CollectorRegistry()
    MirrorMetrics(registry)
    assert series_of(registry) == {name for name in documented() if name.startswith(MIRRORED)}


def test_series_of_clusters_are_documented(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    MapMetrics(registry)
    registry.register(MemberSeries(ClusterMember(tmp_path, "0"), lambda: 0))
    assert series_of(registry) == {name for name in documented() if name.startswith(CLUSTERED)}


def test_series_are_there_before_the_first_call(world: World) -> None:
    """A rate sees the first step only of a series that began at 0."""
    began_s = time.time()
    with running_server(world.store, "--tenants", world.folder / "tenants.toml") as server:
        series = server.scrape()
    for stage in STAGES:
        assert series[f'thinrow_stage_seconds_count{{stage="{stage}"}}'] == 0
    for method in METHODS:
        assert series[f'thinrow_request_seconds_count{{method="{method}",tenant=""}}'] == 0
    for tenant in ("", "ranker", "idle"):
        assert series[f'thinrow_examples_total{{status="OK",tenant="{tenant}"}}'] == 0
        assert series[f'thinrow_tenant_sent_bytes_total{{tenant="{tenant}"}}'] == 0
        assert series[f'thinrow_tenant_in_flight_requests{{tenant="{tenant}"}}'] == 0
    assert series["thinrow_ready"] == 1
    assert series["thinrow_ready_seconds"] > 0
    assert began_s <= series["thinrow_generation_opened_timestamp_seconds"] <= time.time()


@pytest.mark.parametrize("options", [(), TWO], ids=["one", "two"])
def test_tenants_are_distinguished(world: World, options: tuple[object, ...]) -> None:
    tenants = world.folder / "tenants.toml"
    with running_server(world.store, "--tenants", tenants, *options) as server:
        for _ in range(10):
            with connect(server.address, AT_ONCE) as client:
                client.materialize(pointers_to(days(3)), "ranker")
                list(client.stream([pointers_to(days(3))] * 2, ALL))
                for name in ("nobody", 'x"}\n'):
                    with pytest.raises(RequestError):
                        client.materialize(pointers_to(days(3)), name)
                client.describe_store()
                client.inspect(1)
        until(lambda: server.scrape()["thinrow_streams"] == 0)
        series = server.scrape()
    counted = {
        re.sub(r'.*method="(\w+)",tenant="(\w*)".*', r"\1 \2", name): count
        for name, count in series.items()
        if name.startswith("thinrow_request_seconds_count") and count
    }
    assert counted == {
        "Materialize ranker": 10,
        "Materialize ": 20,
        "MaterializeStream ": 20,
        "DescribeCluster ": 10,
        "DescribeStore ": 10,
        "Inspect ": 10,
    }
    for name, count in series.items():
        if name.startswith("thinrow_request_seconds_count"):
            most = name.replace("count{", 'bucket{le="+Inf",')
            assert series[most] == count
    sent = [series[f'thinrow_tenant_sent_bytes_total{{tenant="{one}"}}'] for one in ("ranker", "")]
    assert all(sent)
    assert sum(sent) == series["thinrow_sent_bytes_total"]
    assert not any("nobody" in name or 'x"' in name for name in series)
    in_flight = [name for name in series if name.startswith("thinrow_tenant_in_flight")]
    assert [series[name] for name in in_flight] == [0, 0, 0]


def test_a_tenant_is_seen_while_its_request_is_in_work(world: World) -> None:
    with serving(world) as server:
        metrics = server.metrics
        with metrics.request("Materialize"), metrics.request("Materialize"):
            assert value(server, "thinrow_tenant_in_flight_requests", tenant="") == 2
            with suppress(ZeroDivisionError), metrics.request("Inspect"):
                raise ZeroDivisionError
        assert value(server, "thinrow_tenant_in_flight_requests", tenant="") == 0
        assert value(server, "thinrow_request_seconds_count", method="Inspect", tenant="") == 1


def test_labels_are_bounded() -> None:
    """However many tenants come and go, and whatever callers make up."""

    class Store:
        opened_ts = 1000

        def read_counts(self) -> object:
            raise AssertionError

    class Known:
        usable = True

        @property
        def by_name(self) -> dict[str, None]:
            return dict.fromkeys(known)

    known = [f"tenant {n:03}" for n in range(TENANT_LABELS_MAX - 10)]
    metrics = Metrics()
    metrics.serve(Store())  # type: ignore[arg-type]
    metrics.bind_tenants(Known(), None)  # type: ignore[arg-type]
    assert {metrics.tenant(name) for name in known} == set(known)
    assert metrics.tenant("made up") == metrics.tenant("") == ""
    known = [f"later {n:03}" for n in range(1000)]
    labels = {metrics.tenant(name) for name in known}
    assert len(labels - {""}) == 10
    assert "" in labels


def test_the_store_counts_what_was_in_memory(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    name = "thinrow_store_values_total"
    with serving(world) as server, connect(server.address, AT_ONCE) as client:

        def counts() -> tuple[float, float]:
            return value(server, name, source="memory"), value(server, name, source="files")

        assert counts() == (0, 0)
        client.materialize(pointers_to(days(3)), ALL)
        memory, files = counts()
        assert memory == 0
        # A directory for each user; of those with a history stripes of times and of each group.
        pointers = pointers_to(days(3))
        with Generation.open_current(world.store) as generation:
            directories = generation.directories(np.unique(pointers.user_ids))
        assert files == 6 + 3 * len(directories.stripe_ts)
        client.materialize(pointers_to(days(3)), ALL)
        assert counts() == (files, files)
        opened_ts = value(server, "thinrow_generation_opened_timestamp_seconds")
        world.compact(some_events(days=2, first_day=3), 5)
        until(lambda: value(server, "thinrow_generation") == 2)
        assert value(server, "thinrow_generation_opened_timestamp_seconds") > opened_ts
        assert counts() == (files, files), "counts outlive their generation"
        client.materialize(pointers_to(days(5)), ALL)
        memory, later = counts()
        assert memory == files
        assert later >= 2 * files


def test_a_generation_that_cannot_be_opened_is_counted(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    with serving(world) as server:
        world.compact(some_events(days=2, first_day=3), 5)
        until(lambda: value(server, "thinrow_generation") == 2)
        world.compact(some_events(days=1, first_day=5), 6, keep=9)
        until(lambda: value(server, "thinrow_generation") == 3)
        (world.store / "generation-000002" / "manifest.json").write_text("{")
        (world.store / "CURRENT").write_text("generation-000002\n")
        until(lambda: value(server, "thinrow_generation_open_failures_total") > 0)
        assert value(server, "thinrow_generation") == 3
        assert value(server, "thinrow_ready") == 1


def test_what_a_killed_process_counted_stays_and_what_it_held_goes(world: World) -> None:
    counters = ("thinrow_request_seconds_", "thinrow_store_values_total", "thinrow_stage_seconds_")
    with running_server(world.store, *TWO) as server, ExitStack() as stack:
        enough = threading.Event()

        def one_and_wait() -> Iterator[Pointers]:
            yield pointers_to(days(3))
            enough.wait(120)

        def hold() -> None:
            with suppress(Exception), connect(server.address, AT_ONCE) as client:
                list(client.stream(one_and_wait(), ALL))

        holders = [threading.Thread(target=hold) for _ in range(12)]
        for holder in holders:
            stack.callback(holder.join)
        stack.callback(enough.set)
        for holder in holders:
            holder.start()
        requested = 'thinrow_request_seconds_count{method="MaterializeStream",tenant=""}'
        until(lambda: server.scrape()[requested] == 12)
        before = server.scrape()
        os.kill(pids(server)[0], signal.SIGKILL)
        until(lambda: server.scrape()["thinrow_process_deaths_total"] == 1)
        until(lambda: server.scrape()["thinrow_processes"] == 2)
        after = server.scrape()
        for name, count in before.items():
            if name.startswith(counters):
                assert after[name] == count, name
        assert after["thinrow_streams"] < before["thinrow_streams"] == 12
        assert after["thinrow_ready"] == 1
        assert after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"] / 2
        assert after["process_start_time_seconds"] >= before["process_start_time_seconds"]
        [info] = [name for name in after if name.startswith("thinrow_build_info")]
        assert after[info] == 1


def test_readiness_ends_with_the_drain(world: World) -> None:
    with serving(world) as server:
        assert value(server, "thinrow_ready") == 1
    assert value(server, "thinrow_ready") == 0


def test_the_port_answers_only_what_it_knows(world: World) -> None:
    with running_server(world.store) as server:
        for path in ("/metrics/", "/../etc/passwd", "/favicon.ico", "/%00"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://{server.metrics}{path}", timeout=60)
        with pytest.raises(UsageError, match="Cannot listen"):
            MetricsEndpoint(Metrics().registry, server.metrics)
