"""Batches from answers: the examples that stay, the end of each batch, and its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow.client.torch.layout import BatchExamples, lay_out
from thinrow.client.torch.tensor_memory import plain_memory
from thinrow.core.files.arrow import load_pyarrow, plain
from thinrow.core.lookup.answer import Answer
from thinrow.core.lookup.batch import list_offsets, trait_jobs
from thinrow.core.status import Status, status_name
from thinrow.core.wire.widen_jobs import Job, run_jobs
from thinrow.errors import InputError, StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa
    import torch
    from numpy.typing import NDArray
    from thinrow.client.torch.batch import TensorBatch
    from thinrow.client.torch.config import LoaderConfig
    from thinrow.core.wire.widen import ColumnKind

__all__ = ["AnsweredRows", "BatchParts", "Batcher", "chosen", "to_tensors", "together"]

TOGETHER_BYTES_MAX = 2 << 20
"""Values of small batches that are widened and handed over together: each call and each wake-up of
another thread takes as long as the work on some ten thousand values."""
VALUE_BYTES = 8

ADVICE = {
    "NOT_READY": "wait for compaction with not_ready_wait_s",
    "EXPIRED": "train on newer examples or shorter sequences",
    "DIGEST_MISMATCH": "check that rows and store belong together",
    "ERASED": "drop them",
    "INVALID": "fix the job that wrote these rows",
}


class AnsweredRows(NamedTuple):
    """Some examples, in order: their answer and their other columns."""

    answer: Answer
    columns: pa.Table
    example_ids: NDArray[np.int64]

    def cut(self, start: int, stop: int) -> AnsweredRows:
        """Returns the examples [start, stop)."""
        return AnsweredRows(
            self.answer[start:stop],
            self.columns.slice(start, stop - start),
            self.example_ids[start:stop],
        )

    def pick(self, examples: NDArray[np.int64]) -> AnsweredRows:
        """Returns some of the examples, by their places."""
        return AnsweredRows(
            self.answer[examples], self.columns.take(examples), self.example_ids[examples]
        )


@dataclass(slots=True)
class BatchParts:
    """The examples of one batch."""

    parts: list[AnsweredRows] = field(default_factory=list)

    rows: int = 0
    """Rows of the source since the end of the last group, skipped ones included."""

    statuses: dict[int, int] = field(default_factory=dict)
    """The number of those rows by status."""

    examples: int = 0
    events: int = 0

    @property
    def value_bytes(self) -> int:
        """Approximate size of its values."""
        return self.events * VALUE_BYTES * len(self.parts[0].answer.kinds) if self.parts else 0

    def follows(self, other: BatchParts) -> bool:
        """Returns True if both batches are slices of one answer."""
        if len(self.parts) != 1 or len(other.parts) != 1:
            return False
        return self.parts[0].answer.shares_responses(other.parts[0].answer)

    def count(self, statuses: NDArray[np.uint8]) -> None:
        """Counts rows, both those that stay and those that do not."""
        self.rows += len(statuses)
        counts = np.bincount(statuses)
        for status in np.flatnonzero(counts).tolist():
            self.statuses[status] = self.statuses.get(status, 0) + int(counts[status])


class Batcher:
    """Cuts examples into groups, greedily: from any end of a group on, the same groups follow."""

    def __init__(self, config: LoaderConfig) -> None:
        self._config = config
        self._group = BatchParts()

    def add(self, part: AnsweredRows) -> Iterator[BatchParts]:
        """Adds the next examples, and yields the groups that they complete.

        Raises:
            StatusError: The policy for the status of an example is "fail".
        """
        statuses = part.answer.statuses
        keeps, fails = self._judge(statuses)
        if self._config.even_ends is not None:
            yield from self._by_rows(part, keeps[:fails])
            if fails < len(keeps):
                raise failure(part, fails)
            return
        kept = np.flatnonzero(keeps[:fails])
        staying = part if len(kept) == len(statuses) else part.pick(kept)
        place = counted = 0
        while place < len(kept):
            fitting = self._fitting(staying.answer.lengths[place:])
            if fitting:
                end = int(kept[place + fitting - 1]) + 1
                self._group.count(statuses[counted:end])
                self._append(staying.cut(place, place + fitting))
                place, counted = place + fitting, end
            if place < len(kept) or self._group.examples == self._config.batch_examples:
                yield self.rest()
        self._group.count(statuses[counted:fails])
        if fails < len(keeps):
            raise failure(part, fails)

    def _by_rows(self, part: AnsweredRows, keeps: NDArray[np.bool_]) -> Iterator[BatchParts]:
        """Adds the first examples of a part; a group ends at a number of rows, kept or not."""
        start = 0
        while start < len(keeps):
            stop = min(start + self._config.batch_examples - self._group.rows, len(keeps))
            kept = start + np.flatnonzero(keeps[start:stop])
            self._group.count(part.answer.statuses[start:stop])
            # A group without examples has a part, too, to be an empty batch.
            if len(kept) or not self._group.parts:
                whole = len(kept) == stop - start
                self._append(part.cut(start, stop) if whole else part.pick(kept))
            if self._group.rows == self._config.batch_examples:
                yield self.rest()
            start = stop

    def rest(self) -> BatchParts:
        """Ends the group, complete or not."""
        group, self._group = self._group, BatchParts()
        return group

    def _judge(self, statuses: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int]:
        """Returns which examples stay, and the place of the first that fails."""
        keeps = np.ones(len(statuses), np.bool_)
        fails = len(statuses)
        if (statuses == Status.OK).all():
            return keeps, fails
        for status in np.unique(statuses[statuses != Status.OK]).tolist():
            concerned = statuses == status
            policy = self._config.policy(status_name(status))
            if policy == "skip":
                keeps[concerned] = False
            elif policy == "fail":
                fails = min(fails, int(concerned.argmax()))
        return keeps, fails

    def _fitting(self, lengths: NDArray[np.int64]) -> int:
        """Returns the number of these examples that the group has room for."""
        group, config = self._group, self._config
        examples = min(len(lengths), config.batch_examples - group.examples)
        if config.batch_events is not None:
            events = np.cumsum(lengths[:examples])
            examples = int(np.searchsorted(events, config.batch_events - group.events, "right"))
        return examples if examples or group.examples else 1

    def _append(self, part: AnsweredRows) -> None:
        group = self._group
        group.parts.append(part)
        group.examples += len(part.answer)
        group.events += int(part.answer.lengths.sum())


def failure(part: AnsweredRows, place: int) -> StatusError:
    """Returns the error that names an example and the remedy."""
    name = status_name(int(part.answer.statuses[place]))
    return StatusError(
        f"Example {part.example_ids[place]} of user {part.answer.rows.pointers.user(place)} "
        f"is {name}; {ADVICE.get(name, 'update this client')}, or let the policy for {name} be "
        f"'skip' or 'pass'."
    )


def together(batches: Iterable[BatchParts]) -> Iterator[list[BatchParts]]:
    """Groups small batches that follow one another in one answer.

    Raises:
        StatusError: That of the batches, after those before it.
    """
    held: list[BatchParts] = []
    held_bytes = 0
    try:
        for batch in batches:
            batch_bytes = batch.value_bytes
            if held and (
                held_bytes + batch_bytes > TOGETHER_BYTES_MAX or not batch.follows(held[-1])
            ):
                yield held
                held, held_bytes = [], 0
            held.append(batch)
            held_bytes += batch_bytes
    except StatusError:
        if held:
            yield held
        raise
    if held:
        yield held


def to_tensors(
    batches: Sequence[Sequence[AnsweredRows]],
    integer_dtype: torch.dtype,
    allocate: Callable[[int], torch.Tensor] = plain_memory,
    threads: int = 1,
    uint64_dtype: torch.dtype | None = None,
) -> list[TensorBatch]:
    """Widens the examples of some batches into tensors, part after part.

    Args:
        batches: The examples of each batch; the traits are of the same kinds in all batches.
        integer_dtype: As in `lay_out`.
        allocate: As in `lay_out`.
        threads: Threads that share the work.
        uint64_dtype: As in `lay_out`.

    Raises:
        InputError: A value does not fit `integer_dtype`, or a column has nulls.
        ThinRowError: The schema changed between the answers.
    """
    kinds = Answer.joint_kinds([part.answer for parts in batches for part in parts])
    listed = [trait for trait, kind in kinds.items() if kind.listed]
    made = lay_out(
        kinds,
        [examples_of(parts, listed) for parts in batches],
        integer_dtype=integer_dtype,
        uint64_dtype=uint64_dtype,
        allocate=allocate,
    )
    jobs: list[Job] = []
    for parts, batch in zip(batches, made, strict=True):
        jobs += trait_jobs(
            [part.answer for part in parts],
            {trait: own_bits(values, kinds[trait]) for trait, values in batch.values.items()},
            {trait: present.numpy() for trait, present in batch.present.items()},
            batch.strings,
            {trait: offsets.numpy() for trait, offsets in batch.list_offsets.items()},
        )
    run_jobs(jobs, threads)
    return made


def examples_of(parts: Sequence[AnsweredRows], listed: Sequence[str]) -> BatchExamples:
    """Joins the examples of the parts of a batch.

    Args:
        parts: The parts.
        listed: Traits of lists.
    """
    first, answers = parts[0], [part.answer for part in parts]
    oldest = min(answers, key=lambda answer: answer.generation)
    lengths, statuses, example_ids = first.answer.lengths, first.answer.statuses, first.example_ids
    columns = first.columns
    if len(parts) > 1:
        lengths = np.concatenate([answer.lengths for answer in answers])
        statuses = np.concatenate([answer.statuses for answer in answers])
        example_ids = np.concatenate([part.example_ids for part in parts])
        columns = load_pyarrow().concat_tables([part.columns for part in parts])
    return BatchExamples(
        lengths=lengths,
        statuses=statuses,
        example_ids=example_ids,
        columns=to_arrays(columns),
        list_offsets={trait: list_offsets(answers, trait) for trait in listed},
        generation=oldest.generation,
        watermark_ts=oldest.watermark_ts,
    )


def own_bits(tensor: torch.Tensor, kind: ColumnKind) -> NDArray[Any]:
    """Views an int64 tensor of a uint64 trait as uint64: torch has no arithmetic on uint64."""
    values: NDArray[Any] = tensor.numpy()
    is_word = kind.dtype == np.uint64 and values.dtype == np.int64
    return values.view(np.uint64) if is_word else values


def chosen(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Selects the columns that a batch carries.

    Raises:
        InputError: There is no such column.
    """
    if columns is None:
        return table
    for name in columns:
        if name not in table.column_names:
            raise InputError(
                f"The thin rows have no column {name!r}; there are {', '.join(table.column_names)}."
            )
    return table.select(list(columns))


def to_arrays(table: pa.Table) -> dict[str, NDArray[Any] | list[Any]]:
    """Converts columns to arrays: integers and times (ms) to int64, floats and bools as they are.

    uint64 becomes int64 of the same bits: hashed ids use all 64. A float that is null is nan; any
    other type becomes a list.
    """
    pa = load_pyarrow()
    types = pa.types
    arrays: dict[str, NDArray[Any] | list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        column = plain(column)
        kind = column.type
        if types.is_floating(kind):
            arrays[name] = column.to_numpy()
        elif types.is_integer(kind) or types.is_timestamp(kind) or types.is_boolean(kind):
            if column.null_count:
                raise InputError(
                    f"Column {name!r} has a null, which a tensor of {kind} cannot hold; fill it, "
                    f"or leave the column out of `columns`."
                )
            if types.is_timestamp(kind):
                column = column.cast(pa.timestamp("ms", kind.tz), safe=False)
            if types.is_uint64(kind):
                arrays[name] = column.to_numpy().view(np.int64)
                continue
            if not types.is_boolean(kind):
                column = column.cast(pa.int64())
            arrays[name] = column.to_numpy()
        else:
            arrays[name] = column.to_pylist()
    return arrays
