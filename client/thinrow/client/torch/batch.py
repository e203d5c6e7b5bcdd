"""A batch of histories as tensors, its layout in memory, and what models want to see it as."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from thinrow.errors import UsageError
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.core.wire.widen import ColumnKind
    from torchrec import KeyedJaggedTensor

__all__ = ["TensorBatch", "lay_out", "plain_memory"]

ALIGNMENT_BYTES = 64


def plain_memory(size_bytes: int) -> Tensor:
    """Allocates host memory: uint8, shape (size_bytes,)."""
    return torch.empty(size_bytes, dtype=torch.uint8)


@dataclass(slots=True, eq=False)
class TensorBatch:
    """The histories of some examples, oldest event first: jagged tensors, one per trait.

    Example i has the events [offsets[i], offsets[i + 1]) of every trait; none where its status
    is not STATUS_OK. All tensors are on one device; torchrec can pipeline it (`Pipelineable`).
    """

    example_ids: Tensor
    """int64, shape (examples,): number of the row, unique within one source."""

    statuses: Tensor
    """uint8, shape (examples,): numbers of thinrow.v1.Status."""

    offsets: Tensor
    """int64, shape (examples + 1,), ascending from 0 to the events: one for all traits."""

    values: dict[str, Tensor]
    """By trait, shape (events,), or (events, size) for a vector. Integers, categorical traits and
    codes of text in the integer dtype asked for, floats and bools in their own. 0 where absent."""

    present: dict[str, Tensor]
    """By nullable trait, bool, shape (events,): False where the event lacks it."""

    strings: dict[str, list[str]]
    """By text trait: the texts that its codes index. May repeat one."""

    columns: dict[str, Tensor | list[Any]]
    """The rows' other columns, by name, one entry per example: numbers, bools and times (ms) as
    tensors, anything else as a list."""

    max_seqlen: int
    """Events of the longest example."""

    generation: int
    """Number of the generation that answered; the oldest where several did."""

    watermark_ts: int
    """That generation's watermark, ms, exclusive."""

    def __post_init__(self) -> None:
        # Its pipelines insist on the base class, but importing torchrec for that takes seconds.
        streamable = sys.modules.get("torchrec.streamable")
        if streamable is not None and hasattr(streamable, "Pipelineable"):
            streamable.Pipelineable.register(TensorBatch)

    def __reduce__(self) -> tuple[Any, ...]:
        # So that a batch from a worker process is initialised in the trainer's, too.
        return TensorBatch, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __len__(self) -> int:
        """Examples, not events."""
        return len(self.statuses)

    def __repr__(self) -> str:
        return (
            f"TensorBatch({len(self)} examples, {self.events} events, "
            f"traits {', '.join(self.values)}, {self.offsets.device}, "
            f"generation {self.generation})"
        )

    @property
    def events(self) -> int:
        """Events of all examples; known without asking the device."""
        return len(next(iter(self.values.values()))) if self.values else int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TensorBatch:
        """Copies the tensors to a device, those that share memory in one piece."""
        return self._moved(lambda memory: memory.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TensorBatch:
        """Copies the tensors to pinned host memory; without CUDA there is none, so it is itself."""
        return self._moved(Tensor.pin_memory) if torch.cuda.is_available() else self

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of tensors on a GPU until `stream` has done what it has to do now."""
        for tensor in self._tensors():
            if tensor.is_cuda:
                tensor.record_stream(stream)

    def to_kjt(
        self,
        traits: Sequence[str] | None = None,
        *,
        contextual: Sequence[str] = (),
        lengths_dtype: torch.dtype = torch.int64,
    ) -> KeyedJaggedTensor:
        """Views scalar traits of one dtype as torchrec's KeyedJaggedTensor.

        traits: in the order of its keys. Default: all integer ones, codes of text among them.
        contextual: columns whose one value per example comes before the traits.
        lengths_dtype: int32 or int64.

        The values are shared, not copied, where the traits stand one behind the other in `values`
        and there is nothing contextual; lengths are new. Raises UsageError without torchrec, and
        for what does not fit into one.
        """
        try:
            from torchrec import KeyedJaggedTensor
        except ImportError as error:
            raise UsageError("A KeyedJaggedTensor needs torchrec: pip install torchrec.") from error
        if traits is None:
            traits = [trait for trait, of in self.values.items() if is_integer(of) and of.ndim == 1]
        keys = [*contextual, *traits]
        parts = [self._column(name) for name in contextual]
        parts += [self._trait(trait) for trait in traits]
        if not parts or any(part.ndim != 1 or part.dtype != parts[-1].dtype for part in parts):
            told = ", ".join(
                f"{key} {list(part.shape[1:]) or ''}{part.dtype}"
                for key, part in zip(keys, parts, strict=True)
            )
            raise UsageError(
                f"A KeyedJaggedTensor holds scalars of one dtype; ask for one of each, not for "
                f"{told or 'nothing'}."
            )
        lengths = self.offsets.diff().to(lengths_dtype)
        ones = torch.ones_like(lengths)
        per_key = [len(part) for part in parts]
        return KeyedJaggedTensor(
            keys,
            joined(parts),
            lengths=torch.cat([ones] * len(contextual) + [lengths] * len(traits)),
            stride=len(self),
            # Left out, they would be asked from the device, and the host would wait for it.
            length_per_key=per_key,
            offset_per_key=[0, *itertools.accumulate(per_key)],
        )

    def to_njt(self, trait: str) -> Tensor:
        """Views a trait as a nested tensor of jagged layout, shape (examples, *, …).

        Values and offsets are shared, not copied. Nested tensors of one batch can be combined:
        all have this batch's `offsets`.
        """
        return torch.nested.nested_tensor_from_jagged(
            self._trait(trait), offsets=self.offsets, max_seqlen=self.max_seqlen
        )

    def to_padded(
        self,
        trait: str,
        length: int | None = None,
        value: float = 0,
        *,
        side: Literal["left", "right"] = "right",
    ) -> Tensor:
        """Copies a trait into a dense tensor, shape (examples, length, …).

        length: default `max_seqlen`; of a longer example the newest events stay.
        value: what fills the rest, which lies on `side` of the events.

        Raises UsageError for another side or a negative length.
        """
        if side not in ("left", "right"):
            raise UsageError(f"side is {side!r}, but must be 'left' or 'right'.")
        if length is not None and length < 0:
            raise UsageError(f"length is {length}, but must be 0 or more.")
        values = self._trait(trait)
        length = self.max_seqlen if length is None else length
        lengths = self.offsets.diff().clamp(max=length)
        # The place of each event, counted from the first one kept.
        places = torch.arange(length, device=values.device).expand(len(self), length)
        if side == "left":
            places = places - (length - lengths).unsqueeze(1)
        filled = (places < 0) | (places >= lengths.unsqueeze(1))
        if not len(values):
            return values.new_full((len(self), length, *values.shape[1:]), value)
        firsts = self.offsets[1:] - lengths
        padded = values[(firsts.unsqueeze(1) + places).clamp(0, len(values) - 1)]
        return padded.masked_fill_(filled.view(*filled.shape, *[1] * (values.ndim - 1)), value)

    def _trait(self, trait: str) -> Tensor:
        if trait not in self.values:
            raise UsageError(
                f"The batch has no trait {trait!r}; it has {', '.join(self.values)}, so ask for "
                f"one of these or extend the projection."
            )
        return self.values[trait]

    def _column(self, name: str) -> Tensor:
        column = self.columns.get(name)
        if not isinstance(column, Tensor):
            raise UsageError(f"The batch has no column {name!r} of numbers; take another one.")
        return column

    def _tensors(self) -> list[Tensor]:
        return [
            self.example_ids,
            self.statuses,
            self.offsets,
            *self.values.values(),
            *self.present.values(),
            *(column for column in self.columns.values() if isinstance(column, Tensor)),
        ]

    def _moved(self, move: Callable[[Tensor], Tensor]) -> TensorBatch:
        """The same batch with its memory moved."""
        moved = iter(move_together(self._tensors(), move))
        return dataclasses.replace(
            self,
            example_ids=next(moved),
            statuses=next(moved),
            offsets=next(moved),
            values={trait: next(moved) for trait in self.values},
            present={trait: next(moved) for trait in self.present},
            columns={
                name: next(moved) if isinstance(column, Tensor) else column
                for name, column in self.columns.items()
            },
        )


def lay_out(
    kinds: Mapping[str, ColumnKind],
    lengths: NDArray[np.int64],
    *,
    statuses: NDArray[np.uint8],
    example_ids: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any] | list[Any]],
    generation: int,
    watermark_ts: int,
    integer_dtype: torch.dtype = torch.int64,
    allocate: Callable[[int], Tensor] = plain_memory,
) -> TensorBatch:
    """Makes a batch whose `values` and `present` are still to be written, e.g. by Answer.write.

    All its tensors lie in one piece of memory, so that one copy moves it: `allocate` gives so many
    bytes of uint8. Traits of one dtype lie one behind the other in the order of `kinds`, vectors
    behind scalars.

    kinds: of the traits, as from Answer.joint_kinds.
    lengths: shape (examples,): events of each example.
    statuses, example_ids, columns: shape (examples,) each; copied.
    integer_dtype: int32 or int64, of every trait of integers but times and `event_id`, which are
        int64.
    """
    events = int(lengths.sum())
    dtypes = {
        trait: torch.int64
        if trait.endswith("_ts") or trait == "event_id"
        else integer_dtype
        if kind.dtype.kind in "iu"
        else to_torch(kind.dtype)
        for trait, kind in kinds.items()
    }
    traits = sorted(kinds, key=lambda trait: (str(dtypes[trait]), bool(kinds[trait].shape)))
    nullable = [trait for trait, kind in kinds.items() if kind.nullable]
    numbers = {name: of for name, of in columns.items() if isinstance(of, np.ndarray)}
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    given = [offsets, example_ids, statuses, *numbers.values()]
    tensors = iter(
        carve(
            [
                *((dtypes[trait], (events, *kinds[trait].shape)) for trait in traits),
                *((torch.bool, (events,)) for _ in nullable),
                *((to_torch(array.dtype), array.shape) for array in given),
            ],
            allocate,
        )
    )
    values = {trait: next(tensors) for trait in traits}
    present = {trait: next(tensors) for trait in nullable}
    small = list(tensors)
    for tensor, array in zip(small, given, strict=True):
        tensor.numpy()[:] = array
    by_name = dict(zip(numbers, small[3:], strict=True))
    return TensorBatch(
        offsets=small[0],
        example_ids=small[1],
        statuses=small[2],
        values={trait: values[trait] for trait in kinds},
        present=present,
        strings={trait: [] for trait, kind in kinds.items() if kind.text},
        columns={
            name: by_name[name] if isinstance(of, np.ndarray) else of
            for name, of in columns.items()
        },
        max_seqlen=int(lengths.max(initial=0)),
        generation=generation,
        watermark_ts=watermark_ts,
    )


def carve(
    parts: Sequence[tuple[torch.dtype, tuple[int, ...]]], allocate: Callable[[int], Tensor]
) -> list[Tensor]:
    """Cuts one allocation into tensors; neighbours of one dtype stand without a gap."""
    starts: list[int] = []
    end = 0
    before = None
    for dtype, shape in parts:
        if dtype != before:
            end = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        starts.append(end)
        end += math.prod(shape) * dtype.itemsize
        before = dtype
    memory = allocate(end)
    return [
        memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for start, (dtype, shape) in zip(starts, parts, strict=True)
    ]


def move_together(tensors: Sequence[Tensor], move: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Moves tensors, those that share memory in one piece: they share it afterwards, too."""
    tensors = [tensor.contiguous() for tensor in tensors]
    spans: dict[int, tuple[Tensor, int, int]] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage().data_ptr()
        start = place(tensor)
        end = start + tensor.nbytes
        _, first, last = spans.get(storage, (tensor, start, end))
        spans[storage] = (
            tensor,
            min(first, start) // ALIGNMENT_BYTES * ALIGNMENT_BYTES,
            max(last, end),
        )
    moved = {
        storage: move(as_bytes(tensor, start, end))
        for storage, (tensor, start, end) in spans.items()
    }
    result = []
    for tensor in tensors:
        storage = tensor.untyped_storage().data_ptr()
        start = place(tensor) - spans[storage][1]
        memory = moved[storage][start : start + tensor.nbytes]
        result.append(memory.view(tensor.dtype).view(tensor.shape))
    return result


def place(tensor: Tensor) -> int:
    """Counts the bytes before a tensor in its memory."""
    return int(tensor.storage_offset()) * tensor.itemsize


def as_bytes(tensor: Tensor, start: int, end: int) -> Tensor:
    """Views the bytes [start, end) of the memory in which a tensor lies."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        storage, start, (end - start,), (1,)
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Puts flat tensors of one dtype one behind the other, without a copy where they lie so."""
    memory = parts[0].untyped_storage().data_ptr()
    ends = itertools.accumulate((part.nbytes for part in parts), initial=place(parts[0]))
    for part, end in zip(parts, ends, strict=False):
        behind = part.untyped_storage().data_ptr() == memory and place(part) == end
        if not (behind and part.is_contiguous()):
            return torch.cat(list(parts))
    return parts[0].as_strided((sum(map(len, parts)),), (1,))


def is_integer(tensor: Tensor) -> bool:
    """Tells integers from floats and bools."""
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def to_torch(dtype: np.dtype[Any]) -> torch.dtype:
    """The torch dtype of a numpy dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
