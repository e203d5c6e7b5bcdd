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
import threading
import time
import uuid
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import numpy as np
from thinrow.client.channel import check_token
from thinrow.client.closable import CLOSED
from thinrow.client.code_book import CodeBook
from thinrow.client.config import ClientConfig
from thinrow.client.online_appends import Appended, append_all
from thinrow.client.online_replica import OnlineReplica
from thinrow.client.online_replicas import OnlineReplicas, OnlineRouting
from thinrow.client.online_topology import Topology
from thinrow.client.received import received
from thinrow.client.server_addresses import ServerAddress, is_name, parse_addresses, resolve
from thinrow.client.snapshots import Snapshot, Snapshots, read_snapshot, read_snapshots
from thinrow.core.files.trait_arrays import arrow_column, is_arrow
from thinrow.core.ids import (
    canonical_text,
    from_wire_kind,
    given_users,
    id_type,
    is_text_kind,
    shown_id,
)
from thinrow.core.pointers import integers
from thinrow.core.wire.columns import as_column, form_of, to_wire
from thinrow.core.wire.request import to_wire_projection
from thinrow.errors import InputError, UnavailableError
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike
    from thinrow.core.ids import IdKind
    from thinrow.core.pointers import Projection
    from thinrow.v1 import online_pb2_grpc

__all__ = [
    "Appended",
    "OnlineClient",
    "OnlineRouting",
    "Snapshot",
    "Snapshots",
    "connect_online",
]

Request = TypeVar("Request", online_pb2.SnapshotRequest, online_pb2.SnapshotBatchRequest)

EVENT_TS = wire.Trait(name="event_ts", type=wire.TRAIT_TYPE_INT64, vector_size=1, unit="ms")


def connect_online(target: str | Sequence[str], config: ClientConfig | None = None) -> OnlineClient:
    """Returns a client of an online server, or of the servers of one Kafka topic.

    It connects at the first call.

    Args:
        target: HOST:PORT of a server; of several as a list, or separated by commas. A name with
            several addresses stands for a server at each.
        config: Limits, deadlines and credentials.

    Raises:
        UsageError: An address is wrong, or a token would travel unencrypted to another machine.
    """
    return OnlineClient(target, config or ClientConfig())


class OnlineClient:
    """Appends events and takes snapshots. Made by `connect_online`; closed at its block's end.

    Threads may share it. With one server it repeats no call by itself. With several, each request
    goes to a replica that reads the user's partition of the topic, and to others if that one fails,
    refuses, lags or is slow; appends go to any of them.

    Every call raises:
        RequestError: The server rejects it.
        LaggingError: No replica has applied the topic as far as the request or its tenant requires.
        UnavailableError, DeadlineError, StoreError: The server cannot answer it.
        ThinRowError: The response contradicts itself.
    """

    def __init__(self, target: str | Sequence[str], config: ClientConfig) -> None:
        self.config = config
        self._addresses = parse_addresses(target)
        for address in self._addresses:
            check_token(address, config)
        self._code_book = CodeBook(self._look_up_codes)
        self._closed = False
        self._connecting = threading.Lock()
        self._connected: OnlineReplica | OnlineReplicas | None = None
        if len(self._addresses) == 1 and not is_name(self._addresses[0]):
            self._connected = OnlineReplica(ServerAddress(self._addresses[0]), config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _servers(self) -> OnlineReplica | OnlineReplicas:
        """The server, or the servers; names are resolved at the first use."""
        if self._closed:
            raise UnavailableError(CLOSED)
        if self._connected is None:
            with self._connecting:
                if self._connected is None:
                    found = resolve(self._addresses)
                    if len(found) == 1:
                        self._connected = OnlineReplica(found[0], self.config)
                    else:
                        topology = Topology(self._addresses, found, self.config)
                        self._connected = OnlineReplicas(topology)
        return self._connected

    @property
    def stub(self) -> online_pb2_grpc.OnlineServiceStub:
        """The generated stub of a server, for calls that this class does not have."""
        return self._servers.stub

    @property
    def routing(self) -> OnlineRouting:
        """Numbers of what the client did to reach one of several servers."""
        servers = self._servers
        return OnlineRouting(1, 0, 0) if isinstance(servers, OnlineReplica) else servers.routing

    def close(self) -> None:
        """Closes the connections; calls in flight fail."""
        with self._connecting:
            self._closed = True
        if self._connected is not None:
            self._connected.close()

    def describe(self) -> online_pb2.DescribeTierResponse:
        """Describes the tier of a server: its clock, its contents, the schema of events, limits."""
        request = online_pb2.DescribeTierRequest()
        described: online_pb2.DescribeTierResponse
        described = self._servers.call("DescribeTier", request, self.config.request_deadline_s)
        return described

    @cached_property
    def traits(self) -> dict[str, wire.Trait]:
        """The traits of events in schema order, as the first call found them."""
        groups = self.describe().feature_groups
        return {trait.name: trait for group in groups for trait in group.traits}

    @cached_property
    def user_id_kind(self) -> IdKind:
        """The kind of user ids, as the first call found it."""
        return from_wire_kind(self.describe().user_id_kind)

    @cached_property
    def event_id_kind(self) -> IdKind:
        """The kind of event ids, as the first call found it."""
        return from_wire_kind(self.describe().event_id_kind)

    @cached_property
    def _event_id(self) -> wire.Trait:
        kind = id_type(self.event_id_kind)
        return wire.Trait(name="event_id", type=kind, vector_size=1, nullable=True)  # type: ignore[arg-type]

    def _users(self, user_ids: ArrayLike) -> list[int] | list[str]:
        """Returns users as messages carry them; raises InputError for those of another kind."""
        users = given_users("user_ids", user_ids, integers)
        if users.texts is not None:
            kind = self.user_id_kind
            if not is_text_kind(kind):
                raise InputError(f"The users of this server are {kind}, but user_ids has texts.")
            return [canonical_text(text, kind) for text in users.texts.tolist()]
        # Integers that both kinds hold need no call to know the kind.
        if len(users.ids) and users.ids.min() < 0 and self.user_id_kind != users.kind:
            raise InputError(
                f"The users of this server are {self.user_id_kind}, and user_ids has ids that "
                f"only {users.kind} holds."
            )
        keys: list[int] = users.ids.tolist()
        return keys

    def events(
        self,
        user_ids: ArrayLike,
        event_ts: ArrayLike,
        traits: Mapping[str, Any],
        event_ids: Any = None,  # noqa: ANN401 - what numpy takes, and None within
    ) -> online_pb2.EventBatch:
        """Returns a batch of events to append; every argument has shape (events,).

        Args:
            user_ids: int64, or of the kind that the schema says.
            event_ts: int64, ms, or datetime64.
            traits: By name: arrays of NumPy or Arrow, MutableColumns, or sequences with None for an
                absent value; lists as sequences of sequences or arrays. Traits that are sparse or
                have a default may be left out. Values of another type than their trait's are
                converted, times and decimals too; floats may round to the trait's width, nothing
                else may change.
            event_ids: int64, or of the kind that the schema says, None where an event has none.

        Raises:
            InputError: The schema has no such trait, or values do not fit it.
        """
        users = self._users(user_ids)
        given = {"event_ts": event_ts, "event_id": event_ids, **traits}
        columns = []
        for name, values in given.items():
            if values is None:
                continue
            trait = self._trait(name)
            if trait is None:
                raise InputError(
                    f"There is no trait {name!r}; the schema has {', '.join(self.traits)}."
                )
            if name == "event_id":
                values = _event_ids(values)
            columns.append(_column(trait, values, len(users)))
        return online_pb2.EventBatch(columns=columns, **_named(users))

    def _trait(self, name: str) -> wire.Trait | None:
        if name == "event_id":
            return self._event_id
        return EVENT_TS if name == "event_ts" else self.traits.get(name)

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

        After UnavailableError or DeadlineError the batch may be there or not: append it again,
        which is safe if its events have ids.
        """
        batch = self.events(user_ids, event_ts, traits, event_ids)
        with contextlib.closing(self.append_all([batch], deadline_s=deadline_s)) as answers:
            return next(answers)

    def append_all(
        self, batches: Iterable[online_pb2.EventBatch], *, deadline_s: float | None = None
    ) -> Generator[Appended, None, None]:
        """Appends batch after batch on one stream, pipelined; yields for each, in order.

        With several servers, the batches that have no answer when one fails go to another one,
        unless an event of theirs has no id and may be there already.

        Args:
            batches: Pulled in a thread of its own.
            deadline_s: Time for the whole stream. None: no limit but that of silence.

        Raises:
            RequestError: The server rejected a batch. Those before it are durable, and those
                already sent after it may be.
            DeadlineError: A batch has no response within `config.request_deadline_s`.
            UnavailableError: The server ended the stream before it had answered every batch.
        """
        return append_all(self._servers, batches, deadline_s)

    def snapshot(
        self,
        user_id: int | str | uuid.UUID,
        projection: Projection | str,
        *,
        request_ts: int = 0,
        lookback_ms: int = 0,
        max_length: int = 0,
        deadline_s: float | None = None,
    ) -> Snapshot:
        """Returns the history that a request of this user sees.

        Requests of all threads share one stream, so that each costs a message and not a call.

        Args:
            user_id: The user.
            projection: The wanted part of the history, or a tenant's name.
            request_ts: Time of the request, ms; 0 for now.
            lookback_ms: Time that the immutable history reaches back; 0 for no bound.
            max_length: Most immutable events, the newest; 0 for no limit.
            deadline_s: Time for the response. Default: `config.request_deadline_s`.
        """
        named: dict[str, Any] = {"user_id": user_id}
        shown: Any = user_id
        if isinstance(user_id, str | uuid.UUID):
            [shown] = self._users([str(user_id)])
            named = {"user_text": shown}
        elif type(user_id) is not int or not 0 <= user_id < 1 << 63:
            [named["user_id"]] = self._users([user_id])
        request = _request(
            online_pb2.SnapshotRequest,
            projection,
            **named,
            request_ts=request_ts,
            lookback_ms=lookback_ms,
            max_length=max_length,
        )
        answer = self._servers.snapshot(request, self._timeout_s(deadline_s))
        coder = self._code_book.coder(projection, self._timeout_s(deadline_s))
        return read_snapshot(answer, shown, projection, coder)

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
        """Returns the histories that these users' requests see, as `snapshot`.

        They are of one moment if one server answers, or if `request_ts` gives one. Otherwise each
        server answers at a moment of its own, which is the `request_ts` of its thin rows; they are
        as few servers as read the users' partitions.
        """
        users = self._users(user_ids)
        request = _request(
            online_pb2.SnapshotBatchRequest,
            projection,
            **_named(users),
            request_ts=request_ts,
            lookback_ms=lookback_ms,
            max_length=max_length,
        )
        parts = self._servers.snapshot_batch(request, self._timeout_s(deadline_s))
        shown: list[Any] = [
            user if isinstance(user, str) or user >= 0 else shown_id(user, self.user_id_kind)
            for user in users
        ]
        coder = self._code_book.coder(projection, self._timeout_s(deadline_s))
        return read_snapshots(parts, shown, projection, coder)

    def export(
        self, request: online_pb2.ExportEventsRequest
    ) -> Generator[online_pb2.ExportEventsResponse, None, None]:
        """Seals a watermark, and yields the events that arrived before."""
        server = self._servers.for_appends(())
        assert server is not None, "there is a server"
        call = server.stub.ExportEvents(request, metadata=server.metadata)
        sent_s = time.monotonic()
        try:
            yield from received(call, self.config.request_deadline_s, lambda: sent_s)
        except grpc.RpcError as error:
            raise server.failure(error) from error
        finally:
            call.cancel()

    def _look_up_codes(
        self, request: wire.LookUpCodesRequest, deadline_s: float
    ) -> wire.LookUpCodesResponse:
        wrapped = online_pb2.LookUpEventCodesRequest(values=request)
        answer: online_pb2.LookUpEventCodesResponse
        answer = self._servers.call("LookUpEventCodes", wrapped, deadline_s)
        return answer.codes

    def _timeout_s(self, deadline_s: float | None) -> float:
        return self.config.request_deadline_s if deadline_s is None else deadline_s


def _event_ids(values: Any) -> Any:  # noqa: ANN401 - as `OnlineClient.events`
    """Returns ids with every UUID of Python as its text; others as they are.

    Raises:
        InputError: There are bools, which elsewhere are the integers 0 and 1.
    """
    if is_arrow(values):  # whose types say what they are
        return values
    is_plain = isinstance(values, np.ndarray) and values.dtype != object
    if not is_plain and hasattr(values, "tolist"):
        values = values.tolist()
    kinds = {values.dtype.type} if is_plain else set()
    if isinstance(values, list | tuple):
        kinds = set(map(type, values))
    if kinds & {bool, np.bool_}:
        raise InputError("event_ids has bools, where ids must be.")
    if uuid.UUID in kinds:
        return [str(value) if isinstance(value, uuid.UUID) else value for value in values]
    return values


def _named(users: list[int] | list[str]) -> dict[str, Any]:
    """Returns the field of a message that names users."""
    return {"user_texts" if users and isinstance(users[0], str) else "user_ids": users}


def _request(kind: type[Request], projection: Projection | str, **fields: Any) -> Request:  # noqa: ANN401
    """Returns a request of some kind; names the fields that protobuf rejects."""
    try:
        request = kind(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"user_id, request_ts, lookback_ms and max_length must be int64, but {error}."
        ) from error
    if isinstance(projection, str):
        request.tenant = projection
    else:
        request.projection.CopyFrom(to_wire_projection(projection))
    return request


def _column(trait: wire.Trait, values: Any, events: int) -> wire.Column:  # noqa: ANN401
    try:
        form = form_of(trait)
        kind = trait.type
        if form.coded is not None:  # events have values, which get their codes later
            kind = trait.vocabulary.value_type
            form = replace(form, type=form.coded, coded=None)
        if is_arrow(values):
            column = arrow_column(trait.name, values, form)
        else:
            column = as_column(form, values)
        if len(column) == events:
            nullable = trait.nullable or column.present is not None
            size, length_max = trait.vector_size, trait.list_length_max
            return to_wire(trait.name, kind, size, nullable, column, length_max)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"The column {trait.name!r} does not fit its trait: {error}.") from error
    raise InputError(f"The column {trait.name!r} has {len(column)} values for {events} events.")
