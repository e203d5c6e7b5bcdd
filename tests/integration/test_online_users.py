"""Users of any kind in the online half: appended, snapshotted, logged, exported, erased."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.oracle import Event, Oracle, Pointer, Run, Schema, Trait, Value, Wanted, column
from support.worlds import DAY_MS, START_TS, new_world
from thinrow.client import Pointers, Projection, connect, read_thin_rows
from thinrow.client.logger import FileOutput, LoggerConfig, ThinRowLogger, mutable_type
from thinrow.client.online import connect_online
from thinrow.compaction.compact import compact
from thinrow.errors import InputError, RequestError, SchemaError
from thinrow.jobs.export import export_events
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.online.tier import MutableTier, TierConfig
from thinrow.schema import parse_schema
from thinrow.store import user_texts
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.worlds import World
    from thinrow.client.online import OnlineClient
    from thinrow.core.ids import IdKind

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("no_pause_before_goaway")]

ITEMS = '[item]\nitem_id = { type = "int64", key = true }\n'
WANTED = Projection(traits=("event_id", "item_id"))
USERS: dict[IdKind, list[Any]] = {
    "uint64": [1 << 63, 7],
    "uuid": [str(uuid.UUID(int=1 << 127)), str(uuid.UUID(int=7))],
    "string": ["", "é\0"],
}


class Clocked:
    """An online server whose clock the test moves."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.world: World = new_world(folder, f'{ITEMS}[user]\nid = "{kind}"\n')
        self.now = [START_TS]

    @contextmanager
    def running(self) -> Iterator[OnlineClient]:
        config = OnlineConfig(
            store=self.world.store,
            schema=self.world.schema,
            listen="127.0.0.1:0",
            metrics=None,
            retention_ms=DAY_MS,
            commit_lead_ms=0,
            wall=lambda: self.now[0],
        )
        with OnlineServer(config) as server, connect_online(server.address) as client:
            self.server = server
            yield client

    def append(self, client: OnlineClient, users: Sequence[Any], first_id: int = 0) -> int:
        """Appends an event of each user; returns its arrival."""
        self.now[0] += 10
        ids = [first_id + number for number in range(len(users))]
        return client.append(users, [self.now[0]] * len(users), {"item_id": ids}, ids).arrival_ts

    def hand_over(self, client: OnlineClient, **options: Any) -> int:  # noqa: ANN401
        """Exports and compacts; returns the watermark."""
        self.now[0] += 10
        watermark_ts: int = client.describe().now_ts
        path = self.world.folder / f"export-{watermark_ts}.parquet"
        export_events(client, watermark_ts, path)
        config = replace(self.world.compaction([path], 0), watermark_ts=watermark_ts, **options)
        generation = compact(config).generation
        while self.server.published.number < generation:
            self.server.published.refresh()
            time.sleep(0.005)
        self.server.published.refresh()
        return watermark_ts


def items(seen: Any) -> list[list[Any]]:  # noqa: ANN401 - of one user or of several
    found: list[list[Any]] = seen.batch.to_lists("item_id")
    return found


@pytest.mark.parametrize("kind", [*USERS])
def test_from_an_append_to_the_same_history_in_training(tmp_path: Path, kind: IdKind) -> None:
    clocked, (one, two) = Clocked(tmp_path, kind), USERS[kind]
    oracle = Oracle(Schema({"item": [Trait("item_id", "int64", key=True)]}))
    appended: list[Event] = []

    def append(client: OnlineClient, users: Sequence[Any], first_id: int) -> None:
        arrival_ts = clocked.append(client, users, first_id)
        for number, user in enumerate(users):
            event_id = first_id + number
            known: dict[str, Value] = {"item_id": event_id}
            event = Event([one, two].index(user), clocked.now[0], arrival_ts, event_id, known)
            appended.append(event)

    with clocked.running() as client:
        append(client, [one, two, one], 0)
        watermark_ts = clocked.hand_over(client)
    oracle.compact(Run(appended, watermark_ts))
    with clocked.running() as client:  # again, on the same files
        append(client, [two, one], 3)
        clocked.now[0] += 10
        given = uuid.UUID(one) if kind == "uuid" else one
        snapshot = client.snapshot(given, WANTED)
        both = client.snapshot_batch([one, two], WANTED)
        assert [snapshot.thin_row.user_id, both.thin_rows[1].user_id] == [one, two]
        fresh = [event for event in appended if event.arrival_ts >= watermark_ts]
        rows = [snapshot.thin_row, *both.thin_rows]
        expected = []
        for row, user in zip(rows, (0, 0, 1), strict=True):
            own = [event for event in fresh if event.user_id == user]
            pointer = Pointer(user, row.start_ts, row.end_ts)
            _, entries = oracle.answer(pointer, Wanted(), own, row.request_ts)
            expected.append(column(entries, "item_id", oracle.schema))
        assert [*items(snapshot), *items(both)] == expected
        config = LoggerConfig(
            journal=tmp_path / "journal",
            mutable=mutable_type(client.describe()),
            user_ids=kind,
            features=pa.schema([]),
            labels=pa.schema([("label", pa.int64())]),
            label_defaults={"label": 0},
            join_window_ms=1,
            files=FileOutput(folder=tmp_path / "rows"),
        )
        with ThinRowLogger(config) as logger:
            for number, row in enumerate(rows):
                logger.log(str(number), row, {})
            logger.drain(60)
        clocked.hand_over(client)
    exported = pq.read_table(max(clocked.world.folder.glob("export-*.parquet")))
    assert sorted(exported.column("user_id").to_pylist()) == sorted([one, two])
    files = sorted((tmp_path / "rows").rglob("*.parquet"))
    with connect(clocked.world.store) as local:
        again = [
            (piece.pointers.user(place), row)
            for path in files
            for piece, _ in read_thin_rows(path, examples=8)
            for place, row in enumerate(items(_Batch(local.materialize(piece, WANTED))))
        ]
    assert again == [(row.user_id, want) for row, want in zip(rows, expected, strict=True)]


class _Batch:
    """A batch, where snapshots have theirs."""

    def __init__(self, batch: Any) -> None:  # noqa: ANN401
        self.batch = batch


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys by the first letter alone."""
    whole = user_texts.text_hash

    def narrowed(text: bytes, seed: int = 0) -> int:
        return whole(text, seed) if seed else whole(text[:1])

    monkeypatch.setattr(user_texts, "text_hash", narrowed)


@pytest.mark.usefixtures("narrow")
def test_two_users_of_one_key_never_share_a_history(tmp_path: Path) -> None:
    clocked = Clocked(tmp_path, "string")
    both = "users 'ab' and 'ac' have the same key"
    with clocked.running() as client:
        with pytest.raises(RequestError, match=both):
            clocked.append(client, ["ab", "b", "ac"])
        clocked.append(client, ["ab", "b"])
        with pytest.raises(RequestError, match=both):
            clocked.append(client, ["b", "ac"], 5)
        clocked.now[0] += 10
        assert items(client.snapshot_batch(["ac", "ab", "b"], WANTED)) == [[], [0], [1]]
        clocked.hand_over(client)
    # What the tier has no more, the store still has.
    clocked.now[0] += 3 * DAY_MS
    with clocked.running() as client:
        clocked.hand_over(client)
        with pytest.raises(RequestError, match=both):
            clocked.append(client, ["ac"], 9)
        clocked.append(client, ["ab"], 9)
        clocked.now[0] += 10
        assert items(client.snapshot("ac", WANTED)) == [[]]
        assert items(client.snapshot("ab", WANTED)) == [[0, 9]]


def test_an_erased_text_leaves_the_tier(tmp_path: Path) -> None:
    clocked = Clocked(tmp_path, "string")
    gone = clocked.world.folder / "gone.txt"
    gone.write_text("someone to forget\n")
    with clocked.running() as client:
        clocked.append(client, ["someone to forget", "b"])
        first_ts = clocked.hand_over(client)
        clocked.now[0] += 10
        clocked.hand_over(client, erase_users=gone)
        clocked.now[0] += 10
        assert items(client.snapshot_batch(["someone to forget", "b"], WANTED)) == [[], [1]]
        clocked.append(client, ["someone to forget"], 7)
        clocked.now[0] += 10
        assert items(client.snapshot("someone to forget", WANTED)) == [[7]]
        clocked.hand_over(client, erase_users=gone)
        clocked.server.published.refresh()
    with connect(clocked.world.store) as local:
        pointers = Pointers(user_ids=["someone to forget"], end_ts=[first_ts])
        assert local.materialize(pointers, WANTED).statuses.tolist() == [5]
    files = [path for path in clocked.world.folder.rglob("*.sst") if "generation" not in str(path)]
    assert all(b"someone to forget" not in path.read_bytes() for path in files)


@pytest.mark.parametrize("kind", ["int64", "uuid", "string"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    clocked = Clocked(tmp_path, kind)
    wrong: Any = "a" if kind == "int64" else 1
    with clocked.running() as client:
        reason = f"users of this server are {kind}"
        for act in (
            lambda: client.snapshot(wrong, WANTED),
            lambda: client.snapshot_batch([wrong], WANTED),
            lambda: clocked.append(client, [wrong]),
        ):
            with pytest.raises((RequestError, InputError), match=reason):
                act()
        if kind == "uuid":
            with pytest.raises(InputError, match="'x' is no UUID"):
                client.snapshot("x", WANTED)
            request = online_pb2.SnapshotBatchRequest(user_texts=["x"], projection={})
            with pytest.raises(Exception, match="'x' is no UUID"):
                list(client.stub.SnapshotBatch(request))


@pytest.mark.parametrize("table", ["user", "event"])
def test_a_tier_keeps_its_kinds(tmp_path: Path, table: str) -> None:
    tier = MutableTier(TierConfig(folder=tmp_path / "tier"))
    try:
        tier.use_schema(parse_schema(f'{ITEMS}[{table}]\nid = "string"\n'))
        with pytest.raises(SchemaError, match=f"{table} ids are int64, and the store's are string"):
            tier.use_schema(parse_schema(ITEMS))
    finally:
        tier.close()
