"""The product against the oracle, through real files and a real server: bytes and statuses."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.built_worlds import Answer, Built, bits, new_folder
from support.id_kinds import known_id, oracle_id
from support.oracle import (
    Event,
    Key,
    Oracle,
    Pointer,
    Run,
    Schema,
    Trait,
    Wanted,
    trait_value,
    truncate,
)
from support.past_requests import PastRequests, past_requests
from support.scenarios import (
    CADENCES,
    STRANGER,
    USERS,
    Example,
    World,
    bulk,
    examples,
    projections,
    requested,
    rows_table,
    values,
    worlds,
)
from thinrow.jobs.backfill import backfill

if TYPE_CHECKING:
    from collections.abc import Sequence


pytestmark = pytest.mark.usefixtures("no_pause_before_goaway")

ALL = Wanted()
EVERY_COLUMN = Wanted(traits=("event_ts", "event_id", "visible_ts"))


# Any pointer, any projection, after any compactions.


@given(worlds(coded=True), st.data())
@examples(18)
def test_any_pointer(world: World, data: st.DataObject) -> None:
    rows = data.draw(requested(world))
    wanted = [data.draw(projections(world.schema)) for _ in range(3)]
    with new_folder() as folder:
        built = Built(folder, world)
        for run in world.runs:
            built.compact(run)
        with built.serve() as served:
            for projection in [*wanted, ALL]:
                served.check_examples(rows, projection)


@given(worlds(most_runs=3, coded=True), st.integers(0, 2**32), st.data())
@examples(3)
def test_long_histories(world: World, seed: int, data: st.DataObject) -> None:
    world = bulk(world, seed, 6000)
    rows = data.draw(requested(world, 8))
    wanted = replace(data.draw(projections(world.schema)), sequence_length=300)
    with new_folder() as folder:
        built = Built(folder, world)
        for run in world.runs:
            built.compact(run)
        with built.serve() as served:
            served.check_examples(rows, wanted)
            served.check_examples(rows, ALL)


# What a request saw, put back.


def backfilled(built: Built, requested: PastRequests) -> tuple[Path, list[dict[str, Any]]]:
    """Thin rows of past requests, and what is in them."""
    requests = requested.table
    rows = built.folder / "rows.parquet"
    events = [built.write_events(requested.world.events)]
    backfill(requested.config(built.write(requests), built.store, events, rows))
    table = pq.read_table(rows)
    assert table.select(requests.column_names).to_pylist() == requests.to_pylist()
    return rows, table.to_pylist()


def snapshot_bits(events: Sequence[dict[str, Any]], traits: Sequence[Trait]) -> list[Key]:
    """Return the bits of events; a file without ids or late arrivals has no column for them."""
    return [
        (
            event["event_ts"],
            event.get("event_id"),
            *bits([trait_value(Event(0, 0, 0, 0, event), trait) for trait in traits]),
            event.get("arrival_ts", event["event_ts"]),
        )
        for event in events
    ]


@given(past_requests(), st.data())
@examples(18)
def test_what_a_request_saw(requested: PastRequests, data: st.DataObject) -> None:
    world = requested.world
    wanted = data.draw(projections(world.schema))
    with new_folder() as folder:
        built = Built(folder, world)
        built.compact(world.runs[0])
        rows, shown = backfilled(built, requested)
        seen = [requested.past.sees(user, ts) for user, ts in requested.requests]

        def erased(event: Event) -> bool:
            return event.arrival_ts < built.oracle.erased_at.get(event.user_id, event.arrival_ts)

        for row, right in zip(shown, seen, strict=True):
            digest = row["uih"].pop("digest")
            user_id = oracle_id(row["user_id"], world.schema.user_ids, (*USERS, STRANGER))
            content = built.oracle.digest_content(user_id, right.pointer.end_ts)
            if right.pointer.start_ts < right.pointer.end_ts:
                assert (digest != 0) == (content is not None)
            assert {"user_id": user_id, **row["uih"]} == asdict(right.pointer)
            mutable = snapshot_bits(row["mutable"], world.schema.traits)
            # What was erased since is not written into new rows, though raw files still have it.
            remembered = [event for event in right.mutable if not erased(event)]
            expected = snapshot_bits(
                [asdict(event) | event.traits for event in remembered], world.schema.traits
            )
            # Events that differ in arrival_ts alone have no order.
            assert [event[:-1] for event in mutable] == [event[:-1] for event in expected]
            assert sorted(map(repr, mutable)) == sorted(map(repr, expected))

        for projection in (wanted, ALL):
            answers = []
            for (_, request_ts), right in zip(requested.requests, seen, strict=True):
                status, entries = built.oracle.answer(
                    right.pointer, projection, right.mutable, request_ts
                )
                if status == "OK":
                    # A generation that erased the user answers without what came before.
                    kept = [entry for entry in right.sequence if not erased(entry.event)]
                    again = truncate(kept, projection)
                    assert [entry.event for entry in entries] == [entry.event for entry in again]
                answers.append((status, entries))
            with built.serve() as served:
                served.check(rows, projection, answers)


# Older pointers, requested of every later generation.


@given(worlds(coded=True), st.data())
@examples(12)
def test_later_generations_answer_alike(world: World, data: st.DataObject) -> None:
    later = data.draw(st.sampled_from((0, 1, 60)))
    wanted = data.draw(projections(world.schema))
    rows: list[Example] = []
    digests: list[int] = []
    first_answers: list[Answer] = []
    with new_folder() as folder:
        built = Built(folder, world)
        for run in world.runs:
            known = len(built.oracle.watermarks)
            built.compact(run)
            watermarks = built.oracle.watermarks
            with built.serve() as served:
                before = len(rows)
                for (user, end_ts), digest in served.digests(watermarks[known:]).items():
                    for start_ts, max_length in ((0, 0), (end_ts - 30, 0), (0, 2)):
                        pointer = Pointer(user, start_ts, end_ts, max_length)
                        rows.append(Example(pointer, end_ts + later, []))
                        digests.append(digest)
                served.check_examples(rows, wanted, digests)
                path = built.write(rows_table(rows, digests, world.schema))
                answers = served.look_up(path, wanted)
                first_answers += answers[before:]
                for first, answer in zip(first_answers, answers, strict=True):
                    if first.status == answer.status == "OK":
                        assert answer == first


# A store of other events.


@st.composite
def altered(draw: st.DrawFn, events: list[Event], schema: Schema) -> list[Event]:
    """The same events but for one, or none."""
    if not events:
        return events
    rng = draw(st.randoms(use_true_random=True))
    n = rng.randrange(len(events))
    event = events[n]
    trait = rng.choice(schema.traits)
    others: list[list[Event]] = [
        [],
        [event],
        [event, event],
        [replace(event, event_ts=event.event_ts + 1)],
        [replace(event, arrival_ts=event.arrival_ts + 8)],
        [replace(event, event_id=known_id(7, schema.event_ids))],
        [replace(event, user_id=USERS[0])],
        *[[replace(event, traits={**event.traits, trait.name: values(trait, rng)})]] * 3,
    ]
    return [*events[:n], *rng.choice(others), *events[n + 1 :]]


@given(past_requests(), st.data())
@examples(14)
def test_store_of_other_events(requested: PastRequests, data: st.DataObject) -> None:
    world = requested.world
    run = replace(world.runs[0], erase=frozenset(), lookback_ms=None)
    other_events = data.draw(altered(run.events, world.schema))
    other_run = replace(
        run, events=other_events, lookback_ms=data.draw(st.sampled_from((None, 60)))
    )
    wanted = data.draw(projections(world.schema))
    with new_folder() as folder:
        built, other = Built(folder / "one", world), Built(folder / "other", world)
        built.compact(run)
        other.compact(other_run)
        rows, _ = backfilled(built, requested)
        answers = []
        for user, request_ts in requested.requests:
            pointer, mutable, _ = requested.past.sees(user, request_ts)
            content = other.oracle.digest_content(user, pointer.end_ts)
            same = content in (None, built.oracle.digest_content(user, pointer.end_ts))
            answers.append(other.oracle.answer(pointer, wanted, mutable, request_ts, same))
        with other.serve() as served:
            served.check(rows, wanted, answers)


# Neither the order of the input, nor its files, nor shards, nor runs change an answer.


def alike(one: Built, other: Built, rows: Sequence[Example]) -> None:
    """Both stores answer alike, and as the oracle does."""
    assert one.oracle.watermarks == other.oracle.watermarks
    digests = []
    for built in (one, other):
        with built.serve() as served:
            served.check_examples(rows, ALL)
            digests.append(served.digests(built.oracle.watermarks[-3:]))
            served.check_examples(rows, EVERY_COLUMN)
    assert digests[0] == digests[1]


@given(worlds(most_runs=2, coded=True), st.data())
@examples(10)
def test_order_files_and_shards(world: World, data: st.DataObject) -> None:
    rows = data.draw(requested(world))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    with new_folder() as folder:
        one, other = Built(folder / "one", world), Built(folder / "other", world, 2 * world.shards)
        for run in world.runs:
            one.compact(run)
            shuffled = rng.sample(run.events, len(run.events))
            half = rng.randrange(len(shuffled) + 1)
            parts = [other.write_events(part) for part in (shuffled[half:], shuffled[:half])]
            other.compact(run, parts)
        alike(one, other, rows)


@given(worlds(most_runs=1, coded=True), st.booleans(), st.data())
@examples(8)
def test_one_run_or_several(world: World, overlap: bool, data: st.DataObject) -> None:
    (run,) = world.runs
    run = replace(run, cadence_ms=data.draw(st.sampled_from(CADENCES[1:])), dedup_window_ms=10**15)
    assume(len(Oracle(world.schema).cuts(run)) < 8)
    rows = data.draw(requested(world))
    with new_folder() as folder:
        one, other = Built(folder / "one", world), Built(folder / "other", world)
        one.compact(run)
        last = None
        for cut in one.oracle.watermarks:
            events = [
                event
                for event in run.events
                if overlap
                or (event.arrival_ts < cut and (last is None or event.arrival_ts >= last))
            ]
            forgets = cut == run.watermark_ts
            other.compact(
                Run(
                    events,
                    cut,
                    dedup_window_ms=run.dedup_window_ms,
                    lookback_ms=run.lookback_ms if forgets else None,
                    erase=run.erase if forgets else frozenset(),
                )
            )
            last = cut
        alike(one, other, rows)
