"""The checked histories of some examples, still narrow.

The client trusts neither the server to agree with itself, nor a thin row to be free of events that
its request could not have known.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.lookup.joined_responses import JoinedResponses, joint_kinds
from thinrow.core.pointers import bounds
from thinrow.core.wire.request import TRUNCATIONS
from thinrow.core.wire.widen import cast_integers
from thinrow.core.wire.widen_jobs import Job, Views, run_jobs, run_of_items
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.core.lookup.checked_response import CheckedResponse
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import MutableEvents, ThinRows
    from thinrow.core.wire.widen import ColumnKind

__all__ = ["Answer"]


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
    """Number of the generation that answered; the oldest if there were several."""

    watermark_ts: int
    """Watermark of that generation, ms, exclusive."""

    server_s: float
    """Seconds that servers worked on the whole answer."""

    answer_bytes: int
    """Size of the whole answer's columns on the wire."""

    groups: int
    """Groups of servers that the whole answer's requests went to; 1 without a cluster."""

    _joined: JoinedResponses

    _examples: NDArray[np.int64]
    """Places of the examples in the joined responses."""

    _cut_from: tuple[Answer, int] | None = None
    """The answer of which this one is a slice, and the place of its first example there."""

    @staticmethod
    def join(
        rows: ThinRows,
        responses: Sequence[CheckedResponse],
        coder: Coder | None = None,
        groups: int = 1,
    ) -> Answer:
        """Joins the responses of some groups about `rows`; for each example the last one counts.

        Raises:
            ThinRowError: They differ, for example because the schema changed.
        """
        joined, statuses = JoinedResponses.join(rows, responses, coder)
        oldest = min((part.response for part in responses), key=lambda part: part.generation)
        return Answer(
            statuses=statuses.astype(np.uint8),
            lengths=joined.lengths + joined.mutable_lengths,
            generation=oldest.generation,
            watermark_ts=oldest.watermark_ts,
            server_s=sum(part.response.server_us for part in responses) / 1e6,
            answer_bytes=sum(part.travelled_bytes for part in responses),
            groups=groups,
            _joined=joined,
            _examples=np.arange(len(rows)),
        )

    def __len__(self) -> int:
        """Returns the number of examples, not of events."""
        return len(self.statuses)

    def __repr__(self) -> str:
        return (
            f"Answer({len(self)} examples, {self.lengths.sum()} events, "
            f"traits {', '.join(self.kinds)}, generation {self.generation})"
        )

    def __getitem__(self, examples: slice | NDArray[np.int64]) -> Answer:
        """Returns the answer about some examples: a slice without a step, or their places."""
        cut_from = None
        if isinstance(examples, slice):
            first, last = bounds(examples, len(self))
            whole, place = self._cut_from or (self, 0)
            examples, cut_from = slice(first, last), (whole, place + first)
        return Answer(
            self.statuses[examples],
            self.lengths[examples],
            self.generation,
            self.watermark_ts,
            self.server_s,
            self.answer_bytes,
            self.groups,
            self._joined,
            self._examples[examples],
            cut_from,
        )

    def with_replacements(self, examples: NDArray[np.int64], newer: Answer) -> Answer:
        """Returns this whole answer with a newer one for some of its examples."""
        later = (
            part._replace(examples=examples[part.examples]) for part in newer._joined.responses
        )
        return Answer.join(
            self.rows,
            [*self._joined.responses, *later],
            self._joined.coder,
            max(self.groups, newer.groups),
        )

    @property
    def rows(self) -> ThinRows:
        """The thin rows that it answers."""
        rows = self._joined.rows
        return rows if self._is_whole else rows[self._examples]

    @property
    def mutable(self) -> MutableEvents:
        """The mutable events that truncation kept; they follow each example's immutable ones."""
        return self._compact._joined.mutable

    @property
    def sequence_length(self) -> int:
        """Most events of an example, as the projection or the tenant has it; 0 for no limit."""
        return self._joined.responses[0].response.sequence_length

    @property
    def keeps_oldest(self) -> bool:
        """True if truncation keeps the oldest events instead of the newest."""
        return self._joined.responses[0].response.truncation == TRUNCATIONS["head"]

    @property
    def kinds(self) -> dict[str, ColumnKind]:
        """The kind of each trait's values, in the order of the projection."""
        return self._joined.kinds

    @cached_property
    def events(self) -> int:
        """Events of all examples."""
        return int(self.lengths.sum())

    def shares_responses(self, other: Answer) -> bool:
        """Returns True if both are slices of one answer."""
        return self._joined is other._joined

    @staticmethod
    def joint_kinds(answers: Sequence[Answer]) -> dict[str, ColumnKind]:
        """Returns the kinds of several answers together; a trait is nullable if it is in one.

        Raises:
            ThinRowError: They differ, because the schema changed between two answers.
        """
        first = answers[0]._joined
        if all(answer._joined is first for answer in answers):
            return first.kinds
        return joint_kinds(columns for answer in answers for columns in answer._joined.columns)

    def list_offsets(self, trait: str) -> NDArray[np.int64]:
        """Returns the place of each event's first element, and the end of the last.

        Args:
            trait: A trait of lists.

        Returns:
            int64, shape (events + 1,), ascending from 0 to the elements of all events.
        """
        offsets = np.zeros(self.events + 1, np.int64)
        lengths = self._joined.list_runs(trait).lengths
        run_jobs([Job(trait, lengths, offsets.dtype, self._views, offsets[1:])])
        return np.cumsum(offsets, out=offsets)

    def write(
        self, trait: str, values: NDArray[Any], present: NDArray[np.bool_] | None = None
    ) -> None:
        """Widens a trait of all examples' events, example after example, oldest first.

        Args:
            trait: The trait's name.
            values: Shape `(events, *shape)`, contiguous, of the kind's dtype or, for integers, of
                int32 or int64. 0 where absent. For text: codes that index `strings`. Of lists, the
                elements: shape (list_offsets[-1],).
            present: Shape (events,), needed if the trait is nullable: False where absent.

        Raises:
            InputError: A value does not fit `values`, or mutable events lack a trait they need or
                hold it in another type.
            MalformedError: The server's response contradicts itself.
        """
        run_jobs(self.jobs(trait, values, present))

    def jobs(
        self,
        trait: str,
        values: NDArray[Any],
        present: NDArray[np.bool_] | None = None,
        list_offsets: NDArray[np.int64] | None = None,
    ) -> list[Job]:
        """Does as `write`, but returns the long work as jobs, to be run together with others.

        list_offsets: Those of the trait, if they are known.
        """
        joined = self._joined
        if self.kinds[trait].listed and list_offsets is None:
            list_offsets = self.list_offsets(trait)
        if self.kinds[trait].text:
            self._write_text(trait, values, present, list_offsets)
            return []
        try:
            runs = joined.runs(trait, values.dtype)
        except InputError:
            if self._is_whole:
                raise
            # The fault may lie with an example that is not among these.
            return self._compact.jobs(trait, values, present, list_offsets)
        dtype = self.kinds[trait].dtype
        jobs = []
        if runs is None:
            self._write_if_it_fits(trait, values, list_offsets)
        else:
            jobs.append(Job(trait, runs, dtype, self._value_views(trait, list_offsets), values))
        if present is not None:
            presence = joined.presence_runs(trait)
            jobs.append(Job(trait, presence, present.dtype, self._views, present))
        return jobs

    def strings(self, trait: str) -> list[str]:
        """Returns the texts that the codes of a text trait index. May repeat one."""
        texts: list[str] = []
        for number in self._responses_used:
            texts += self._joined.columns[number][trait].message.strings
        return texts + self._compact._joined.tail(trait, len(texts)).strings

    @cached_property
    def _is_whole(self) -> bool:
        """True if it is about all examples of the joined responses, in their order."""
        return np.array_equal(self._examples, np.arange(len(self._joined.rows)))

    @cached_property
    def _compact(self) -> Answer:
        """The same answer without the other examples of the joined responses."""
        if self._is_whole:
            return self
        own = self._joined.select(self._examples)
        examples = np.arange(len(self))
        return dataclasses.replace(self, _joined=own, _examples=examples, _cut_from=None)

    @cached_property
    def _views(self) -> Views:
        """Source and place of each example's events: its immutable view, then its mutable one."""
        if self._cut_from is not None:
            # A batch is one of many slices of an answer, whose views are found together.
            whole, first = self._cut_from
            own = slice(2 * first, 2 * (first + len(self)))
            runs, starts, lengths, places = (array[own] for array in whole._views)
            return Views(runs, starts, lengths, places - places[0] if len(places) else places)
        joined, examples = self._joined, self._examples
        views = np.empty((4, len(self), 2), np.int64)
        runs, starts, lengths, places = views
        runs[:, 0], runs[:, 1] = joined.response[examples], len(joined.responses)
        starts[:, 0], starts[:, 1] = joined.starts[examples], joined.mutable_starts[examples]
        lengths[:, 0], lengths[:, 1] = joined.lengths[examples], joined.mutable_lengths[examples]
        ends = np.cumsum(self.lengths)
        places[:, 0], places[:, 1] = ends - self.lengths, ends - lengths[:, 1]
        return Views(*views.reshape(4, -1))

    def _value_views(self, trait: str, list_offsets: NDArray[np.int64] | None) -> Views:
        """Source and place of each example's values: of its events, or of their elements."""
        views = self._views
        if list_offsets is None:
            return views
        lists = self._joined.list_runs(trait)
        offsets, first = lists.offsets, lists.firsts[views.runs] + views.starts
        return views._replace(
            starts=offsets[first],
            lengths=offsets[first + views.lengths] - offsets[first],
            places=list_offsets[views.places],
        )

    @cached_property
    def _responses_used(self) -> list[int]:
        """Numbers of the responses that hold some of the events."""
        joined, examples = self._joined, self._examples
        numbers = joined.response[examples][joined.lengths[examples] > 0]
        used: list[int] = np.unique(numbers).tolist()
        return used

    def _write_text(
        self,
        trait: str,
        values: NDArray[Any],
        present: NDArray[np.bool_] | None,
        list_offsets: NDArray[np.int64] | None,
    ) -> None:
        """Writes codes of texts; those of each response index the joint `strings`."""
        runs, presence, first_codes, first_code = [], [], [], 0
        for number, columns in enumerate(self._joined.columns):
            column = columns[trait]
            first_codes.append(first_code)
            if number in self._responses_used:
                first_code += len(column.message.strings)
            runs.append(column.run)
            presence.append(column.presence_run)
        compact = self._compact
        tail = compact._joined.tail(trait, first_code)
        dtype, views = self.kinds[trait].dtype, compact._value_views(trait, list_offsets)
        runs.append(run_of_items(tail.values))
        there = np.empty(self.events, np.bool_) if present is None else present
        presence.append(run_of_items(np.ascontiguousarray(tail.present)))
        run_jobs(
            [
                Job(trait, runs, dtype, views, values),
                Job(trait, presence, there.dtype, compact._views, there),
            ]
        )
        shifts = np.array([*first_codes, 0])[views.runs]
        order = np.argsort(views.places, kind="stable")
        shift = np.repeat(shifts[order], views.lengths[order])
        values += shift if list_offsets is not None else np.where(there, shift, 0)

    def _write_if_it_fits(
        self, trait: str, values: NDArray[Any], list_offsets: NDArray[np.int64] | None
    ) -> None:
        """Writes integers of which some might not fit; only those of these examples have to."""
        shown = np.empty(values.shape, self.kinds[trait].dtype)
        run_jobs(self.jobs(trait, shown, None, list_offsets))
        values[...] = cast_integers(trait, shown, values.dtype)
