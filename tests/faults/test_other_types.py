"""Appends of arrays of other types and columns of any width: refused by name, or stored equal."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

import math
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.number_edges import EDGES, SOURCES, TRAITS, values_of
from support.tried import SEED, Tried, times
from support.worlds import START_TS, new_world
from thinrow.client import Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.core.traits import TraitForm, TraitType
from thinrow.core.wire.columns import as_column, to_wire
from thinrow.errors import InputError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(3600)
KINDS = [*TRAITS, "string"]
SCHEMA = "[g]\n" + "".join(f'of_{kind} = {{ type = "{kind}", sparse = true }}\n' for kind in KINDS)
WIDTHS = (0, 1, 2, 4, 8)
EVENTS_MAX = 3
STRINGS = ("a", "é", "")
USERS_OF_ONE_REQUEST = 512
TS = wire.TRAIT_TYPE_INT64


@dataclass
class Appended:
    """Batches of a user each, what may be read back of them, and what became of them."""

    client: OnlineClient
    batches: list[online_pb2.EventBatch] = field(default_factory=list)
    traits: list[str] = field(default_factory=list)
    meant: list[list[Any] | None] = field(default_factory=list)
    """The only values that may be stored; None where the batch must be refused."""
    plain: list[bool] = field(default_factory=list)
    """True for a batch that must be stored."""

    def add(self, trait: str, column: wire.Column, events: int, meant: Any, *, plain: bool) -> None:
        times_ts = to_wire(
            "event_ts",
            TS,
            1,
            False,
            as_column(TraitForm(type=TraitType.INT64), [START_TS + n for n in range(events)]),
        )
        users = [len(self.batches)] * events
        self.batches.append(online_pb2.EventBatch(user_ids=users, columns=[times_ts, column]))
        self.traits.append(trait)
        self.meant.append(meant)
        self.plain.append(plain)

    def check(self) -> Counter[str]:
        """Appends all of it and reads it back; counts what was stored and what was refused."""
        requests = (
            online_pb2.AppendEventsRequest(cursor=number, events=batch)
            for number, batch in enumerate(self.batches)
        )
        answers = list(self.client.stub.AppendEvents(requests))
        refused = [answer.refused for answer in answers]
        later_ts = max(answer.arrival_ts for answer in answers) + 1
        assert len(refused) == len(self.batches)
        for first in range(0, len(refused), USERS_OF_ONE_REQUEST):
            users = range(first, min(first + USERS_OF_ONE_REQUEST, len(refused)))
            batch = self.client.snapshot_batch(users, Projection(), request_ts=later_ts).batch
            lists = {trait: batch.to_lists(trait) for trait in set(self.traits)}
            for number, user in enumerate(users):
                found = lists[self.traits[user]][number]
                what = (self.traits[user], self.meant[user], found, refused[user])
                if refused[user]:
                    assert self.traits[user] in refused[user], what
                    assert not found and not self.plain[user], what
                else:
                    assert repr(found) == repr(self.meant[user]), what
        return Counter("refused" if reason else "stored" for reason in refused)


@contextmanager
def appended(folder: Path) -> Iterator[Appended]:
    world = new_world(folder, SCHEMA)
    config = OnlineConfig(
        store=world.store,
        data=folder / "tier",
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        yield Appended(client)


def test_arrays_of_other_types(tmp_path: Path) -> None:
    """Each edge of each type into each type, as the client converts it."""
    rng = random.Random(SEED)
    pairs = [(source, target) for source in SOURCES for target in TRAITS]
    refused, tried = 0, 0
    with appended(tmp_path) as sent:
        for source, target in rng.sample(pairs, times(20, len(pairs))):
            trait = f"of_{target}"
            for value in values_of(source):
                tried += 1
                try:
                    batch = sent.client.events(
                        [0], [START_TS], {trait: np.array([value], np.dtype(source))}
                    )
                except InputError as error:
                    assert trait in str(error), error
                    assert source != target
                    refused += 1
                    continue
                # Where pandas has gaps in integers, it has NaN.
                is_gap = "int" in target and source.startswith("float") and value != value
                meant = None if is_gap else kept(value, source, target)
                assert is_gap or meant is not None, (value, source, target)
                sent.add(trait, batch.columns[1], 1, [meant], plain=True)
        assert sent.check() == {"stored": tried - refused}
    Tried(
        fault="Numbers at the edges of every type, appended as arrays for a trait of every type",
        times=tried,
        promised="Refused with the trait's name, or stored equal; floats may round, and not to "
        "infinity",
        seen=f"{tried - refused:,} stored equal, {refused:,} refused by name, 0 changed",
    ).keep()


def kept(value: Any, source: str, target: str) -> Any:
    """Returns the value as the target holds it; None where it would change."""
    is_rounded = target.startswith("float") and source.startswith("float")
    dtype = np.dtype("int64" if target == "categorical" else target)
    try:
        with np.errstate(all="ignore"):
            held = dtype.type(value).item()
    except (OverflowError, ValueError):
        return None
    if is_rounded:
        return held if math.isfinite(held) or not math.isfinite(value) else None
    return held if held == value else None


def test_words_of_any_width(tmp_path: Path) -> None:
    """Columns that no client of ours sends: any width, base, number of bytes, and presence."""
    rng = random.Random(SEED)
    with appended(tmp_path) as sent:
        tries = times(400, 40_000)
        for _ in range(tries):
            add_column(sent, rng)
        counts = sent.check()
    assert counts["stored"] and counts["refused"]
    Tried(
        fault="Columns of any width, base, number of words and presence in an append",
        times=tries,
        promised="Refused with the trait's name, or stored as the contract says; never another "
        "value",
        seen=f"{counts['stored']:,} stored equal, {counts['refused']:,} refused by name, 0 changed",
    ).keep()


def add_column(sent: Appended, rng: random.Random) -> None:
    kind, events, width = rng.choice(KINDS), rng.randint(1, EVENTS_MAX), rng.choice(WIDTHS)
    present = [rng.random() < 0.8 for _ in range(events)]
    base = rng.choice((0, 0, rng.choice(EDGES), -rng.getrandbits(6), rng.getrandbits(63)))
    base = (base + (1 << 63)) % (1 << 64) - (1 << 63)
    bits = rng.choice((1, 8 * width)) if width else 0
    offsets = [rng.getrandbits(bits) if bits else 0 for _ in range(sum(present))]
    data = b"".join(offset.to_bytes(width, "little") for offset in offsets)
    is_whole = rng.random() < 0.9
    if not is_whole:
        data = data[:-1] if data and rng.random() < 0.5 else data + b"\0"
    number = wire.TraitType.Value(f"TRAIT_TYPE_{kind.upper()}")
    column = wire.Column(
        trait=f"of_{kind}",
        type=number,  # type: ignore[arg-type]
        vector_size=1,
        nullable=True,
        bases=[base],
        widths=bytes([width]),
        data=data,
        present=sum(bit << n for n, bit in enumerate(present)).to_bytes(1, "little"),
        strings=STRINGS if kind == "string" else (),
    )
    words = [base + offset for offset in offsets]
    values = iter([value_of(kind, word) for word in words])
    meant = [next(values) if bit else None for bit in present]
    is_known = is_whole and all(
        (value is None) != bit for value, bit in zip(meant, present, strict=True)
    )
    sent.add(
        f"of_{kind}",
        column,
        events,
        meant if is_known else None,
        plain=is_known and is_plain(kind, words, width),
    )


def dtype_of(kind: str) -> np.dtype[Any]:
    return np.dtype({"string": "int32", "categorical": "int64"}.get(kind, kind))


def value_of(kind: str, word: int) -> Any:
    """Returns the value that a word stands for, None where it stands for none of the type."""
    if kind == "string":
        return STRINGS[word] if 0 <= word < len(STRINGS) else None
    if kind == "bool":
        return bool(word) if word in (0, 1) else None
    dtype = dtype_of(kind)
    bits = 8 * dtype.itemsize
    if bits < 64 and not (0 if dtype.kind == "u" else -(1 << bits - 1)) <= word < 1 << bits:
        return None
    unsigned = np.array([word % (1 << bits)], f"u{dtype.itemsize}")
    return unsigned.view(dtype)[0].item()


def is_plain(kind: str, words: list[int], width: int) -> bool:
    """Returns whether the contract takes such words: of the type's width, and its values."""
    dtype = dtype_of(kind)
    if width > dtype.itemsize or (dtype.kind == "f" and width not in (0, dtype.itemsize)):
        return False
    if dtype.kind in "ub" or kind == "string":
        return True
    if dtype.kind == "f":
        return all(0 <= word < 1 << 8 * dtype.itemsize for word in words)
    least = 1 << 8 * dtype.itemsize - 1
    return all(-least <= word < least for word in words)
