"""Exports: the events between two watermarks, encoded as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.core.ids import is_text_kind
from thinrow.core.wire.request import field_head
from thinrow.errors import RequestError
from thinrow.online.records import user_text
from thinrow.store.directory import NEVER_TS
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.online.follower import TierFollower
    from thinrow.online.tier import MutableTier

__all__ = ["ExportPart", "Exports"]

PART_COPIES = 4
"""Copies of a part of an export: columns, encoded, joined, and on its way."""
_EVENTS = online_pb2.ExportEventsResponse.EVENTS_FIELD_NUMBER
# A MutableEvents with users in place of arrivals is an EventBatch.
assert (
    online_pb2.MutableEvents.ARRIVAL_TS_FIELD_NUMBER,
    online_pb2.MutableEvents.COLUMNS_FIELD_NUMBER,
) == (online_pb2.EventBatch.USER_IDS_FIELD_NUMBER, online_pb2.EventBatch.COLUMNS_FIELD_NUMBER)


@dataclass(frozen=True, slots=True)
class ExportPart:
    """Events of one message of an export."""

    tier: MutableTier
    from_ts: int
    users: Sequence[int] = ()
    arrivals: Sequence[int] = ()
    records: Sequence[bytes] = ()

    @property
    def events(self) -> int:
        """Number of events."""
        return len(self.records)

    @property
    def memory_bytes(self) -> int:
        """Bound on the memory of the part until it is sent."""
        return PART_COPIES * sum(map(len, self.records))

    def encode(self) -> bytes:
        """Encodes the part as an ExportEventsResponse."""
        head = online_pb2.ExportEventsResponse(from_ts=self.from_ts, arrival_ts=self.arrivals)
        if not self.records:
            return head.SerializeToString()
        records = list(self.records)
        events = self.tier.to_wire(self.users, records)
        record_format = self.tier.format
        if record_format is not None and is_text_kind(record_format.schema.user_ids):
            texts = [user_text(record).decode() for record in records]
            events += online_pb2.EventBatch(user_texts=texts).SerializeToString()
        return b"".join((head.SerializeToString(), field_head(_EVENTS, len(events)), events))


class Exports:
    """Seals watermarks and reads what is to be compacted. Thread-safe.

    Args:
        tier: Holds the events.
        published: The published generation, which holds earlier events.
    """

    def __init__(self, tier: MutableTier, published: TierFollower) -> None:
        self._tier = tier
        self._published = published

    def parts(self, request: online_pb2.ExportEventsRequest) -> Iterator[ExportPart]:
        """Seals the watermark and yields the events that arrived before it.

        The first part has no events, and is there for an export without events as well.

        Raises:
            RequestError: The watermark makes no sense, or the tier no longer has all events.
        """
        tier, until_ts = self._tier, request.watermark_ts
        if until_ts <= 0:
            raise RequestError(f"watermark_ts is {until_ts}; it must lie after 1970.")
        if request.HasField("from_ts"):
            from_ts = request.from_ts
            tier.state.now.check_whole(from_ts)
        else:
            from_ts = self._not_yet_compacted(until_ts)
        tier.seal(until_ts, self._published.newest_ts())
        yield ExportPart(tier, from_ts)
        for users, arrivals, records in tier.scan(from_ts, until_ts):
            yield ExportPart(tier, from_ts, users, arrivals, records)

    def _not_yet_compacted(self, until_ts: int) -> int:
        """Returns the published watermark from which an export up to ``until_ts`` starts.

        Raises:
            RequestError: The tier no longer has all events since then.
        """
        while True:
            from_ts = self.published_before(until_ts)
            try:
                self._tier.state.now.check_whole(from_ts)
            except RequestError:
                # A generation accepted in between lets the tier forget the events it holds.
                if self.published_before(until_ts) == from_ts:
                    raise
            else:
                return from_ts

    def published_before(self, until_ts: int) -> int:
        """Returns the last published watermark before ``until_ts``; NEVER_TS if there is none."""
        with self._published.use() as generation:
            if generation is None:
                return self._tier.kept_from_ts
            before = [ts for ts in generation.manifest.watermarks if ts < until_ts]
            return before[-1] if before else NEVER_TS
