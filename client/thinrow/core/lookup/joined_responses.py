"""All responses of one batch, with the mutable events that its rows carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow import _native as native
from thinrow.core.lookup.coding import coded_events
from thinrow.core.lookup.mutable import MutableTail, is_plain
from thinrow.core.pointers import MutableEvents
from thinrow.core.runs import offsets_of
from thinrow.core.status import Status
from thinrow.core.wire.request import TRUNCATIONS
from thinrow.core.wire.widen_jobs import run_of_items
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.core.lookup.checked_response import CheckedResponse
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import Pointers, ThinRows
    from thinrow.core.wire.widen import ColumnKind, NarrowColumn
    from thinrow.core.wire.widen_jobs import Run

__all__ = ["JoinedResponses", "joint_kinds"]


class ListRuns(NamedTuple):
    """The lists of one trait in the runs of a lookup."""

    lengths: list[Run]
    """Elements of each event's list, int64, a run for each run of elements."""
    offsets: NDArray[np.int64]
    """Place of each event's first element in its run, and the run's end, run after run."""
    firsts: NDArray[np.int64]
    """Place of each run's first one in `offsets`, and the end."""


class JoinedResponses:
    """Joined responses of one batch, shared by the answer and its slices.

    Arrays have shape (examples,).
    """

    def __init__(
        self,
        rows: ThinRows,
        responses: tuple[CheckedResponse, ...],
        response: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        mutable: MutableEvents,
        coder: Coder | None = None,
    ) -> None:
        self.rows = rows
        self.coder = coder
        self.responses = responses
        self.response = response
        """Number of the response that holds each example."""
        self.starts = starts
        """Place of each example's first immutable event in its response's run."""
        self.lengths = lengths
        """Immutable events."""
        self.mutable = mutable
        """The mutable events that truncation kept, with codes where the store has a vocabulary."""
        self.columns = tuple(part.columns for part in responses)
        self.kinds = joint_kinds(self.columns)
        # Traits that need no conversion are read where they lie, among events of other rows.
        plain = all(is_plain(mutable.pool, trait, kind) for trait, kind in self.kinds.items())
        self._events = mutable.pool if plain else mutable.compact()
        self.mutable_starts = mutable.starts if plain else self._events.starts
        """Place of each example's first mutable event in the run of these."""
        self.mutable_lengths = mutable.lengths
        self._runs: dict[tuple[str, np.dtype[Any]], list[Run] | None] = {}
        self._presence_runs: dict[str, list[Run]] = {}
        self._list_runs: dict[str, ListRuns] = {}

    @staticmethod
    def join(
        rows: ThinRows, responses: Sequence[CheckedResponse], coder: Coder | None = None
    ) -> tuple[JoinedResponses, NDArray[np.int64]]:
        """Joins the responses about `rows`; for each example the last one counts.

        Returns:
            The joined responses, and the status of each example: INVALID for one whose mutable
            events its request could not have known.

        Raises:
            ThinRowError: The responses differ, for example because the schema changed.
        """
        projections = {(p.response.sequence_length, p.response.truncation) for p in responses}
        if len(projections) > 1:
            raise ThinRowError(
                "The tenant's projection changed between two responses; repeat the request."
            )
        number, statuses, starts, lengths = np.zeros((4, len(rows)), np.int64)
        for place, part in enumerate(responses):
            number[part.examples] = place
            statuses[part.examples] = part.statuses
            starts[part.examples] = part.starts
            lengths[part.examples] = part.lengths
        mutable = rows.mutable
        if mutable is None:
            mutable = MutableEvents(np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int64), {})
        leaking = _leaks(rows.pointers, mutable)
        statuses[leaking] = Status.INVALID
        lengths[leaking] = 0
        kept = _truncated(*projections.pop(), mutable, np.where(statuses == Status.OK, lengths, -1))
        kept = coded_events(kept, responses, number, coder)
        joined = JoinedResponses(rows, tuple(responses), number, starts, lengths, kept, coder)
        return joined, statuses

    def select(self, examples: NDArray[np.int64]) -> JoinedResponses:
        """Returns the same for some of the examples."""
        return JoinedResponses(
            self.rows[examples],
            self.responses,
            self.response[examples],
            self.starts[examples],
            self.lengths[examples],
            self.mutable[examples],
            self.coder,
        )

    def runs(self, trait: str, dtype: np.dtype[Any]) -> list[Run] | None:
        """Returns the events of each response, then the mutable ones, as runs of the trait's dtype.

        Returns:
            None if a value might not fit `dtype`.

        Raises:
            InputError: Mutable events lack the trait, or hold it in another type.
        """
        # Two threads may both miss here; they compute the same value.
        key = trait, dtype
        if key not in self._runs:
            columns = [response[trait] for response in self.columns]
            values = self.tail(trait).values
            runs = None
            if all(column.fits(dtype) for column in columns) and self._fit(trait, values, dtype):
                runs = [column.run for column in columns]
                runs.append(run_of_items(np.ascontiguousarray(values)))
            self._runs[key] = runs
        return self._runs[key]

    def presence_runs(self, trait: str) -> list[Run]:
        """Returns runs of bool for the same events: False where an event lacks the trait."""
        if trait not in self._presence_runs:
            runs = [response[trait].presence_run for response in self.columns]
            present = np.ascontiguousarray(self.tail(trait).present)
            self._presence_runs[trait] = [*runs, run_of_items(present)]
        return self._presence_runs[trait]

    def list_runs(self, trait: str) -> ListRuns:
        """Returns the lengths and places of the lists of a trait in its runs."""
        if trait not in self._list_runs:
            offsets = [response[trait].element_offsets for response in self.columns]
            offsets.append(self.tail(trait).element_offsets)
            self._list_runs[trait] = ListRuns(
                [run_of_items(np.diff(of_run)) for of_run in offsets],
                np.concatenate(offsets),
                offsets_of(np.array(list(map(len, offsets)))),
            )
        return self._list_runs[trait]

    def tail(self, trait: str, first_code: int = 0) -> MutableTail:
        """Returns a trait of the mutable events; codes of texts start at `first_code`."""
        message = self.columns[0][trait].message
        return MutableTail(message, self.kinds[trait], self._events, first_code)

    def _fit(self, trait: str, values: NDArray[Any], dtype: np.dtype[Any]) -> bool:
        """Returns True if every value of a trait of the mutable events fits another dtype."""
        if np.can_cast(values.dtype, dtype) or not values.size:
            return True
        plain = is_plain(self._events, trait, self.kinds[trait])
        extremes = self._events.extremes(trait) if plain else (values.min(), values.max())
        bounds = np.iinfo(dtype)
        return bool(extremes[0] >= bounds.min and extremes[1] <= bounds.max)


def joint_kinds(responses: Iterable[Mapping[str, NarrowColumn]]) -> dict[str, ColumnKind]:
    """Returns the kinds that the columns of several responses have together.

    A trait is nullable, or filled, if it is in one of them.

    Raises:
        ThinRowError: They differ, because the schema changed between two responses.
    """
    joint: dict[str, ColumnKind] = {}
    for columns in responses:
        kinds = {trait: column.kind for trait, column in columns.items()}
        joint = joint or kinds
        if list(kinds) != list(joint) or any(
            not kind.is_like(joint[trait]) for trait, kind in kinds.items()
        ):
            raise ThinRowError(
                "The responses hold different traits, because the schema changed between them; "
                "repeat the request."
            )
        joint = {
            trait: kind._replace(
                nullable=kind.nullable or joint[trait].nullable,
                filled=kind.filled or joint[trait].filled,
            )
            for trait, kind in kinds.items()
        }
    return joint


def _truncated(
    sequence_length: int,
    truncation: int,
    mutable: MutableEvents,
    lengths: NDArray[np.int64],
) -> MutableEvents:
    """Keeps the mutable events that fit after `lengths` immutable ones; -1 keeps none."""
    kept = np.where(lengths >= 0, mutable.lengths, 0)
    # The server has already made room: only the mutable part is left to cut.
    starts = mutable.starts
    if sequence_length:
        if truncation == TRUNCATIONS["head"]:
            kept = np.minimum(kept, sequence_length - np.maximum(lengths, 0))
        else:
            newest = np.minimum(kept, sequence_length)
            starts, kept = starts + kept - newest, newest
    if mutable.pool is mutable and kept.sum() == len(mutable.arrival_ts):
        return mutable
    return mutable.select(starts, kept)


def _leaks(pointers: Pointers, mutable: MutableEvents) -> NDArray[np.bool_]:
    """Returns True for examples that have mutable events from outside [end_ts, request_ts)."""
    # An empty window names no generation, so the mutable part holds everything.
    first_ts = np.where(
        pointers.start_ts == pointers.end_ts, np.iinfo(np.int64).min, pointers.end_ts
    )
    events = mutable.pool.arrival_ts
    return native.arrived_outside(
        events, mutable.starts, mutable.lengths, first_ts, pointers.request_ts
    )
