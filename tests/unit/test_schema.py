"""Schemas that change while histories stay: through real compactions, in full stripes too."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.worlds import ALL, DAY_MS, World, as_of, leftovers, new_world
from thinrow.client import Client, Pointers, Projection, connect
from thinrow.compaction.compact import compact
from thinrow.core.pointers import MutableColumn, MutableEvents, ThinRows
from thinrow.core.traits import TraitType
from thinrow.errors import InputError, RequestError, SchemaError, StoreError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.inspect import SHOWN_IN
from thinrow.materialization.server import Server
from thinrow.schema import Schema, evolve, from_stored, parse_schema, to_stored
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST = """
[item]
item_id = { type = "int64", key = true }
brand = "string"

[feedback]
rating = { type = "int8", sparse = true }
price = "float64"
"""
ADDED = """
[item]
item_id = { type = "int64", key = true }
shelf = { type = "categorical", default = -7 }
brand = "string"
colour = { type = "string", sparse = true }
maker = { type = "string", sparse = true, default = "unknown" }

[feedback]
rating = { type = "int8", sparse = true }
price = "float64"
liked = { type = "bool", sparse = true, default = true }
vector = { type = "float32", size = 3, sparse = true }
bias = { type = "float16", size = 2, default = 0.5 }

[session]
device = { type = "uint16", sparse = true }
seconds = { type = "float32", default = -1.5 }
"""
REMOVED = """
[item]
item_id = { type = "int64", key = true }
shelf = { type = "categorical", default = -7 }
colour = { type = "string", sparse = true }

[feedback]
price = "float64"
liked = { type = "bool", sparse = true, default = true }
vector = { type = "float32", size = 3, sparse = true }
bias = { type = "float16", size = 2, default = 0.5 }
"""
# Names that were there before, of another type or meaning: not the old columns come back.
AGAIN = (
    REMOVED
    + """brand = { type = "int32", sparse = true }
rating = { type = "int8", sparse = true, default = 3 }

[session]
device = { type = "uint16", sparse = true }
"""
)
DEFAULTS: dict[str, Any] = {
    "shelf": -7,
    "maker": "unknown",
    "liked": True,
    "bias": [0.5, 0.5],
    "seconds": -1.5,
}
USERS = (1, 2, 3, 4)


def names(schema: str) -> list[str]:
    return [line.split(" =")[0] for line in schema.splitlines() if " = " in line]


def line_of(name: str, schema: str) -> str:
    return schema.split(f"\n{name} =")[1].split("\n")[0]


def value(name: str, rng: random.Random, schema: str) -> Any:
    """A value of the trait; None where it may be absent."""
    line = line_of(name, schema)
    if "sparse" in line and rng.random() < 0.5:
        return None
    if name == "brand" and "string" not in line:
        return rng.randrange(1000)
    return {  # type: ignore[no-untyped-call]
        "vector": lambda: [float(rng.randrange(9)) for _ in range(3)],
        "bias": lambda: [float(rng.randrange(9)) for _ in range(2)],
        "liked": lambda: rng.random() < 0.5,
        "price": rng.random,
        "seconds": lambda: float(rng.randrange(99)),
    }.get(
        name,
        lambda: rng.choice("abcé") if name in ("brand", "colour", "maker") else rng.randrange(99),
    )()


ARROW = {
    "vector": pa.list_(pa.float32(), 3),
    "bias": pa.list_(pa.float16(), 2),
    "rating": pa.int8(),
    "device": pa.uint16(),
}


@dataclass
class Past:
    """A store, and by user the events that it holds, as plain rows in order."""

    world: World
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    digests: dict[tuple[int, int], int] = field(default_factory=dict)
    day: int = 0

    def grow(self, schema: str, counts: dict[int, int]) -> None:
        """One more day under a schema, with that many events of each user."""
        rng = random.Random(self.day)
        fresh = []
        for user, count in counts.items():
            times = sorted(rng.sample(range(as_of(self.day), as_of(self.day + 1)), count))
            fresh += [
                {"user_id": user, "event_ts": ts}
                | {name: value(name, rng, schema) for name in names(schema)}
                for ts in times
            ]
        for name in self.known() - set(names(schema)):
            for row in self.all_rows():
                row.pop(name, None)
        for name in set(names(schema)) - self.known():
            for row in self.all_rows():
                row[name] = default(name, schema)
        self.day += 1
        table = pa.table(
            {
                name: pa.array([row[name] for row in fresh], ARROW.get(name))
                for name in ("user_id", "event_ts", *names(schema))
            }
        )
        path = self.world.write(f"events-{self.day}.parquet", table)
        self.world.schema.write_text(schema, encoding="utf-8")
        compact(self.world.compaction([path], self.day))
        for row in fresh:
            for name in names(schema):
                if row[name] is None:
                    row[name] = default(name, schema)
            self.rows.setdefault(row["user_id"], []).append(row)

    def all_rows(self) -> Iterator[dict[str, Any]]:
        for rows in self.rows.values():
            yield from rows

    def known(self) -> set[str]:
        return {name for row in self.all_rows() for name in row} - {"user_id", "event_ts"}

    def check(self, client: Client, schema: str) -> None:
        """Every user as of every day so far, whole and cut short, digests included."""
        for user in USERS:
            found = client.inspect(user, as_of(self.day)).digest
            self.digests[user, as_of(self.day)] = found
        keys = list(self.digests)
        pointers = Pointers(
            user_ids=[user for user, _ in keys],
            end_ts=[end_ts for _, end_ts in keys],
            digests=list(self.digests.values()),
        )
        for length in (0, 700, 5):
            batch = client.materialize(pointers, Projection(length))
            assert set(batch.statuses.tolist()) == {wire.STATUS_OK}
            assert list(batch.values) == ["event_ts", *names(schema)]
            for name in batch.values:
                for (user, end_ts), shown in zip(keys, batch.to_lists(name), strict=True):
                    past = [r[name] for r in self.rows.get(user, []) if r["event_ts"] < end_ts]
                    assert shown == past[-length:], (name, user, end_ts)


def default(name: str, schema: str) -> Any:
    line = line_of(name, schema)
    if name == "rating" and "default" in line:
        return 3
    return DEFAULTS[name] if "default" in line else None


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """One generation: histories of one stripe and of several, and one user yet to come."""
    past = Past(new_world(tmp_path))
    past.grow(FIRST, {1: 1300, 2: 512, 3: 7})
    return past


def client_of(past: Past) -> Server:
    return Server(ServerConfig(store=past.world.store, listen="127.0.0.1:0", metrics=None))


def test_traits_and_groups_come_and_go(past: Past) -> None:
    for schema, counts in (
        (FIRST, {1: 3}),
        (ADDED, {1: 600, 3: 2, 4: 1}),
        (ADDED, {2: 5}),
        (REMOVED, {1: 2, 4: 600}),
        (AGAIN, {2: 700, 3: 4}),
        (AGAIN, {1: 600, 2: 1, 3: 1, 4: 1}),
    ):
        past.grow(schema, counts)
        with client_of(past) as server, connect(server.address) as client:
            past.check(client, schema)
            for gone in set(names(FIRST + ADDED)) - set(names(schema)):
                with pytest.raises(RequestError, match=f"no trait '{gone}'"):
                    client.materialize(
                        Pointers(user_ids=[1], end_ts=[as_of(1)]), Projection(traits=(gone,))
                    )


def test_with_no_new_events_at_all(past: Past) -> None:
    """A new schema reaches users whom the run does not touch otherwise."""
    past.world.schema.write_text(ADDED, encoding="utf-8")
    table = pa.table({"user_id": pa.array([], pa.int64()), "event_ts": pa.array([], pa.int64())})
    for name in names(ADDED):
        kind = ARROW.get(name, pa.string() if name in ("brand", "colour", "maker") else pa.int64())
        kind = {"price": pa.float64(), "seconds": pa.float32(), "liked": pa.bool_()}.get(name, kind)
        table = table.append_column(name, pa.array([], kind))
    compact(past.world.compaction([past.world.write("none.parquet", table)], 2))
    for row in past.all_rows():
        row.update({n: default(n, ADDED) for n in set(names(ADDED)) - set(names(FIRST))})
    past.day = 2
    with client_of(past) as server, connect(server.address) as client:
        past.check(client, ADDED)


def test_retention_cuts_old_stripes_of_a_new_schema(past: Past) -> None:
    """The stripe at the horizon is decoded under one schema and written under another."""
    past.grow(ADDED, {1: 10, 2: 10})
    cut_ts = past.rows[1][700]["event_ts"]
    events = past.world.folder / "events-2.parquet"
    lookback_ms = as_of(3) - cut_ts
    compact(past.world.compaction([events], 3, lookback_ms=lookback_ms))
    with client_of(past) as server, connect(server.address) as client:
        for user in (1, 2):
            pointers = Pointers(user_ids=[user], end_ts=[as_of(3)], start_ts=[cut_ts])
            batch = client.materialize(pointers, ALL)
            for name in batch.values:
                kept = [r[name] for r in past.rows[user] if r["event_ts"] >= cut_ts]
                assert batch.to_lists(name) == [kept]


def test_mutable_events_of_an_older_schema(past: Past) -> None:
    """Thin rows logged before a trait came: its default, or null, fills them up at the client."""
    past.grow(ADDED, {1: 3})
    now = as_of(1) + DAY_MS + 5
    old = {"item_id": 8, "brand": "old", "price": 0.25, "event_ts": now - 2}
    columns = {
        name: MutableColumn(np.array([v], object if name == "brand" else None))
        for name, v in old.items()
    }
    mutable = MutableEvents(np.array([0, 1]), np.array([now - 2]), columns)
    pointers = Pointers(user_ids=[1], end_ts=[as_of(2)], request_ts=[now])
    with client_of(past) as server, connect(server.address) as client:
        batch = client.materialize(ThinRows(pointers, mutable), Projection(3))
        for name in batch.values:
            (shown,) = batch.to_lists(name)
            assert shown is not None
            expected = old[name] if name in old else default(name, ADDED)
            assert shown == [*(r[name] for r in past.rows[1][-2:]), expected], name
        # What every event must have cannot be made up.
        del columns["price"]
        mutable = MutableEvents(np.array([0, 1]), np.array([now - 2]), columns)
        with pytest.raises(InputError, match="price"):
            client.materialize(ThinRows(pointers, mutable), ALL)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('brand = "string"', 'brand = "categorical"', ("item.brand differs", '"string"')),
        ('price = "float64"', 'price = "float32"', ("feedback.price differs", '"float64"')),
        (
            'price = "float64"',
            'price = { type = "float64", size = 2 }',
            ("feedback.price differs", "another name"),
        ),
        (
            'price = "float64"',
            'price = { type = "float64", sparse = true }',
            ("feedback.price differs", "another name"),
        ),
        (
            'price = "float64"',
            'price = { type = "float64", default = 0.0 }',
            ("feedback.price differs", "another name"),
        ),
        (
            'rating = { type = "int8", sparse = true }',
            'rating = "int8"',
            ("feedback.rating differs", "sparse = true"),
        ),
        (
            'rating = { type = "int8", sparse = true }',
            'rating = { type = "int8", sparse = true, default = 0 }',
            ("feedback.rating differs", "another name"),
        ),
        (", key = true", "", ("item.item_id differs", "key = true")),
        (
            'brand = "string"',
            'brand = { type = "string", key = true }',
            ("item.brand differs", "another name"),
        ),
        (
            'brand = "string"',
            'brand = "string"\nisbn = { type = "int64", sparse = true, key = true }',
            ("item.isbn is new and cannot be a key", "remove key = true"),
        ),
        (
            'brand = "string"',
            'brand = "string"\nisbn = "int64"',
            ("item.isbn is new and old events lack it", "sparse = true or a default"),
        ),
        (
            'item_id = { type = "int64", key = true }\n',
            "",
            ("item_id is a key", "cannot be removed", "put it back"),
        ),
        (
            'brand = "string"\n\n[feedback]',
            '\n[feedback]\nbrand = "string"',
            ("feedback.brand was stored in another feature group", "leave it there"),
        ),
        ("[item]", "[items]", ("items.item_id was stored in another feature group",)),
    ],
)
def test_forbidden_changes(
    tmp_path_factory: pytest.TempPathFactory, old: str, new: str, says: tuple[str, ...]
) -> None:
    past = Past(new_world(tmp_path_factory.mktemp("world")))
    past.grow(FIRST, {1: 3})
    assert old in FIRST
    past.world.schema.write_text(FIRST.replace(old, new), encoding="utf-8")
    events = [past.world.folder / "events-1.parquet"]
    with pytest.raises(SchemaError) as raised:
        compact(past.world.compaction(events, 2))
    for words in says:
        assert words in str(raised.value)
    assert leftovers(past.world.store) == []
    assert (past.world.store / "CURRENT").read_text(encoding="utf-8") == "generation-000001\n"


def test_numbers_are_not_given_out_twice_and_run_out_in_a_sentence() -> None:
    def groups(prefix: str) -> Schema:
        line = '[{0}{1}]\n{0}_{1} = {{ type = "int8", default = 0 }}\n'
        return parse_schema("".join(line.format(prefix, n) for n in range(130)))

    with pytest.raises(SchemaError, match="given out every number"):
        evolve(groups("a"), groups("b"))


def test_trait_types_are_those_of_the_protos_and_can_be_shown() -> None:
    numbers = {f"TRAIT_TYPE_{kind.name}": kind.value for kind in TraitType}
    assert dict(wire.TraitType.items()) == {"TRAIT_TYPE_UNSPECIFIED": 0, **numbers}
    assert {kind.value_dtype.kind for kind in TraitType} == set(SHOWN_IN)
    assert set(SHOWN_IN.values()) < set(wire.InspectedTrait.DESCRIPTOR.fields_by_name)


def test_a_stored_type_of_a_later_release() -> None:
    stored = to_stored(parse_schema(FIRST))
    stored["groups"][1]["traits"][0]["type"] = "date"
    with pytest.raises(StoreError, match=r"the trait rating of type date.* with the release that"):
        from_stored(stored)
