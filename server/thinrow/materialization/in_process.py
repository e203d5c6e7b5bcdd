"""A store that a process reads for itself: the service without a server around it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

# Stores with vocabularies need its libraries, which a process that is forked later must not load.
import thinrow.store.vocabulary  # noqa: F401
from thinrow.access.identity import CallContext, CallIdentity
from thinrow.access.tenants import Tenants
from thinrow.core.ids import to_wire_kind
from thinrow.core.wire.request import to_wire_projection
from thinrow.errors import UnknownTenantError
from thinrow.materialization.metrics import Metrics
from thinrow.materialization.request import LocalRequest
from thinrow.materialization.service import MaterializationService
from thinrow.store.follower import GenerationFollower
from thinrow.store.shard_source import FixedShards
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from thinrow.access.identity import Metadata
    from thinrow.core.pointers import Pointers, Projection
    from thinrow.materialization.config import ServerConfig

__all__ = ["StoreReader"]


class LocalRpc:
    """Stands in for gRPC in the context of a call from this process, which waits for its end."""

    def invocation_metadata(self) -> Metadata:
        """Returns no metadata."""
        return ()

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Does nothing."""

    def is_active(self) -> bool:
        """Returns True."""
        return True

    def time_remaining(self) -> None:
        """Returns None: there is no deadline."""


class StoreReader:
    """Answers this process as a server would, until it is closed. Thread-safe.

    Of the configuration, limits of work and memory, the tenants and the interval of polling apply.

    Raises:
        StoreError: The store cannot be opened.
        InputError: The tenants file is wrong.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        metrics = Metrics()
        with ExitStack() as opened:
            current = opened.enter_context(
                GenerationFollower(
                    config.store_folder,
                    config.poll_s,
                    metrics.open_failures.inc,
                    config.cache_bytes_max,
                    FixedShards(config.shard_choice),
                )
            )
            self._tenants = opened.enter_context(Tenants(config, current.schema))
            self._service = MaterializationService(config, current, self._tenants, metrics)
            self._stack = opened.pop_all()

    def materialize(
        self, pointers: Pointers, mutable_lengths: NDArray[np.int64], projection: Projection | str
    ) -> bytes:
        """Returns a MaterializeResponse, encoded.

        Args:
            pointers: The histories to read.
            mutable_lengths: Mutable events of each example; int64, shape (examples,).
            projection: The wanted part of each history, or the name of a tenant.

        Raises:
            RequestError: The projection does not fit, or the answer is too large.
            StoreCorruptError: The store is damaged.
        """
        tenant, wanted = "", None
        if isinstance(projection, str):
            tenant = projection
            if tenant and self._config.tenants is None:
                raise UnknownTenantError(
                    f"Only a tenants file gives {tenant!r} a meaning; name the file, in "
                    f"ThinRow's client with StoreConfig(tenants=…), or give a projection."
                )
        else:
            wanted = to_wire_projection(projection).SerializeToString()
        texts = pointers.user_texts
        request = LocalRequest(
            user_ids=pointers.user_ids,
            start_ts=pointers.start_ts,
            end_ts=pointers.end_ts,
            max_lengths=pointers.max_lengths,
            digests=pointers.digests,
            request_ts=pointers.request_ts,
            mutable_lengths=mutable_lengths,
            tenant=tenant,
            projection=wanted,
            user_id_kind=to_wire_kind(pointers.user_id_kind) if texts is None else 0,
            user_texts=() if texts is None else texts.tolist(),
        )
        [message] = self._service.materialize(request, self._call(tenant))
        return message

    def inspect(self, request: wire.InspectRequest) -> wire.InspectResponse:
        """Returns one history, readable.

        Raises:
            RequestError: The projection does not fit, or is too long.
            StoreCorruptError: The store is damaged.
        """
        return self._service.inspect(request, self._call())

    def describe_store(self) -> wire.DescribeStoreResponse:
        """Returns a description of the store."""
        return self._service.describe_store(wire.DescribeStoreRequest(), self._call())

    def look_up_codes(self, request: wire.LookUpCodesRequest) -> wire.LookUpCodesResponse:
        """Returns the codes of values in a vocabulary.

        Raises:
            RequestError: The trait has no vocabulary, or one of other values.
            StoreCorruptError: The store is damaged.
        """
        return self._service.look_up_codes(request, self._call(request.tenant))

    def close(self) -> None:
        """Closes the store, which no thread may be reading."""
        self._stack.close()

    def _call(self, tenant: str = "") -> CallContext:
        identity = CallIdentity(self._tenants)
        identity.effective = tenant
        return CallContext(LocalRpc(), identity, lambda: None)
