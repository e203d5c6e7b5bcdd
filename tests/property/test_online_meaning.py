"""The online half against the oracle: any appends, clocks and moments, through many hand-overs.

A real server, with a clock that the test moves; every thin row that it gave is then put back from
the last generation.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.event_topics import TopicOnline
from support.id_kinds import KINDS
from support.kafka_broker import needs_broker, running_broker
from support.online_worlds import Online, as_example, projection, same, some_events
from support.oracle import (
    DAY_MS,
    Schema,
    Wanted,
)
from support.scenarios import (
    CROWD,
    STRANGER,
    examples,
    projections,
    rows_table,
    schema_toml,
    schemas,
)
from support.worlds import START_TS, new_world
from thinrow.access.projection import resolve
from thinrow.client import Batch, Projection, read_thin_rows
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.wire.response import Response
from thinrow.errors import RequestError
from thinrow.materialization.request import LocalRequest, MaterializeRequest
from thinrow.materialization.users import with_keys
from thinrow.online.clock import AHEAD_MS_MAX
from thinrow.online.config import OnlineConfig
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from thinrow.client import ThinRows
    from thinrow.client.online import Snapshot

pytestmark = pytest.mark.usefixtures("no_pause_before_goaway")

POLL_S = 0.02


def put_back(store: Path, rows: ThinRows, wanted: Wanted) -> Batch:
    """Batch of training, without a server."""
    piece = BatchLookup(rows, projection(wanted)).whole()
    request: MaterializeRequest | LocalRequest = MaterializeRequest(piece.request(), 1 << 20)
    with Generation.open_current(store) as generation:
        request = with_keys(generation, request)
        resolved = resolve(request.tenant, request.projection, generation.schema, {})
        plan = HistoryPlan(generation, request, resolved.truncation, resolved.groups)
        plan.read()
        plan.resolve()
        message, _ = plan.answer(resolved.traits, 1 << 30)
    piece.answered(Response.read(message))
    return Batch.from_answers([piece.lookup.answer()])


@pytest.fixture(scope="module", params=["own log", pytest.param("topic", marks=needs_broker)])
def online_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Online]]:
    """Makes the online half of a world, on each of the logs that it may have."""
    if request.param == "own log":
        yield Online
        return
    with running_broker(in_memory=True) as broker:
        yield partial(TopicOnline, broker=broker)


@pytest.mark.server
@examples(8)
@given(st.data())
def test_every_snapshot_is_exact_and_can_be_put_back(
    online_of: Callable[..., Online], data: st.DataObject
) -> None:
    schema = replace(
        data.draw(schemas()),
        user_ids=data.draw(st.sampled_from(KINDS)),
        event_ids=data.draw(st.sampled_from(KINDS)),
    )
    wanted = data.draw(projections(schema))
    rng = data.draw(st.randoms(use_true_random=True))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        world = new_world(Path(folder), schema_toml(schema))
        now = [START_TS]
        config = OnlineConfig(
            store=world.store,
            schema=world.schema,
            listen="127.0.0.1:0",
            metrics=None,
            retention_ms=rng.choice((DAY_MS, 40, 200)),
            commit_lead_ms=rng.choice((0, 0, 5)),
            poll_s=POLL_S,
            drain_s=1,
            wall=lambda: now[0],
        )
        if online_of is not Online:  # of a log of its own it has another meaning
            config = replace(config, dedup_window_ms=rng.choice((7 * DAY_MS, 100, 10)))
        online = online_of(world, schema, config, now)
        stack.callback(online.close)
        taken: list[Snapshot] = []
        for _ in range(rng.choice((1, 2))):  # a second run starts again on the same files
            with online.running():
                for _ in range(rng.choice((15, 30))):
                    act = rng.random()
                    if act < 0.35:
                        online.append(some_events(rng, schema, now[0]))
                    elif act < 0.5:
                        now[0] += rng.choice((1, 1, 7, 30, 100, -20))
                    elif act < 0.58:
                        online.hand_over()
                    else:
                        clock = online.client.describe().now_ts
                        seen = online.check(
                            rng.choice((*CROWD, STRANGER)),
                            rng.choice((0, 0, clock, clock - rng.randrange(300), clock + 9)),
                            rng.choice((0, 0, 3, 150)),
                            rng.choice((0, 0, 1, 5)),
                            wanted,
                        )
                        taken += [seen] if seen is not None else []
                now[0] += 30
                online.hand_over()
        online.finish()
        rows = [as_example(seen.thin_row, schema) for seen in taken]
        path = world.write(
            "rows.parquet", rows_table(rows, [s.thin_row.digest for s in taken], schema)
        )
        for seen, (again, _) in zip(taken, read_thin_rows(path, examples=1), strict=True):
            batch = put_back(world.store, again, wanted)
            assert batch.statuses.tolist() == seen.batch.statuses.tolist()
            for name in seen.batch.values:
                assert same(batch.to_lists(name), seen.batch.to_lists(name))


def test_far_ahead_is_refused_and_a_little_ahead_binds_the_clock(tmp_path: Path) -> None:
    schema = Schema({"g": []})
    world = new_world(tmp_path, '[g]\nx = "int64"\n')
    now = [START_TS]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        commit_lead_ms=0,
        wall=lambda: now[0],
    )
    online = Online(world, schema, config, now)
    with online.running():
        client = online.client
        with pytest.raises(RequestError, match="ahead of this server's clock"):
            client.snapshot(1, Projection(), request_ts=now[0] + AHEAD_MS_MAX + 1)
        ahead_ts = now[0] + AHEAD_MS_MAX
        empty = client.snapshot(1, Projection(), request_ts=ahead_ts)
        assert client.append([1], [now[0]], {"x": [1]}).arrival_ts == ahead_ts
        # The same moment again: the same answer.
        again = client.snapshot(1, Projection(), request_ts=ahead_ts)
        assert empty.thin_row == again.thin_row
        now[0] = ahead_ts + 1
        assert len(client.snapshot(1, Projection()).thin_row.mutable) == 1
        now[0] -= 10_000  # a wall clock set back
        assert client.append([1], [now[0]], {"x": [1]}).arrival_ts >= ahead_ts + 1
