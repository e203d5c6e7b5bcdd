"""The client of one store."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thinrow.client.channel import Channels
from thinrow.client.code_book import CodeBook
from thinrow.client.config import ClientConfig
from thinrow.client.grpc_errors import ShardElsewhereError
from thinrow.client.local_store import LocalStore
from thinrow.client.retries import Retries
from thinrow.client.router import Router
from thinrow.client.stream import answers
from thinrow.client.target import parse_targets
from thinrow.core.codes import FIRST_CODE
from thinrow.core.ids import from_wire_kind, given_users, parse_user_id
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import Pointers, integers
from thinrow.core.user_keys import user_keys
from thinrow.core.wire.request import to_wire_projection
from thinrow.errors import UsageError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import uuid
    from collections.abc import Generator, Iterable, Sequence

    from thinrow.client.router import Routing
    from thinrow.client.target import Target
    from thinrow.client.transport import Transport
    from thinrow.core.lookup.answer import Answer
    from thinrow.core.lookup.coding import Value
    from thinrow.core.pointers import Projection, ThinRows
    from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

__all__ = ["Client", "connect"]

DESCRIPTION_S_MAX = 5.0
"""Longest wait for the description of one group of a cluster."""
DEADLINE_S_MAX = 7 * 86_400.0
"""Time that stands for longer ones and for no limit, which timers cannot count."""


def connect(target: Target, config: ClientConfig | None = None) -> Client:
    """Returns a client of a server, of replicas, of a cluster, or of a store in a folder.

    A server is connected at the first call, so one that is not there yet is no error; the first
    replica is used until it is unavailable, then the next. Any server of a cluster names all the
    others, so the address of one is enough. A store is opened at once, and read in this process
    without any server; this needs the extra `[server]`.

    Args:
        target: HOST:PORT, several of them, or the path of a store.
        config: Limits, deadlines and credentials.

    Raises:
        UsageError: The target is unclear, or libraries to read a store are missing.
        StoreError: The store cannot be opened.
    """
    config = config or ClientConfig()
    targets = parse_targets(target)
    if isinstance(targets, Path):
        return Client(LocalStore(targets, config))
    return Client(Channels(targets, config))


class Client:
    """Looks up histories. Made by `connect`; a context manager, closed at its end.

    Threads may share it. A process that forks must do so before its first client of a server; a
    client of a store works only in the process that made it.

    Every call raises:
        UnavailableError: No replica answers in `config.retry_deadline_s`.
        DeadlineError: No response came in time.
        RequestError: The server rejects the call (also UnknownTenantError, AnswerTooLargeError).
        StoreCorruptError: The store is damaged.
        StoreUnavailableError: The store, read in this process, cannot be read for now.
        ThinRowError: The response contradicts itself.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._router = Router(transport)
        self._code_book = CodeBook(self._look_up_codes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({', '.join(self._transport.targets)})"

    @property
    def config(self) -> ClientConfig:
        """The settings of this client."""
        return self._transport.config

    @property
    def stub(self) -> MaterializationServiceStub:
        """The generated stub of the current replica, for calls that this class does not have.

        Raises:
            UsageError: The store is read in this process.
        """
        if not isinstance(self._transport, Channels):
            raise UsageError("A store in this process has no stub; connect to a server for one.")
        return self._transport.stub

    @property
    def closed(self) -> bool:
        """True once the client was closed, or if it cannot be used in this process."""
        return self._transport.closed

    @property
    def routing(self) -> Routing:
        """Numbers of maps, groups, hedges and failovers so far, for dashboards."""
        return self._router.routing

    def interrupt(self) -> None:
        """Ends calls and streams in flight, also those of other threads.

        This closes a client of servers; one of a store stays open.
        """
        self._transport.interrupt()
        if self._transport.closed:
            self._router.close()

    def close(self) -> None:
        """Closes connections, or the store; calls and streams in flight fail."""
        self._transport.close()
        self._router.close()

    def materialize(
        self,
        rows: ThinRows | Pointers,
        projection: Projection | str,
        *,
        deadline_s: float | None = None,
    ) -> Batch:
        """Returns the histories of `rows`, mutable events appended.

        A fault of one example is its status.

        Args:
            rows: More than `config.examples_per_request`, or than fit one response, are split
                into several requests.
            projection: The wanted part of each history, or the name of a tenant, whose projection
                the server knows.
            deadline_s: Time for each request. Default: `config.request_deadline_s`.

        Raises:
            InputError: Mutable events lack a trait they need.
        """
        deadline_s = self._deadline_s(deadline_s)
        coder = self._code_book.coder(projection, deadline_s)
        self._router.discover(deadline_s)
        if not self._router.map_version:
            lookup = BatchLookup(rows, projection, coder)
            with suppress(ShardElsewhereError):  # there is a map by now
                self._router.look_up(lookup.whole(), deadline_s)
                return Batch.from_answers([lookup.answer()])
        # Groups are requested side by side.
        examples = self.config.examples_per_request
        answered = answers(self._router, [rows], projection, deadline_s, coder, examples)
        with closing(answered):
            return Batch.from_answers([next(answered)])

    def stream(
        self,
        batches: Iterable[ThinRows | Pointers],
        projection: Projection | str,
        *,
        deadline_s: float | None = None,
    ) -> Generator[Batch, None, None]:
        """Yields the histories of batch after batch, in order, each exactly once.

        Up to `config.requests_in_flight` requests are in flight. After a server's failure, the
        client repeats the undelivered requests, there or at the next replica. Closing or dropping
        the iterator ends the call. Otherwise as `materialize`.

        Args:
            batches: Pulled ahead of delivery, in the caller's thread. An empty batch means that
                the next one may take a while, so all before it is delivered first.
            projection: As for `materialize`.
            deadline_s: Longest wait for each response. Default: `config.request_deadline_s`.
        """
        with closing(self.answers(batches, projection, deadline_s=deadline_s)) as answered:
            for answer in answered:
                yield Batch.from_answers([answer])

    def answers(
        self,
        batches: Iterable[ThinRows | Pointers],
        projection: Projection | str,
        *,
        deadline_s: float | None = None,
    ) -> Generator[Answer, None, None]:
        """Yields the same as `stream`, not yet widened."""
        deadline_s = self._deadline_s(deadline_s)
        coder = self._code_book.coder(projection, deadline_s)
        return answers(self._router, batches, projection, deadline_s, coder)

    def inspect(
        self,
        user_id: int | str | uuid.UUID,
        as_of_ts: int = 0,
        projection: Projection | None = None,
    ) -> wire.InspectResponse:
        """Returns one history, readable, as a request at `as_of_ts` (ms; 0: now) would see it.

        Without a projection, or without its sequence length, these are the newest 20 events.

        Args:
            user_id: The user, of the store's kind; a text may also write an integer.
            as_of_ts: The moment.
            projection: The part of the history to show.

        Raises:
            InputError: It is no id of the store's kind.
        """
        request = wire.InspectRequest(as_of_ts=as_of_ts)
        users: Any = [user_id]
        given = given_users("user_id", users, integers)
        known: int | str = int(given.ids[0])
        if given.kind != "int64":
            # Servers that know only int64 would ignore the text.
            kind = from_wire_kind(self.describe_store().user_id_kind)
            known = parse_user_id(str(user_id), kind)
        if isinstance(known, int) and known < 1 << 63:
            request.user_id = known
        else:
            request.user = str(known)
        if projection is not None:
            request.projection.CopyFrom(to_wire_projection(projection))
        deadline_s = self._deadline_s(None)
        self._router.discover(deadline_s)
        retries = Retries(self.config)
        while True:
            version = self._router.map_version
            group = self._router.group_of(self._key(known, version))
            try:
                with group.in_use():
                    return group.inspect(request, deadline_s)
            except ShardElsewhereError as error:
                if self._router.map_version == version or not retries.pause(error):
                    raise

    def describe_store(self) -> wire.DescribeStoreResponse:
        """Describes the store: schema, watermarks, shards, limits, versions.

        In a cluster it is the description by the server whose generation is the oldest, of one
        server of each group: every example up to its watermark has its history. A group whose
        servers do not answer is an error after a few seconds, which names them.
        """
        deadline_s = self._deadline_s(None)
        self._router.discover(deadline_s)
        if self._router.map_version:
            deadline_s = min(deadline_s, DESCRIPTION_S_MAX)
        described = self._router.of_each_group(lambda group: group.describe_store(deadline_s))
        return min(described, key=lambda each: each.generation)

    def codes(
        self, trait: str, values: Sequence[Value], *, deadline_s: float | None = None
    ) -> list[int]:
        """Returns the codes that the store's vocabulary of a trait has for values: 1 for unknown.

        Args:
            trait: A trait with `codes = "vocabulary"`.
            values: All texts, or all integers, as the trait has them.
            deadline_s: Time for each request. Default: `config.request_deadline_s`.

        Raises:
            RequestError: The trait has no vocabulary, or one of other values.
        """
        found = self._code_book.coder("", self._deadline_s(deadline_s))(
            trait, list(dict.fromkeys(values)), self._codes_end(trait)
        )
        return [found[value] for value in values]

    def _key(self, user: int | str, map_version: int) -> int:
        """Returns the key of a user in the cluster's shards; any number without a cluster."""
        if not map_version:
            return 0
        pointers = Pointers(user_ids=[user], end_ts=[0])
        return int(user_keys(pointers, self._router.user_ids)[0])

    def _look_up_codes(
        self, request: wire.LookUpCodesRequest, deadline_s: float
    ) -> wire.LookUpCodesResponse:
        self._router.discover(deadline_s)
        group = self._router.any_group()
        with group.in_use():
            return group.look_up_codes(request, deadline_s)

    def _codes_end(self, trait: str) -> int:
        groups = self.describe_store().feature_groups
        ends = (
            each.vocabulary.codes_end
            for group in groups
            for each in group.traits
            if each.name == trait
        )
        return next(ends, 0) or FIRST_CODE

    def _deadline_s(self, deadline_s: float | None) -> float:
        wanted_s = self.config.request_deadline_s if deadline_s is None else deadline_s
        if not wanted_s > 0:
            raise UsageError(f"deadline_s is {deadline_s}; it must be above 0.")
        return min(wanted_s, DEADLINE_S_MAX)
