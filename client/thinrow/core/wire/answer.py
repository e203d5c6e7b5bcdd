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
from thinrow.core.pointers import MutableEvents, Projection, bounds
from thinrow.core.wire.kernel import Job, Views, ranges, run_of_items, write
from thinrow.core.wire.mutable import MutableTail
from thinrow.core.wire.request import TRUNCATIONS
from thinrow.core.wire.sizes import CONSTANT_BYTES_MAX, require_affordable
from thinrow.core.wire.widen import (
    ColumnKind,
    NarrowColumn,
    cast_integers,
    indexes_nothing,
    require,
)
from thinrow.errors import InputError, ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.core.pointers import Pointers, ThinRows
    from thinrow.core.wire.kernel import Run
    from thinrow.core.wire.response import Response

__all__ = ["Answer", "CheckedResponse", "run_jobs"]

Columns = dict[str, NarrowColumn]


class CheckedResponse(NamedTuple):
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
    ) -> CheckedResponse:
        """Checks what came back for `pointers`.

        Raises ThinRowError for a malformed answer, AnswerTooLargeError for one that would take far
        more memory than it has bytes.
        """
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
        widened = travelled = 0
        for column in response.columns:
            require(column.trait not in columns, f"{column.trait} comes twice")
            narrow = columns[column.trait] = NarrowColumn(column, block_lengths)
            widened, travelled = widened + narrow.widened_bytes, travelled + narrow.travelled_bytes
        require_affordable(widened, travelled)
        event_bytes = sum(column.event_bytes for column in columns.values())
        if int(lengths.sum()) * event_bytes > CONSTANT_BYTES_MAX:
            # Only examples of one user share events, so that no view costs more than the run.
            most = np.unique(pointers.user_ids, return_counts=True)[1].max()
            require_affordable(int(lengths.sum()) * event_bytes // int(most), travelled)
        if isinstance(projection, Projection):
            missing = sorted(set(projection.traits) - set(columns))
            require(not missing, f"it lacks {', '.join(missing)}")
        return CheckedResponse(examples, response, columns, statuses, starts, lengths)


class JoinedResponses:
    """All that came back for a batch: what its answer and the answer's slices have in common.

    Arrays have shape (examples,).
    """

    def __init__(
        self,
        rows: ThinRows,
        parts: tuple[CheckedResponse, ...],
        response: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        mutable: MutableEvents,
    ) -> None:
        self.rows = rows
        self.parts = parts
        self.response = response
        """Number of the response that holds each example."""
        self.starts = starts
        """Place of each example's first immutable event in its response's run."""
        self.lengths = lengths
        """Immutable events."""
        self.mutable = mutable
        """The mutable events that are left after truncation."""
        self.mutable_lengths = np.diff(mutable.offsets)
        self.columns = tuple(part.columns for part in parts)
        self.kinds = joint_kinds(self.columns)
        self._runs: dict[tuple[str, np.dtype[Any]], list[Run] | None] = {}
        self._presence_runs: dict[str, list[Run]] = {}

    def only(self, examples: NDArray[np.int64]) -> JoinedResponses:
        """The same of some examples."""
        return JoinedResponses(
            self.rows[examples],
            self.parts,
            self.response[examples],
            self.starts[examples],
            self.lengths[examples],
            self.mutable[examples],
        )

    def runs(self, trait: str, dtype: np.dtype[Any]) -> list[Run] | None:
        """Events of each response and the mutable ones, as runs of the trait's dtype.

        None where a value might not fit `dtype`. Raises InputError for mutable events that lack
        the trait, or hold it in another type.
        """
        # Threads may both find nothing here and make the same.
        key = trait, dtype
        if key not in self._runs:
            columns = [response[trait] for response in self.columns]
            kind = self.kinds[trait]
            values = self.tail(trait).values(kind.dtype)
            runs = None
            if all(column.fits(dtype) for column in columns) and fit(values, dtype):
                runs = [column.run for column in columns]
                runs.append(run_of_items(np.ascontiguousarray(values)))
            self._runs[key] = runs
        return self._runs[key]

    def presence_runs(self, trait: str) -> list[Run]:
        """Whether those events have the trait, as runs of bool."""
        if trait not in self._presence_runs:
            runs = [response[trait].presence_run for response in self.columns]
            present = np.ascontiguousarray(self.tail(trait).present)
            self._presence_runs[trait] = [*runs, run_of_items(present)]
        return self._presence_runs[trait]

    def tail(self, trait: str, first_code: int = 0) -> MutableTail:
        """A trait of the mutable events; codes of texts start at `first_code`."""
        message = self.columns[0][trait].message
        return MutableTail(message, self.kinds[trait], self.mutable, first_code)


@dataclass(frozen=True, eq=False)
class Answer:
    """The histories of some examples: checked, and not yet widened.

    Made by `Client.answers`. A slice of it is an answer about some of its examples, and shares
    its bytes.
    """

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

    _whole: JoinedResponses

    _examples: NDArray[np.int64]
    """Places of the examples in the whole."""

    @staticmethod
    def join(rows: ThinRows, parts: Sequence[CheckedResponse]) -> Answer:
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
        whole = JoinedResponses(rows, tuple(parts), response, starts, lengths, kept)
        return Answer(
            statuses=statuses.astype(np.uint8),
            lengths=lengths + whole.mutable_lengths,
            generation=oldest.generation,
            watermark_ts=oldest.watermark_ts,
            server_s=sum(part.response.server_us for part in parts) / 1e6,
            answer_bytes=sum(part.travelled_bytes for part in parts),
            _whole=whole,
            _examples=np.arange(len(rows)),
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
            statuses=self.statuses[examples],
            lengths=self.lengths[examples],
            _examples=self._examples[examples],
        )

    def with_replacements(self, examples: NDArray[np.int64], again: Answer) -> Answer:
        """This whole answer, with what came `again` for some of its examples in their places."""
        later = (part._replace(examples=examples[part.examples]) for part in again.parts)
        return Answer.join(self.rows, [*self.parts, *later])

    @property
    def rows(self) -> ThinRows:
        """What was asked about."""
        return self._whole.rows if self._is_whole else self._whole.rows[self._examples]

    @property
    def parts(self) -> tuple[CheckedResponse, ...]:
        """The responses; a slice has all of them."""
        return self._whole.parts

    @property
    def columns(self) -> tuple[Columns, ...]:
        """Of each response, by trait, still narrow."""
        return self._whole.columns

    @property
    def kinds(self) -> dict[str, ColumnKind]:
        """What the values of each trait are, in the order of the projection."""
        return self._whole.kinds

    @cached_property
    def events(self) -> int:
        """Events of all examples."""
        return int(self.lengths.sum())

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
        run_jobs(self.jobs(trait, values, present))

    def jobs(
        self, trait: str, values: NDArray[Any], present: NDArray[np.bool_] | None = None
    ) -> list[Job]:
        """As `write`, but what takes long is left to be done, together with other such jobs."""
        whole = self._whole
        if self.kinds[trait].text:
            self._write_text(trait, values, present)
            return []
        try:
            runs = whole.runs(trait, values.dtype)
        except InputError:
            if self._is_whole:
                raise
            # It may be the fault of an example that is not among these.
            return self._alone.jobs(trait, values, present)
        dtype = self.kinds[trait].dtype
        jobs = []
        if runs is None:
            self._write_if_it_fits(trait, values)
        else:
            jobs.append(Job(trait, runs, dtype, self._views, values))
        if present is not None:
            presence = whole.presence_runs(trait)
            jobs.append(Job(trait, presence, present.dtype, self._views, present))
        return jobs

    def strings(self, trait: str) -> list[str]:
        """The texts that the codes of a text trait index. May repeat one."""
        texts: list[str] = []
        for number in self._responses_used:
            texts += self.columns[number][trait].message.strings
        return texts + self._alone.tail(trait, len(texts)).strings

    def by_response(self) -> Iterator[tuple[Columns, Views]]:
        """Of each response that has some of the events: its columns, and where its events go."""
        for number in self._responses_used:
            mine = self._views.runs == number
            yield self.columns[number], Views(*(part[mine] for part in self._views))

    @property
    def mutable(self) -> MutableEvents:
        """The mutable events that are left after truncation; they come behind each example's."""
        return self._alone._whole.mutable

    def tail(self, trait: str, first_code: int = 0) -> MutableTail:
        """A trait of the mutable events; codes of texts start at `first_code`."""
        return self._alone._whole.tail(trait, first_code)

    @cached_property
    def _is_whole(self) -> bool:
        """Whether it is about all of the whole's examples, in their order."""
        return np.array_equal(self._examples, np.arange(len(self._whole.rows)))

    @cached_property
    def _alone(self) -> Answer:
        """The same without the whole's other examples."""
        if self._is_whole:
            return self
        only = self._whole.only(self._examples)
        return dataclasses.replace(self, _whole=only, _examples=np.arange(len(self)))

    @cached_property
    def _views(self) -> Views:
        """Where the events of each example come from, and go: immutable ones, then mutable ones."""
        whole, examples = self._whole, self._examples
        lengths, mutable_lengths = whole.lengths[examples], whole.mutable_lengths[examples]
        ends = np.cumsum(self.lengths)
        return Views(
            np.concatenate([whole.response[examples], np.full(len(self), len(whole.parts))]),
            np.concatenate([whole.starts[examples], whole.mutable.offsets[examples]]),
            np.concatenate([lengths, mutable_lengths]),
            np.concatenate([ends - self.lengths, ends - mutable_lengths]),
        )

    @cached_property
    def _responses_used(self) -> list[int]:
        """Numbers of the responses that have some of the events."""
        whole, examples = self._whole, self._examples
        numbers = whole.response[examples][whole.lengths[examples] > 0]
        used: list[int] = np.unique(numbers).tolist()
        return used

    def _write_text(
        self, trait: str, values: NDArray[Any], present: NDArray[np.bool_] | None
    ) -> None:
        """Writes codes of texts; those of each response index the joint `strings`."""
        runs, presence, first_codes, first_code = [], [], [], 0
        for number, columns in enumerate(self.columns):
            column = columns[trait]
            first_codes.append(first_code)
            if number in self._responses_used:
                first_code += len(column.message.strings)
            runs.append(column.run)
            presence.append(column.presence_run)
        alone = self._alone
        tail = alone.tail(trait, first_code)
        runs.append(run_of_items(tail.values(self.kinds[trait].dtype)))
        views = alone._views
        run_jobs([Job(trait, runs, self.kinds[trait].dtype, views, values)])
        there = np.empty(len(values), np.bool_) if present is None else present
        presence.append(run_of_items(np.ascontiguousarray(tail.present)))
        run_jobs([Job(trait, presence, there.dtype, views, there)])
        shifts = np.array([*first_codes, 0])[views.runs]
        order = np.argsort(views.places, kind="stable")
        values += np.where(there, np.repeat(shifts[order], views.lengths[order]), 0)

    def _write_if_it_fits(self, trait: str, values: NDArray[Any]) -> None:
        """Writes integers of which some might not fit; only what is shown has to."""
        kind = self.kinds[trait]
        shown = np.empty(values.shape, kind.dtype)
        run_jobs(self.jobs(trait, shown))
        values[...] = cast_integers(trait, shown, values.dtype)


def run_jobs(jobs: Sequence[Job], threads: int = 1) -> None:
    """Does what was left to be done. Raises ThinRowError for a malformed answer."""
    malformed = write(jobs, threads)
    if malformed is not None:
        raise indexes_nothing(malformed)


def fit(values: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tells whether every value fits another dtype."""
    if np.can_cast(values.dtype, dtype) or not values.size:
        return True
    bounds = np.iinfo(dtype)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max)


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
    return mutable.select(ranges(starts, mutable_lengths), offsets)


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
