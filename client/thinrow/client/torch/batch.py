"""A batch of histories as tensors, and its views for models."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from thinrow.client.torch.tensor_memory import joined, move_together
from thinrow.errors import UsageError
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchrec import KeyedJaggedTensor

__all__ = ["TensorBatch"]


@dataclass(slots=True, eq=False)
class TensorBatch:
    """The histories of some examples, oldest event first: jagged tensors, one per trait.

    Example i has the events [offsets[i], offsets[i + 1]) of every trait; none where its status
    is not STATUS_OK. All tensors are on one device; torchrec can pipeline it (`Pipelineable`).
    """

    example_ids: Tensor
    """int64, shape (examples,): the row's number, unique within one source."""

    statuses: Tensor
    """uint8, shape (examples,): numbers of thinrow.v1.Status."""

    offsets: Tensor
    """int64, shape (examples + 1,), ascending from 0 to the events: one for all traits."""

    values: dict[str, Tensor]
    """Values by trait, shape (events,), or (events, size) for a vector; 0 where absent. Integers,
    categories and codes of text in the configured integer dtype, floats and bools in their own. Of
    lists, the elements of all events, shape (elements,)."""

    present: dict[str, Tensor]
    """Presence by nullable trait, bool, shape (events,): False where the event lacks it."""

    strings: dict[str, list[str]]
    """Texts by text trait, which its codes index. May repeat one."""

    columns: dict[str, Tensor | list[Any]]
    """The rows' other columns, by name, one entry per example: numbers, bools and times (ms) as
    tensors, anything else as a list."""

    max_seqlen: int
    """Events of the longest example."""

    generation: int
    """Number of the generation that answered; the oldest if there were several."""

    watermark_ts: int
    """Watermark of that generation, ms, exclusive."""

    list_offsets: dict[str, Tensor] = field(default_factory=dict)
    """Offsets by trait of lists, int64, shape (events + 1,): event j has the elements
    [list_offsets[j], list_offsets[j + 1]), none where absent. See `element_offsets`."""

    list_lengths_max: dict[str, int] = field(default_factory=dict)
    """Elements of the longest list, by trait of lists."""

    filled: frozenset[str] = frozenset()
    """Traits with values that were filled after the events were served."""

    def __post_init__(self) -> None:
        # Its pipelines require the base class, but importing torchrec for that takes seconds.
        streamable = sys.modules.get("torchrec.streamable")
        if streamable is not None and hasattr(streamable, "Pipelineable"):
            streamable.Pipelineable.register(TensorBatch)

    def __reduce__(self) -> tuple[Any, ...]:
        # Initializes a batch from a worker process in the trainer's process, too.
        return TensorBatch, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __len__(self) -> int:
        """Returns the number of examples, not of events."""
        return len(self.statuses)

    def __repr__(self) -> str:
        return (
            f"TensorBatch({len(self)} examples, {self.events} events, "
            f"traits {', '.join(self.values)}, {self.offsets.device}, "
            f"generation {self.generation})"
        )

    @property
    def events(self) -> int:
        """Events of all examples; does not synchronize with the device."""
        for trait, values in self.values.items():
            lists = self.list_offsets.get(trait)
            return len(values) if lists is None else len(lists) - 1
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def __getitem__(self, name: str) -> Tensor | list[Any]:
        """Returns `offsets`, the values of a trait, or a column.

        Raises KeyError where there is none, UsageError where trait and column share the name.
        """
        if name == "offsets":
            return self.offsets
        if name in self.values and name in self.columns:
            raise UsageError(
                f"{name!r} is a trait and a column; take batch.values or batch.columns, or leave "
                f"one of them out of the projection or of `columns`."
            )
        return self.values[name] if name in self.values else self.columns[name]

    __iter__: ClassVar[None] = None
    """A batch is no sequence: `batch[0]` and iteration over examples do not exist."""

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as of a mapping
        """Returns `batch[name]`, or the default where there is none."""
        return self[name] if name in self else default  # noqa: SIM401

    def keys(self) -> list[str]:
        """Names of `batch[name]` and of `**batch`: offsets, traits, columns."""
        return list(dict.fromkeys(("offsets", *self.values, *self.columns)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TensorBatch:
        """Copies the tensors to a device, those that share memory in one piece.

        Raises UsageError for a dtype: ids, times and values of one batch have dtypes of their own.
        """
        if isinstance(device, torch.dtype):
            raise UsageError(
                f"A batch has tensors of several dtypes, so it is not cast to {device} as one; "
                f"cast the tensor, as in batch.values[trait].to({device}), or set integer_dtype."
            )
        return self._moved(lambda memory: memory.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TensorBatch:
        """Copies the tensors to pinned host memory; without CUDA, returns the batch itself."""
        return self._moved(Tensor.pin_memory) if torch.cuda.is_available() else self

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of tensors on a GPU until `stream` has done its present work."""
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
        """Views scalar traits, and lists, of one dtype as torchrec's KeyedJaggedTensor.

        A trait of lists is a feature with the elements of all events of an example.

        The values are shared, not copied, if the traits are consecutive in `values` and there is
        no contextual column; lengths are new.

        Args:
            traits: Traits in the order of the keys. Default: all of integers, including codes, but
                not torch.uint64.
            contextual: Columns whose one value per example comes before the traits.
            lengths_dtype: int32 or int64.

        Raises:
            UsageError: torchrec is missing, or the columns are not scalars of one dtype.
        """
        try:
            from torchrec import KeyedJaggedTensor
        except ImportError as error:
            raise UsageError("A KeyedJaggedTensor needs torchrec: pip install torchrec.") from error
        if traits is None:
            traits = [
                trait
                for trait, of in self.values.items()
                if is_integer(of) and of.dtype != torch.uint64 and of.ndim == 1
            ]
        keys = [*contextual, *traits]
        parts = [self._column(name) for name in contextual]
        parts += [self._trait(trait) for trait in traits]
        if not parts or any(part.ndim != 1 or part.dtype != parts[-1].dtype for part in parts):
            found = ", ".join(
                f"{key} {list(part.shape[1:]) or ''}{part.dtype}"
                for key, part in zip(keys, parts, strict=True)
            )
            raise UsageError(
                f"A KeyedJaggedTensor holds scalars of one dtype; make one for each, not of "
                f"{found or 'nothing'}."
            )
        lengths = self.offsets.diff().to(lengths_dtype)
        ones = torch.ones_like(lengths)
        per_key = [len(part) for part in parts]
        return KeyedJaggedTensor(
            keys,
            joined(parts),
            lengths=torch.cat(
                [ones] * len(contextual)
                + [
                    self.element_offsets(trait).diff().to(lengths_dtype)
                    if trait in self.list_offsets
                    else lengths
                    for trait in traits
                ]
            ),
            stride=len(self),
            # Otherwise torchrec reads them from the device, and the host waits.
            length_per_key=per_key,
            offset_per_key=[0, *itertools.accumulate(per_key)],
        )

    @property
    def kjt(self) -> KeyedJaggedTensor:
        """The integer traits, as `to_kjt()` views them.

        torchrec's pipelines distribute the input of a sharded module ahead of its step only if the
        model takes it by attributes and keys, as in `self.embeddings(batch.kjt)`, without a call.
        """
        return self.to_kjt()

    def mark_dynamic(self) -> None:
        """Lets torch.compile treat the numbers of examples and events as varying.

        Called before each step, the first compilation serves batches of any size.
        """
        for tensor in self._tensors():
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def element_offsets(self, trait: str) -> Tensor:
        """Returns the place of each example's first element in a trait of lists, and the end.

        Returns:
            int64, shape (examples + 1,), on the batch's device.

        Raises:
            UsageError: The trait has no lists.
        """
        return self._lists(trait)[self.offsets]

    def to_njt(self, trait: str, by: Literal["example", "event"] = "example") -> Tensor:
        """Views a trait as a nested tensor of jagged layout, shape `(examples, *, …)`.

        Values and offsets are shared, not copied. Nested tensors of one batch can be combined,
        because all have this batch's `offsets`; of lists, those of one trait by "event".

        Args:
            trait: The trait's name.
            by: Of lists, "example" has the elements of all events of an example together; "event"
                has each event's own: shape `(events, *)`.

        Raises:
            UsageError: `by` is another one, or the trait has no lists to be seen by event.
        """
        if by not in ("example", "event"):
            raise UsageError(f"by is {by!r}, but must be 'example' or 'event'.")
        values, most = self._trait(trait), None
        if by == "event":
            offsets, most = self._lists(trait), self.list_lengths_max.get(trait)
        elif trait in self.list_offsets:
            offsets = self.element_offsets(trait)
        else:
            offsets, most = self.offsets, self.max_seqlen
        return torch.nested.nested_tensor_from_jagged(values, offsets=offsets, max_seqlen=most)

    def to_padded(
        self,
        trait: str,
        length: int | None = None,
        value: float = 0,
        *,
        side: Literal["left", "right"] = "right",
        list_length: int | None = None,
    ) -> Tensor:
        """Copies a trait into a dense tensor, shape (examples, length, …).

        Of lists the shape is (examples, length, list_length).

        Args:
            trait: The trait's name.
            length: Default `max_seqlen`; of a longer example the newest events stay.
            value: The padding.
            side: The side of the events that gets the padding; a list's is the right one.
            list_length: Default that of the longest list; of a longer one the first elements stay.

        Raises:
            UsageError: The side is another one, or a length negative.
        """
        if side not in ("left", "right"):
            raise UsageError(f"side is {side!r}, but must be 'left' or 'right'.")
        for name, given in (("length", length), ("list_length", list_length)):
            if given is not None and given < 0:
                raise UsageError(f"{name} is {given}, but must be 0 or more.")
        values = self._trait(trait)
        own = values.dtype
        if own == torch.uint64:  # which torch does not pad
            values = values.view(torch.int64)
        if trait in self.list_offsets:
            values = self._padded_lists(values, trait, value, list_length)
        length = self.max_seqlen if length is None else length
        lengths = self.offsets.diff().clamp(max=length)
        # The place of each event, counted from the first one kept.
        places = torch.arange(length, device=values.device).expand(len(self), length)
        if side == "left":
            places = places - (length - lengths).unsqueeze(1)
        filled = (places < 0) | (places >= lengths.unsqueeze(1))
        if not len(values):
            return values.new_full((len(self), length, *values.shape[1:]), value).view(own)
        firsts = self.offsets[1:] - lengths
        padded = values[(firsts.unsqueeze(1) + places).clamp(0, len(values) - 1)]
        shape = (*filled.shape, *[1] * (values.ndim - 1))
        return padded.masked_fill_(filled.view(shape), value).view(own)

    def _padded_lists(
        self, values: Tensor, trait: str, value: float, list_length: int | None
    ) -> Tensor:
        """Copies the values of lists into a dense tensor, shape (events, list_length)."""
        offsets = self.list_offsets[trait]
        list_length = self.list_lengths_max[trait] if list_length is None else list_length
        if not len(values):
            return values.new_full((self.events, list_length), value)
        places = torch.arange(list_length, device=values.device)
        filled = places >= offsets.diff().unsqueeze(1)
        places = (offsets[:-1].unsqueeze(1) + places).clamp(max=len(values) - 1)
        return values[places].masked_fill_(filled, value)

    def _lists(self, trait: str) -> Tensor:
        self._trait(trait)
        if trait not in self.list_offsets:
            raise UsageError(f"{trait!r} is no trait of lists; use batch.offsets.")
        return self.list_offsets[trait]

    def _trait(self, trait: str) -> Tensor:
        if trait not in self.values:
            raise UsageError(
                f"The batch has no trait {trait!r}; it has {', '.join(self.values)}, so use one of "
                f"these or extend the projection."
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
            *self.list_offsets.values(),
            *(column for column in self.columns.values() if isinstance(column, Tensor)),
        ]

    def _moved(self, move: Callable[[Tensor], Tensor]) -> TensorBatch:
        """Returns the same batch with its memory moved."""
        moved = iter(move_together(self._tensors(), move))
        return dataclasses.replace(
            self,
            example_ids=next(moved),
            statuses=next(moved),
            offsets=next(moved),
            values={trait: next(moved) for trait in self.values},
            present={trait: next(moved) for trait in self.present},
            list_offsets={trait: next(moved) for trait in self.list_offsets},
            columns={
                name: next(moved) if isinstance(column, Tensor) else column
                for name, column in self.columns.items()
            },
        )


def is_integer(tensor: Tensor) -> bool:
    """Returns True for tensors of integers."""
    return not tensor.is_floating_point() and tensor.dtype != torch.bool
