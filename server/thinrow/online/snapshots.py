"""Snapshots of requests: pointers, their mutable events, and the sequences for inference."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from thinrow.access.code_lookup import looked_up
from thinrow.access.fair_scheduler import FairScheduler
from thinrow.access.projection import ProjectionCache, resolve, wire_type
from thinrow.core.status import Status
from thinrow.core.wire.request import field_head
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    RequestError,
    StoreError,
    UnavailableError,
)
from thinrow.online.cached_path import CachedSnapshotPath
from thinrow.online.mutable import MutableEvents
from thinrow.online.users import named_users
from thinrow.store.budgeted_read import read_within_budget
from thinrow.store.directory import NEVER_TS
from thinrow.store.history import HistoryPlan, PointerBatch
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from thinrow.access.fair_scheduler import Held
    from thinrow.access.projection import ResolvedProjection
    from thinrow.access.tenants_file import Tenant
    from thinrow.online.event_tier import EventTier, RequestMoment
    from thinrow.online.follower import Generations
    from thinrow.online.users import NamedUsers
    from thinrow.schema import Schema
    from thinrow.store.generation import Generation

    AnySnapshotRequest = online_pb2.SnapshotRequest | online_pb2.SnapshotBatchRequest

__all__ = ["SMALL_SHARE", "Snapshots"]

SMALL_SHARE = 4
"""The part of memory, one in N, that is kept for snapshots too small to wait for room."""
SMALL_COPIES = 5
"""The part of a small snapshot's memory, one in N, for decoded events, and for mutable ones.

The rest is for two copies of their answer.
"""
ANSWER_COPIES = 2
"""Copies of an answer: in parts and joined, and then joined and on its way."""
BESIDE_OTHERS = (
    "The answers of one message would take more memory than this server has free; send the request "
    "again, with fewer beside it."
)
_MUTABLE = online_pb2.SnapshotResponse.MUTABLE_FIELD_NUMBER
_IMMUTABLE = online_pb2.SnapshotResponse.IMMUTABLE_FIELD_NUMBER
assert (
    online_pb2.SnapshotBatchResponse.MUTABLE_FIELD_NUMBER,
    online_pb2.SnapshotBatchResponse.IMMUTABLE_FIELD_NUMBER,
) == (_MUTABLE, _IMMUTABLE)


@dataclass(frozen=True, slots=True)
class _Moment:
    """State shared by all users of one call."""

    begun: RequestMoment
    start_ts: int
    end_ts: int
    mutable_from_ts: int
    """Events that arrived since then are mutable."""

    @property
    def request_ts(self) -> int:
        """Time of the request, ms."""
        return self.begun.request_ts


class AnswerRoom(ExitStack):
    """Memory that the answers of one call or message hold, to be closed once they are sent."""

    is_held = False
    """True once an answer that is not small is in it."""
    small_bytes = 0
    """Bytes of the others, which hold nothing."""


class Snapshots:
    """Answers requests. Thread-safe."""

    def __init__(
        self,
        tier: EventTier,
        published: Generations,
        tenants: Callable[[], Mapping[str, Tenant]],
        work_bytes_max: int,
        calls_max: int,
        response_bytes_max: int,
        lag_max_ms: int | None = None,
    ) -> None:
        """All calls at once, `calls_max`, hold `work_bytes_max` of events and answers at most.

        Requests allow a lag of `lag_max_ms` where their tenant has none of its own; None for any.
        """
        self._tier = tier
        self._published = published
        self._tenants = tenants
        self._small_bytes = work_bytes_max // SMALL_SHARE // calls_max
        self._budget_bytes = work_bytes_max - self._small_bytes * calls_max
        # A tenant whose callers read slowly leaves half of it to others.
        self._budget = FairScheduler(self._budget_bytes, reserve=self._budget_bytes // 2)
        self._response_bytes_max = response_bytes_max
        self._lag_max_ms = lag_max_ms
        self._projections: ProjectionCache[tuple[ResolvedProjection, CachedSnapshotPath | None]] = (
            ProjectionCache()
        )

    @property
    def is_room_short(self) -> bool:
        """True if a request waits for memory."""
        return bool(self._budget.waiting)

    def take(
        self,
        request: AnySnapshotRequest,
        timeout_s: float | None,
        room: AnswerRoom,
        caller: str | None = None,
    ) -> bytes:
        """The bytes of the answer that belongs to `request`, for which `room` holds memory.

        `caller` is the tenant whose token the call carries, if tokens are required.

        Raises:
            RequestError: a moment that cannot be answered, a negative bound, an unknown name.
            LaggingError: the tier lags more than the tenant allows.
            PartitionMissingError: the tier does not have a user.
            AnswerTooLargeError: more events than this server sends, or decodes, at once.
            StoreError: the store or the tier cannot be read.
        """
        for name, value in (
            ("lookback_ms", request.lookback_ms),
            ("max_length", request.max_length),
        ):
            if value < 0:
                raise RequestError(f"{name} is {value}; use 0 for no limit, or more.")
        named = self._users(request)
        begun = self._tier.begin(
            request.request_ts, named.keys, self._lag_max(caller or request.tenant)
        )
        held: Held | None
        with self._published.use() as generation, ExitStack() as work:
            # One choice of a watermark: events before it are immutable, all others mutable.
            moment = self._moment(request, begun, generation)
            mutable = MutableEvents(
                self._tier,
                named,
                (moment.mutable_from_ts, moment.request_ts),
                self._response_bytes_max,
                self._small_bytes // SMALL_COPIES,
            )
            user_ids = named.keys if generation is None else named.stored_keys(generation)
            projection, cached_path = self._projection(request, generation)
            if cached_path is not None and isinstance(request, online_pb2.SnapshotRequest):
                answer = self._in_memory(cached_path, request, user_ids[0], moment, mutable)
                if answer is not None:
                    self._keep_small(answer, room)
                    return answer
            if generation is None:
                needed_bytes = mutable.memory_bytes
                held = work.enter_context(self.hold(needed_bytes, timeout_s, request.tenant))
                statuses = [Status.OK] * len(user_ids)
                digests = [0] * len(user_ids)
                immutable = _nothing(projection, len(user_ids))
            else:
                plan = HistoryPlan(
                    generation,
                    _pointers(user_ids, moment, request.max_length, mutable.lengths),
                    projection.truncation,
                    projection.groups,
                    record_digests=True,
                )
                decoded_bytes = plan.events_at_most * projection.event_bytes
                answer_bytes = min(
                    decoded_bytes + plan.stripe_bytes_at_most, self._response_bytes_max
                )
                beside_bytes = (
                    mutable.memory_bytes
                    + max(decoded_bytes, plan.portion_bytes)
                    + ANSWER_COPIES * answer_bytes
                )

                @contextmanager
                def hold(amount: int) -> Iterator[Callable[[int], bool]]:
                    nonlocal held
                    # Texts, whose sizes are known once they are read, are in the answer as well.
                    text_bytes = max(0, plan.stripe_memory_bytes - plan.stripe_bytes_at_most)
                    amount += ANSWER_COPIES * text_bytes
                    with self.hold(amount, timeout_s, request.tenant) as held:
                        yield lambda more: held is not None and held((1 + ANSWER_COPIES) * more)

                extend = work.enter_context(hold(plan.stripe_bytes_at_most + beside_bytes))
                read_within_budget(plan, beside_bytes, self._budget_bytes, hold, work, extend)
                selection = plan.resolve()
                immutable, _ = plan.answer(projection.traits, self._response_bytes_max)
                statuses, digests = selection.statuses.tolist(), selection.digests.tolist()
            events = mutable.load()
            known = [
                user
                for user, status in zip(named.keys, statuses, strict=True)
                if status == Status.OK
            ]
            self._tier.check_not_erased(known, moment.mutable_from_ts)
            for place, status in enumerate(statuses):
                if status != Status.OK:
                    events[place] = ([], [])
            lengths = [len(records) for _, records in events]
            parts = [_head(request, moment, digests, lengths)]
            if any(lengths):
                arrivals = [ts for some, _ in events for ts in some]
                records = [record for _, some in events for record in some]
                shown = self._tier.to_wire(arrivals, records)
                parts += (field_head(_MUTABLE, len(shown)), shown)
            parts += (field_head(_IMMUTABLE, len(immutable)), immutable)
            if sum(map(len, parts)) > self._response_bytes_max:
                raise AnswerTooLargeError(
                    "The answer would be larger than this server sends (response_bytes_max); "
                    "request fewer users at once, shorter sequences or fewer traits."
                )
            answer = b"".join(parts)
            if held is None:
                self._keep_small(answer, room)
            else:
                room.enter_context(held.part(ANSWER_COPIES * len(answer)))
                room.is_held = True
            return answer

    def _users(self, request: AnySnapshotRequest) -> NamedUsers:
        record_format = self._tier.format
        kind = "int64" if record_format is None else record_format.schema.user_ids
        if isinstance(request, online_pb2.SnapshotBatchRequest):
            return named_users(request.user_ids, request.user_texts, kind)
        if request.HasField("user_text"):
            return named_users((), (request.user_text,), kind)
        return named_users((request.user_id,), (), kind)

    def look_up_codes(
        self, request: materialization_pb2.LookUpCodesRequest
    ) -> materialization_pb2.LookUpCodesResponse:
        """Returns the codes of values in the newest generation.

        Raises:
            RequestError: The trait has no vocabulary, or values are of another type or too many.
            UnavailableError: The vocabulary ends before the request's least end.
            StoreError: The vocabulary cannot be read.
        """
        with self._published.use() as generation:
            schema = self._schema(generation)
            wanted = schema.traits
            if request.tenant:
                wanted = resolve(request.tenant, None, schema, self._tenants()).traits
            return looked_up(generation, wanted, request)

    def _keep_small(self, answer: bytes, room: AnswerRoom) -> None:
        """Counts an answer that holds nothing; many of one message do.

        Raises:
            AnswerTooLargeError: There is no room for them.
        """
        room.small_bytes += ANSWER_COPIES * len(answer)
        if room.small_bytes <= self._small_bytes:
            return
        try:
            room.enter_context(self.hold(room.small_bytes, 0.0, ""))
        except DeadlineError as error:
            room.small_bytes -= ANSWER_COPIES * len(answer)
            raise AnswerTooLargeError(BESIDE_OTHERS) from error
        room.is_held = True
        room.small_bytes = 0

    def _in_memory(
        self,
        cached_path: CachedSnapshotPath,
        request: online_pb2.SnapshotRequest,
        user_id: int,
        moment: _Moment,
        mutable: MutableEvents,
    ) -> bytes | None:
        """The answer about a user of whom everything is in memory and small; else None."""
        events = mutable.of_first()
        if events is None or self._tier.may_lack_erased(moment.mutable_from_ts):
            return None
        arrivals, records = events
        shown = self._tier.to_wire(arrivals, records) if records else b""
        times = (moment.start_ts, moment.end_ts, request.max_length, moment.request_ts)
        answer = cached_path.answer(user_id, times, len(records), shown)
        if answer is None or not moment.begun.as_of_ts:
            return answer
        answer += online_pb2.SnapshotResponse(
            as_of_ts=moment.begun.as_of_ts, lag_ms=moment.begun.lag_ms
        ).SerializeToString()
        # If these fields are too many, the plan of a batch says so.
        return answer if len(answer) <= self._response_bytes_max else None

    @contextmanager
    def hold(self, amount: int, timeout_s: float | None, tenant: str) -> Iterator[Held | None]:
        """Holds memory until the block ends; None for so little that all calls may have it.

        Raises:
            AnswerTooLargeError: There never will be so much.
            DeadlineError: There was not in time.
        """
        if amount <= self._small_bytes:
            yield None
            return
        with self._budget.hold(amount, timeout_s, tenant) as held:
            yield held

    def _lag_max(self, tenant: str) -> int | None:
        """Returns the lag that requests of a tenant allow, ms; None for any."""
        found = self._tenants().get(tenant)
        own = None if found is None else found.lag_max_ms
        return self._lag_max_ms if own is None else own

    def _moment(
        self, request: AnySnapshotRequest, begun: RequestMoment, generation: Generation | None
    ) -> _Moment:
        request_ts = begun.request_ts
        start_ts = request_ts - request.lookback_ms if request.lookback_ms else 0
        place = 0
        if generation is not None:
            # What was never sealed here may lack events that this tier holds.
            newest_ts = min(request_ts, self._tier.sealed_ts)
            place = int(generation.watermarks.searchsorted(newest_ts, side="right"))
        if generation is None or place == 0:
            return _Moment(begun, start_ts, start_ts, NEVER_TS)
        # Its earlier watermarks may be those of other events as well.
        refusal = self._tier.source_refusal(generation.manifest)
        if refusal:
            raise StoreError(refusal)
        watermark_ts = int(generation.watermarks[place - 1])
        # A lookback shorter than the generation is old leaves nothing of it: an empty window.
        return _Moment(begun, min(start_ts, watermark_ts), watermark_ts, watermark_ts)

    def _schema(self, generation: Generation | None) -> Schema:
        if generation is not None:
            return generation.schema
        record_format = self._tier.format
        if record_format is None:
            raise UnavailableError("This server has no schema yet; publish a generation first.")
        return record_format.schema

    def _projection(
        self, request: AnySnapshotRequest, generation: Generation | None
    ) -> tuple[ResolvedProjection, CachedSnapshotPath | None]:
        def make(
            projection: ResolvedProjection,
        ) -> tuple[ResolvedProjection, CachedSnapshotPath | None]:
            if generation is None:
                return projection, None
            return projection, CachedSnapshotPath(
                generation,
                projection,
                self._small_bytes // SMALL_COPIES,
                self._response_bytes_max,
            )

        schema = self._schema(generation)
        projection = (
            request.projection.SerializeToString() if request.HasField("projection") else None
        )
        return self._projections.get(
            request.tenant, projection, generation or schema, schema, self._tenants(), make
        )


def _head(
    request: AnySnapshotRequest, moment: _Moment, digests: Sequence[int], lengths: Sequence[int]
) -> bytes:
    """The answer, all but its events."""
    head: online_pb2.SnapshotResponse | online_pb2.SnapshotBatchResponse
    if isinstance(request, online_pb2.SnapshotRequest):
        head = online_pb2.SnapshotResponse(digest=digests[0])
    else:
        head = online_pb2.SnapshotBatchResponse(digests=digests, mutable_lengths=lengths)
    head.request_ts = moment.request_ts
    head.start_ts = moment.start_ts
    head.end_ts = moment.end_ts
    head.max_length = request.max_length
    head.as_of_ts, head.lag_ms = moment.begun.as_of_ts, moment.begun.lag_ms
    return head.SerializeToString()


def _pointers(
    user_ids: Sequence[int], moment: _Moment, max_length: int, lengths: Sequence[int]
) -> PointerBatch:
    table = np.empty((7, len(user_ids)), np.int64)
    table[0], table[1], table[2], table[3] = user_ids, moment.start_ts, moment.end_ts, max_length
    table[4], table[5], table[6] = 0, moment.request_ts, lengths
    users, start_ts, end_ts, max_lengths, digests, request_ts, mutable_lengths = table
    return PointerBatch(
        user_ids=users,
        start_ts=start_ts,
        end_ts=end_ts,
        max_lengths=max_lengths,
        digests=digests.view(np.uint64),
        request_ts=request_ts,
        mutable_lengths=mutable_lengths,
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
            codes_end=trait.codes_end,
            type=wire_type(trait),
            vector_size=0 if trait.length_max else trait.size,
            nullable=trait.nullable,
            list_length_max=trait.length_max,
            # Events lack values, and not codes.
            default_word=None if trait.coded is None else trait.default_word,
        )
    return answer.SerializeToString()
