"""Writes the test vectors for decoders in other languages: python make_vectors.py FILE.

Shares no code with the product but the generated messages: each case is encoded here, word by word,
as the comments of `Column` say.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash
from thinrow.v1 import event_topic_pb2 as topic
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORDS = 1 << 64
WIDTHS = (0, 1, 2, 4, 8)
BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
FLOATS = {"FLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64}
USER_IDS = (0, 1, 2, 42, 196, 1 << 32, (1 << 63) - 1, -1, -2, -(1 << 63))
SHARDS = (1, 2, 3, 16, 64, 1000)
PARTITIONS = (1, 3, 12, 64, 100)
KNOWN_IDS: dict[str, tuple[int | str, ...]] = {
    "int64": (0, -1, (1 << 63) - 1),
    "uint64": (0, 1 << 63, (1 << 64) - 1),
    "uuid": (
        "00000000-0000-0000-0000-000000000000",
        "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    ),
    "string": ("", "7", "user-1", "é\0", "x" * 17, "y" * 300),
}


class Block(NamedTuple):
    """Events of a block: the words of each, or None where it lacks the trait."""

    base: int
    width: int
    events: Sequence[Sequence[int] | None]


def column(kind: str, blocks: Sequence[Block], size: int = 1, **fields: Any) -> wire.Column:  # noqa: ANN401
    """Encodes the words of some blocks as the contract says."""
    nullable = fields.pop("nullable", False)
    length_max = fields.get("list_length_max", 0)
    message = wire.Column(
        trait="t",
        type=wire.TraitType.Value(f"TRAIT_TYPE_{kind}"),  # type: ignore[arg-type]
        vector_size=0 if length_max else size,
        nullable=nullable,
        bases=[signed(block.base) for block in blocks],
        widths=bytes(block.width for block in blocks),
        **fields,
    )
    for width in WIDTHS[1:]:
        for block in blocks:
            if block.width == width:
                for word in words(block):
                    offset = (word - block.base) % WORDS
                    message.data += offset.to_bytes(width, "little")
    if length_max:
        for block in blocks:
            for event in block.events:
                message.list_lengths += len(event or ()).to_bytes(
                    1 if length_max < 256 else 2, "little"
                )
    if nullable:
        present = [event is not None for block in blocks for event in block.events]
        bits = sum(1 << place for place, there in enumerate(present) if there)
        message.present = bits.to_bytes((len(present) + 7) // 8, "little")
    return message


def words(block: Block) -> list[int]:
    return [word % WORDS for event in block.events if event is not None for word in event]


def signed(word: int) -> int:
    return (word + (WORDS >> 1)) % WORDS - (WORDS >> 1)


def value(kind: str, word: int) -> Any:  # noqa: ANN401 - a JSON value
    """One word's value: 64-bit integers as decimal text, floats as the bits of their own width."""
    word %= WORDS
    if kind == "BOOL":
        return bool(word)
    if kind in FLOATS:
        return f"0x{word % (1 << FLOATS[kind]):0{FLOATS[kind] // 4}x}"
    if kind == "CATEGORICAL":
        return str(signed(word))
    bits = BITS[kind.removeprefix("U")]
    word %= 1 << bits
    if not kind.startswith("U") and word >> (bits - 1):
        word -= 1 << bits
    return str(word)


def case(
    name: str,
    kind: str,
    blocks: Sequence[Block],
    size: int = 1,
    texts: list[Any] | None = None,
    **fields: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """One vector. texts: the dictionary or strings that words index."""
    if texts is not None:
        fields["strings" if kind == "STRING" else "dictionary"] = texts
    message = column(kind, blocks, size, **fields)

    def event(each: Sequence[int] | None) -> Any:  # noqa: ANN401 - a JSON value
        if each is None:
            return None
        if texts is not None:
            values = [texts[word] if kind == "STRING" else str(texts[word]) for word in each]
        else:
            values = [value(kind, word) for word in each]
        return values if size > 1 or message.list_length_max else values[0]

    return {
        "name": name,
        **described(message, [len(block.events) for block in blocks]),
        "values": [event(each) for block in blocks for each in block.events],
    }


def described(message: wire.Column, block_lengths: list[int]) -> dict[str, Any]:
    return {
        "type": wire.TraitType.Name(message.type)
        if message.type in wire.TraitType.values()
        else message.type,
        "vector_size": message.vector_size,
        "nullable": message.nullable,
        "block_lengths": block_lengths,
        "bases": [str(base) for base in message.bases],
        "widths": message.widths.hex(),
        "data": message.data.hex(),
        "present": message.present.hex(),
        "dictionary": [str(number) for number in message.dictionary],
        "strings": list(message.strings),
        **(
            {
                "list_length_max": message.list_length_max,
                "list_lengths": message.list_lengths.hex(),
            }
            if message.list_length_max or message.list_lengths
            else {}
        ),
        "message": base64.b64encode(message.SerializeToString()).decode(),
    }


def offsets_of(width: int) -> list[int]:
    top = (1 << 8 * width) - 1
    return [0, 0] if width == 0 else [0, top, 1, top // 2, top // 2 + 1]


def bounded(kind: str) -> dict[int, Block]:
    """A block of each width with the most extreme offsets that the type's words can take."""
    blocks = {}
    for width in WIDTHS:
        if kind in ("BOOL", "STRING"):
            base, offsets = 0, [0] if width == 0 else [1, 0, 1]
        else:
            base, offsets = -1 if width % 3 else 1 << 62, offsets_of(width)
        blocks[width] = Block(base, width, [[base + offset] for offset in offsets])
    return blocks


def scalars(kind: str) -> list[dict[str, Any]]:
    """Each width alone, all of them out of order, and every pattern of nulls."""
    texts = ["", "ä\U0001f600"] if kind == "STRING" else None
    by_width = bounded(kind)
    mixed = [by_width[width] for width in (8, 0, 4, 1, 2, 1, 0, 8)]
    name = kind.lower()
    cases = [case(f"{name}, width {w}", kind, [b], texts=texts) for w, b in by_width.items()]
    cases.append(case(f"{name}, widths out of order", kind, mixed, texts=texts))
    patterns: dict[str, Callable[[int], bool]] = {
        "some absent": lambda n: n % 3 != 1,
        "none absent": lambda _: True,
        "all absent": lambda _: False,
        "only the last there": lambda n: n == sum(len(b.events) for b in mixed) - 1,
    }
    for pattern, there in patterns.items():
        number, blocks = 0, []
        for block in mixed:
            events = []
            for event in block.events:
                events.append(event if there(number) else None)
                number += 1
            blocks.append(block._replace(events=events))
        cases.append(case(f"{name}, {pattern}", kind, blocks, texts=texts, nullable=True))
    hole = [mixed[3], Block(-7, 4, [None] * 11), mixed[4]]
    cases.append(case(f"{name}, a block all absent", kind, hole, texts=texts, nullable=True))
    cases.append(case(f"{name}, no events", kind, [], texts=texts))
    return cases


def wrapped(kind: str) -> dict[str, Any]:
    """Words that pass 2^63 and 2^64 on their way from the base."""
    top = WORDS >> 1
    blocks = [
        Block(top - 1, 1, [[top - 1], [top], [top + 254]]),
        Block(-1, 2, [[-1], [0], [65534]]),
        Block(top, 8, [[0], [top], [top - 1], [-1]]),
    ]
    return case(f"{kind.lower()}, wraps around", kind, blocks)


def float_values(kind: str) -> list[dict[str, Any]]:
    """Values that are easily lost: signed zeros, subnormals, infinities, NaN; and vectors."""
    pack = {"FLOAT16": "e", "FLOAT32": "f", "FLOAT64": "d"}[kind]
    width = FLOATS[kind] // 8
    numbers = [0.0, -0.0, 1.5, -2.0, float("inf"), float("-inf"), float("nan")]
    bits = [int.from_bytes(struct.pack(f"<{pack}", each), "little") for each in numbers]
    bits += [1, (1 << FLOATS[kind]) - 1]
    plain = Block(0, width, [[word] for word in bits])
    vectors = [
        Block(0, width, [bits[0:3], None, bits[3:6]]),
        Block(bits[2], 0, [[bits[2]] * 3, None]),
        Block(0, 8, [None, bits[6:9]]),
    ]
    name = kind.lower()
    return [
        case(f"{name}, values easily lost", kind, [plain]),
        case(f"{name}, vectors of 3", kind, vectors, size=3, nullable=True),
        case(f"{name}, vectors of 2", kind, [Block(0, width, [bits[0:2], bits[2:4]])], size=2),
    ]


def dictionaries() -> list[dict[str, Any]]:
    numbers = [7, -(1 << 63), (1 << 63) - 1, 7]
    texts = ["a", "", "a", "\uffff", 'say "hi"\\\n', "\0"]
    cases = []
    for kind, entries in (("CATEGORICAL", numbers), ("STRING", texts)):
        name, last = kind.lower(), len(entries) - 1
        blocks = [
            Block(0, 1, [[last], [0], [2]]),
            Block(last, 0, [[last], [last]]),
            Block(1, 8, [[1], [last]]),
            # Index 0 from a base of -1: words wrap around here, too.
            Block(-1, 2, [[0], [last]]),
        ]
        cases.append(case(f"{name}, indexes with repeats", kind, blocks, texts=entries))
        holes = [block._replace(events=[None, *block.events]) for block in blocks]
        cases.append(
            case(f"{name}, indexes, some absent", kind, holes, texts=entries, nullable=True)
        )
        many: list[Any] = [n if kind == "CATEGORICAL" else f"text {n}" for n in range(300)]
        wide = [Block(0, 2, [[299], [0], [256]])]
        cases.append(case(f"{name}, 300 entries", kind, wide, texts=many))
    return cases


def lists() -> list[dict[str, Any]]:
    """Lists of every kind of element: empty, absent, as long as the limit, in blocks of any width.

    A limit of 256 has lengths of two bytes.
    """
    cases = []
    for kind in ("INT8", "INT64", "UINT32", "FLOAT32", "CATEGORICAL", "STRING"):
        indexed: dict[str, list[Any]] = {"CATEGORICAL": [7, -7, 7], "STRING": ["a", "", "é"]}
        texts = indexed.get(kind)
        for length_max in (3, 256):
            blocks = [
                Block(0, 1, [[1, 0, 2], [], [2]]),
                Block(2, 0, [[2, 2], [2]]),
                Block(5, 4, [[], []]),
                Block(0, 2, [[0], [1, 1]]),
            ]
            name = f"list of {kind}, at most {length_max}"
            fields: dict[str, Any] = {"list_length_max": length_max}
            cases.append(case(name, kind, blocks, texts=texts, **fields))
            holes = [block._replace(events=[None, *block.events, []]) for block in blocks]
            cases.append(
                case(f"{name}, some absent", kind, holes, texts=texts, nullable=True, **fields)
            )
    return cases


def malformed() -> list[dict[str, Any]]:
    """Columns that a decoder must refuse, rather than return values."""
    good = column("INT64", [Block(0, 1, [[1], [2]])])
    nullable = column("INT64", [Block(0, 1, [[1], None] * 5)], nullable=True)

    def spoilt(
        name: str, lengths: list[int], message: wire.Column, **fields: object
    ) -> dict[str, Any]:
        altered = wire.Column()
        altered.CopyFrom(message)
        for field, content in fields.items():
            altered.ClearField(field)
            part = getattr(altered, field)
            part.extend(content) if isinstance(content, list) else setattr(altered, field, content)
        return {"name": name, **described(altered, lengths)}

    text = column("STRING", [Block(0, 1, [[0], [1]])], strings=["a", "b"])
    categories = column("CATEGORICAL", [Block(0, 1, [[0], [1]])], dictionary=[5, 6])
    listed = column("INT64", [Block(0, 1, [[1, 2], [3]])], list_length_max=2)
    absent = column("INT64", [Block(0, 1, [None, [3]])], nullable=True, list_length_max=2)
    return [
        spoilt("data too short", [2], good, data=b"\1"),
        spoilt("data too long", [2], good, data=b"\1\2\3"),
        spoilt("a width of 3", [2], good, widths=b"\3", data=bytes(6)),
        spoilt("fewer bases than blocks", [1, 1], good),
        spoilt("fewer widths than bases", [1, 1], good, bases=[0, 0]),
        spoilt("an unknown type", [2], good, type=99),
        spoilt("a vector of no elements", [2], good, vector_size=0),
        spoilt("present bits of fewer events", [10], nullable, present=b"\1"),
        spoilt("present bits, but not nullable", [2], good, present=b"\3"),
        spoilt("text past the strings", [2], text, strings=["a"]),
        spoilt("text without strings", [2], text, strings=[]),
        spoilt("category past the dictionary", [2], categories, dictionary=[5]),
        spoilt("a bool of 2", [2], column("BOOL", [Block(0, 1, [[1], [2]])])),
        spoilt("a list longer than its limit", [2], listed, list_lengths=b"\3\0"),
        spoilt("lists with more elements than data", [2], listed, list_lengths=b"\2\2"),
        spoilt("lists with fewer elements than data", [2], listed, list_lengths=b"\1\1"),
        spoilt("too few lengths of lists", [2], listed, list_lengths=b"\3"),
        spoilt("too many lengths of lists", [2], listed, list_lengths=b"\2\1\0"),
        spoilt("lengths of one byte where the limit needs two", [2], listed, list_length_max=256),
        spoilt("lengths of lists without a limit", [2], listed, list_length_max=0, vector_size=1),
        spoilt("a limit beyond every list's", [2], listed, list_length_max=1 << 31),
        spoilt("lists that are vectors", [2], listed, vector_size=1),
        spoilt("elements of an absent list", [2], absent, list_lengths=b"\1\0"),
    ]


def hashes() -> list[dict[str, Any]]:
    """Returns each user's XXH3 of the id's eight little-endian bytes, and the shard."""
    found = []
    for user_id in USER_IDS:
        number = xxhash.xxh3_64_intdigest(struct.pack("<q", user_id))
        shards = {str(count): number % count for count in SHARDS}
        found.append({"user_id": str(user_id), "xxh3": f"0x{number:016x}", "shard": shards})
    return found


def user_keys() -> list[dict[str, Any]]:
    """Keys of users of each kind, as decimal text of int64, and shards."""
    found = []
    for kind, ids in KNOWN_IDS.items():
        for known in ids:
            if isinstance(known, str):
                key = xxhash.xxh3_64_intdigest(known.encode())
            else:
                key = known % (1 << 64)
            number = xxhash.xxh3_64_intdigest(struct.pack("<Q", key))
            found.append(
                {
                    "kind": kind,
                    "id": str(known),
                    "key": str(key - (key >> 63 << 64)),
                    "shard": {str(count): number % count for count in SHARDS},
                }
            )
    return found


def user_events() -> list[dict[str, Any]]:
    """Messages of a topic of events, and the partition of each."""
    found = []
    for kind, ids in KNOWN_IDS.items():
        for known in ids:
            message = topic.UserEvents()
            if isinstance(known, str):
                key = xxhash.xxh3_64_intdigest(known.encode())
                message.user_text = known
            else:
                key = known % (1 << 64)
                message.user_id = key - (key >> 63 << 64)
            event = message.events.add(event_ts=1_700_000_000_000, event_id=42)
            event.traits["item_id"].integer = -7
            event.traits["score"].number = 0.5
            event.traits["surface"].text = "home"
            event.traits["taste"].elements.numbers.extend([1.0, -2.0])
            number = xxhash.xxh3_64_intdigest(struct.pack("<Q", key))
            value = message.SerializeToString(deterministic=True)
            found.append(
                {
                    "kind": kind,
                    "id": str(known),
                    "partition": {str(count): number % count for count in PARTITIONS},
                    "value": base64.b64encode(value).decode(),
                }
            )
    return found


def vectors() -> dict[str, list[dict[str, Any]]]:
    """Every vector, by kind."""
    integers = [*BITS, *(f"U{kind}" for kind in BITS)]
    cases = []
    for kind in (*integers, *FLOATS, "BOOL", "CATEGORICAL", "STRING"):
        cases += scalars(kind)
    cases += [wrapped(kind) for kind in (*integers, "CATEGORICAL")]
    for kind in FLOATS:
        cases += float_values(kind)
    messages = [(0, 0, 0), (3, 5, 7), (4095, (1 << 41) - 1, 1023)]
    return {
        "columns": cases + dictionaries() + lists(),
        "malformed": malformed(),
        "shards": hashes(),
        "user_keys": user_keys(),
        "user_events": user_events(),
        "kafka_example_ids": [
            {
                "partition": partition,
                "offset": str(offset),
                "row": row,
                "example_id": str(partition << 51 | offset << 10 | row),
            }
            for partition, offset, row in messages
        ],
    }


def as_json() -> str:
    """The file: a line for each vector."""
    parts = []
    for kind, entries in vectors().items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in entries)
        parts.append(f"{json.dumps(kind)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(as_json(), encoding="utf-8")
