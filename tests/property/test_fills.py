"""Fills against the oracle: values by every key, among compactions, through a real server."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, new_folder
from support.id_kinds import event_id_array, id_array, known_id
from support.oracle import Event, Fill, Pointer, Run, Schema, Value, Wanted, arrow_type, order
from support.scenarios import (
    STRANGER,
    Example,
    World,
    examples,
    projections,
    requested,
    schema_toml,
    traits,
    values,
    worlds,
)
from thinrow.errors import InputError, UsageError
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill

if TYPE_CHECKING:
    import random

pytestmark = pytest.mark.usefixtures("no_pause_before_goaway")

ALL = Wanted()
LATER = "later"
"""The group that comes later."""


@st.composite
def later_schemas(draw: st.DrawFn, schema: Schema) -> Schema:
    """The schema with one more group, whose traits old events may lack."""
    added = []
    for number in range(draw(st.integers(1, 2))):
        trait = draw(traits(f"later_{number}", lists=True, coded=True))
        added.append(replace(trait, sparse=True, key=False))
    groups = {LATER: added, **schema.groups}
    return replace(
        schema, groups=groups if draw(st.booleans()) else {**schema.groups, LATER: added}
    )


def drawn_fill(rng: random.Random, built: Built, schema: Schema) -> Fill | None:
    """Values for some of the stored events and for others; None where nothing can be filled."""
    group = rng.choice((LATER, LATER, *schema.groups))
    single = [
        trait.name
        for trait in built.world.schema.traits
        if not trait.size and not trait.length_max and "float" not in trait.type
    ]
    by = rng.choice(("event_id", "event_ts", *single))
    key = {
        "event_id": ("user_id", "event_id"),
        "event_ts": ("user_id", "event_ts", *(t.name for t in schema.traits if t.key)),
    }.get(by, (by,))
    free = [trait for trait in schema.groups[group] if not trait.key and trait.name not in key]
    if not free:
        return None
    chosen = rng.sample(free, rng.randrange(1, len(free) + 1))
    stored = [entry.event for history in built.oracle.kept.values() for entry in history]
    others = [
        Event(
            STRANGER,
            5,
            5,
            known_id(5, schema.event_ids),
            {t.name: values(t, rng) for t in schema.traits},
        )
    ]
    by_key = {}
    for event in [*rng.sample(stored, rng.randrange(len(stored) + 1)), *others]:
        row: dict[str, Value] = {
            name: getattr(event, name) if hasattr(event, name) else event.traits.get(name)
            for name in key
        }
        known = tuple(
            order(value if value is not None else default_of(schema, name))
            for name, value in row.items()
        )
        if by != "event_ts" and None in row.values():
            continue
        by_key[known] = row | {trait.name: values(trait, rng) for trait in chosen}
    return Fill(group, by, key, tuple(trait.name for trait in chosen), [*by_key.values()])


def default_of(schema: Schema, name: str) -> Value:
    return next((trait.default for trait in schema.traits if trait.name == name), None)


def run_fill(built: Built, wanted: Fill, schema: Schema, whole_file: bool) -> None:
    """Fills the store and the oracle alike; where no event has a row, neither."""
    kinds = {trait.name: arrow_type(trait) for trait in schema.traits}
    kinds["event_id"] = event_id_array([], schema.event_ids).type
    rows = [*wanted.rows, *wanted.rows[:2]]
    columns = {
        name: pa.array([row[name] for row in rows], kinds.get(name, pa.int64()))
        for name in (*wanted.key, *wanted.traits)
    }
    if "user_id" in columns:
        users: list[Any] = [row["user_id"] for row in rows]
        columns["user_id"] = id_array(users, schema.user_ids, shouted=whole_file)
    table = pa.table(columns)
    file = built.folder / "fill.toml"
    named = schema
    if not whole_file:
        named = replace(schema, groups={wanted.group: schema.groups[wanted.group]})
    file.write_text(schema_toml(named), encoding="utf-8")
    config = FillConfig(
        group=wanted.group,
        values=built.write(table),
        store=built.store,
        schema=file if wanted.group == LATER else None,
        by=wanted.by,
        time_unit="ms",
    )
    if not whole_file and LATER not in built.world.schema.groups:
        schema = replace(schema, groups={**built.world.schema.groups, **named.groups})
    oracle = deepcopy(built.oracle)
    expected = oracle.fill(wanted, schema)
    if not expected.events:
        with pytest.raises((UsageError, InputError), match=r"no rows|None of the"):
            fill(config)
        return
    record = fill(config).record
    assert {name: getattr(record, name) for name in asdict(expected)} == asdict(expected)
    again = fill(config)
    assert again.already_published
    assert again.record == record
    built.oracle = oracle
    built.world = replace(built.world, schema=schema)
    built.schema.write_text(schema_toml(schema), encoding="utf-8")


@given(worlds(most_runs=3, coded=True), st.data())
@examples(6)
def test_filled_values(world: World, data: st.DataObject) -> None:
    schema = data.draw(later_schemas(world.schema))
    rng = data.draw(st.randoms(use_true_random=True))
    rows = data.draw(requested(world))
    rows = [replace(row, mutable=[]) for row in rows]
    wanted = data.draw(projections(schema))
    pointers: list[Example] = []
    digests: list[int] = []
    with new_folder() as folder:
        built = Built(folder, world)
        for run in world.runs:
            known = len(built.oracle.watermarks)
            built.compact(with_later(run, built, schema, rng))
            with built.serve() as served:
                users = served.digests(built.oracle.watermarks[known:])
            for (user, end_ts), digest in users.items():
                pointers.append(Example(Pointer(user, 0, end_ts), end_ts, []))
                digests.append(digest)
            for _ in range(rng.randrange(3)):
                group_is_known = LATER in built.world.schema.groups
                now = built.world.schema if group_is_known else schema
                drawn = drawn_fill(rng, built, now)
                if drawn is not None and (group_is_known or drawn.group == LATER):
                    run_fill(built, drawn, now, rng.random() < 0.5)
        names = {*built.world.schema.groups, *(t.name for t in built.world.schema.traits)}
        names |= {"event_ts", "event_id", "visible_ts"}
        if not {*wanted.feature_groups, *wanted.traits} <= names:
            wanted = ALL
        with built.serve() as served:
            served.check_examples(rows, ALL)
            served.check_examples(rows, wanted)
            served.check_examples(pointers, ALL, digests)


def with_later(run: Run, built: Built, schema: Schema, rng: random.Random) -> Run:
    """The run, whose events have the later group if the store has it."""
    if LATER not in built.world.schema.groups:
        return run
    added = schema.groups[LATER]
    return replace(
        run,
        events=[
            replace(
                event, traits=event.traits | {trait.name: values(trait, rng) for trait in added}
            )
            for event in run.events
        ],
    )
