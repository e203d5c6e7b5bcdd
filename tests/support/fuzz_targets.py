"""Targets of the fuzzers. A target takes any bytes, and raises where a promise is broken.

Each also makes valid inputs and alters them with an understanding of what they are; a fuzzer that
knows nothing of that may alter them further, or begin from nothing.
"""

# ruff: noqa: ANN401 - values and messages of any kind

from __future__ import annotations

import importlib
import random
import shutil
import struct
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from support.event_targets import EventTarget
from support.fuzzed_world import SCHEMA, WATERMARKS, fuzzed_world
from support.mutation import altered_bytes, altered_message, any_number
from support.oracle import BUILT_IN, DAY_MS, Event, Pointer, Wanted, column
from support.scenarios import STRANGER, USERS, values
from support.size_targets import MessageTarget, NativeTarget
from thinrow import _native
from thinrow.access.identity import CallContext, CallIdentity
from thinrow.access.projection import resolve_projection
from thinrow.access.wire_errors import ERRORS, wire_error, wire_message
from thinrow.client import Batch, Projection
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import Pointers, ThinRows
from thinrow.core.status import Status
from thinrow.core.traits import TraitForm, TraitType
from thinrow.core.wire.columns import as_column, to_wire
from thinrow.core.wire.response import Response
from thinrow.errors import (
    AnswerTooLargeError,
    RequestError,
    StoreCorruptError,
    ThinRowError,
)
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.request import (
    MaterializeRequest,
    MaterializeStreamRequest,
    request_decoder,
)
from thinrow.materialization.server import Server
from thinrow.online.clock import AHEAD_MS_MAX
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.schema import EVENT_GROUP
from thinrow.store.directory import parse_directories
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan, PointerBatch
from thinrow.store.stripe import decode_stripes
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


CODES = {row.code for row in ERRORS}
WORK_BYTES_MAX = 1 << 24
"""Bound on the decoded events of a plan; a server's own limit is larger, and checked at the same
place."""
CACHE_BYTES_MAX = 1 << 24
"""Less than a server keeps, so that a leak shows beside what is kept on purpose."""
TRAITS = (*BUILT_IN, *(trait.name for trait in SCHEMA.traits))
PROJECTIONS = (
    wire.Projection(traits=["visible_ts", "event_id", "item_id"]),
    wire.Projection(traits=["visible_ts", "brand", "rating"], sequence_length=5),
    wire.Projection(traits=["visible_ts", "kind", "weight"], sequence_length=20),
    wire.Projection(
        traits=["visible_ts", "taste", "seen"], sequence_length=7, truncation=wire.TRUNCATION_HEAD
    ),
    wire.Projection(traits=["visible_ts", *TRAITS], sequence_length=40),
)
USER_IDS = (*USERS, STRANGER)
ANY_TS = (0, 1, *WATERMARKS, *(ts - DAY_MS // 2 for ts in WATERMARKS))


class Target(Protocol):
    """Something to aim at."""

    seen: Counter[str]
    """Outcomes of the inputs."""

    def __call__(self, data: bytes) -> None:
        """Takes an input. Raises what no input may lead to."""

    def altered(self, rng: random.Random) -> bytes:
        """A valid input, altered."""

    def close(self) -> None:
        """Releases what it opened."""


def some_pointers(rng: random.Random, count: int) -> list[list[int]]:
    """Rows of user, start_ts, end_ts, max_length, request_ts, mutable_length, digest."""
    rows = []
    for _ in range(count):
        end_ts = rng.choice(WATERMARKS)
        start_ts = rng.choice((0, 0, end_ts - rng.randrange(3 * DAY_MS), end_ts))
        length = rng.choice((0, 0, 1, 5, 30))
        at_ts = end_ts + rng.choice((0, 5, DAY_MS))
        rows.append([rng.choice(USER_IDS), start_ts, end_ts, length, at_ts, 0, 0])
        if at_ts > end_ts:
            rows[-1][5] = rng.choice((0, 0, 1, 4))
    return rows


def as_pointers(rows: Sequence[Sequence[int]]) -> PointerBatch:
    table = np.array(rows, np.int64).reshape(-1, 7).T.copy()
    users, start_ts, end_ts, lengths, request_ts, mutable_lengths, digests = table
    return PointerBatch(
        user_ids=users,
        start_ts=start_ts,
        end_ts=end_ts,
        max_lengths=lengths,
        digests=digests.view(np.uint64),
        request_ts=request_ts,
        mutable_lengths=mutable_lengths,
    )


def planned(
    generation: Any, pointers: PointerBatch, projection: wire.Projection
) -> tuple[list[int], bytes]:
    """Statuses and answer, in the server's own steps and within its limits."""
    resolved = resolve_projection(projection, generation.schema)
    plan = HistoryPlan(generation, pointers, resolved.truncation, resolved.groups)
    amount = plan.stripe_bytes_at_most + plan.events_at_most * resolved.event_bytes
    if not 0 <= amount <= WORK_BYTES_MAX:
        raise AnswerTooLargeError("The batch's histories take more than this server decodes.")
    plan.read()
    statuses = plan.resolve().statuses.tolist()
    message, events = plan.answer(resolved.traits, WORK_BYTES_MAX)
    assert events <= plan.events_at_most * max(1, len(pointers))
    return statuses, message


def widened(pointers: PointerBatch, message: bytes) -> Batch:
    """The reading of an answer by a client."""
    rows = Pointers(
        user_ids=pointers.user_ids,
        start_ts=pointers.start_ts,
        end_ts=pointers.end_ts,
        max_lengths=pointers.max_lengths,
        request_ts=pointers.request_ts,
    )
    lookup = BatchLookup(ThinRows(rows), "whatever the tenant wants")
    lookup.add(np.arange(len(rows)), Response.read(message))
    return Batch.from_answers([lookup.answer()])


class PointerTarget:
    """Arbitrary fields of pointers, over an intact store: as the oracle says, each of them."""

    def __init__(self, folder: Path) -> None:
        self.seen: Counter[str] = Counter()
        built = fuzzed_world(folder)
        self._oracle = built.oracle
        self._generation = Generation.open_current(built.store, CACHE_BYTES_MAX)
        self.close = self._generation.close

    def altered(self, rng: random.Random) -> bytes:
        rows = some_pointers(rng, rng.choice((1, 1, 2, 6)))
        for _ in range(rng.choice((0, 1, 1, 3))):
            row, place = rng.choice(rows), rng.randrange(7)
            row[place] = rng.choice((*ANY_TS, any_number(rng, row[place]))) & (2**64 - 1)
        data = bytes([rng.randrange(256)]) + b"".join(
            struct.pack("<7Q", *(value & (2**64 - 1) for value in row)) for row in rows
        )
        return altered_bytes(data, rng) if rng.random() < 0.2 else data

    def __call__(self, data: bytes) -> None:
        projection = PROJECTIONS[data[0] % len(PROJECTIONS)] if data else PROJECTIONS[0]
        body = data[1 : 1 + (len(data) - 1) // 56 * 56]
        rows = [list(row) for row in struct.iter_unpack("<7q", body)] if body else []
        pointers = as_pointers(rows)
        statuses, message = planned(self._generation, pointers, projection)
        # What takes longest is done less often: the client's checks, and the events themselves.
        send_request = data[:1] < bytes([64]) and all(row[5] == 0 for row in rows)
        batch = widened(pointers, message) if send_request else None
        response = Response.read(message)
        assert response.statuses.tolist() == statuses and len(statuses) == len(rows)
        shown = batch.to_lists("visible_ts") if batch is not None else None
        for place, row in enumerate(rows):
            self._check(projection, row, statuses[place], int(response.view_lengths[place]))
            if shown is not None and statuses[place] == Status.OK:
                right = self._expected(projection, row)[1]
                assert shown[place] == column(right, "visible_ts", SCHEMA), row
        self.seen["answered"] += 1

    def _expected(self, projection: wire.Projection, row: Sequence[int]) -> tuple[str, list[Any]]:
        user_id, start_ts, end_ts, max_length, request_ts, mutable_length, _ = row
        # Stand-ins for events that are at home in the client: as many, and as old, as they say.
        standing_in = Event(user_id, end_ts, end_ts)
        head = projection.truncation == wire.TRUNCATION_HEAD
        wanted = Wanted(projection.sequence_length, head)
        status, sequence = self._oracle.answer(
            Pointer(user_id, start_ts, end_ts, max_length),
            wanted,
            [standing_in] * mutable_length,
            request_ts,
        )
        return status, [entry for entry in sequence if entry.visible_ts is not None]

    def _check(
        self, projection: wire.Projection, row: Sequence[int], status: int, length: int
    ) -> None:
        mutable_length, digest = row[5], row[6]
        name = Status(status).name
        if not 0 <= mutable_length <= 64 or (mutable_length and row[4] <= row[2]):
            # No client can hold such events; the server must not be led astray by their number.
            assert length <= self._oracle.event_count and (not length or status == Status.OK)
            self.seen["of no client"] += 1
            return
        right, sequence = self._expected(projection, row)
        if digest and right == "OK" and name == "DIGEST_MISMATCH":
            right, sequence = name, []
        assert (name, length) == (right, len(sequence)), (row, name, length, right, len(sequence))
        self.seen[name] += 1


class Altered:
    """A generation whose stored values are not what was written; stands in for it in a plan."""

    def __init__(self, generation: Generation, values: dict[bytes, bytes | None]) -> None:
        self.schema = generation.schema
        self.watermarks = generation.watermarks
        self.number, self.watermark_ts = generation.number, generation.watermark_ts
        self.naming_damage = generation.naming_damage
        self.value_bytes_max = generation.value_bytes_max
        self.digest_memory = _native.DigestMemory(64)
        self._generation = generation
        self._values = values

    def values(self, keys: bytes) -> list[bytes | None]:
        wanted = [keys[at : at + 13] for at in range(0, len(keys), 13)]
        return [self._values.get(key) for key in wanted]


class StripeTarget:
    """Arbitrary stored values, which no checksum caught: an error, or an answer that holds together
    and has nothing from a pointer's future."""

    EDIT = struct.Struct("<HHBBQ")
    WIDENED_ONE_IN, IN_NUMPY_ONE_IN = 8, 3
    """Slow steps, done less often."""

    def __init__(self, folder: Path) -> None:
        self.seen: Counter[str] = Counter()
        self._generation = generation = Generation.open_current(fuzzed_world(folder).store)
        self._values: dict[bytes, bytes | None] = {}
        for shard, summary in zip(
            generation.shards.values(), generation.manifest.shards, strict=True
        ):
            self._values.update(shard.items(summary.keys))
        self._keys = sorted(self._values)
        schema = generation.schema
        self._traits = [(t, schema.native_traits[t.name]) for t in schema.by_name.values()]
        self.close = generation.close
        rng = random.Random(7)
        self._requested = [as_pointers(some_pointers(rng, 3)) for _ in range(64)]

    def altered(self, rng: random.Random) -> bytes:
        edits = []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            offset = rng.choice((rng.randrange(48), rng.randrange(400)))
            kind, other = rng.randrange(8), rng.randrange(256)
            number = any_number(rng) & (2**64 - 1)
            edits.append(self.EDIT.pack(rng.randrange(1 << 16), offset, kind, other, number))
        return rng.randbytes(2) + b"".join(edits)

    def __call__(self, data: bytes) -> None:
        first, second = (data + b"\0\0")[:2]
        values = dict(self._values)
        touched = []
        for at in range(2, len(data) - self.EDIT.size + 1, self.EDIT.size):
            place, offset, kind, other, number = self.EDIT.unpack_from(data, at)
            key = self._keys[place % len(self._keys)]
            values[key] = self._edited(values[key], offset, kind, other, number)
            touched.append(key)
        pointers = self._requested[first % len(self._requested)]
        projection = PROJECTIONS[second % len(PROJECTIONS)]
        try:
            statuses, message = planned(Altered(self._generation, values), pointers, projection)
            self.seen["answered"] += 1
        except (StoreCorruptError, AnswerTooLargeError) as error:
            self.seen[type(error).__name__] += 1
        else:
            altered_times = any(key[8] == EVENT_GROUP for key in touched)
            head = projection.truncation == wire.TRUNCATION_HEAD and altered_times
            if second % self.WIDENED_ONE_IN == 0:
                self._check(pointers, statuses, message, altered_times=altered_times, head=head)
            else:
                self._check_read(statuses, message)
        for key in touched[: second % self.IN_NUMPY_ONE_IN == 1]:
            self._read_for_compaction(values[key], second, is_directory=key[8] == 0)

    def _edited(
        self, value: bytes | None, offset: int, kind: int, other: int, number: int
    ) -> bytes | None:
        if value is None or kind % 8 == 7:
            return None if other % 2 else self._values[self._keys[other % len(self._keys)]]
        changed, at = bytearray(value), offset % (len(value) + 1)
        size = (1, 2, 4, 8)[kind % 4]
        if kind % 8 < 4:
            changed[at : at + size] = (number & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        elif kind % 8 == 4:
            del changed[at:]
        elif kind % 8 == 5:
            changed += bytes([other]) * (offset % 64)
        elif at < len(changed):
            changed[at] ^= 1 << other % 8
        return bytes(changed)

    def _check(
        self,
        pointers: PointerBatch,
        statuses: list[int],
        message: bytes,
        *,
        altered_times: bool,
        head: bool,
    ) -> None:
        self._check_read(statuses, message)
        try:
            batch = widened(pointers, message)
            for name in batch.values:
                batch.to_lists(name)
        except ThinRowError:
            return
        assert batch.statuses.tolist() == statuses
        for place, times in enumerate(batch.to_lists("visible_ts")):
            # Stripes that no window ends in are taken at their directory's word.
            sure = (times or [])[-1:] if altered_times else times or []
            assert head or all(ts < pointers.end_ts[place] for ts in sure), "from the future"

    def _check_read(self, statuses: list[int], message: bytes) -> None:
        try:
            assert Response.read(message).statuses.tolist() == statuses
        except ThinRowError:  # a text that is none
            self.seen["refused by the client"] += 1

    def _read_for_compaction(self, value: bytes | None, number: int, *, is_directory: bool) -> None:
        """Decodes a value as compaction does."""
        if value is None:
            return
        try:
            if is_directory:
                parse_directories([value])
                return
            events = np.frombuffer(value[:4].ljust(4, b"\0"), "<u4").astype(np.int64)
            decode_stripes([value], events, *self._traits[number % len(self._traits)])
            self.seen["read by compaction"] += 1
        except StoreCorruptError:
            self.seen["refused by compaction"] += 1


class Call:
    """The gRPC context of a call without the network: the fuzzer makes a million calls."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> float:
        return 20.0

    def is_active(self) -> bool:
        return True


class NoTenants:
    """Stands for a server without tenants."""

    def authenticate(self, _: object) -> None:
        return None


def outcome(call: Callable[[CallContext], Any]) -> tuple[str, Any]:
    """A call's code, and its answer where that is OK; INTERNAL is no one's fault but ours."""
    rpc: Any = Call()
    tenants: Any = NoTenants()
    try:
        return "OK", call(CallContext(rpc, CallIdentity(tenants), lambda: None))
    except ThinRowError as error:
        code, details = wire_error(error).code, wire_message(error)
        assert code in CODES and code != grpc.StatusCode.INTERNAL, (code, details)
        assert details.endswith((".", "…")) and "Traceback" not in details
        return code.name, None


@contextmanager
def methods_of(server: Any, module: str, service: str) -> Iterator[Any]:
    """Handlers that a server registers with gRPC, without other callers."""
    kept: list[Any] = []
    kind = getattr(importlib.import_module(module), service)

    class Kept(kind):  # type: ignore[misc, valid-type]
        def add_to(self, grpc_server: grpc.Server) -> None:
            kept.append(self)
            super().add_to(grpc_server)

    with mock.patch(f"{module}.{service}", Kept), server:
        yield kept[0]


def quiet_service(store: Path) -> Any:
    """A server's methods."""
    config = ServerConfig(
        store=store,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=3600,
        drain_s=0,
        work_bytes_max=WORK_BYTES_MAX,
    )
    return methods_of(Server(config), "thinrow.materialization.server", "MaterializationService")


class RequestTarget:
    """Arbitrary bytes as a request of Materialize, MaterializeStream or Inspect."""

    KINDS = (wire.MaterializeRequest, wire.MaterializeStreamRequest, wire.InspectRequest)
    _DECODERS = (
        request_decoder(MaterializeRequest, 8192),
        request_decoder(MaterializeStreamRequest, 8192),
    )

    def __init__(self, folder: Path) -> None:
        self.seen: Counter[str] = Counter()
        self._stack = ExitStack()
        self.close = self._stack.close
        self._service = self._stack.enter_context(quiet_service(fuzzed_world(folder).store))

    def altered(self, rng: random.Random) -> bytes:
        kind = rng.randrange(3)
        rows = some_pointers(rng, rng.choice((1, 2, 8)))
        users, start_ts, end_ts, lengths, request_ts, mutable_lengths, _ = zip(*rows, strict=True)
        projection = rng.choice(PROJECTIONS)
        requested = wire.MaterializeRequest(
            user_ids=users,
            start_ts=start_ts,
            end_ts=end_ts,
            max_lengths=lengths,
            request_ts=request_ts,
            mutable_lengths=mutable_lengths,
            projection=projection,
        )
        message: Any = requested
        if kind == 1:
            message = wire.MaterializeStreamRequest(cursor=rng.getrandbits(64), request=requested)
        elif kind == 2:
            message = wire.InspectRequest(
                user_id=users[0], as_of_ts=end_ts[0], projection=projection
            )
        altered_message(message, rng, rng.choice((0, 1, 1, 3)))
        data: bytes = message.SerializeToString()
        if rng.random() < 0.4:
            data = altered_bytes(data, rng)
        return bytes([kind]) + data

    def __call__(self, data: bytes) -> None:
        kind, body = data[0] % 3 if data else 0, data[1:]
        name = ("materialize", "materialize_stream", "inspect")[kind]
        method = getattr(self._service, name)
        try:
            request: Any = self.KINDS[kind].FromString(body)
        except DecodeError:
            request = None
        try:
            decoded = (request or DecodeError) if kind == 2 else self._DECODERS[kind](body)
        except RequestError:
            # protobuf checks the projection as well, which the server does once it needs it.
            assert request is None, "what protobuf reads, the server reads"
            decoded = DecodeError
        if decoded is DecodeError:  # CallAdmission refuses it, before it calls the method
            self.seen["no message"] += 1
            return
        if kind == 2:
            code, shown = outcome(lambda call: method(request, call))
        else:
            requested = iter([decoded]) if kind == 1 else decoded
            code, answers = outcome(lambda call: list(method(requested, call)))
        self.seen[f"{name} {code}"] += 1
        if code != "OK":
            return
        assert request is not None, "what the server answers, protobuf reads"
        if kind == 2:
            assert len(shown.events) <= 10_000
            return
        [answer] = answers
        if kind == 0:
            assert len(Response.read(answer).statuses) == len(request.user_ids)
        else:
            response = Response.read_from_stream(answer)
            assert response.cursor == request.cursor
            assert len(response.statuses) == len(request.request.user_ids)


class ResponseTarget:
    """Arbitrary bytes as an answer: an error of the tree, or a batch that holds together."""

    def __init__(self, folder: Path) -> None:
        self.seen: Counter[str] = Counter()
        generation = Generation.open_current(fuzzed_world(folder).store)
        rng = random.Random(5)
        self._requested = []
        for number in range(16):
            pointers = as_pointers([[*row[:5], 0, 0] for row in some_pointers(rng, 4)])
            projection = PROJECTIONS[number % len(PROJECTIONS)]
            _, message = planned(generation, pointers, projection)
            self._requested.append((pointers, projection, message))
        generation.close()

    def close(self) -> None:
        """Nothing stays open."""

    def altered(self, rng: random.Random) -> bytes:
        number, on_stream = rng.randrange(len(self._requested)), rng.randrange(2)
        message = self._requested[number][2]
        answer: Any = wire.MaterializeResponse.FromString(message)
        if on_stream:
            answer = wire.MaterializeStreamResponse(cursor=3, response=answer)
        if rng.random() < 0.7:
            altered_message(answer, rng, rng.choice((1, 1, 2)))
        data: bytes = answer.SerializeToString()
        if rng.random() < 0.5:
            data = altered_bytes(data, rng, [message])
        return bytes([number, on_stream]) + data

    def __call__(self, data: bytes) -> None:
        number, on_stream = (data + b"\0\0")[:2]
        pointers, projection, _ = self._requested[number % len(self._requested)]
        body = data[2:]
        rows = Pointers(
            user_ids=pointers.user_ids,
            start_ts=pointers.start_ts,
            end_ts=pointers.end_ts,
            max_lengths=pointers.max_lengths,
            request_ts=pointers.request_ts,
        )
        truncation = "head" if projection.truncation == wire.TRUNCATION_HEAD else "newest"
        wanted = Projection(
            projection.sequence_length,
            traits=tuple(dict.fromkeys(projection.traits)),
            truncation=truncation,  # type: ignore[arg-type]
        )
        try:
            response = Response.read_from_stream(body) if on_stream % 2 else Response.read(body)
            lookup = BatchLookup(ThinRows(rows), wanted)
            lookup.add(np.arange(len(rows)), response)
            batch = Batch.from_answers([lookup.answer()])
            lists = {name: batch.to_lists(name) for name in batch.values}
        except ThinRowError as error:
            assert str(error).endswith("."), error
            self.seen["refused"] += 1
            return
        assert len(batch.statuses) == len(rows)
        for name, column_lists in lists.items():
            assert [len(each or ()) for each in column_lists] == np.diff(batch.offsets).tolist(), (
                name
            )
        for status, lengths in zip(batch.statuses, np.diff(batch.offsets), strict=True):
            assert status == wire.STATUS_OK or not lengths
        self.seen["answered"] += 1


def quiet_online_service(store: Path, tier: Path, wall: Callable[[], int]) -> Any:
    """The methods of an online server."""
    config = OnlineConfig(
        store=store,
        data=tier,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=3600,
        commit_lead_ms=0,
        retention_ms=1 << 40,
        drain_s=0,
        batch_users_max=64,
        work_bytes_max=1 << 28,
        wall=wall,
    )
    return methods_of(OnlineServer(config), "thinrow.online.server", "OnlineService")


class OnlineTarget:
    """Arbitrary bytes as a request of the online half; what was refused must have left nothing."""

    KINDS = (
        online_pb2.AppendEventsRequest,
        online_pb2.SnapshotRequest,
        online_pb2.SnapshotBatchRequest,
        online_pb2.ExportEventsRequest,
        online_pb2.SnapshotStreamRequest,
    )
    NAMES = ("append_events", "snapshot", "snapshot_batch", "export_events", "snapshot_stream")
    EVENTS_MAX = 20_000
    """Inputs of one tier before a new one, since a growing tier slows down every input."""

    def __init__(self, folder: Path) -> None:
        self.seen: Counter[str] = Counter()
        self._store, self._folder = fuzzed_world(folder).store, folder
        self._now_ts = WATERMARKS[-1] + 1000
        self._stack = ExitStack()
        self.close = self._stack.close
        self._restart()

    def _restart(self) -> None:
        self._stack.close()
        self._stack.callback(shutil.rmtree, self._folder / "tier")
        self._service = self._stack.enter_context(
            quiet_online_service(self._store, self._folder / "tier", self._tick)
        )
        self._stack.callback(self._check_nothing_lost)
        self._appended = 0

    def _tick(self) -> int:
        self._now_ts += 1
        return self._now_ts

    def altered(self, rng: random.Random) -> bytes:
        kind = rng.choice((0, 0, 0, 1, 1, 2, 2, 3, 4))
        projection = rng.choice(PROJECTIONS)
        at_ts = rng.choice((0, 0, WATERMARKS[-1], self._now_ts))
        if kind == 0:
            message: Any = online_pb2.AppendEventsRequest(
                cursor=rng.getrandbits(64), events=some_batch(rng)
            )
        elif kind == 1:
            message = online_pb2.SnapshotRequest(
                user_id=rng.choice(USER_IDS), request_ts=at_ts, projection=projection
            )
        elif kind == 2:
            message = online_pb2.SnapshotBatchRequest(
                user_ids=rng.choices((*USER_IDS, 1001, 1002), k=3),
                request_ts=at_ts,
                projection=projection,
            )
        elif kind == 3:
            message = online_pb2.ExportEventsRequest(watermark_ts=WATERMARKS[-1])
        else:
            requested = online_pb2.SnapshotRequest(user_id=1, projection=projection)
            message = online_pb2.SnapshotStreamRequest()
            for number in range(rng.choice((1, 3))):
                message.requests.add(cursor=number, request=requested)
        altered_message(message, rng, rng.choice((0, 1, 1, 3)))
        data: bytes = message.SerializeToString()
        if rng.random() < 0.3:
            data = altered_bytes(data, rng)
        return bytes([kind]) + data

    def __call__(self, data: bytes) -> None:
        kind, body = data[0] % len(self.KINDS) if data else 0, data[1:]
        try:
            request: Any = self.KINDS[kind].FromString(body)
        except DecodeError:  # gRPC itself answers INTERNAL, before it requests us
            self.seen["no message"] += 1
            return
        name = self.NAMES[kind]
        method = getattr(self._service, name)
        if kind == 0:
            # Messages of appends are decoded by the service itself, in its own threads.
            code, answers = outcome(lambda call: list(method(iter([body]), call)))
            if code == "OK":
                [answer] = answers
                assert answer.cursor == request.cursor
                result = answer.appended + answer.duplicates
                assert result == (0 if answer.refused else len(request.events.user_ids))
                self._appended += answer.appended
                code = "refused" if answer.refused else "OK"
        elif kind == 3:
            code, answers = outcome(lambda call: sum(1 for _ in method(request, call)))
        elif kind == 4:
            code, answers = outcome(lambda call: list(method(iter([request]), call)))
            if code == "OK":
                [result] = map(online_pb2.SnapshotStreamResponse.FromString, answers)
                cursors = sorted(each.cursor for each in result.answers)
                assert cursors == sorted(each.cursor for each in request.requests)
                internal = grpc.StatusCode.INTERNAL.value[0]
                assert all(each.error.code != internal for each in result.answers)
        else:
            code, answers = outcome(lambda call: list(method(request, call)))
            if code == "OK":
                [message] = answers
                shown = (online_pb2.SnapshotResponse, online_pb2.SnapshotBatchResponse)[kind - 1]
                users = len(request.user_ids) if kind == 2 else 1
                parsed = shown.FromString(message)
                assert len(parsed.immutable.statuses) == users
                moment_ts = parsed.request_ts
                assert all(ts < moment_ts for ts in parsed.mutable.arrival_ts), "from the future"
        self.seen[f"{name} {code}"] += 1
        if self._appended > self.EVENTS_MAX:
            self._restart()

    def _check_nothing_lost(self) -> None:
        """Compares the stored with the acknowledged events."""
        tier = self._service._tier
        there = sum(
            len(part[2]) for part in tier.scan(tier.kept_from_ts, tier.now_ts + AHEAD_MS_MAX + 1)
        )
        assert there == self._appended, (there, self._appended)
        self.seen["tiers complete"] += 1


def some_batch(rng: random.Random) -> online_pb2.EventBatch:
    """Events as a client sends them."""
    count = rng.choice((1, 2, 5))
    kinds = [("event_ts", "int64", 1, False), ("event_id", "int64", 1, True)]
    given: list[list[Any]] = [
        [WATERMARKS[-1] + rng.randrange(1000) for _ in range(count)],
        [rng.choice((None, rng.getrandbits(32))) for _ in range(count)],
    ]
    for trait in SCHEMA.traits:
        kinds.append((trait.name, trait.type, trait.size or 1, trait.sparse))
        given.append([values(trait, rng) for _ in range(count)])
    columns = []
    for (name, kind, size, nullable), column_values in zip(kinds, given, strict=True):
        number = TraitType[kind.upper()].value
        part = as_column(TraitForm(type=TraitType(number), size=size), column_values)
        columns.append(to_wire(name, number, size, nullable or part.present is not None, part))
    # Mostly of many users, so that snapshots stay short.
    users = [rng.choice((*USER_IDS, *range(1000, 1100))) for _ in range(count)]
    return online_pb2.EventBatch(user_ids=users, columns=columns)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "stripes": StripeTarget,
    "pointers": PointerTarget,
    "requests": RequestTarget,
    "responses": ResponseTarget,
    "online": OnlineTarget,
    "messages": MessageTarget,
    "native": NativeTarget,
    "events": EventTarget,
}
