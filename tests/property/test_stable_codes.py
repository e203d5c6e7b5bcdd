"""Codes keep their meaning through compactions, erasure and rollbacks, whatever is rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import new_folder
from support.scenarios import examples
from support.worlds import DAY_MS, START_TS, World, new_world, pointers_to, read_store
from thinrow.store.generations import generation_folders, withdrawn_folders
from thinrow.store.manifest import read_manifest
from thinrow.store.rollback import Newer, rollback

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = """
[item]
brand = { type = "string", sparse = true, codes = "vocabulary" }
item_id = { type = "int64", codes = "vocabulary" }
"""
BRANDS = [None, "", "a", "b", "é", "\uffff", "\U00010000", "B", "aa", "a\0"]
ITEMS = [0, -1, 1, 2, 2**63 - 1, -(2**63), 7, 8]


class Day(NamedTuple):
    """A run, and what follows it."""

    events: list[tuple[str | None, int]]
    erases: bool
    accepts_late: bool
    back: int
    """Generations that a rollback goes back by; 0 for none."""
    newer: Newer
    returns: bool
    """Takes the newest generation back, if the rollback kept it."""


events = st.lists(st.tuples(st.sampled_from(BRANDS), st.sampled_from(ITEMS)), max_size=4)
runs = st.builds(
    Day,
    events,
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 0, 1, 2)),
    st.sampled_from(("keep", "remove")),
    st.booleans(),
)


def meanings(folder: Path) -> dict[tuple[str, int], str | int]:
    """Values of a generation by trait and code."""
    found = {}
    for vocabulary in read_manifest(folder).vocabularies:
        table = pq.read_table(folder / "vocabularies" / vocabulary.file.name)
        for row in table.to_pylist():
            found[vocabulary.file.name, row["code"]] = row["value"]
    return found


def table(day: Day, number: int) -> pa.Table:
    count = len(day.events)
    return pa.table(
        {
            "user_id": pa.array([1 + place % 2 for place in range(count)], pa.int64()),
            "event_ts": [START_TS + number * DAY_MS + place for place in range(count)],
            "brand": pa.array([brand for brand, _ in day.events], pa.string()),
            "item_id": pa.array([item for _, item in day.events], pa.int64()),
        }
    )


@given(st.lists(runs, min_size=2, max_size=4))
@examples(5)
def test_a_code_never_changes(drawn: list[Day]) -> None:
    with new_folder() as folder:
        world = new_world(folder / "world", SCHEMA)
        erase = world.folder / "erase.txt"
        erase.write_text("2\n", encoding="utf-8")
        known: dict[tuple[str, int], str | int] = {}
        for number, day in enumerate(drawn):
            world.compact(
                table(day, number),
                number + 1,
                erase_users=erase if day.erases else None,
                accept_late=day.accepts_late,
                shards=1,
            )
            check(world, known, day, number)
            roll_back(world, day)
            check(world, known)


def roll_back(world: World, day: Day) -> None:
    folders = generation_folders(world.store)
    to = max(folders) - day.back
    if not day.back or to not in folders:
        return
    newest = max(folders)
    rollback(world.store, to, day.newer)
    if day.returns and day.newer == "keep":
        rollback(world.store, newest, "keep")


def check(
    world: World, known: dict[tuple[str, int], str | int], day: Day | None = None, number: int = 0
) -> None:
    """Every generation that can be read has one meaning for a code, that of all so far."""
    folders = {**generation_folders(world.store), **withdrawn_folders(world.store)}
    for folder in folders.values():
        for code, value in meanings(folder).items():
            assert known.setdefault(code, value) == value
    if day is None:
        return
    newest = meanings(generation_folders(world.store)[max(generation_folders(world.store))])
    answers = read_store(world.store, pointers_to([START_TS + (number + 1) * DAY_MS], users=[1, 2]))
    for user, (_, columns) in enumerate(answers):
        assert columns is not None
        own = [event for place, event in enumerate(day.events) if place % 2 == user]
        if day.erases and user == 1:
            assert not columns["brand"]
            continue
        names = {"brand": "16-brand-string.parquet", "item_id": "17-item_id-int64.parquet"}
        read = {
            trait: [newest[name, code] if code else None for code in columns[trait] or []]
            for trait, name in names.items()
        }
        stored = list(zip(read["brand"], read["item_id"], strict=True))
        assert stored[len(stored) - len(own) :] == own
