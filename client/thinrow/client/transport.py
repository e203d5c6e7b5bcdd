"""The seam between a client and the histories it looks up.

There are two ways: `Channels` to the servers of one group (gRPC), and `LocalStore`, which reads the
store in this process. What a client and a stream do beyond that is the same for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from thinrow.client.config import ClientConfig
    from thinrow.core.lookup.batch_lookup import RequestSlice
    from thinrow.core.wire.response import Response
    from thinrow.errors import ThinRowError
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["PendingResponse", "RequestStream", "Transport"]


class PendingResponse(Protocol):
    """The response to a request that was sent."""

    def has_answered(self) -> bool:
        """Returns True if `receive` would return, or raise, at once."""

    def receive(self, timeout_s: float, deadline_s: float) -> Response:
        """Waits for the response, or raises the error in its place.

        Args:
            timeout_s: Time to wait.
            deadline_s: Time for the response over all replicas, for the error's text.
        """


class RequestStream(Protocol):
    """Requests in flight to one replica; responses are received in the order of the requests."""

    replica: int
    """Number of the replica."""

    def send(self, piece: RequestSlice) -> PendingResponse:
        """Sends a request; returns at once."""

    def end(self) -> None:
        """Signals that no more requests come, so that the server ends it; returns at once."""

    def finish(self) -> None:
        """Ends the stream in an orderly way, once every response was received."""

    def close(self) -> None:
        """Ends the stream; requests in flight are abandoned."""


class Transport(Protocol):
    """One group of servers, at one replica or more, or one store.

    Threads may share it. Errors are those of `Client`.
    """

    targets: tuple[str, ...]
    """Names of the replicas, as errors show them."""
    config: ClientConfig
    current: int
    """Number of the replica that the next request goes to."""

    def materialize(self, piece: RequestSlice, deadline_s: float) -> Response:
        """Returns the response about some examples, within `deadline_s`."""

    def open_stream(self) -> RequestStream:
        """Returns a stream to the current replica."""

    def inspect(self, request: wire.InspectRequest, deadline_s: float) -> wire.InspectResponse:
        """Returns one history, readable."""

    def describe_store(self, deadline_s: float) -> wire.DescribeStoreResponse:
        """Returns a description of the store."""

    def look_up_codes(
        self, request: wire.LookUpCodesRequest, deadline_s: float
    ) -> wire.LookUpCodesResponse:
        """Returns the codes of values in a vocabulary."""

    def fail_over(self, failed: int) -> None:
        """Switches to the replica after `failed`, unless another caller already has."""

    def is_elsewhere(self, failure: ThinRowError) -> bool:
        """Returns True if a newer map says where a missing shard is, so that the caller follows it.

        It is read for that, if the failure is about a shard.
        """

    def in_use(self) -> AbstractContextManager[object]:
        """Keeps it open until the block ends, also if the cluster's map drops the group."""

    @property
    def closed(self) -> bool:
        """True once it was closed, in this process."""

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""

    def interrupt(self) -> None:
        """Ends calls and streams in flight, also of other threads that wait for a response.

        May close the transport.
        """

    def close(self) -> None:
        """Ends calls and streams in flight, and releases what they use."""
