"""Snapshots of one user whose history is in memory, as nearly all are: natively, in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash
from thinrow import _native
from thinrow.errors import StoreCorruptError

if TYPE_CHECKING:
    from thinrow.access.projection import ResolvedProjection
    from thinrow.store.generation import Generation

__all__ = ["CachedSnapshotPath"]


class CachedSnapshotPath:
    """One projection of one generation. Thread-safe."""

    def __init__(
        self,
        generation: Generation,
        projection: ResolvedProjection,
        work_bytes_max: int,
        response_bytes_max: int,
    ) -> None:
        """Answers what holds `work_bytes_max` of decoded events at most."""
        schema = generation.schema
        keys = {schema.group_of[trait.name] for trait in schema.digest_traits}
        self._generation = generation
        self._bounds = (work_bytes_max, response_bytes_max)
        self._native = _native.CachedSnapshotPath(
            [
                (number, number in projection.groups, number in keys, schema.event_bytes[number])
                for number in sorted(keys | projection.groups)
            ],
            [schema.native_traits[trait.name] for trait in schema.digest_traits],
            [schema.native_traits[trait.name] for trait in projection.traits],
            projection.truncation.sequence_length,
            projection.truncation.head,
            generation.watermarks.tolist(),
            generation.number,
            projection.event_bytes,
        )

    def answer(
        self, user_id: int, times: tuple[int, int, int, int], mutable_length: int, mutable: bytes
    ) -> bytes | None:
        """Returns an encoded SnapshotResponse; None if the plan of a batch must answer instead.

        times: start_ts, end_ts, max_length and request_ts of the pointer.
        mutable: the bytes of a MutableEvents of `mutable_length` events.

        Raises AnswerTooLargeError.
        """
        generation = self._generation
        try:
            answered = self._native.answer(
                generation.cache,
                generation.digest_memory,
                xxhash.xxh3_64_intdigest,
                user_id,
                *times,
                mutable_length,
                mutable,
                *self._bounds,
            )
        except StoreCorruptError:
            return None
        if answered is None:
            return None
        message, values = answered
        generation.count_reads(values)
        return message
