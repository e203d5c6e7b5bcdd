"""The loader against the oracle and a real server: tensors, batches, policies, epochs, waiting."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.built_worlds import Built, bits, new_folder
from support.oracle import column
from support.scenarios import World as Drawn
from support.scenarios import examples, projections, requested, worlds
from support.scenarios import rows_table as drawn_rows
from support.thin_rows import rows_table, shown, write_rows
from support.worlds import ALL, as_of, built_world, some_events
from thinrow.client import Answer, ClientConfig, Projection, StoreConfig
from thinrow.client.torch import (
    FileSource,
    LoaderConfig,
    RowChunk,
    RowFiles,
    Starvation,
    ThinRowLoader,
    batching,
)
from thinrow.client.torch.starvation import StageClock
from thinrow.core.status import status_name
from thinrow.errors import InputError, RequestError, StatusError, UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.worlds import World
    from thinrow.client.torch import TensorBatch

PASS = dict.fromkeys(("NOT_READY", "EXPIRED", "DIGEST_MISMATCH", "ERASED", "INVALID"), "pass")
SMALL = LoaderConfig(batch_examples=16, lookup_examples=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=["server", "store"])
def server(world: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """A server's address, or the store that the trainer reads itself."""
    if request.param == "store":
        yield str(world.store)
        return
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as running:
        yield running.address


def ids(batches: list[TensorBatch]) -> list[int]:
    return [number for batch in batches for number in batch.example_ids.tolist()]


# The histories are the right ones.


def signed(words: list[Any]) -> list[Any]:
    """Returns uint64 values, and vectors of them, as int64 of the same bits."""
    return [
        None if word is None else np.array(word, np.uint64).view(np.int64).tolist()
        for word in words
    ]


@given(worlds(), st.data())
@examples(12)
def test_tensors_are_what_the_oracle_says(drawn: Drawn, data: st.DataObject) -> None:
    rows = data.draw(requested(drawn, 30))
    wanted = data.draw(projections(drawn.schema))
    names = [trait.name for trait in drawn.schema.traits]
    words = {trait.name for trait in drawn.schema.traits if trait.type == "uint64"}
    words |= {"event_id"} if drawn.schema.event_ids == "uint64" else set()
    own_words = data.draw(st.booleans())
    wanted = replace(wanted, feature_groups=(), traits=("event_ts", "event_id", *names))
    batch_events = data.draw(st.sampled_from((None, 1, 10, 60)))
    with new_folder() as folder:
        built = Built(folder, drawn)
        for run in drawn.runs:
            built.compact(run)
        path = built.write(drawn_rows(rows, [0] * len(rows), drawn.schema, drawn.plain))
        config = LoaderConfig(
            batch_examples=data.draw(st.sampled_from((1, 7, 100))),
            batch_events=batch_events,
            uint64_dtype=torch.uint64 if own_words else None,
            lookup_examples=data.draw(st.sampled_from((1, 8, 100))),
            policies=PASS,  # type: ignore[arg-type]
            client=ClientConfig(examples_per_request=5, store=StoreConfig(examples_per_lookup=5)),
        )
        projection = Projection(
            sequence_length=wanted.sequence_length,
            truncation="head" if wanted.head else "newest",
            traits=wanted.traits,
        )
        with (
            built.serve() as served,
            ThinRowLoader(
                path,
                data.draw(st.sampled_from((served.address, str(built.store)))),
                projection,
                config,
            ) as loader,
        ):
            batches = list(loader)
        result = sorted(
            (example for batch in batches for example in shown(batch)), key=lambda e: e[0]
        )
        assert [example[0] for example in result] == list(range(len(rows)))
        for row, (_, status, traits, _) in zip(rows, result, strict=True):
            right, entries = built.oracle.answer(row.pointer, wanted, row.mutable, row.request_ts)
            assert status_name(status) == right
            for name, values in traits.items():
                expected = column(entries, name, drawn.schema)
                if name in words and not own_words:
                    expected = signed(expected)
                assert bits(values) == bits(expected), name
        for batch in batches:
            lengths = batch.offsets.diff()
            assert len(batch) <= config.batch_examples
            assert batch.max_seqlen == int(lengths.max())
            if batch_events is not None:
                assert int(lengths.sum()) <= batch_events or len(batch) == 1


def test_columns_become_tensors_or_lists(tmp_path: Path, server: str) -> None:
    table = rows_table(20)
    day = pa.array(range(20), pa.int64()).cast(pa.timestamp("s", "UTC"))
    table = (
        table.append_column("small", pa.array([n % 3 for n in range(20)], pa.uint8()))
        .append_column("clicked", pa.array([n % 2 == 0 for n in range(20)]))
        .append_column("at", day)
        .append_column("dwell", pa.array([None if n == 3 else n / 2 for n in range(20)]))
        .append_column("note", pa.array([None if n == 4 else f"n{n}" for n in range(20)]))
        .append_column("holes", pa.array([None if n == 5 else n for n in range(20)]))
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    wanted = ("small", "clicked", "at", "dwell", "note", "label", "user_id")
    with ThinRowLoader(
        RowFiles(tmp_path / "rows.parquet", order="files"),
        server,
        ALL,
        LoaderConfig(columns=wanted, lookup_examples=7),
    ) as loader:
        (batch,) = loader
    assert set(batch.columns) == set(wanted)
    for name, dtype, values in (
        ("small", torch.int64, [n % 3 for n in range(20)]),
        ("clicked", torch.bool, [n % 2 == 0 for n in range(20)]),
        ("at", torch.int64, [1000 * n for n in range(20)]),
        ("label", torch.float32, table["label"].to_pylist()),
        ("user_id", torch.int64, table["user_id"].to_pylist()),
    ):
        tensor = batch.columns[name]
        assert isinstance(tensor, torch.Tensor)
        assert (tensor.dtype, tensor.tolist()) == (dtype, values)
    dwell = batch.columns["dwell"]
    assert isinstance(dwell, torch.Tensor)
    assert dwell.isnan().nonzero().tolist() == [[3]]
    assert batch.columns["note"] == table["note"].to_pylist()
    with (
        ThinRowLoader(tmp_path / "rows.parquet", server, ALL) as loader,
        pytest.raises(InputError, match=r"Column 'holes' has a null.*leave the column out"),
    ):
        list(loader)


def test_integers_are_as_narrow_as_requested(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [20])
    narrow = LoaderConfig(integer_dtype=torch.int32)
    traits = ("event_ts", "rating", "brand", "price")
    with ThinRowLoader(paths, server, Projection(traits=traits), narrow) as loader:
        (batch,) = loader
    assert {trait: values.dtype for trait, values in batch.values.items()} == {
        "event_ts": torch.int64,
        "rating": torch.int32,
        "brand": torch.int32,
        "price": torch.float64,
    }
    with (
        ThinRowLoader(paths, server, Projection(traits=("item_id",)), narrow) as loader,
        pytest.raises(InputError, match="item_id"),
    ):
        list(loader)


# Batches end where they are reported to.


@pytest.mark.parametrize("lookup_examples", [1, 13, 500])
@pytest.mark.parametrize("requests_in_flight", [1, 4])
def test_batches_by_examples(
    tmp_path: Path, server: str, lookup_examples: int, requests_in_flight: int
) -> None:
    paths = write_rows(tmp_path, [60, 40], row_group=17)
    for drop_last in (False, True):
        config = LoaderConfig(
            batch_examples=30,
            lookup_examples=lookup_examples,
            drop_last=drop_last,
            client=ClientConfig(
                requests_in_flight=requests_in_flight,
                examples_per_request=20,
                store=StoreConfig(examples_per_lookup=20),
            ),
        )
        with ThinRowLoader(paths, server, ALL, config) as loader:
            for _ in range(2):
                batches = list(loader)
                assert [len(batch) for batch in batches] == [30, 30, 30] + [10] * (not drop_last)
                assert len(set(ids(batches))) == 100 - 10 * drop_last


def test_batches_by_events_are_as_full_as_can_be(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [150])
    sizes = []
    for lookup_examples in (9, 64):
        config = LoaderConfig(batch_examples=25, batch_events=200, lookup_examples=lookup_examples)
        with ThinRowLoader(paths, server, ALL, config) as loader:
            batches = list(loader)
        lengths = [batch.offsets.diff().tolist() for batch in batches]
        for mine, after in itertools.pairwise(lengths):
            assert sum(mine) <= 200 or len(mine) == 1
            assert len(mine) == 25 or sum(mine) + after[0] > 200
        sizes.append(lengths)
    assert sizes[0] == sizes[1]


def memory_of(tensor: torch.Tensor) -> bytes:
    """Returns the bytes of a tensor's elements, so that NaN equals NaN."""
    return tensor.numpy().tobytes()


def test_small_batches_made_together_are_those_made_alone(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_rows(tmp_path, [100])
    config = LoaderConfig(batch_examples=3, lookup_examples=50)
    made = []
    for together_bytes_max in (batching.TOGETHER_BYTES_MAX, 4096, 0):
        monkeypatch.setattr(batching, "TOGETHER_BYTES_MAX", together_bytes_max)
        with ThinRowLoader(RowFiles(paths, order="files"), server, ALL, config) as loader:
            batches: list[TensorBatch] = []
            for batch in loader:
                assert loader.state_dict()["done"] == min(100, 3 * len(batches) + 3)
                batches.append(batch)
        memory = [batch.offsets.untyped_storage().data_ptr() for batch in batches]
        made.append((batches, len(list(itertools.groupby(memory)))))
    (together, pieces), (some, of_some), (alone, of_alone) = made
    assert pieces < of_some < of_alone == len(alone) == len(some) == len(together) == 34
    for mine, less, theirs in zip(together, some, alone, strict=True):
        for batch in (mine, less):
            assert batch.max_seqlen == theirs.max_seqlen
            assert memory_of(batch.offsets) == memory_of(theirs.offsets)
            assert memory_of(batch.example_ids) == memory_of(theirs.example_ids)
            assert batch.strings == theirs.strings
            for tensors in ("values", "present", "columns"):
                ours, others = getattr(batch, tensors), getattr(theirs, tensors)
                assert list(ours) == list(others)
                for name, expected in others.items():
                    if isinstance(expected, torch.Tensor):
                        assert memory_of(ours[name]) == memory_of(expected), name
                    else:
                        assert ours[name] == expected
        # A copy of one batch leaves out the others.
        copy = mock.Mock(side_effect=torch.clone)
        assert memory_of(mine._moved(copy).offsets) == memory_of(theirs.offsets)
        copied_bytes = sum(call.args[0].nbytes for call in copy.call_args_list)
        tensors_at_most = 3 + len(mine.values) + len(mine.present) + len(mine.columns)
        assert copied_bytes <= mine.nbytes + 64 * tensors_at_most


def test_a_loader_that_is_closed_delivers_no_batch_that_was_made(
    tmp_path: Path, server: str
) -> None:
    config = LoaderConfig(batch_examples=1, lookup_examples=100)
    with ThinRowLoader(write_rows(tmp_path, [100]), server, ALL, config) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        loader.close()
        with pytest.raises(UsageError, match="closed"):
            next(batches)
        assert loader.state_dict()["done"] == 3


def test_no_rows_are_no_batches(tmp_path: Path, server: str) -> None:
    with ThinRowLoader(write_rows(tmp_path, [0]), server, ALL) as loader:
        assert [list(loader), list(loader)] == [[], []]
        assert loader.epoch == 2


# Each status has its policy.


@pytest.fixture(params=["server", "store"])
def troubled(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """Rows of each status, 40 in all, and a server or its store."""
    world = built_world(tmp_path / "troubled")
    erased = tmp_path / "erased.txt"
    erased.write_text("2\n")
    world.compact(some_events(first_day=3, days=1), 4, erase_users=erased)
    table = rows_table(40, users=(1, 3, 4), end_ts=as_of(4))
    uih = table["uih"].to_pylist()
    users = table["user_id"].to_pylist()
    mutable = table["mutable"].to_pylist()
    for number in (5, 6, 39):
        users[number] = 2
        uih[number]["end_ts"] = as_of(3)
        mutable[number] = []
    uih[10]["digest"] = 1
    uih[11]["start_ts"] = as_of(4) + 1
    uih[12]["end_ts"] = as_of(5)
    mutable[12] = []
    request_ts = table["request_ts"].to_pylist()
    request_ts[12] = as_of(5) + 1000
    for name, values in (
        ("user_id", users),
        ("uih", uih),
        ("request_ts", request_ts),
        ("mutable", mutable),
    ):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, tmp_path / "rows.parquet")
    if request.param == "store":
        yield tmp_path / "rows.parquet", str(world.store)
        return
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as running:
        yield tmp_path / "rows.parquet", running.address


COUNTS = {"OK": 34, "ERASED": 3, "DIGEST_MISMATCH": 1, "INVALID": 1, "NOT_READY": 1}


def test_examples_are_passed_on_or_skipped(
    troubled: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    path, address = troubled
    for policy, left_out in (("pass", []), ("skip", [5, 6, 10, 11, 12, 39])):
        caplog.clear()
        config = LoaderConfig(
            batch_examples=7,
            lookup_examples=9,
            policies=dict.fromkeys(PASS, policy),  # type: ignore[arg-type]
        )
        with ThinRowLoader(RowFiles(path, order="files"), address, ALL, config) as loader:
            batches = list(loader)
            assert ids(batches) == [n for n in range(40) if n not in left_out]
            assert all(len(batch) == 7 for batch in batches[:-1])
            assert loader.starvation.examples == COUNTS
            assert loader.epoch == 1
        for batch in batches:
            assert (batch.offsets.diff()[batch.statuses != 1] == 0).all()
        result = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(result) == bool(left_out)
        assert all("3 ERASED" in message and "1 INVALID" in message for message in result)


def test_a_pass_of_skipped_rows_alone_ends(troubled: tuple[Path, str]) -> None:
    path, address = troubled
    pq.write_table(pq.read_table(path).take([5, 6, 39]), path)
    with ThinRowLoader(path, address, ALL) as loader:
        assert list(loader) == []
        assert loader.starvation.examples == {"ERASED": 3}
        assert loader.state_dict()["epoch"] == 1


@pytest.mark.parametrize("batch_examples", [1, 4, 100])
def test_what_comes_before_a_failing_example_is_delivered(
    troubled: tuple[Path, str], batch_examples: int
) -> None:
    path, address = troubled
    config = LoaderConfig(batch_examples=batch_examples, lookup_examples=9)
    with ThinRowLoader(RowFiles(path, order="files"), address, ALL, config) as loader:
        batches: list[TensorBatch] = []
        with pytest.raises(StatusError) as caught:
            batches.extend(loader)
        assert ids(batches) == [0, 1, 2, 3, 4, 7, 8, 9][: 8 // batch_examples * batch_examples]
        user = pq.read_table(path)["user_id"][10].as_py()
        assert str(caught.value) == (
            f"Example 10 of user {user} is DIGEST_MISMATCH; check that rows and store belong "
            f"together, or let the policy for DIGEST_MISMATCH be 'skip' or 'pass'."
        )
        # Iterating again meets it again: the position is still before it.
        with pytest.raises(StatusError):
            list(loader)
    # torchrec goes on to the next batch where an exception has such an attribute.
    assert not [name for name in dir(caught.value) if "skip" in name.lower()]


def test_examples_that_are_not_ready_are_requested_again(tmp_path: Path) -> None:
    world = built_world(tmp_path / "late")
    table = rows_table(30, end_ts=as_of(3))
    later = rows_table(30, end_ts=as_of(4), seed=1)
    mixed = pa.concat_tables([table, later]).take([n // 2 + 30 * (n % 2) for n in range(60)])
    pq.write_table(mixed, tmp_path / "rows.parquet")
    files = RowFiles(tmp_path / "rows.parquet", order="files")
    config = LoaderConfig(batch_examples=25, lookup_examples=20, policies={"NOT_READY": "pass"})
    options = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, poll_s=0.1)
    with Server(options) as server:
        hasty = replace(config, not_ready_wait_s=0.3)
        with ThinRowLoader(files, server.address, ALL, hasty) as loader:
            start_s = time.monotonic()
            assert [n for batch in loader for n in batch.statuses.tolist()] == [1, 2] * 30
            assert time.monotonic() - start_s >= 0.3
        patient = replace(config, not_ready_wait_s=60)
        fresh = some_events(first_day=3, days=1, seed=1)
        not_ready = server.metrics.examples.labels("", "NOT_READY")._value
        before = not_ready.get()

        def publish_late() -> None:
            while not_ready.get() == before:
                time.sleep(0.01)
            time.sleep(0.5)
            world.compact(fresh, 4)

        publish = threading.Thread(target=publish_late)
        publish.start()
        with ThinRowLoader(files, server.address, ALL, patient) as loader:
            batches = list(loader)
            assert loader.starvation.waited_s["lookup"] > 0.3
        publish.join()
        assert ids(batches) == list(range(60))
        assert all((batch.statuses == 1).all() for batch in batches)
        with ThinRowLoader(files, server.address, ALL, config) as loader:
            again = list(loader)
        assert [shown(batch) for batch in batches] == [shown(batch) for batch in again]


# Passes, epochs, states.


def test_each_pass_is_an_epoch_of_its_own(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [100], row_group=10)
    with ThinRowLoader(paths, server, ALL, SMALL) as loader:
        orders = []
        for epoch in range(3):
            assert loader.epoch == epoch
            orders.append(ids(list(loader)))
        assert sorted(orders[0]) == list(range(100))
        assert orders[0] != orders[1] != orders[2]
        loader.set_epoch(1)
        assert ids(list(loader)) == orders[1]


def test_a_pass_that_was_left_goes_on(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [100], row_group=10)
    with ThinRowLoader(paths, server, ALL, SMALL) as loader:
        whole = ids(list(loader))
        loader.set_epoch(0)
        parts = []
        while loader.epoch == 0:
            parts += list(itertools.islice(loader, 2))
        assert ids(parts) == whole
        first = iter(loader)
        next(first)
        second = iter(loader)
        next(second)
        with pytest.raises(UsageError, match="newer iteration"):
            next(first)


def test_what_a_pass_under_way_would_not_heed_is_refused(tmp_path: Path, server: str) -> None:
    with ThinRowLoader(write_rows(tmp_path, [100]), server, ALL, SMALL) as loader:
        state = loader.state_dict()
        for _ in loader:
            for call in (lambda: loader.load_state_dict(state), lambda: loader.set_epoch(3)):
                with pytest.raises(UsageError, match="Leave the loop"):
                    call()  # type: ignore[no-untyped-call]
            break
        loader.load_state_dict(state)
    with pytest.raises(UsageError, match="closed"):
        list(loader)
    loader.close()


class Recorder:
    """Files whose calls are written down; may fail, or have nothing for a while."""

    def __init__(self, paths: str, fail_after: int | None = None, idle: bool = False) -> None:
        self.files: FileSource = RowFiles(paths).source()
        self.calls: list[Any] = []
        self.fail_after = fail_after
        self.idle = idle
        self.ended = threading.Event()

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        for number, chunk in enumerate(self.files.chunks(examples)):
            if number == self.fail_after:
                raise ZeroDivisionError
            yield chunk
            if self.idle and number == 2:
                empty = RowChunk(chunk.rows[:0], chunk.columns[:0], chunk.example_ids[:0])
                while not self.ended.wait(0.01):
                    yield empty

    def took(self, rows: int) -> None:
        self.calls.append(rows)
        self.files.took(rows)

    def commit(self) -> None:
        self.calls.append("commit")

    def state_dict(self) -> dict[str, Any]:
        return self.files.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.files.load_state_dict(state)

    def close(self) -> None:
        self.calls.append("close")


def test_a_source_is_reported_what_was_taken_and_what_is_done(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [40])
    source = Recorder(paths)
    with ThinRowLoader(source, server, ALL, SMALL) as loader:
        for number, _ in enumerate(loader):
            assert source.calls == [16, "commit"] * number + [(16, 16, 8)[number]]
        assert source.calls == [16, "commit", 16, "commit", 8, "commit", "commit"]
        with pytest.raises(UsageError, match="source has none"):
            loader.set_epoch(1)
    assert source.calls[-1] == "close"

    source = Recorder(paths)
    with ThinRowLoader(source, server, ALL, SMALL) as loader:
        next(iter(loader))
    assert source.calls == [16, "commit", "close"]

    source = Recorder(paths)
    with (
        pytest.raises(ZeroDivisionError),
        ThinRowLoader(source, server, ALL, SMALL) as loader,
    ):
        for _ in loader:
            raise ZeroDivisionError
    assert source.calls == [16, "close"]


def test_what_a_source_fails_with_comes_after_what_it_gave(tmp_path: Path, server: str) -> None:
    source = Recorder(write_rows(tmp_path, [100]), fail_after=5)
    with ThinRowLoader(source, server, ALL, SMALL) as loader:
        batches: list[TensorBatch] = []
        with pytest.raises(ZeroDivisionError):
            batches.extend(loader)
        assert [len(batch) for batch in batches] == [16, 16, 16]


def test_a_source_with_nothing_for_now_does_not_hold_up_what_is_there(
    tmp_path: Path, server: str
) -> None:
    source = Recorder(write_rows(tmp_path, [60]), idle=True)
    config = LoaderConfig(batch_examples=5, lookup_examples=5)
    with ThinRowLoader(source, server, ALL, config) as loader:
        batches = list(itertools.islice(loader, 3))
        assert ids(batches) == [n for n in ids(batches) if n < 60]
        source.ended.set()


def test_what_the_server_refuses_reaches_the_trainer(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [10])
    with (
        ThinRowLoader(paths, server, Projection(traits=("nonsense",))) as loader,
        pytest.raises(RequestError, match="nonsense"),
    ):
        list(loader)


# Who waits for whom.


def test_waiting_is_measured_by_stage(
    tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_rows(tmp_path, [60])
    registry = CollectorRegistry()

    class Slow(Recorder):
        def chunks(self, examples: int) -> Iterator[RowChunk]:
            for chunk in super().chunks(examples):
                time.sleep(0.1)
                yield chunk

    with ThinRowLoader(Slow(paths), server, ALL, SMALL, registry=registry) as loader:
        with caplog.at_level(logging.INFO, "thinrow.loader"):
            list(loader)
        result = loader.starvation
        assert result.share > 0.9
        assert result.shares["rows"] > 0.5
        assert sum(result.waited_s.values()) <= result.elapsed_s
        assert "the trainer waited" in caplog.text
        assert "60 OK" in caplog.text
        labels = {"stage": "rows"}
        waited = registry.get_sample_value("thinrow_trainer_wait_seconds_total", labels)
        assert waited == pytest.approx(result.waited_s["rows"])
        assert registry.get_sample_value(
            "thinrow_trainer_examples_total", {"status": "OK"}
        ) == pytest.approx(60)
        routed = {
            name: registry.get_sample_value(f"thinrow_trainer_{name}")
            for name in ("map_version", "groups", "hedges_total", "failovers_total")
        }
        assert routed == {
            "map_version": 0,
            "groups": 1,
            "hedges_total": 0,
            "failovers_total": 0,
        }
    with ThinRowLoader(paths, server, ALL, SMALL) as loader:
        for number, _ in enumerate(loader):
            time.sleep(0.1 if number else 0.3)
        assert loader.starvation.share < 0.3


def test_a_clock_shows_how_long_each_stage_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 10.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    clock = StageClock("rows")
    now_s = 12.0
    clock.enter("wire")
    now_s = 14.0
    clock.enter("rows")
    now_s = 16.0
    clock.enter("wire")
    now_s = 20.0
    clock.answered(12.0, 5.0)  # it worked on while rows were read
    clock.work("widen")
    clock.enter("rows")  # no one waits for that now
    now_s = 24.0
    clock.work("copy")
    result = clock.between(11.0, 22.0)
    assert result == {"rows": 3.0, "lookup": 3.0, "wire": 3.0, "widen": 2.0}
    assert clock.between(22.0, 24.0) == {"widen": 2.0}
    assert clock.between(24.0, 25.0) == {"copy": 1.0}
    now_s = 26.0
    clock.rest()
    assert clock.between(26.0, 27.0) == {"rows": 1.0}
    now_s = 28.0
    clock.enter("wire")
    now_s = 30.0
    clock.answered(28.0, 9.0)  # longer than anyone waited
    assert clock.between(28.0, 30.0) == {"lookup": 2.0}


def test_starvation_starts_at_nothing() -> None:
    assert Starvation().share == 0
    assert "examples: none" in str(Starvation())


def test_config_is_checked() -> None:
    for arguments, message in (
        ({"batch_examples": 0}, "batch_examples is 0"),
        ({"batch_events": 0}, "batch_events is 0"),
        ({"drop_last": True, "batch_events": 5}, "leave out batch_events"),
        ({"not_ready_wait_s": -1}, "not_ready_wait_s is -1"),
        ({"freed_bytes_kept": 1 << 31}, "freed_bytes_kept is 2147483648"),
        ({"integer_dtype": torch.int16}, "integer_dtype is torch.int16"),
        ({"uint64_dtype": torch.int32}, "uint64_dtype is torch.int32"),
        ({"policies": {"OK": "skip"}}, "name one of NOT_READY"),
        ({"policies": {"ERASED": "drop"}}, "as 'fail', 'skip' or 'pass'"),
    ):
        with pytest.raises(UsageError, match=message):
            LoaderConfig(**arguments)
    assert LoaderConfig().policy("77") == "fail"
    assert status_name(77) == "77"


@pytest.mark.parametrize("kept", [0, 64 << 20])
def test_the_allocator_of_the_process_is_left_alone_by_default(
    tmp_path: Path, server: str, kept: int
) -> None:
    path = write_rows(tmp_path, [3])
    config = LoaderConfig(freed_bytes_kept=kept) if kept else None
    with (
        mock.patch("thinrow.client.torch.pipeline.keep_freed_memory") as keep,
        ThinRowLoader(path, server, ALL, config) as loader,
    ):
        assert sum(map(len, loader)) == 3
    assert keep.call_args_list == ([mock.call(kept)] if kept else [])


def test_skipped_rows_cost_no_more_than_others(troubled: tuple[Path, str]) -> None:
    """The rest of a lookup is widened in one piece, however the rows to skip are scattered."""
    path, address = troubled
    table = pq.read_table(path)
    scattered = table.take([5, 0, 6, 1, 39, 2] * 40)
    pq.write_table(scattered, path)
    config = LoaderConfig(batch_examples=32)
    with (
        mock.patch.object(Answer, "jobs", autospec=True, side_effect=Answer.jobs) as jobs,
        ThinRowLoader(RowFiles(path, order="files"), address, ALL, config) as loader,
    ):
        batches = list(loader)
        statuses = loader.starvation.examples
    skipped = sum(count for status, count in statuses.items() if status != "OK")
    assert skipped
    assert sum(map(len, batches)) == len(scattered) - skipped
    traits = len(batches[0].values)
    # A batch may reach over two lookups, and the first of these are small.
    assert jobs.call_count <= traits * (2 * len(batches) + 2)
