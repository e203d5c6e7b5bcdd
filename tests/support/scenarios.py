"""Draws worlds for the property tests: schemas, events, compactions, pointers, projections.

Users, ids, times and values come from small pools, so that ties, duplicates, late arrivals and
clocks ahead are the rule and not the exception.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from support.id_kinds import EVENT_IDS, KINDS, event_id_array, id_array, known_id
from support.oracle import (
    ARROW,
    BUILT_IN,
    DAY_MS,
    Event,
    Pointer,
    Run,
    Schema,
    Trait,
    Value,
    Wanted,
    arrow_type,
    event_order,
    trait_value,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

USERS = (1, 2, 3, -7, 2**40)
CROWD = (1, 1, 1, 1, 2, 2, *USERS)  # some have more events than others
STRANGER = 99  # never has events
CADENCES = (7, 10, 50)
BASES = (0, 1_600_000_000_000)

_TINY = {"float16": 2.0**-24, "float32": 2.0**-149, "float64": 5e-324}
_LARGE = {"float16": 65504.0, "float32": 3.4028234663852886e38, "float64": 1.7e308}


def _pool(kind: str) -> list[Any]:
    if kind in _TINY:
        return [
            0.0,
            -0.0,
            1.5,
            -2.0,
            _TINY[kind],
            _LARGE[kind],
            math.inf,
            -math.inf,
            math.nan,
            -math.nan,
        ]
    if kind == "bool":
        return [False, True]
    if kind == "string":
        return ["", "a", "b", "a\0", "é", "\uffff", "\U00010000", 'say "hi"\\\n']
    if kind == "categorical":
        return [0, 1, 2, -1, 2**63 - 1, -(2**63)]
    bits = int(kind.lstrip("uint"))
    low, high = (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return [0, 1, 2, 3, low, high]


POOLS = {kind: _pool(kind) for kind in ARROW}
VECTORS = [kind for kind in ARROW if "int" in kind or kind in _TINY]


def examples(count: int) -> settings:
    """Number of examples, times THINROW_EXAMPLES."""
    times = float(os.environ.get("THINROW_EXAMPLES", "1"))
    return settings(max_examples=max(1, round(count * times)))


@st.composite
def traits(draw: st.DrawFn, name: str, lists: bool, coded: bool = False) -> Trait:
    if coded and draw(st.sampled_from((False, False, True))):
        kind = draw(st.sampled_from(("string", "string", "int64", "uint64", "int8")))
        return Trait(name, kind, sparse=draw(st.booleans()), coded=True)
    kind = draw(st.sampled_from(sorted(POOLS)))
    length_max = draw(st.sampled_from((0, 0, 3, 300))) if lists and kind != "bool" else 0
    size = draw(st.sampled_from((0, 2, 3))) if kind in VECTORS and not length_max else 0
    sparse = draw(st.booleans())
    default: Value = None
    if sparse and length_max:
        default = draw(st.sampled_from((None, ())))
    elif sparse and not size and draw(st.booleans()):
        # NaN is no default: the schema refuses it.
        default = draw(st.sampled_from([value for value in POOLS[kind] if value == value]))
    return Trait(name, kind, size, length_max, sparse, default, key=draw(st.booleans()))


@st.composite
def schemas(draw: st.DrawFn, lists: bool = True, coded: bool = False) -> Schema:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return Schema(
        {
            f"group_{g}": [draw(traits(f"trait_{g}{t}", lists, coded)) for t in range(size)]
            for g, size in enumerate(sizes)
        }
    )


def values(trait: Trait, rng: random.Random) -> Value:
    """One of few values of the trait, so that events tie."""
    pool: list[Value] = POOLS[trait.type]
    if trait.sparse and rng.random() < 0.4:
        return None
    if trait.length_max:
        return tuple(rng.choices(pool, k=min(rng.choice((0, 1, 1, 2, 3)), trait.length_max)))
    if trait.size:
        few = pool[:3] if trait.type in _TINY else pool[-3:]
        return tuple(rng.choice(few) for _ in range(trait.size))
    return rng.choice(pool)


@dataclass(frozen=True)
class World:
    """Compactions to run one after another, and the moments worth requesting about."""

    schema: Schema
    runs: list[Run]
    moments: list[int]
    shards: int
    stripe_events: int  # most events in a stripe: short ones give short histories many
    plain: bool  # whether the files leave out what says nothing

    @property
    def events(self) -> list[Event]:
        return [event for run in self.runs for event in run.events]


def edges(moments: Sequence[int]) -> list[int]:
    return sorted({moment + off for moment in moments for off in (-1, 0, 1)})


@st.composite
def events(
    draw: st.DrawFn,
    schema: Schema,
    times: Sequence[int],
    count: int,
    clocks: bool,
    fine: bool = False,
) -> list[Event]:
    """Events that arrive at some of these times; `clocks` lets event_ts differ from arrival_ts.

    `fine` times have a part finer than a millisecond.
    """
    rng = draw(st.randoms(use_true_random=True))
    made = []
    for _ in range(draw(st.sampled_from((0, count // 2, count, count)))):
        arrival_ts = rng.choice(times)
        skew = rng.choice((0, 0, 1, 5, 40, 10**6, -1, -30, -(10**12))) if clocks else 0
        made.append(
            Event(
                rng.choice(CROWD),
                arrival_ts - skew,
                arrival_ts,
                rng.choice(EVENT_IDS[schema.event_ids]),
                {trait.name: values(trait, rng) for trait in schema.traits},
                rng.choice((0, 1, 1000, 999_999)) if fine else 0,
            )
        )
    return made


@st.composite
def worlds(
    draw: st.DrawFn,
    most_runs: int = 4,
    least_runs: int = 1,
    forgetful: bool = True,
    lists: bool = True,
    coded: bool = False,
    kinds: Sequence[str] = KINDS,
    event_kinds: Sequence[str] = KINDS,
) -> World:
    """`forgetful` worlds have retention and erasure, `coded` ones vocabularies.

    Users have ids of one of `kinds`, and events of `event_kinds`.
    """
    fine = draw(st.booleans())
    schema = replace(
        draw(schemas(lists, coded)),
        user_ids=draw(st.sampled_from(kinds)),
        event_ids=draw(st.sampled_from(event_kinds)),
    )
    base = draw(st.sampled_from(BASES))
    clocks = draw(st.booleans())
    count = draw(st.integers(least_runs, most_runs))
    gaps = [draw(st.sampled_from((100, 37, 10, 2, 1))) for _ in range(count)]
    watermarks = [base + 10 + sum(gaps[: n + 1]) for n in range(len(gaps))]
    cadence_ms = draw(st.sampled_from(CADENCES))
    cuts = [ts for ts in range(base, watermarks[-1], cadence_ms) if ts % cadence_ms == 0]
    moments = edges([*watermarks, *cuts])
    times = [ts for ts in moments if ts >= base] + list(range(base, watermarks[-1], 5))
    runs: list[Run] = []
    sent: list[Event] = []
    for watermark_ts in watermarks:
        fresh = draw(
            events(schema, [ts for ts in times if ts <= watermark_ts + 1], 24, clocks, fine)
        )
        again = draw(st.lists(st.sampled_from(sent), max_size=6)) if sent else []
        if clocks:
            delay = draw(st.sampled_from((0, 0, 20, 200)))
            again = [replace(event, arrival_ts=event.arrival_ts + delay) for event in again]
        sent += fresh
        runs.append(
            Run(
                fresh + again,
                watermark_ts,
                cadence_ms=draw(st.sampled_from((None, cadence_ms))),
                cadence_offset_ms=draw(st.sampled_from((0, 0, 3))),
                dedup_window_ms=draw(st.sampled_from((7 * DAY_MS, 1, 15, 0))),
                lookback_ms=draw(st.sampled_from((None, None, 1, 30, 150))) if forgetful else None,
                erase=draw(
                    st.sampled_from(
                        (frozenset[int](), frozenset(USERS[:1]), frozenset((2, STRANGER)))
                    )
                )
                if forgetful
                else frozenset(),
                accept_late=draw(st.booleans()),
            )
        )
    return World(
        schema,
        runs,
        moments,
        shards=draw(st.sampled_from((1, 2, 4))),
        stripe_events=draw(st.sampled_from((1024, 1, 2, 5, 8))),
        plain=draw(st.booleans()),
    )


def bulk(world: World, seed: int, count: int) -> World:
    """The same world with long histories, spread over its runs."""
    rng = random.Random(seed)
    runs = []
    last_ts = max(0, world.moments[0])
    for run in world.runs:
        more = []
        for number in range(count // len(world.runs)):
            arrival_ts = rng.randrange(last_ts, run.watermark_ts)
            known = {trait.name: values(trait, rng) for trait in world.schema.traits}
            event_id: int | str | None = number if rng.random() < 0.1 else None
            if event_id is not None:
                event_id = known_id(number + 4, world.schema.event_ids)
            skew = rng.choice((0, 3, -3))
            more.append(Event(USERS[0], arrival_ts - skew, arrival_ts, event_id, known))
        last_ts = run.watermark_ts
        runs.append(replace(run, events=run.events + more))
    return replace(world, runs=runs, stripe_events=1024, plain=False)


@dataclass(frozen=True)
class Example:
    """One thin row, less its digest."""

    pointer: Pointer
    request_ts: int
    mutable: list[Event]


@st.composite
def requested(draw: st.DrawFn, world: World, count: int = 12) -> list[Example]:
    """Any examples, most of them sensible."""
    rng = draw(st.randoms(use_true_random=True))
    watermarks = [run.watermark_ts for run in world.runs]
    made = []
    for _ in range(count):
        user_id = rng.choice((*CROWD, STRANGER))
        end_ts = rng.choice((*watermarks, rng.choice(world.moments)))
        happened = rng.choice(world.events).event_ts if world.events else 0
        start_ts = rng.choice((0, 0, end_ts, end_ts - rng.randrange(1, 60), end_ts - 1, happened))
        start_ts = min(start_ts, end_ts)
        max_length = rng.choice((0, 0, 0, 0, 1, 2, 5, 100))
        request_ts = end_ts + rng.choice((0, 1, 25, 200, 200, 200))
        if rng.random() < 0.1:
            start_ts, max_length, request_ts = rng.choice(
                (
                    (end_ts + 1, 0, request_ts),
                    (0, -1, request_ts),
                    (0, 0, end_ts - 1),
                    (rng.choice(world.moments), 0, request_ts),
                )
            )
        # Rarely from outside [end_ts, request_ts).
        stray = rng.random() < 0.05
        known = [
            event
            for event in world.events
            if event.user_id == user_id and (stray or end_ts <= event.arrival_ts < request_ts)
        ]
        mutable = rng.sample(known, min(len(known), rng.randrange(4)))
        mutable.sort(key=lambda event: event_order(event, world.schema))
        pointer = Pointer(user_id, start_ts, end_ts, max_length)
        made.append(Example(pointer, request_ts, mutable))
    return made


@st.composite
def projections(draw: st.DrawFn, schema: Schema) -> Wanted:
    names = [*BUILT_IN, *(trait.name for trait in schema.traits)]
    return Wanted(
        draw(st.sampled_from((0, 0, 1, 2, 3, 5, 1000))),
        draw(st.booleans()),
        tuple(draw(st.lists(st.sampled_from(list(schema.groups)), max_size=2, unique=True))),
        tuple(draw(st.lists(st.sampled_from(names), max_size=4, unique=True))),
    )


def schema_toml(schema: Schema) -> str:
    """The schema file."""
    lines = []
    for group, members in schema.groups.items():
        lines.append(f"[{group}]")
        for trait in members:
            kind = f"list<{trait.type}>" if trait.length_max else trait.type
            options: dict[str, Value] = {"type": kind}
            options |= {"size": trait.size} if trait.size else {}
            options |= {"length_max": trait.length_max} if trait.length_max else {}
            options |= {"sparse": True} if trait.sparse else {}
            options |= {"default": trait.default} if trait.default is not None else {}
            options |= {"key": True} if trait.key else {}
            options |= {"codes": "vocabulary"} if trait.coded else {}
            pairs = ", ".join(f"{name} = {toml(value)}" for name, value in options.items())
            short = len(options) == 1
            lines.append(f"{trait.name} = " + (toml(kind) if short else f"{{ {pairs} }}"))
    if schema.user_ids != "int64":
        lines += ["[user]", f"id = {toml(schema.user_ids)}"]
    if schema.event_ids != "int64":
        lines += ["[event]", f"id = {toml(schema.event_ids)}"]
    return "\n".join(lines) + "\n"


def toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # TOML's basic strings know \uXXXX; not every control character may stand as it is.
        plain = {'"', "\\"}
        text = [f"\\u{ord(c):04x}" if ord(c) < 32 or c in plain else c for c in value]
        return f'"{"".join(text)}"'
    if value == ():
        return "[]"
    if isinstance(value, float) and math.isnan(value):
        return "-nan" if math.copysign(1, value) < 0 else "nan"
    return repr(value)


def events_table(events: Sequence[Event], schema: Schema, plain: bool) -> pa.Table:
    """EVENTS as Parquet has them; `plain` leaves out the columns that say nothing."""
    clock = pa.int64() if plain else pa.timestamp("ms", tz="UTC")
    happened = pa.array([event.event_ts for event in events], clock)
    if any(event.finer_ns for event in events):
        ticks = [event.event_ts * 1_000_000 + event.finer_ns for event in events]
        happened = pa.array(ticks, pa.timestamp("ns"))
    data: dict[str, pa.Array] = {
        "user_id": id_array(
            [event.user_id for event in events], schema.user_ids, shouted=not plain
        ),
        "event_ts": happened,
    }
    if not plain or any(event.arrival_ts != event.event_ts for event in events):
        data["arrival_ts"] = pa.array([event.arrival_ts for event in events], clock)
    if not plain or any(event.event_id is not None for event in events):
        ids = [event.event_id for event in events]
        data["event_id"] = event_id_array(ids, schema.event_ids, shouted=not plain)
    for trait in schema.traits:
        kind = arrow_type(trait)
        column = [event.traits.get(trait.name) for event in events]
        if trait.size and plain:
            kind = pa.list_(kind.value_type)
        data[trait.name] = pa.array(column, kind)
    # A user's file has its columns in whatever order.
    return pa.table(dict(sorted(data.items(), reverse=not plain)))


def rows_table(
    rows: Sequence[Example], digests: Sequence[int], schema: Schema, defaults: bool = False
) -> pa.Table:
    """ROWS as `backfill` writes them; `defaults` writes an absent value as its default."""
    uih = pa.struct(
        [(name, pa.int64()) for name in ("start_ts", "end_ts", "max_length")]
        + [("digest", pa.uint64())]
    )
    snapshot = pa.struct(
        [(name, pa.int64()) for name in ("event_ts", "arrival_ts")]
        + [("event_id", event_id_array([], schema.event_ids).type)]
        + [(trait.name, arrow_type(trait)) for trait in schema.traits]
    )

    def result(event: Event, trait: Trait) -> Value:
        return trait_value(event, trait) if defaults else event.traits.get(trait.name)

    return pa.table(
        {
            "user_id": id_array([row.pointer.user_id for row in rows], schema.user_ids),
            "request_ts": pa.array([row.request_ts for row in rows], pa.int64()),
            "uih": pa.array(
                [
                    {
                        "start_ts": row.pointer.start_ts,
                        "end_ts": row.pointer.end_ts,
                        "max_length": row.pointer.max_length,
                        "digest": digest,
                    }
                    for row, digest in zip(rows, digests, strict=True)
                ],
                uih,
            ),
            "mutable": pa.array(
                [
                    [
                        {
                            "event_ts": event.event_ts,
                            "arrival_ts": event.arrival_ts,
                            "event_id": event.event_id,
                            **{trait.name: result(event, trait) for trait in schema.traits},
                        }
                        for event in row.mutable
                    ]
                    for row in rows
                ],
                pa.list_(snapshot),
            ),
        }
    )
