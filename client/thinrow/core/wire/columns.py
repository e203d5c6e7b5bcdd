"""Events of appends and snapshots as columns of messages, as one block without narrowing."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.codes import bucket_codes, require_codes
from thinrow.core.convert import counted, exact, exact_rows, mask, split_absent
from thinrow.core.lists import flattened, split_rows
from thinrow.core.pointers import MutableColumn, is_ascending
from thinrow.core.runs import offsets_of
from thinrow.core.traits import BATCH_DTYPES, TraitForm, TraitType, length_bytes
from thinrow.core.wire.malformed import require
from thinrow.core.wire.response import Column
from thinrow.core.wire.sizes import CONSTANT_BYTES_MAX, TEXT_BYTES, require_affordable
from thinrow.core.wire.widen import NarrowColumn
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["as_column", "form_of", "from_wire", "to_wire"]


def to_wire(
    trait: str,
    kind: int,
    size: int,
    nullable: bool,
    column: MutableColumn,
    length_max: int = 0,
) -> wire.Column:
    """Encodes one trait of some events.

    Args:
        trait: The trait's name.
        kind: Number of a thinrow.v1.TraitType, whose dtype the values have; text as objects.
        size: Elements of a vector, 1 for a scalar, 0 for a list.
        nullable: True if events may lack the trait.
        column: The values.
        length_max: Limit on the elements of a list; 0 for no list.
    """
    values = column.values
    message = wire.Column(trait=trait, type=kind, vector_size=size, nullable=nullable)  # type: ignore[arg-type]
    if column.offsets is not None:
        message.list_length_max = length_max
        lengths = np.diff(column.offsets).astype(f"<u{length_bytes(length_max)}")
        message.list_lengths = lengths.tobytes()
    if nullable:
        present = column.present
        if present is None:
            present = np.ones(len(column), np.bool_)
        elif column.offsets is None:
            values = values[present]
        message.present = np.packbits(present, bitorder="little").tobytes()
    base = 0
    if kind == TraitType.STRING:
        codes: dict[str, int] = {}
        numbers = [codes.setdefault(text, len(codes)) for text in values.tolist()]
        message.strings.extend(codes)
        words = narrowest(np.array(numbers, np.int64), len(codes))
    elif values.dtype.kind == "i" and values.itemsize < 8:
        # The wire's words are distances from the base, here the least value of the type.
        base = int(np.iinfo(values.dtype).min)
        unsigned = np.dtype(f"u{values.itemsize}")
        words = values.view(unsigned) ^ unsigned.type(1 << (8 * values.itemsize - 1))
    else:
        words = values
    message.bases.append(base)
    message.widths = bytes([words.itemsize])
    message.data = words.tobytes()
    return message


def narrowest(codes: NDArray[np.int64], bound: int) -> NDArray[Any]:
    """Returns codes below `bound` in the narrowest dtype that holds them."""
    return codes.astype(np.min_scalar_type(max(bound - 1, 0)))


def from_wire(
    columns: Iterable[wire.Column], events: int, constant_bytes_max: int = CONSTANT_BYTES_MAX
) -> dict[str, MutableColumn]:
    """Decodes columns of one block of `events` events, by trait; absent values are 0 or "".

    Raises:
        MalformedError: A column contradicts itself.
        AnswerTooLargeError: The columns would take far more memory than they have bytes.
    """
    every = np.array([events], np.int64)
    read: dict[str, MutableColumn] = {}
    widened = travelled = 0
    for message in columns:
        require(message.trait not in read, f"{message.trait} comes twice")
        widened += TEXT_BYTES * len(message.strings)
        require_affordable(widened, travelled, constant_bytes_max)
        narrow = NarrowColumn(Column.of(message), every)
        require_own_width(message)
        widened, travelled = widened + narrow.widened_bytes, travelled + narrow.travelled_bytes
        require_affordable(widened, travelled, constant_bytes_max)
        offsets = narrow.element_offsets if narrow.kind.listed else None
        count = events if offsets is None else int(offsets[-1])
        values = np.empty((count, *narrow.kind.shape), narrow.kind.dtype)
        present = np.empty(events, np.bool_) if message.nullable else None
        narrow.write(values, present)
        if narrow.kind.text:
            texts = np.array([*narrow.message.strings, ""], object)
            if present is not None and offsets is None:
                values[~present] = len(narrow.message.strings)
            values = texts[values]
        if present is not None and present.all():
            present = None
        read[message.trait] = MutableColumn(values, present, offsets)
    return read


def require_own_width(message: wire.Column) -> None:
    """Rejects words of another type: wider than the trait's, of another float, or out of range.

    Raises:
        MalformedError: The column has such words.
    """
    kind = TraitType(message.type)
    dtype = BATCH_DTYPES[kind]
    size = dtype.itemsize
    for base, width in zip(message.bases, message.widths, strict=True):
        wrong = width > size or (dtype.kind == "f" and width not in (0, size))
        label = wire.TraitType.Name(message.type)
        require(not wrong, f"{message.trait} has words of {width} bytes, but {label} has {size}")
        # Words of 8 bytes wrap round by contract; narrower ones have room to be checked. The base
        # has no meaning where all events lack the trait.
        has_words = not message.nullable or any(message.present)
        if size == 8 or kind is TraitType.STRING or not has_words:
            continue
        words = np.frombuffer(message.data, f"<u{width}") if width else np.zeros(1, np.int8)
        if not len(words):
            continue
        low, high = base + int(words.min()), base + int(words.max())
        least = 0 if dtype.kind in "ub" else -(1 << (8 * size - 1))
        # A signed type admits its values, and also their bits in two's complement.
        most = (1 << (8 * size - (dtype.kind == "i" and low < 0))) - 1
        require(least <= low and high <= most, f"{message.trait} has words that are no {dtype}")


def form_of(trait: wire.Trait) -> TraitForm:
    """Returns the form of a trait that a server described."""
    return TraitForm(
        type=TraitType(trait.type),
        size=trait.vector_size or 1,
        length_max=trait.list_length_max,
        unit=trait.unit or None,
        scale=trait.scale if trait.HasField("scale") else None,
        buckets=trait.buckets or None,
        coded=TraitType(trait.vocabulary.value_type) if trait.HasField("vocabulary") else None,
    )


def as_column(form: TraitForm, given: Any) -> MutableColumn:  # noqa: ANN401 - what numpy takes
    """Returns a column from an array, or from a sequence with None for absent values.

    Args:
        form: Form of the trait.
        given: An array, masked where values are absent; a sequence; or a MutableColumn. Of lists, a
            sequence of arrays or sequences, or an array of as many elements for each event.

    Raises:
        ValueError: A value would change as one of this type.
    """
    if form.length_max:
        return list_column(form, given)
    if isinstance(given, MutableColumn):
        values: Any = given.values
        present = given.present
        if present is not None:
            present = mask(present, len(values))
            is_array = isinstance(values, np.ndarray)
            values = values[present] if is_array else list(compress(values, present))
    else:
        values, present = split_absent(given, nan=form.type.is_integer and form.size == 1)
    dtype = BATCH_DTYPES[form.type]
    if form.type.is_integer and form.size == 1:
        values = counted(values, form.unit, form.scale)
    if form.buckets is not None:
        values = _codes(values, form.buckets)
    if form.type is TraitType.STRING:
        array = texts(values)
    elif form.size > 1:
        array = exact_rows(values, dtype, form.size)
    else:
        array = exact(values, dtype)
        if array.ndim != 1:
            raise ValueError(f"it has the shape {array.shape}, but must have (events,)")
    if present is None:
        return MutableColumn(array)
    scattered = np.zeros((len(present), *array.shape[1:]), array.dtype)
    if form.type is TraitType.STRING:
        scattered[:] = ""
    scattered[present] = array
    return MutableColumn(scattered, present)


def list_column(form: TraitForm, given: Any) -> MutableColumn:  # noqa: ANN401
    """Returns a column of lists; see `as_column`."""
    element = TraitForm(type=form.type)
    if isinstance(given, MutableColumn) and given.offsets is not None:
        flat, present = given.values, given.present
        offsets = exact(given.offsets, np.dtype(np.int64))
        if present is not None:
            present = mask(present, len(given))
    else:
        rows, present = split_rows(given)
        flat, lengths = flattened(rows)
        if present is not None:
            scattered = np.zeros(len(present), np.int64)
            scattered[present] = lengths
            lengths = scattered
        offsets = offsets_of(lengths)
    values = as_column(element, flat)
    if values.present is not None:
        raise ValueError("it has an absent value within a list; leave such elements out")
    lengths = np.diff(offsets)
    if len(offsets) == 0 or not is_ascending(offsets, len(values.values)):
        raise ValueError(f"its offsets must ascend from 0 to {len(values.values)}")
    longest = int(lengths.max(initial=0))
    if longest > form.length_max:
        raise ValueError(
            f"it has a list of {longest} elements; the schema says length_max = {form.length_max}, "
            f"so cut such lists, or give the limit to a new trait"
        )
    if present is not None and lengths[~present].any():
        raise ValueError("it has elements of an event without a list")
    return MutableColumn(values.values, present, offsets)


def _codes(given: Any, buckets: int) -> NDArray[np.int32]:  # noqa: ANN401
    """Returns the codes of texts; integers are codes already."""
    values = given.tolist() if isinstance(given, np.ndarray) else given
    if any(isinstance(value, str) for value in values):
        return bucket_codes(texts(values).tolist(), buckets)
    codes = exact(given, np.dtype(np.int32))
    require_codes(codes, buckets)
    return codes


def texts(given: Any) -> NDArray[Any]:  # noqa: ANN401 - what numpy takes
    """Returns an object array of str; raises ValueError for anything that is no text."""
    values = given.tolist() if isinstance(given, np.ndarray) else list(given)
    other = next((value for value in values if not isinstance(value, str)), None)
    if other is not None:
        raise ValueError(f"{other!r:.80} is no text")
    array = np.empty(len(values), object)
    array[:] = values
    return array
