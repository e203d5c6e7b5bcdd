"""Valid input made invalid: bytes altered blindly, and messages altered field by field."""

# ruff: noqa: ANN401 - values and messages of any kind

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from google.protobuf.message import Message

NUMBERS = (0, 1, 2, 3, 7, 8, 9, 63, 64, 127, 128, 255, 1023, 1024, 1025, 65535, 65536)
EDGES = tuple(
    sign * (2**bits + off) for bits in (31, 32, 62, 63) for off in (-1, 0) for sign in (1, -1)
)
BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
TEXTS = ("", "event_ts", "event_id", "visible_ts", "é", "\0", "x" * 300)


def any_number(rng: random.Random, near: int = 0) -> int:
    """A number that code may trip over; often close to one that is right."""
    kind = rng.random()
    if kind < 0.4:
        return near + rng.choice((-1, 1, -rng.randrange(100), rng.randrange(100)))
    if kind < 0.7:
        return rng.choice(NUMBERS)
    return rng.choice(EDGES) if kind < 0.9 else rng.getrandbits(64) - 2**63


def altered_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Flips, cuts, doubles, inserts, or joins with another, once or a few times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 64)))
        act = rng.randrange(6)
        if act == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif act == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif act == 2:
            del changed[at : at + length]
        elif act == 3:
            changed[at:at] = changed[at : at + length]
        elif act == 4:
            changed[at:at] = rng.randbytes(length)
        elif others:
            other = rng.choice(others)
            changed[at:] = other[min(at, len(other)) :]
    return bytes(changed)


def altered_message(message: Message, rng: random.Random, times: int = 1) -> None:
    """Changes fields of a message, or of those within it, to values that their types allow."""
    for _ in range(times):
        fields = message.DESCRIPTOR.fields
        field = rng.choice([*fields, *(each for each, _ in message.ListFields())])
        alter(message, field, rng)


def alter(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    """Changes one field."""
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif not field.is_repeated:
        if is_message:
            altered_message(getattr(message, field.name), rng)
        else:
            setattr(message, field.name, any_value(field, rng, getattr(message, field.name)))
    else:
        alter_items(getattr(message, field.name), field, rng, is_message=is_message)


def alter_items(
    items: Any, field: FieldDescriptor, rng: random.Random, *, is_message: bool
) -> None:
    """Changes, adds, removes, doubles or swaps an item."""
    act = rng.random()
    if not items or act < 0.15:
        if is_message:
            altered_message(items.add(), rng, 3)
        else:
            items.append(any_value(field, rng, None))
        return
    place = rng.randrange(len(items))
    if act < 0.3:
        del items[place : place + rng.choice((1, 1, len(items)))]
    elif act < 0.4 and len(items) < 4096:
        items.extend(list(items[place:]))
    elif is_message:
        altered_message(items[place], rng)
    elif act < 0.6:
        other = rng.randrange(len(items))
        items[place], items[other] = items[other], items[place]
    else:
        items[place] = any_value(field, rng, items[place])


def any_value(field: FieldDescriptor, rng: random.Random, now: Any) -> Any:
    """A value of the field's type."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return altered_bytes(now or b"\1", rng)
        return rng.choice((*TEXTS, now or "a"))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not now
    if field.cpp_type in BOUNDS:
        low, high = BOUNDS[field.cpp_type]
        return (any_number(rng, int(now or 0)) - low) % (high - low + 1) + low
    return rng.choice((0.0, -1.5, float("inf"), float("nan")))
