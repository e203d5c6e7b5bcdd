"""The client of the online half: events in, and at each request the sequence and its thin row.

::

    from thinrow.client.online import connect_online

    with connect_online("localhost:7888") as online:
        online.append([7], event_ts=[1_700_000_000_000], event_ids=[1], traits={"item_id": [42]})
        seen = online.snapshot(7, Projection(sequence_length=100))
        score(seen.batch.values["item_id"])
        logger.log("request-1", seen.thin_row, {"score": 0.25})
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
from thinrow.client.channel import open_channel, translate
from thinrow.client.closable import CLOSED
from thinrow.client.config import ClientConfig
from thinrow.client.counting_channel import CountingChannel
from thinrow.client.online_stream import SnapshotStream
from thinrow.client.received import received
from thinrow.core.convert import times_ms
from thinrow.core.pointers import MutableEvents, Pointers, ThinRows, integers
from thinrow.core.thin_row import ThinRow
from thinrow.core.wire.batch import Batch
from thinrow.core.wire.batch_lookup import BatchLookup
from thinrow.core.wire.columns import as_column, from_wire, to_wire
from thinrow.core.wire.malformed import require
from thinrow.core.wire.request import to_wire_projection
from thinrow.core.wire.response import Response
from thinrow.errors import InputError, RequestError, ThinRowError, UnavailableError
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2, online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike
    from thinrow.core.pointers import Projection

__all__ = ["Appended", "OnlineClient", "Snapshot", "Snapshots", "connect_online"]

EVENT_TS = wire.Trait(name="event_ts", type=wire.TRAIT_TYPE_INT64, vector_size=1)
EVENT_ID = wire.Trait(name="event_id", type=wire.TRAIT_TYPE_INT64, vector_size=1, nullable=True)


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch of events, all of it durable."""

    appended: int
    """Events that were not there before."""
    duplicates: int
    """Events whose user had one of the same id already; dropped."""
    arrival_ts: int
    """When those appended arrived, ms: requests at any later moment see them."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one request sees."""

    batch: Batch
    """The sequence for inference, as one example; its status first."""
    thin_row: ThinRow
    """What to log, where the status is STATUS_OK."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What several requests at one moment see."""

    batch: Batch
    """The sequences for inference, an example per user."""
    thin_rows: tuple[ThinRow, ...]
    """What to log of each whose status is STATUS_OK."""


def connect_online(target: str, config: ClientConfig | None = None) -> OnlineClient:
    """Makes a client of the online server at `target`, HOST:PORT. It connects at the first call."""
    return OnlineClient(target, config or ClientConfig())


class OnlineClient:
    """Appends events and takes snapshots. Made by `connect_online`; closed at its block's end.

    Safe to share between threads. Every call raises RequestError for what the server refuses,
    UnavailableError, DeadlineError, StoreError, and ThinRowError for an answer that contradicts
    itself. Nothing is asked again by itself.
    """

    def __init__(self, target: str, config: ClientConfig) -> None:
        self._target = target
        self.config = config
        self._channel = open_channel(target, config)
        self._stub = online_pb2_grpc.OnlineServiceStub(CountingChannel(self._channel))  # type: ignore[no-untyped-call]
        self._closed = False
        self._stream = SnapshotStream(self._stub, lambda: self._metadata, self._failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stub(self) -> online_pb2_grpc.OnlineServiceStub:
        """The generated stub, for calls of one's own."""
        self._check_open()
        return self._stub

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(CLOSED)

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._closed = True
        self._stream.close()
        self._channel.close()

    def describe(self) -> online_pb2.DescribeTierResponse:
        """Describes the tier: its clock, what it holds, the schema of events, limits."""
        answer = self._call("DescribeTier", online_pb2.DescribeTierRequest(), None)
        assert isinstance(answer, online_pb2.DescribeTierResponse)
        return answer

    @cached_property
    def traits(self) -> dict[str, wire.Trait]:
        """The traits of events, in schema order, as the first call found them."""
        groups = self.describe().feature_groups
        return {trait.name: trait for group in groups for trait in group.traits}

    def events(
        self,
        user_ids: ArrayLike,
        event_ts: ArrayLike,
        traits: Mapping[str, Any],
        event_ids: Any = None,  # noqa: ANN401 - what numpy takes, and None within
    ) -> online_pb2.EventBatch:
        """A batch of events to append; every argument has shape (events,).

        event_ts: int64, ms, or datetime64. event_ids: int64, None where an event has none.
        traits: by name; arrays, MutableColumns, or sequences with None for an absent value. Traits
            that are sparse or have a default may be left out. An array of another dtype than its
            trait's is converted; floats may round to the trait's width, nothing else may change.

        Raises InputError for a trait that the schema does not know, or values that do not fit it.
        """
        users = integers("user_ids", user_ids)
        given = {"event_ts": event_ts, "event_id": event_ids, **traits}
        columns = []
        for name, values in given.items():
            if values is None:
                continue
            trait = {"event_ts": EVENT_TS, "event_id": EVENT_ID}.get(name) or self.traits.get(name)
            if trait is None:
                raise InputError(
                    f"There is no trait {name!r}; the schema has {', '.join(self.traits)}."
                )
            columns.append(_column(trait, values, len(users)))
        return online_pb2.EventBatch(user_ids=users.tolist(), columns=columns)

    def append(
        self,
        user_ids: ArrayLike,
        event_ts: ArrayLike,
        traits: Mapping[str, Any],
        event_ids: Any = None,  # noqa: ANN401 - as `events`
        *,
        deadline_s: float | None = None,
    ) -> Appended:
        """Appends one batch, arguments as for `events`; returns once it is durable.

        Where this raises UnavailableError or DeadlineError the batch may be there or not: append it
        again, which is safe where its events have ids.
        """
        batch = self.events(user_ids, event_ts, traits, event_ids)
        with contextlib.closing(self.append_all([batch], deadline_s=deadline_s)) as answers:
            return next(answers)

    def append_all(
        self, batches: Iterable[online_pb2.EventBatch], *, deadline_s: float | None = None
    ) -> Generator[Appended, None, None]:
        """Appends batch after batch on one stream, pipelined; yields for each, in order.

        `batches` is pulled in a thread of its own. `deadline_s`: for the whole stream; None for no
        bound but that of silence: DeadlineError for a batch that has no answer within
        `config.request_deadline_s`. Raises RequestError at a batch that was refused: those before
        it are durable, and those already sent behind it may be. Raises UnavailableError if the
        server ends the stream before it has answered every batch.
        """
        sent, is_complete = 0, False
        sent_s: deque[float] = deque()

        def requests() -> Iterator[online_pb2.AppendEventsRequest]:
            nonlocal sent, is_complete
            for batch in batches:
                request = online_pb2.AppendEventsRequest(cursor=sent, events=batch)
                sent += 1
                sent_s.append(time.monotonic())
                yield request
            is_complete = True

        call = self.stub.AppendEvents(requests(), timeout=deadline_s, metadata=self._metadata)
        answered, silence_s = 0, self.config.request_deadline_s
        answers = received(call, silence_s, lambda: sent_s[0] if sent_s else None)
        try:
            with contextlib.closing(answers):
                for answer in answers:
                    require(
                        answer.cursor == answered < sent,
                        f"it has cursor {answer.cursor} after {answered} answers to {sent} batches",
                    )
                    answered += 1
                    sent_s.popleft()
                    if answer.refused:
                        raise RequestError(answer.refused)
                    yield Appended(answer.appended, answer.duplicates, answer.arrival_ts)
        except grpc.RpcError as error:
            raise self._failure(error) from error
        finally:
            call.cancel()
            answers.close()
        if answered != sent or not is_complete:
            raise UnavailableError(
                f"The online server at {self._target} ended the stream after {answered} answers "
                f"to {sent} batches; append the others again."
            )

    def snapshot(
        self,
        user_id: int,
        projection: Projection | str,
        *,
        request_ts: int = 0,
        lookback_ms: int = 0,
        max_length: int = 0,
        deadline_s: float | None = None,
    ) -> Snapshot:
        """What a request of this user sees at `request_ts`, ms; 0 for now.

        Goes over one stream that all threads share: a request in a message, and not a call.

        lookback_ms: how far back the immutable history reaches; 0 for no bound.
        max_length: most immutable events, the newest; 0 for no limit.
        """
        with _integers_only():
            request = online_pb2.SnapshotRequest(
                user_id=user_id,
                request_ts=request_ts,
                lookback_ms=lookback_ms,
                max_length=max_length,
            )
        _ask(request, projection)
        timeout_s = self.config.request_deadline_s if deadline_s is None else deadline_s
        answer = self._stream.ask(request, timeout_s)
        lengths = [len(answer.mutable.arrival_ts)]
        batch, rows = _seen(answer, [user_id], [answer.digest], lengths, projection)
        return Snapshot(batch, rows[0])

    def snapshot_batch(
        self,
        user_ids: ArrayLike,
        projection: Projection | str,
        *,
        request_ts: int = 0,
        lookback_ms: int = 0,
        max_length: int = 0,
        deadline_s: float | None = None,
    ) -> Snapshots:
        """What requests of these users see at one moment; otherwise as `snapshot`."""
        users = integers("user_ids", user_ids).tolist()
        with _integers_only():
            request = online_pb2.SnapshotBatchRequest(
                user_ids=users,
                request_ts=request_ts,
                lookback_ms=lookback_ms,
                max_length=max_length,
            )
        _ask(request, projection)
        answer = self._call("SnapshotBatch", request, deadline_s)
        assert isinstance(answer, online_pb2.SnapshotBatchResponse)
        batch, rows = _seen(answer, users, answer.digests, list(answer.mutable_lengths), projection)
        return Snapshots(batch, rows)

    def export(
        self, request: online_pb2.ExportEventsRequest
    ) -> Generator[online_pb2.ExportEventsResponse, None, None]:
        """Seals a watermark, and yields the events that arrived before."""
        call = self.stub.ExportEvents(request, metadata=self._metadata)
        asked_s = time.monotonic()
        try:
            yield from received(call, self.config.request_deadline_s, lambda: asked_s)
        except grpc.RpcError as error:
            raise self._failure(error) from error
        finally:
            call.cancel()

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self.config.token
        if token is None:
            return ()
        return (("authorization", f"Bearer {token if isinstance(token, str) else token()}"),)

    def _call(self, method: str, request: object, deadline_s: float | None) -> object:
        timeout_s = self.config.request_deadline_s if deadline_s is None else deadline_s
        try:
            return getattr(self.stub, method)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def _failure(self, error: grpc.RpcError) -> ThinRowError:
        if self._closed:
            return UnavailableError(CLOSED)
        failure = translate(error, (self._target,))
        if isinstance(failure, UnavailableError):
            return UnavailableError(
                f"No online server answered at {self._target}; check the address, and that "
                f"`thinrow online` runs there."
            )
        return failure


@contextlib.contextmanager
def _integers_only() -> Iterator[None]:
    """Names what protobuf refuses as a field of a request."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(
            f"user_id, request_ts, lookback_ms and max_length must be int64, but {error}."
        ) from error


def _ask(
    request: online_pb2.SnapshotRequest | online_pb2.SnapshotBatchRequest,
    projection: Projection | str,
) -> None:
    if isinstance(projection, str):
        request.tenant = projection
    else:
        request.projection.CopyFrom(to_wire_projection(projection))


def _column(trait: wire.Trait, values: Any, events: int) -> wire.Column:  # noqa: ANN401
    try:
        given = times_ms(values) if trait is EVENT_TS else values
        column = as_column(trait.type, trait.vector_size, given)
        if len(column.values) == events:
            nullable = trait.nullable or column.present is not None
            return to_wire(trait.name, trait.type, trait.vector_size, nullable, column)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"The column {trait.name!r} does not fit its trait: {error}.") from error
    raise InputError(
        f"The column {trait.name!r} has {len(column.values)} values for {events} events."
    )


def _seen(
    answer: online_pb2.SnapshotResponse | online_pb2.SnapshotBatchResponse,
    user_ids: Sequence[int],
    digests: Sequence[int],
    lengths: Sequence[int],
    projection: Projection | str,
) -> tuple[Batch, tuple[ThinRow, ...]]:
    users = len(user_ids)
    arrival_ts = np.array(answer.mutable.arrival_ts, np.int64)
    columns = from_wire(answer.mutable.columns, len(arrival_ts))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    mutable = MutableEvents(offsets, arrival_ts, columns)
    pointers = Pointers(
        user_ids=np.array(user_ids, np.int64),
        start_ts=np.full(users, answer.start_ts),
        end_ts=np.full(users, answer.end_ts),
        max_lengths=np.full(users, answer.max_length),
        digests=np.array(digests, np.uint64),
        request_ts=np.full(users, answer.request_ts),
    )
    # The very code that puts the thin row back at training time.
    lookup = BatchLookup(ThinRows(pointers, mutable), projection)
    lookup.add(np.arange(users), Response.read(answer.immutable.SerializeToString()))
    batch = Batch.from_answers([lookup.answer()])
    events = _as_mappings(mutable)
    bounds = offsets.tolist()
    rows = tuple(
        ThinRow(
            user_id=int(user_id),
            request_ts=answer.request_ts,
            start_ts=answer.start_ts,
            end_ts=answer.end_ts,
            max_length=answer.max_length,
            digest=int(digest),
            mutable=events[bounds[place] : bounds[place + 1]],
        )
        for place, (user_id, digest) in enumerate(zip(user_ids, digests, strict=True))
    )
    return batch, rows


def _as_mappings(mutable: MutableEvents) -> tuple[Mapping[str, object], ...]:
    """Events as thin rows hold them: event_ts, arrival_ts, event_id, and the traits in order."""
    if not len(mutable.arrival_ts):
        return ()
    lists: dict[str, list[object]] = {}
    for name, column in mutable.columns.items():
        values = column.values.tolist()
        if column.present is not None:
            values = [
                value if there else None
                for value, there in zip(values, column.present.tolist(), strict=True)
            ]
        lists[name] = values
        if name == "event_ts":
            lists["arrival_ts"] = mutable.arrival_ts.tolist()
    return tuple(
        dict(zip(lists, event, strict=True)) for event in zip(*lists.values(), strict=True)
    )
