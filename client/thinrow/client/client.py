"""The client of one store."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Self, TypeVar

from thinrow.client.calls import materialize
from thinrow.client.channel import Channels
from thinrow.client.config import ClientConfig
from thinrow.client.request_size import RequestSize
from thinrow.client.stream import answers
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup, RequestSlice
from thinrow.core.tracing import traced_call
from thinrow.core.wire.request import to_wire_projection
from thinrow.core.wire.response import Response
from thinrow.errors import AnswerTooLargeError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from google.protobuf.message import Message
    from thinrow.core.lookup.answer import Answer
    from thinrow.core.pointers import Pointers, Projection, ThinRows
    from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

__all__ = ["Client", "connect"]

T = TypeVar("T")


def connect(target: str | Sequence[str], config: ClientConfig | None = None) -> Client:
    """Returns a client of the server at `target`, HOST:PORT, or of several replicas of one store.

    It connects at the first call, so a server that is not there yet is no error. It uses the first
    replica until that one is unavailable, then the next.

    Raises:
        UsageError: There is no target, or one is no address.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    return Client(Channels(targets, config or ClientConfig()))


class Client:
    """Looks up histories. Made by `connect`; a context manager, closed at its end.

    Threads may share it. A process that forks must do so before its first client.

    Every call raises:
        UnavailableError: No replica answers in `config.retry_deadline_s`.
        DeadlineError: No response came in time.
        RequestError: The server rejects the call (also UnknownTenantError, AnswerTooLargeError).
        StoreCorruptError: The store is damaged.
        ThinRowError: The response contradicts itself.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({', '.join(self._channels.targets)})"

    @property
    def config(self) -> ClientConfig:
        """The settings of this client."""
        return self._channels.config

    @property
    def stub(self) -> MaterializationServiceStub:
        """The generated stub of the current replica, for calls that this class does not have."""
        return self._channels.stub

    def close(self) -> None:
        """Closes the connections; calls and streams in flight fail."""
        self._channels.close()

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
        lookup = BatchLookup(rows, projection)
        size = RequestSize(self.config, first=self.config.examples_per_request)
        rest: RequestSlice | None = lookup.whole()
        while rest is not None:
            piece, later = rest.cut(size.examples)
            examples = len(piece.examples)

            def method(channels: Channels, examples: int = examples) -> Callable[..., bytes]:
                return traced_call(materialize(channels.channel), lookup.tenant, examples)

            try:
                answer = self._call(method, piece.request(), deadline_s)
                response = piece.answered(Response.read(answer))
            except AnswerTooLargeError:
                if examples <= 1:
                    raise
                size.rejected(examples)
            else:
                size.answered(response)
                rest = later
        return Batch.from_answers([lookup.answer()])

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
        return answers(self._channels, batches, projection, self._deadline_s(deadline_s))

    def inspect(
        self, user_id: int, as_of_ts: int = 0, projection: Projection | None = None
    ) -> wire.InspectResponse:
        """Returns one history, readable, as a request at `as_of_ts` (ms; 0: now) would see it.

        Without a projection, or without its sequence length, these are the newest 20 events.
        """
        request = wire.InspectRequest(user_id=user_id, as_of_ts=as_of_ts)
        if projection is not None:
            request.projection.CopyFrom(to_wire_projection(projection))
        answer: wire.InspectResponse = self._call(
            lambda channels: channels.stub.Inspect, request, None
        )
        return answer

    def describe_store(self) -> wire.DescribeStoreResponse:
        """Describes the store: schema, watermarks, shards, limits, versions."""
        request = wire.DescribeStoreRequest()
        answer: wire.DescribeStoreResponse
        answer = self._call(lambda channels: channels.stub.DescribeStore, request, None)
        return answer

    def _call(
        self,
        method: Callable[[Channels], Callable[..., T]],
        request: Message | bytes,
        deadline_s: float | None,
    ) -> T:
        return self._channels.call(method, request, self._deadline_s(deadline_s))

    def _deadline_s(self, deadline_s: float | None) -> float:
        return self.config.request_deadline_s if deadline_s is None else deadline_s
