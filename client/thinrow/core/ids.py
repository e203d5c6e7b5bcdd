"""Kinds of ids, and the int64 keys by which everything else knows users.

- ``int64``: an id is its own key.
- ``uint64``: the key has the same 64 bits.
- ``uuid`` and ``string``: texts, whose keys only a store computes; a UUID is written in lower case
  with hyphens. In a client, the users of one batch have numbers instead.

Events are known by their whole ids, which have no keys.

Conversions happen where ids come in and go out: files, arguments, messages, and what people read.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from thinrow.core.traits import TraitType
from thinrow.errors import InputError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ID_BYTES_MAX",
    "ID_KINDS",
    "UUID_TEXT",
    "GivenUsers",
    "IdKind",
    "canonical_text",
    "from_wire_kind",
    "given_users",
    "id_type",
    "is_text_kind",
    "parse_user_id",
    "shown_id",
    "shown_ids",
    "to_wire_kind",
    "utf8",
]

IdKind: TypeAlias = Literal["int64", "uint64", "uuid", "string"]
ID_KINDS: tuple[IdKind, ...] = ("int64", "uint64", "uuid", "string")
ID_BYTES_MAX = 1024
"""Limit on a text that names a user or an event, in UTF-8."""

INT64_END = 1 << 63
INTEGER = re.compile("-?[0-9]{1,20}")
UUID_TEXT = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
UUID_FORM = re.compile("(urn:)?(uuid:)?[{]*[0-9a-fA-F-]+[}]*")
"""Without the underscores, signs, spaces and digits of other scripts that Python takes as well."""
WIRE_KINDS: dict[IdKind, wire.IdKind] = {
    "int64": wire.ID_KIND_INT64,
    "uint64": wire.ID_KIND_UINT64,
    "uuid": wire.ID_KIND_UUID,
    "string": wire.ID_KIND_STRING,
}


class GivenUsers(NamedTuple):
    """Users as a caller named them."""

    ids: NDArray[np.int64]
    """Integers, of unsigned ones the same bits; for texts the number of each within the batch."""
    kind: IdKind
    """``uint64`` only where an integer exceeds int64; ``string`` for every text."""
    texts: NDArray[np.object_] | None
    """The texts, as str; None for integers."""


def is_text_kind(kind: IdKind) -> bool:
    """Returns True if ids of this kind are texts."""
    return kind in ("uuid", "string")


def to_wire_kind(kind: IdKind) -> wire.IdKind:
    """Returns the kind as a message has it: unspecified for int64, as it always was."""
    return wire.ID_KIND_UNSPECIFIED if kind == "int64" else WIRE_KINDS[kind]


def from_wire_kind(number: int) -> IdKind:
    """Returns the kind that a message names.

    Raises:
        InputError: This release does not know it.
    """
    if number == wire.ID_KIND_UNSPECIFIED:
        return "int64"
    for kind, known in WIRE_KINDS.items():
        if known == number:
            return kind
    raise InputError(f"There is no kind of ids of number {number}; update this client.")


def given_users(
    name: str,
    values: ArrayLike,
    integers: Any,  # noqa: ANN401 - pointers.integers
) -> GivenUsers:
    """Reads users: integers, texts or UUIDs.

    Args:
        name: Name of the argument, for errors.
        values: The users, a flat array or sequence.
        integers: Checks an array of integers, as int64.

    Raises:
        InputError: They are neither, or not all of one kind.
    """
    texts = _texts(name, values)
    if texts is not None:
        numbers: dict[str, int] = {}
        ids = [numbers.setdefault(text, len(numbers)) for text in texts.tolist()]
        return GivenUsers(np.array(ids, np.int64), "string", texts)
    unsigned = _large(values)
    if unsigned is not None:
        return GivenUsers(integers(name, unsigned.view(np.int64)), "uint64", None)
    return GivenUsers(integers(name, values, unit=None), "int64", None)


def _texts(name: str, values: Any) -> NDArray[np.object_] | None:  # noqa: ANN401
    """Returns texts, and UUIDs as text; None for other values."""
    if not isinstance(values, list | tuple):
        array = np.asarray(values)
        if array.dtype.kind not in "OUT" or array.ndim != 1:
            return None
        # Arrow's lists have UUIDs where its arrays have bytes.
        values = values.to_pylist() if hasattr(values, "to_pylist") else array.tolist()
    if any(isinstance(value, bytes) for value in values):
        raise InputError(f"{name} has bytes; give UUIDs as uuid.UUID, as text or as pa.uuid().")
    if not any(isinstance(value, str | uuid.UUID) for value in values):
        return None
    texts = np.empty(len(values), object)
    for place, value in enumerate(values):
        if not isinstance(value, str | uuid.UUID):
            raise InputError(
                f"{name} must be all integers or all texts, but has {value!r} among texts."
            )
        texts[place] = str(value)
        utf8(texts[place], name)
    return texts


def utf8(text: str, name: str) -> bytes:
    """Returns a text in UTF-8; raises InputError for one with half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has {text[:40]!r}, which UTF-8 cannot hold; check how the text was decoded."
        ) from error


def _large(values: Any) -> NDArray[np.uint64] | None:  # noqa: ANN401
    """Returns integers of which some exceed int64, as uint64; None for others."""
    if isinstance(values, list | tuple):
        numbers = int | np.integer
        if not any(isinstance(value, numbers) and value >= INT64_END for value in values):
            return None
        if not all(isinstance(v, numbers) and type(v) is not bool and v >= 0 for v in values):
            return None
        try:
            return np.array([int(value) for value in values], np.uint64)
        except OverflowError:
            return None
    array = np.asarray(values)
    if array.dtype != np.uint64 or array.ndim != 1 or not len(array) or array.max() < INT64_END:
        return None
    return np.ascontiguousarray(array)


def shown_ids(keys: NDArray[np.int64], kind: IdKind) -> NDArray[Any]:
    """Returns the integers that people know, of users whose ids are integers."""
    return keys.view(np.uint64) if kind == "uint64" else keys


def shown_id(key: int, kind: IdKind) -> int:
    """Returns the integer that people know of a user."""
    return key % (2 * INT64_END) if kind == "uint64" else key


def id_type(kind: IdKind) -> TraitType:
    """Returns the type of a trait whose values are ids of a kind."""
    numbers: dict[IdKind, TraitType] = {"int64": TraitType.INT64, "uint64": TraitType.UINT64}
    return numbers.get(kind, TraitType.STRING)


def canonical_text(text: str, kind: IdKind, of: str = "user") -> str:
    """Returns a text as stores of a kind have it: UUIDs in lower case, with hyphens.

    Args:
        text: The id.
        kind: Its kind, uuid or string.
        of: What it names, for errors: a user or an event.

    Raises:
        InputError: It is no UUID, no text that UTF-8 holds, or longer than ID_BYTES_MAX.
    """
    if kind == "uuid":
        if UUID_TEXT.fullmatch(text):
            return text
        with contextlib.suppress(ValueError):
            if UUID_FORM.fullmatch(text):
                return str(uuid.UUID(text))
        raise InputError(f"{text[:80]!r} is no UUID, which {of} ids are here.")
    size = len(utf8(text, f"{of}_id"))
    if size > ID_BYTES_MAX:
        raise InputError(
            f"The {of} id {text[:40]!r}… has {size} bytes; at most {ID_BYTES_MAX} are supported."
        )
    return text


def parse_user_id(text: str, kind: IdKind) -> int | str:
    """Reads an id as people write it.

    Raises:
        InputError: It is none of this kind.
    """
    if is_text_kind(kind):
        return canonical_text(text, kind)
    low, high = (0, 2 * INT64_END) if kind == "uint64" else (-INT64_END, INT64_END)
    if INTEGER.fullmatch(text) and low <= int(text) < high:
        return int(text)
    raise InputError(
        f"user is {text[:40]!r}, but must be an integer from {low:,} to {high - 1:,}, as ids are "
        f"{kind} here."
    )
