"""A store in the trainer's process: the same answers, lives as long as its client, bounded."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
from support.thin_rows import rows_table, write_rows
from support.worlds import (
    ALL,
    World,
    as_of,
    built_world,
    days,
    new_world,
    pointers_to,
    read_store,
    shown,
    some_events,
)
from thinrow.cli.app import app
from thinrow.client import Client, ClientConfig, Projection, StoreConfig, connect
from thinrow.client.torch import LoaderConfig, ThinRowDataset, ThinRowLoader
from thinrow.core.pointers import Pointers
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    RequestError,
    StoreError,
    StoreMissingError,
    UnavailableError,
    UnknownTenantError,
    UsageError,
)
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.in_process import StoreReader
from thinrow.materialization.server import Server
from thinrow.store.generation import Generation
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

THREADS = ("thinrow-store", "thinrow-current", "thinrow-tenants")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def own_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(THREADS)]


# As a server answers.


def test_every_call_has_the_answer_of_a_server(world: World) -> None:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    rows = pointers_to(days(2, 3, 4))
    wanted = Projection(3, traits=("brand", "price"), truncation="head")
    with (
        Server(config) as server,
        connect(server.address) as remote,
        connect(world.store, ClientConfig(store=StoreConfig(examples_per_lookup=4))) as local,
    ):
        for projection in (ALL, wanted):
            assert shown(local.materialize(rows, projection)) == shown(
                remote.materialize(rows, projection)
            )
            batches = [rows, rows[:0], rows[:5]]
            assert [shown(batch) for batch in local.stream(batches, projection)] == [
                shown(batch) for batch in remote.stream(batches, projection)
            ]
        for user in (1, 99):
            assert local.inspect(user, as_of(2), wanted) == remote.inspect(user, as_of(2), wanted)
        assert local.inspect(1) == remote.inspect(1)
        for client in (local, remote):
            everything = client.materialize(rows, "", deadline_s=math.inf)
            assert shown(everything) == shown(remote.materialize(rows, Projection()))
            for deadline_s in (0, -1, math.nan):
                with pytest.raises(UsageError, match=r"deadline_s is .*; it must be above 0"):
                    client.materialize(rows, ALL, deadline_s=deadline_s)
        described = local.describe_store()
        assert replace_limits(described) == replace_limits(remote.describe_store())
        assert described.limits.examples_max == 4
        for nonsense in (Projection(traits=("nonsense",)), Projection(feature_groups=("no",))):
            messages = set()
            for client in (local, remote):
                with pytest.raises(RequestError) as caught:
                    client.materialize(rows, nonsense)
                messages.add(str(caught.value))
            assert len(messages) == 1
        with pytest.raises(UsageError, match="connect to a server for one"):
            _ = local.stub
        assert repr(local) == f"Client({world.store})"


def replace_limits(description: Any) -> Any:  # noqa: ANN401 - a message
    copied = type(description)()
    copied.CopyFrom(description)
    copied.ClearField("limits")
    return copied


def test_tenants_come_from_their_file(world: World, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    # Tokens are for servers: a process that reads the store's files needs none.
    file.write_text(f'[short]\nsequence_length = 2\ntoken_sha256 = ["{"0" * 64}"]\n')
    rows = pointers_to(days(3))
    with connect(world.store, ClientConfig(store=StoreConfig(tenants=file))) as client:
        batch = client.materialize(rows, "short")
        assert shown(batch) == shown(client.materialize(rows, Projection(2)))
        assert client.describe_store().tenants == ["short"]
        with pytest.raises(UnknownTenantError, match="it knows: short"):
            client.materialize(rows, "long")
    with (
        connect(world.store) as client,
        pytest.raises(UnknownTenantError, match=r"StoreConfig\(tenants=…\)"),
    ):
        client.materialize(rows, "short")


# Its life.


def test_a_generation_published_meanwhile_is_read(tmp_path: Path) -> None:
    world = built_world(tmp_path / "world")
    rows = pointers_to(days(3, 4))
    with connect(world.store) as client:
        before = shown(client.materialize(rows, ALL))
        assert {status for status, _ in before} == {1, 2}
        world.compact(some_events(first_day=3, days=1), 4)
        end_s = time.monotonic() + 60
        while client.describe_store().generation == 1:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        after = shown(client.materialize(rows, ALL))
        assert after == read_store(world.store, rows)
        assert after[:6] == before[:6]


def test_closing_ends_streams_and_threads(world: World) -> None:
    before = own_threads()
    client = connect(world.store)
    stream = client.stream([pointers_to(days(3))] * 50, ALL)
    next(stream)
    client.close()
    client.close()
    with pytest.raises(UnavailableError, match="was closed"):
        list(stream)
    with pytest.raises(UnavailableError, match="was closed"):
        client.inspect(1)
    assert own_threads() == before


def test_a_client_that_is_dropped_closes_its_store(world: World) -> None:
    before = own_threads()
    client = connect(world.store)
    client.describe_store()
    with mock.patch.object(Generation, "close", autospec=True) as close:
        del client
        gc.collect()
    assert close.call_count == 1
    assert own_threads() == before


def test_threads_share_a_client_while_generations_change(tmp_path: Path) -> None:
    world = built_world(tmp_path / "world")
    rows, ended = pointers_to(days(3)), threading.Event()
    right = read_store(world.store, rows)
    failed: list[object] = []

    def look_up() -> None:
        while not ended.is_set():
            answers = [shown(batch) for batch in client.stream([rows] * 3, ALL)]
            answers.append(shown(client.materialize(rows, ALL)))
            failed.extend(answer for answer in answers if answer != right)

    config = ClientConfig(store=StoreConfig(examples_per_lookup=2))
    with connect(world.store, config) as client:
        threads = [threading.Thread(target=look_up) for _ in range(4)]
        for thread in threads:
            thread.start()
        for day in (4, 5):
            world.compact(some_events(first_day=day - 1, days=1, seed=day), day, keep=1)
            time.sleep(1)
        ended.set()
        for thread in threads:
            thread.join()
        assert client.describe_store().generation == 3
    assert not failed


def test_a_loader_keeps_its_store_open_from_pass_to_pass(world: World, tmp_path: Path) -> None:
    before = own_threads()
    rows = write_rows(tmp_path, [60])
    config = LoaderConfig(batch_examples=8)
    with (
        mock.patch.object(Generation, "open_current", wraps=Generation.open_current) as opened,
        ThinRowLoader(rows, world.store, ALL, config) as loader,
    ):
        assert str(world.store) in repr(loader)
        # Each pass is left after two of the epoch's eight batches.
        seen = [n for _ in range(4) for b in islice(loader, 2) for n in b.example_ids.tolist()]
        assert sorted(seen) == list(range(60))
        assert opened.call_count == 1
    assert own_threads() == before


def test_a_relative_path_stays_that_of_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = built_world(tmp_path / "world")
    monkeypatch.chdir(world.store.parent)
    with (
        connect("./store") as client,
        ThinRowLoader(rows_table(40), "store", ALL) as loader,
    ):
        dataset = ThinRowDataset(rows_table(40), "store", ALL)
        monkeypatch.chdir(tmp_path)
        for batches in (loader, dataset):
            assert sum(len(batch.example_ids) for batch in batches) == 40
        world.compact(some_events(first_day=3, days=1), 4)
        end_s = time.monotonic() + 60
        while client.describe_store().generation == 1:
            assert time.monotonic() < end_s
            time.sleep(0.05)


FORKED = """
import gc, json, os, sys, warnings
warnings.simplefilter("ignore")
from thinrow.client import Pointers, Projection, connect
from thinrow.client.torch import LoaderConfig, ThinRowDataset
from thinrow.errors import UsageError
from torch.utils.data import DataLoader

store, rows, end_ts = sys.argv[1], sys.argv[2], int(sys.argv[3])
pointers = Pointers(user_ids=[1, 2, 3], end_ts=[end_ts] * 3)
parent = connect(store)
right = parent.materialize(pointers, Projection()).to_lists("item_id")
sys.stdout.flush()
child = os.fork()
if not child:
    try:
        parent.materialize(pointers, Projection())
    except UsageError as error:
        print(json.dumps(str(error)), flush=True)
    with connect(store) as mine:
        assert mine.materialize(pointers, Projection()).to_lists("item_id") == right, "forked"
    del parent
    gc.collect()
    os._exit(0)  # as workers of multiprocessing and torch end; RocksDB cannot end a fork otherwise
assert os.waitpid(child, 0)[1] == 0
dataset = ThinRowDataset(rows, store, Projection(), LoaderConfig(batch_examples=8))
loader = DataLoader(dataset, batch_size=None, num_workers=2)
epochs = [[n for batch in loader for n in batch.example_ids.tolist()] for _ in range(2)]
# The parent's own was open all the while, and is still.
assert parent.materialize(pointers, Projection()).to_lists("item_id") == right
print(json.dumps(epochs))
"""


def test_processes_open_a_store_of_their_own(world: World, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [40], row_group=7)
    run = subprocess.run(
        [sys.executable, "-c", FORKED, str(world.store), rows, str(as_of(3))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    refused, epochs = map(json.loads, run.stdout.splitlines())
    assert "open it here, with a client of its own" in refused
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)


# Its bounds.


def test_lookups_are_split_to_fit_the_memory(world: World) -> None:
    rows = pointers_to(days(3) * 20)
    right = read_store(world.store, rows)

    def client(**limits: Any) -> Client:  # noqa: ANN401
        return connect(world.store, ClientConfig(store=StoreConfig(**limits)))

    with client(work_bytes_max=100_000, cache_bytes_max=1, lookup_threads=1) as tight:
        assert [shown(batch) for batch in tight.stream([rows] * 2, ALL)] == [right] * 2
        assert shown(tight.materialize(rows, ALL)) == right
    with client(work_bytes_max=1000) as none, pytest.raises(AnswerTooLargeError):
        none.materialize(rows, ALL)
    for field in ("work_bytes_max", "cache_bytes_max", "examples_per_lookup", "lookup_threads"):
        with pytest.raises(UsageError, match=f"{field} is 0"):
            client(**{field: 0})


def test_reading_has_a_deadline(world: World) -> None:
    hanging, released = threading.Event(), threading.Event()

    def hang(*_: object) -> bytes:
        hanging.set()
        released.wait(60)
        return b""

    rows = pointers_to(days(3))
    with (
        connect(world.store, ClientConfig(request_deadline_s=0.2)) as client,
        mock.patch.object(StoreReader, "materialize", side_effect=hang),
    ):
        try:
            for call in (client.materialize, lambda *given: list(client.stream([given[0]], ALL))):
                with pytest.raises(DeadlineError, match=r"was not read in 0\.2 s"):
                    call(rows, ALL)
            assert hanging.is_set()
        finally:
            released.set()


# Mistakes end in one sentence.


@pytest.fixture
def mistakes(world: World, tmp_path: Path) -> Iterator[dict[str, tuple[Path, str]]]:
    """Folders that cannot be opened, and words of the reason."""
    other, gone, newer = tmp_path / "other", tmp_path / "gone", tmp_path / "newer"
    other.mkdir()
    (other / "rows.parquet").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    compacting = new_world(tmp_path / "compacting").store
    compacting.mkdir()
    (compacting / "LOCK").touch()
    gone.mkdir()
    (gone / "CURRENT").write_text("generation-000007\n")
    built_world(tmp_path / "built", count=5).store.rename(newer)
    manifest = newer / "generation-000001/manifest.json"
    body = json.loads(manifest.read_text())
    body["format"] += 2
    del body["xxh3"]
    from thinrow.store.manifest import _checksum

    manifest.write_text(json.dumps(body | {"xxh3": _checksum(body)}))
    yield {
        "missing": (tmp_path / "missing", "There is no folder"),
        "other": (other, "is a folder without a store; name the folder"),
        "generation": (
            world.store / "generation-000001",
            f"the store's folder, {world.store}",
        ),
        "empty": (empty, "build one with thinrow compact"),
        "compacting": (compacting, "wait for the compaction"),
        "gone": (gone, "generation-000007 is gone"),
        "newer": (newer, "use the version that wrote it"),
    }


def test_what_cannot_be_opened_is_refused_in_one_sentence(
    mistakes: dict[str, tuple[Path, str]],
) -> None:
    before = own_threads()
    for path, words in mistakes.values():
        with pytest.raises(StoreError) as caught:
            connect(path)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert issubclass(StoreMissingError, StoreError)
    assert own_threads() == before


def test_without_the_servers_libraries_the_extra_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "thinrow.materialization.in_process", None)
    with pytest.raises(UsageError, match=r"pip install 'thinrow\[server\]'"):
        connect(world.store)


# Commands.


def test_commands_take_a_store_for_a_server(world: World, tmp_path: Path) -> None:
    rows, fat = tmp_path / "rows.parquet", tmp_path / "fat.parquet"
    pq.write_table(rows_table(30), rows)

    def run(*arguments: object) -> Any:  # noqa: ANN401 - a result
        return CliRunner().invoke(app, [*map(str, arguments), "--server", str(world.store)])

    assert run("materialize", rows, "--out", fat).exit_code == 0
    verified = run("verify", rows, "--against", fat)
    assert verified.exit_code == 0, verified.output
    assert "Every event is equal" in verified.output
    inspected = run("inspect", "--user", 1, "--limit", 2)
    assert inspected.exit_code == 0, inspected.output
    token = tmp_path / "token"
    token.write_text("secret")
    refused = run("inspect", "--user", 1, "--token-file", token)
    assert (refused.exit_code, "Credentials are for servers" in refused.stderr) == (2, True)


def test_pointers_of_no_examples_are_answered(world: World) -> None:
    with connect(world.store) as client:
        assert len(client.materialize(Pointers(user_ids=[], end_ts=[]), ALL)) == 0
