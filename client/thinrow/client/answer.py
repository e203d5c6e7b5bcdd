"""What came back for some examples: answers, and the mutable events kept at home.

The server is not trusted to agree with itself, nor a thin row to be free of events that its
request could not have known.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow.client.kernel import Views, ranges
from thinrow.client.mutable import MutableTail
from thinrow.client.pointers import MutableEvents, Projection, bounds
from thinrow.client.request import TRUNCATIONS
from thinrow.client.widen import ColumnKind, NarrowColumn, require
from thinrow.errors import ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.client.pointers import Pointers, ThinRows
    from thinrow.client.response import Response

__all__ = ["Answer", "Part"]

Columns = dict[str, NarrowColumn]


class Part(NamedTuple):
    """One response, checked against what was asked. Arrays have shape (examples,)."""

    examples: NDArray[np.int64]
    """Which of the rows it is about."""
    response: Response
    columns: Columns
    statuses: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Place of each example's first event in the run."""
    lengths: NDArray[np.int64]
    """Immutable events."""

    @property
    def travelled_bytes(self) -> int:
        """Size of its columns as they travelled."""
        return sum(column.travelled_bytes for column in self.columns.values())

    @staticmethod
    def read(
        response: Response,
        examples: NDArray[np.int64],
        pointers: Pointers,
        mutable_lengths: NDArray[np.int64],
        projection: Projection | str,
    ) -> Part:
        """Checks what came back for `pointers`. Raises ThinRowError for a malformed answer."""
        block_lengths, statuses = response.block_lengths, response.statuses
        starts, lengths = response.view_starts, response.view_lengths
        require(
            len(statuses) == len(starts) == len(lengths) == len(pointers),
            f"it is not about the {len(pointers)} examples asked for",
        )
        require(((statuses >= 1) & (statuses <= 255)).all(), "an example has no status")
        for counts in (starts, lengths, block_lengths):
            require(((counts >= 0) & (counts < 1 << 32)).all(), "a length is no uint32")
        require((starts + lengths <= block_lengths.sum()).all(), "a view reaches past the run")
        require(
            (lengths[statuses != wire.STATUS_OK] == 0).all(),
            "an example that is not OK has events",
        )
        if isinstance(projection, Projection):
            require(
                response.sequence_length == projection.sequence_length
                and response.truncation == TRUNCATIONS[projection.truncation],
                "it applied another projection than the one asked for",
            )
        most = pointers.max_lengths
        require(
            ((lengths <= most) | (most <= 0)).all(), "an example has more events than its pointer"
        )
        require(response.sequence_length >= 0, "its sequence length is negative")
        if response.sequence_length:
            room = np.full(len(pointers), response.sequence_length)
            if response.truncation != wire.TRUNCATION_HEAD:
                room = np.maximum(room - mutable_lengths, 0)
            require((lengths <= room).all(), "an example is longer than the sequence length")
        columns: Columns = {}
        for column in response.columns:
            require(column.trait not in columns, f"{column.trait} comes twice")
            columns[column.trait] = NarrowColumn(column, block_lengths)
        if isinstance(projection, Projection):
            missing = sorted(set(projection.traits) - set(columns))
            require(not missing, f"it lacks {', '.join(missing)}")
        return Part(examples, response, columns, statuses, starts, lengths)


@dataclass(frozen=True, eq=False)
class Answer:
    """The histories of some examples: checked, and not yet widened.

    Made by `Client.answers`. A slice of it is an answer about some of its examples, and shares
    its bytes.
    """

    rows: ThinRows
    """What was asked about."""

    statuses: NDArray[np.uint8]
    """Shape (examples,): numbers of thinrow.v1.Status."""

    lengths: NDArray[np.int64]
    """Shape (examples,): events, mutable ones included, truncated; 0 unless STATUS_OK."""

    generation: int
    """Number of the generation that answered; the oldest where several did."""

    watermark_ts: int
    """That generation's watermark, ms, exclusive."""

    server_s: float
    """Seconds that servers worked on the whole answer."""

    answer_bytes: int
    """Size of the whole answer as it travelled, but for the messages' own few bytes."""

    parts: tuple[Part, ...]
    """The responses; a slice has all of them."""
    _response: NDArray[np.int64]
    """Number of the response that holds each example, shape (examples,)."""
    _starts: NDArray[np.int64]
    """Place of each example's first immutable event in its response's run."""
    _mutable: MutableEvents
    """The mutable events that are left after truncation."""

    @staticmethod
    def join(rows: ThinRows, parts: Sequence[Part]) -> Answer:
        """Puts together the responses about `rows`, each example being in one of them.

        Raises ThinRowError where they differ, as across a change of schema.
        """
        joint_kinds(part.columns for part in parts)
        projections = {(p.response.sequence_length, p.response.truncation) for p in parts}
        if len(projections) > 1:
            raise ThinRowError("The tenant's projection changed between two answers; ask again.")
        response, statuses, starts, lengths = np.zeros((4, len(rows)), np.int64)
        for number, part in enumerate(parts):
            response[part.examples] = number
            statuses[part.examples] = part.statuses
            starts[part.examples] = part.starts
            lengths[part.examples] = part.lengths
        mutable = rows.mutable
        if mutable is None:
            mutable = MutableEvents(np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int64), {})
        leaking = leaks(rows.pointers, mutable)
        statuses[leaking] = wire.STATUS_INVALID
        lengths[leaking] = 0
        kept = truncated(
            *projections.pop(), mutable, np.where(statuses == wire.STATUS_OK, lengths, -1)
        )
        oldest = min((part.response for part in parts), key=lambda answer: answer.generation)
        return Answer(
            rows=rows,
            statuses=statuses.astype(np.uint8),
            lengths=lengths + np.diff(kept.offsets),
            generation=oldest.generation,
            watermark_ts=oldest.watermark_ts,
            server_s=sum(part.response.server_us for part in parts) / 1e6,
            answer_bytes=sum(part.travelled_bytes for part in parts),
            parts=tuple(parts),
            _response=response,
            _starts=starts,
            _mutable=kept,
        )

    def __len__(self) -> int:
        """Examples, not events."""
        return len(self.statuses)

    def __repr__(self) -> str:
        return (
            f"Answer({len(self)} examples, {self.lengths.sum()} events, "
            f"traits {', '.join(self.kinds)}, generation {self.generation})"
        )

    def __getitem__(self, examples: slice | NDArray[np.int64]) -> Answer:
        """An answer about some of the examples: a slice without a step, or their places."""
        if isinstance(examples, slice):
            examples = slice(*bounds(examples, len(self)))
        return dataclasses.replace(
            self,
            rows=self.rows[examples],
            statuses=self.statuses[examples],
            lengths=self.lengths[examples],
            _response=self._response[examples],
            _starts=self._starts[examples],
            _mutable=self._mutable[examples],
        )

    def amended(self, examples: NDArray[np.int64], again: Answer) -> Answer:
        """This whole answer, with what came `again` for some of its examples in their places."""
        later = (part._replace(examples=examples[part.examples]) for part in again.parts)
        return Answer.join(self.rows, [*self.parts, *later])

    @property
    def columns(self) -> tuple[Columns, ...]:
        """Of each response, by trait, still narrow."""
        return tuple(part.columns for part in self.parts)

    @cached_property
    def kinds(self) -> dict[str, ColumnKind]:
        """What the values of each trait are, in the order of the projection."""
        return joint_kinds(self.columns)

    @staticmethod
    def joint_kinds(answers: Sequence[Answer]) -> dict[str, ColumnKind]:
        """The kinds of several answers together; nullable where one of them is.

        Raises ThinRowError where they differ, as across a change of schema.
        """
        return joint_kinds(columns for answer in answers for columns in answer.columns)

    def write(
        self, trait: str, values: NDArray[Any], present: NDArray[np.bool_] | None = None
    ) -> None:
        """Widens a trait of all examples' events, example after example, oldest first.

        values: shape (events, *shape), contiguous, of the kind's dtype or, for integers, of
            int32 or int64. 0 where absent. Of text: codes that index `strings`.
        present: shape (events,), wanted where the trait is nullable: False where absent.

        Raises InputError where a value does not fit `values`, or where mutable events lack a
        trait they need or hold it in another type; ThinRowError for a malformed answer.
        """
        columns = [response[trait] for response in self.columns]
        NarrowColumn.write(columns, self._views, values, present)
        first_code = 0
        if self.kinds[trait].text:
            first_code = self._shift_codes(columns, values, present)
        if len(self._mutable.arrival_ts):
            ends = np.cumsum(self.lengths)
            lengths = np.diff(self._mutable.offsets)
            events = ranges(ends - lengths, lengths)
            tail = self.tail(trait, first_code)
            values[events] = tail.values(values.dtype)
            if present is not None:
                present[events] = tail.present

    def strings(self, trait: str) -> list[str]:
        """The texts that the codes of a text trait index. May repeat one."""
        texts: list[str] = []
        for number in self._responses_used:
            texts += self.columns[number][trait].message.strings
        if len(self._mutable.arrival_ts):
            texts += self.tail(trait, len(texts)).strings
        return texts

    def _shift_codes(
        self,
        columns: Sequence[NarrowColumn],
        values: NDArray[Any],
        present: NDArray[np.bool_] | None,
    ) -> int:
        """Lets the codes of each response index the joint `strings`; returns how many those are."""
        first_code = 0
        for number in self._responses_used:
            if first_code:
                mine = self._views.runs == number
                events = ranges(self._views.places[mine], self._views.lengths[mine])
                if present is not None:
                    events = events[present[events]]
                values[events] += first_code
            first_code += len(columns[number].message.strings)
        return first_code

    def by_response(self) -> Iterator[tuple[Columns, Views]]:
        """Of each response that has some of the events: its columns, and where its events go."""
        for number in self._responses_used:
            mine = self._views.runs == number
            yield self.columns[number], Views(*(part[mine] for part in self._views))

    @property
    def mutable(self) -> MutableEvents:
        """The mutable events that are left after truncation; they come behind each example's."""
        return self._mutable

    def tail(self, trait: str, first_code: int = 0) -> MutableTail:
        """A trait of the mutable events; codes of texts start at `first_code`."""
        message = self.columns[0][trait].message
        return MutableTail(message, self.kinds[trait], self._mutable, first_code)

    @cached_property
    def _views(self) -> Views:
        """Where the immutable events of each example that has some come from, and go."""
        lengths = self.lengths - np.diff(self._mutable.offsets)
        places = np.cumsum(self.lengths) - self.lengths
        there = np.flatnonzero(lengths)
        return Views(self._response[there], self._starts[there], lengths[there], places[there])

    @cached_property
    def _responses_used(self) -> list[int]:
        """Numbers of the responses that have some of the events."""
        numbers: list[int] = np.unique(self._views.runs).tolist()
        return numbers


def joint_kinds(responses: Iterable[Columns]) -> dict[str, ColumnKind]:
    """The kinds of several responses' columns together; see Answer.joint_kinds."""
    joint: dict[str, ColumnKind] = {}
    for columns in responses:
        kinds = {trait: column.kind for trait, column in columns.items()}
        if kinds == joint:
            continue
        if not joint:
            joint = kinds
            continue
        if list(kinds) != list(joint) or any(
            kind[:3] != joint[trait][:3] for trait, kind in kinds.items()
        ):
            raise ThinRowError(
                "The answers hold different traits, so the schema changed between them; ask again."
            )
        joint = {
            trait: kind._replace(nullable=kind.nullable or joint[trait].nullable)
            for trait, kind in kinds.items()
        }
    return joint


def truncated(
    sequence_length: int,
    truncation: int,
    mutable: MutableEvents,
    lengths: NDArray[np.int64],
) -> MutableEvents:
    """Keeps the mutable events for which there is room behind `lengths` others; -1: of none."""
    mutable_lengths = np.where(lengths >= 0, np.diff(mutable.offsets), 0)
    # The server has already made room: only the mutable part is left to cut.
    starts = mutable.offsets[:-1]
    if sequence_length:
        if truncation == wire.TRUNCATION_HEAD:
            kept = np.minimum(mutable_lengths, sequence_length - np.maximum(lengths, 0))
        else:
            kept = np.minimum(mutable_lengths, sequence_length)
            starts = starts + mutable_lengths - kept
        mutable_lengths = kept
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(mutable_lengths)])
    if offsets[-1] == len(mutable.arrival_ts):
        return mutable
    return mutable.take(ranges(starts, mutable_lengths), offsets)


def leaks(pointers: Pointers, mutable: MutableEvents) -> NDArray[np.bool_]:
    """Tells which examples have mutable events from outside [end_ts, request_ts)."""
    examples = np.repeat(np.arange(len(pointers)), np.diff(mutable.offsets))
    # An empty window names no generation, so the mutable part holds everything.
    first_ts = np.where(
        pointers.start_ts == pointers.end_ts, np.iinfo(np.int64).min, pointers.end_ts
    )
    outside = (mutable.arrival_ts < first_ts[examples]) | (
        mutable.arrival_ts >= pointers.request_ts[examples]
    )
    leaking = np.zeros(len(pointers), np.bool_)
    leaking[examples[outside]] = True
    return leaking
