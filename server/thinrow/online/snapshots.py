"""What requests see: pointers, the mutable events beside them, and the sequences for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from thinrow.errors import RequestError, UnavailableError, UnknownTenantError
from thinrow.serving.projection import resolve_projection, resolve_tenant, wire_type
from thinrow.store.directory import NEVER_TS
from thinrow.store.history import HistoryPlan, Pointers, Status
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.online.published import Published
    from thinrow.online.tier import MutableTier
    from thinrow.schema import Schema
    from thinrow.serving.config import Tenant
    from thinrow.serving.projection import ResolvedProjection
    from thinrow.serving.service import Budget
    from thinrow.store.generation import Generation

    Asked = online_pb2.SnapshotRequest | online_pb2.SnapshotBatchRequest

_IMMUTABLE_TAG = bytes([online_pb2.SnapshotResponse.IMMUTABLE_FIELD_NUMBER << 3 | 2])
assert (
    online_pb2.SnapshotBatchResponse.IMMUTABLE_FIELD_NUMBER
    == online_pb2.SnapshotResponse.IMMUTABLE_FIELD_NUMBER
)


@dataclass(frozen=True, slots=True)
class _Moment:
    """What all users of one call share."""

    request_ts: int
    start_ts: int
    end_ts: int
    mutable_from_ts: int
    """Events that arrived since then are mutable."""


class Snapshots:
    """Answers requests. Thread-safe."""

    def __init__(
        self,
        tier: MutableTier,
        published: Published,
        tenants: Mapping[str, Tenant],
        budget: Budget,
        response_bytes_max: int,
    ) -> None:
        self._tier = tier
        self._published = published
        self._tenants = tenants
        self._budget = budget
        self._response_bytes_max = response_bytes_max

    def take(self, user_ids: Sequence[int], asked: Asked, timeout_s: float | None) -> bytes:
        """The bytes of the answer that belongs to `asked`.

        Raises:
            RequestError: a moment that cannot be answered, a negative bound, an unknown name.
            AnswerTooLargeError: more events than this server sends, or decodes, at once.
            StoreError: the store or the tier cannot be read.
        """
        for name, value in (("lookback_ms", asked.lookback_ms), ("max_length", asked.max_length)):
            if value < 0:
                raise RequestError(f"{name} is {value}; use 0 for no limit, or more.")
        request_ts = self._tier.begin(asked.request_ts)
        with self._published.use() as generation:
            # One choice of a watermark: events before it are immutable, all others mutable.
            moment = self._moment(asked, request_ts, generation)
            mutable = [
                self._tier.read(user_id, moment.mutable_from_ts, request_ts) for user_id in user_ids
            ]
            lengths = np.array([len(records) for _, records in mutable], np.int64)
            schema = self._schema(generation)
            projection = self._projection(asked, schema)
            if generation is None:
                statuses = np.full(len(user_ids), Status.OK, np.uint8)
                digests = np.zeros(len(user_ids), np.uint64)
                immutable = _nothing(projection, len(user_ids))
            else:
                pointers = _pointers(user_ids, moment, asked.max_length, lengths)
                plan = HistoryPlan(
                    generation,
                    pointers,
                    projection.truncation,
                    projection.groups,
                    record_digests=True,
                )
                amount = plan.stripe_bytes_at_most + plan.events_at_most * projection.event_bytes
                with self._budget.hold(amount, timeout_s):
                    plan.read()
                    selection = plan.resolve()
                    statuses, digests = selection.statuses, selection.digests
                    immutable, _ = plan.answer(projection.traits, self._response_bytes_max)
        if (statuses != Status.OK).any():
            for place in np.flatnonzero(statuses != Status.OK).tolist():
                mutable[place] = ([], [])
            lengths[statuses != Status.OK] = 0
        head = self._head(asked, moment, digests, lengths, mutable)
        return b"".join(
            (head.SerializeToString(), _IMMUTABLE_TAG, _varint(len(immutable)), immutable)
        )

    def _moment(self, asked: Asked, request_ts: int, generation: Generation | None) -> _Moment:
        start_ts = request_ts - asked.lookback_ms if asked.lookback_ms else 0
        place = 0
        if generation is not None:
            # What was never sealed here may lack events that this tier holds.
            newest_ts = min(request_ts, self._tier.sealed_ts)
            place = int(np.searchsorted(generation.watermarks, newest_ts, side="right"))
        if generation is None or place == 0:
            return _Moment(request_ts, start_ts, start_ts, NEVER_TS)
        watermark_ts = int(generation.watermarks[place - 1])
        # A lookback shorter than the generation is old leaves nothing of it: an empty window.
        return _Moment(request_ts, min(start_ts, watermark_ts), watermark_ts, watermark_ts)

    def _schema(self, generation: Generation | None) -> Schema:
        if generation is not None:
            return generation.schema
        record_format = self._tier.format
        if record_format is None:
            raise UnavailableError("This server has no schema yet; publish a generation first.")
        return record_format.schema

    def _projection(self, asked: Asked, schema: Schema) -> ResolvedProjection:
        if not asked.tenant:
            return resolve_projection(asked.projection, schema)
        if asked.HasField("projection"):
            raise RequestError("A request names a tenant or carries a projection, not both.")
        tenant = self._tenants.get(asked.tenant)
        if tenant is None:
            known = ", ".join(sorted(self._tenants)) or "none"
            raise UnknownTenantError(
                f"There is no tenant {asked.tenant!r} at this server; it knows: {known}."
            )
        return resolve_tenant(tenant, schema)

    def _head(
        self,
        asked: Asked,
        moment: _Moment,
        digests: NDArray[np.uint64],
        lengths: NDArray[np.int64],
        mutable: Sequence[tuple[list[int], list[bytes]]],
    ) -> online_pb2.SnapshotResponse | online_pb2.SnapshotBatchResponse:
        """The answer, all but its immutable part."""
        head: online_pb2.SnapshotResponse | online_pb2.SnapshotBatchResponse
        if isinstance(asked, online_pb2.SnapshotRequest):
            head = online_pb2.SnapshotResponse(digest=int(digests[0]))
        else:
            head = online_pb2.SnapshotBatchResponse(
                digests=digests.tolist(), mutable_lengths=lengths.tolist()
            )
        head.request_ts = moment.request_ts
        head.start_ts = moment.start_ts
        head.end_ts = moment.end_ts
        head.max_length = asked.max_length
        records = [record for _, some in mutable for record in some]
        if records:
            for arrivals, _ in mutable:
                head.mutable.arrival_ts.extend(arrivals)
            head.mutable.columns.extend(self._tier.wire_columns(records))
        return head


def _pointers(
    user_ids: Sequence[int], moment: _Moment, max_length: int, lengths: NDArray[np.int64]
) -> Pointers:
    zeros = np.zeros(len(user_ids), np.int64)
    return Pointers(
        user_ids=np.array(user_ids, np.int64),
        start_ts=zeros + moment.start_ts,
        end_ts=zeros + moment.end_ts,
        max_lengths=zeros + max_length,
        digests=zeros.view(np.uint64),
        request_ts=zeros + moment.request_ts,
        mutable_lengths=lengths,
    )


def _nothing(projection: ResolvedProjection, users: int) -> bytes:
    """The answer about histories before the first generation: no events, but what they would be."""
    head = projection.truncation.head
    answer = materialization_pb2.MaterializeResponse(
        statuses=[materialization_pb2.STATUS_OK] * users,
        view_starts=[0] * users,
        view_lengths=[0] * users,
        sequence_length=projection.truncation.sequence_length,
        truncation=materialization_pb2.TRUNCATION_HEAD
        if head
        else materialization_pb2.TRUNCATION_NEWEST,
    )
    for trait in projection.traits:
        answer.columns.add(
            trait=trait.name,
            type=wire_type(trait),
            vector_size=trait.size,
            nullable=trait.nullable,
        )
    return answer.SerializeToString()


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
