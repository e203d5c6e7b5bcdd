"""The client of one store."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Self, TypeVar

from thinrow.client.calls import materialize
from thinrow.client.channel import Channels
from thinrow.client.config import ClientConfig
from thinrow.client.request_size import RequestSize
from thinrow.client.stream import answers
from thinrow.core.tracing import traced_call
from thinrow.core.wire.batch import Batch
from thinrow.core.wire.batch_lookup import BatchLookup, RequestSlice
from thinrow.core.wire.request import to_wire_projection
from thinrow.core.wire.response import Response
from thinrow.errors import AnswerTooLargeError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from google.protobuf.message import Message
    from thinrow.core.pointers import Pointers, Projection, ThinRows
    from thinrow.core.wire.answer import Answer
    from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

__all__ = ["Client", "connect"]

T = TypeVar("T")


def connect(target: str | Sequence[str], config: ClientConfig | None = None) -> Client:
    """Makes a client of the server at `target`, HOST:PORT, or of several replicas of one store.

    It connects at the first call, so a server that is not there yet is no error. Of replicas the
    first is asked until it is unavailable, then the next. Raises UsageError for no target.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    return Client(Channels(targets, config or ClientConfig()))


class Client:
    """Asks for histories. Made by `connect`; a context manager, closed at its end.

    Safe to share between threads. A process that forks must do so before its first client.

    Every call raises UnavailableError where no replica answers in `config.retry_deadline_s`,
    DeadlineError, RequestError (UnknownTenantError, AnswerTooLargeError) for a call that the
    server refuses, StoreCorruptError for a damaged store, and ThinRowError for an answer that
    contradicts itself.
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
        """The bounds this client keeps."""
        return self._channels.config

    @property
    def stub(self) -> MaterializationServiceStub:
        """The generated stub of the replica asked now, for calls of one's own."""
        return self._channels.stub

    def close(self) -> None:
        """Closes the connections; calls and streams under way fail."""
        self._channels.close()

    def materialize(
        self,
        rows: ThinRows | Pointers,
        projection: Projection | str,
        *,
        deadline_s: float | None = None,
    ) -> Batch:
        """Puts back the histories of `rows`, mutable events appended.

        A `str` is the name of a tenant, whose projection the server knows. More rows than
        `config.examples_per_request`, or than fit one answer, are asked for in several requests;
        `deadline_s` (default `config.request_deadline_s`) bounds each. Faults of one example are
        its status. Raises InputError for mutable events that lack a trait they need.
        """
        lookup = BatchLookup(rows, projection)
        size = RequestSize(self.config, first=self.config.examples_per_request)
        rest: RequestSlice | None = lookup.whole()
        while rest is not None:
            piece, later = rest.cut(size.examples)
            examples = len(piece.examples)

            def method(it: Channels, examples: int = examples) -> Callable[..., bytes]:
                return traced_call(materialize(it.channel), lookup.tenant, examples)

            try:
                answer = self._call(method, piece.request(), deadline_s)
                part = piece.answered(Response.read(answer))
            except AnswerTooLargeError:
                if examples <= 1:
                    raise
                size.refused(examples)
            else:
                size.answered(part)
                rest = later
        return Batch.from_answers([lookup.answer()])

    def stream(
        self,
        batches: Iterable[ThinRows | Pointers],
        projection: Projection | str,
        *,
        deadline_s: float | None = None,
    ) -> Generator[Batch, None, None]:
        """Puts back batch after batch: one for each of `batches`, in order, exactly once.

        Up to `config.requests_in_flight` requests are under way, and `batches` is pulled that far
        ahead, in the caller's thread; an empty batch says that the next may take a while, and all
        before it is delivered first. When a server dies, what was not delivered is asked for
        again, there or at the next replica. `deadline_s` (default `config.request_deadline_s`)
        is how long each answer may keep the caller waiting. Closing the iterator, or letting go
        of it, ends the call. Otherwise as `materialize`.
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
        """As `stream`, but not widened."""
        return answers(self._channels, batches, projection, self._deadline_s(deadline_s))

    def inspect(
        self, user_id: int, as_of_ts: int = 0, projection: Projection | None = None
    ) -> wire.InspectResponse:
        """Shows one history, readable, as a request at `as_of_ts` (ms; 0: now) would have had it.

        A projection without sequence length, or none, shows the newest 20 events.
        """
        request = wire.InspectRequest(user_id=user_id, as_of_ts=as_of_ts)
        if projection is not None:
            request.projection.CopyFrom(to_wire_projection(projection))
        answer: wire.InspectResponse = self._call(lambda it: it.stub.Inspect, request, None)
        return answer

    def describe_store(self) -> wire.DescribeStoreResponse:
        """Describes the store: schema, watermarks, shards, limits, versions."""
        request = wire.DescribeStoreRequest()
        answer: wire.DescribeStoreResponse
        answer = self._call(lambda it: it.stub.DescribeStore, request, None)
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
