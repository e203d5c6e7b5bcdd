"""Drawn worlds, built as stores and served."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
from support.id_kinds import id_array, known_id
from support.oracle import (
    Event,
    Key,
    Oracle,
    Run,
    Value,
    Wanted,
    columns,
    order,
)
from support.scenarios import (
    STRANGER,
    USERS,
    Example,
    World,
    events_table,
    rows_table,
    schema_toml,
)
from thinrow.client import ClientConfig, Projection, StoreConfig, connect, read_thin_rows
from thinrow.client.arrow import ReadConfig, read
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.files.history_columns import STATUS_COLUMN
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.oracle import Entry
    from thinrow.client import Client
    from thinrow.compaction.report import CompactionReport


class Answer(NamedTuple):
    """One example's status and, by column, its values as bits: NaNs and zeros differ."""

    status: str
    columns: dict[str, list[Key]]


class Built:
    """A store that the product and the oracle build alike."""

    def __init__(self, folder: Path, world: World, shards: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.world = world
        self.shards = shards or world.shards
        self.store = folder / "store"
        self.schema = folder / "schema.toml"
        self.schema.write_text(schema_toml(world.schema), encoding="utf-8")
        self.oracle = Oracle(world.schema)
        self.files = 0

    def write(self, table: pa.Table) -> Path:
        self.files += 1
        path = self.folder / f"{self.files}.parquet"
        pq.write_table(table, path)
        return path

    def write_events(self, events: Sequence[Event]) -> Path:
        return self.write(events_table(events, self.world.schema, self.world.plain))

    def write_users(self, users: frozenset[int]) -> Path | None:
        if not users:
            return None
        kind = self.world.schema.user_ids
        # A text file has no empty ids, and no ids that contain the end of a line.
        if self.world.plain and kind != "string":
            path = self.folder / "erase.txt"
            lines = [f"{known_id(user, kind)}\n" for user in sorted(users)]
            path.write_text("".join(lines), encoding="utf-8")
            return path
        return self.write(pa.table({"user_id": id_array(sorted(users), kind)}))

    def compaction(self, run: Run, events: Sequence[Path]) -> CompactionConfig:
        return CompactionConfig(
            store=self.store,
            events=list(events),
            schema=self.schema,
            watermark_ts=run.watermark_ts,
            shards=self.shards,
            cadence_ms=run.cadence_ms,
            cadence_offset_ms=run.cadence_offset_ms if run.cadence_ms else 0,
            time_unit="ms",  # some of these worlds begin in 1970
            dedup_window_ms=run.dedup_window_ms,
            lookback_ms=run.lookback_ms,
            erase_users=self.write_users(run.erase),
            accept_late=run.accept_late,
            keep=None,
        )

    def compact(self, run: Run, events: Sequence[Path] | None = None) -> CompactionReport:
        files = [self.write_events(run.events)] if events is None else events
        with mock.patch("thinrow.compaction.rewrite.STRIPE_EVENTS_MAX", self.world.stripe_events):
            result = compact(self.compaction(run, files))
        self.check(run, result)
        return result

    def check(self, run: Run, result: CompactionReport) -> None:
        """Compares a report with the oracle's, which compacts now."""
        before = self.oracle.event_count
        expected = asdict(self.oracle.compact(run))
        if run.erase:
            # Nothing says whether an event added and erased in one run was added.
            del expected["events_added"]
        expected |= {"event_count": self.oracle.event_count, "user_count": self.oracle.user_count}
        assert {name: getattr(result, name) for name in expected} == expected
        assert result.events_added - result.events_dropped == self.oracle.event_count - before

    @contextmanager
    def serve(self) -> Iterator[Served]:
        config = ServerConfig(store=self.store, listen="127.0.0.1:0", metrics=None)
        limits = ClientConfig(examples_per_request=5, store=StoreConfig(examples_per_lookup=5))
        with (
            Server(config) as server,
            connect(server.address, limits) as client,
            connect(self.store, limits) as local,
        ):
            yield Served(self, server.address, (client, local))


class Served:
    """A store behind a server, and opened in this process."""

    def __init__(self, built: Built, address: str, clients: tuple[Client, Client]) -> None:
        self.built = built
        self.address = address
        self.clients = clients

    def look_up(self, rows: Path, wanted: Wanted) -> list[Answer]:
        """Returns the answers; both ways to the store, and the reader of Arrow, have the same."""
        answers, local = (self._look_up(client, rows, wanted) for client in self.clients)
        assert local == answers
        assert self._read(rows, wanted) == answers
        return answers

    def _read(self, rows: Path, wanted: Wanted) -> list[Answer]:
        """Reads the rows as an engine does that knows Arrow only."""
        config = ReadConfig(batch_rows=3, lookup_rows=8)
        found = read(rows, self.address, projection_of(wanted), columns=(), config=config)
        assert found.schema.names == [STATUS_COLUMN, *columns(wanted, self.built.world.schema)]
        return [
            Answer(
                row.pop(STATUS_COLUMN), {name: bits(values or []) for name, values in row.items()}
            )
            for row in found.read_all().to_pylist()
        ]

    def _look_up(self, client: Client, rows: Path, wanted: Wanted) -> list[Answer]:
        projection = projection_of(wanted)
        answers = []
        for piece, _ in read_thin_rows(rows, examples=8):
            batch = client.materialize(piece, projection)
            assert list(batch.values) == columns(wanted, self.built.world.schema)
            lists = {name: batch.to_lists(name) for name in batch.values}
            lengths = batch.offsets[1:] - batch.offsets[:-1]
            for n, number in enumerate(batch.statuses.tolist()):
                status = wire.Status.Name(number).removeprefix("STATUS_")
                shown = {name: bits(column[n] or []) for name, column in lists.items()}
                assert all(len(value) == lengths[n] for value in shown.values())
                answers.append(Answer(status, shown))
        return answers

    def check(
        self, rows: Path, wanted: Wanted, expected: Sequence[tuple[str, list[Entry]]]
    ) -> None:
        built = self.built
        answers = self.look_up(rows, wanted)
        assert [answer.status for answer in answers] == [status for status, _ in expected]
        for answer, (_, entries) in zip(answers, expected, strict=True):
            for name, shown in answer.columns.items():
                right = bits(built.oracle.column(entries, name))
                if name == "visible_ts":
                    # What has no place yet may say anything here.
                    assert len(shown) == len(right)
                    shown = [
                        a if b != order(None) else b for a, b in zip(shown, right, strict=True)
                    ]
                assert shown == right, name

    def check_examples(
        self, rows: Sequence[Example], wanted: Wanted, digests: Sequence[int] | None = None
    ) -> None:
        built = self.built
        result = digests or [0] * len(rows)
        path = built.write(rows_table(rows, result, built.world.schema, built.world.plain))
        expected = [
            built.oracle.answer(row.pointer, wanted, row.mutable, row.request_ts) for row in rows
        ]
        self.check(path, wanted, expected)

    def inspect(self, users: Sequence[int], as_of_ts: int) -> list[wire.InspectResponse]:
        with grpc.insecure_channel(self.address) as channel:
            stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
            kind = self.built.world.schema.user_ids
            requests = [wire.InspectRequest(as_of_ts=as_of_ts) for _ in users]
            for request, user in zip(requests, users, strict=True):
                if kind == "int64":
                    request.user_id = user
                else:
                    request.user = str(known_id(user, kind))
            return [stub.Inspect(request, timeout=60) for request in requests]

    def digests(self, watermarks: Sequence[int]) -> dict[tuple[int, int], int]:
        """Pointers as written at these watermarks, by user and watermark."""
        found = {}
        for end_ts in watermarks:
            users = (*USERS, STRANGER)
            for user, shown in zip(users, self.inspect(users, end_ts), strict=True):
                assert shown.end_ts == end_ts
                known = self.built.oracle.digest_content(user, end_ts) is not None
                assert (shown.digest != 0) == known
                found[user, end_ts] = shown.digest
        return found


def projection_of(wanted: Wanted) -> Projection:
    return Projection(
        sequence_length=wanted.sequence_length,
        truncation="head" if wanted.head else "newest",
        feature_groups=wanted.feature_groups,
        traits=wanted.traits,
    )


def bits(shown: Sequence[Value | list[float]]) -> list[Key]:
    return [order(tuple(value) if isinstance(value, list) else value) for value in shown]


@contextmanager
def new_folder() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)
