"""Draws requests of the past, as backfill gets them."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from support.id_kinds import id_array
from support.oracle import Past, Run
from support.scenarios import CADENCES, CROWD, STRANGER, USERS, worlds
from support.scenarios import World as DrawnWorld
from support.worlds import World, new_world, some_events
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_backfill
from thinrow.jobs.config import BackfillConfig

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.core.files.paths import Named


class PastRequests(NamedTuple):
    """Requests of the past, to a store that one run built with a cadence."""

    world: DrawnWorld
    requests: list[tuple[int, int]]
    cadence_ms: int
    publish_delay_ms: int
    lookback_ms: int | None
    max_length: int
    cadence_offset_ms: int

    @property
    def table(self) -> pa.Table:
        """The requests, as a file has them."""
        users = [user for user, _ in self.requests]
        return pa.table(
            {
                "user_id": id_array(users, self.world.schema.user_ids),
                "request_ts": [ts for _, ts in self.requests],
                "label": [f"label {n}" for n in range(len(self.requests))],
            }
        )

    def config(
        self, requests: Named, store: str | Path, events: Named, rows: Path
    ) -> BackfillConfig:
        """Returns a run of backfill for these requests."""
        return BackfillConfig(
            requests=requests,
            store=store,
            events=events,
            rows=rows,
            time_unit="ms",
            publish_delay_ms=self.publish_delay_ms,
            lookback_ms=self.lookback_ms,
            max_length=self.max_length,
        )

    @property
    def past(self) -> Past:
        last_cut = self.world.runs[-1].watermark_ts
        return Past(self.world.events, self.world.schema, *self[2:], last_cut=last_cut)


@st.composite
def past_requests(draw: st.DrawFn) -> PastRequests:
    # Where nothing ever arrived, nothing says when the first generation was cut.
    world = draw(worlds(3, 2, forgetful=False, coded=True).filter(lambda world: bool(world.events)))
    cadence_ms = draw(st.sampled_from(CADENCES))
    cadence_offset_ms = draw(st.sampled_from((0, 0, 1, cadence_ms - 1)))
    first_ts = min(moment for moment in world.moments if moment >= 0)
    last_ts = world.moments[-1]
    times = [ts for ts in world.moments if ts >= first_ts] + [
        ts + 1 for ts in range(first_ts, last_ts, 9)
    ]
    rng = draw(st.randoms(use_true_random=True))
    requests = [
        (rng.choice((*CROWD, STRANGER)), rng.choice(times))
        for _ in range(draw(st.sampled_from((1, 20, 20))))
    ]
    run = Run(
        world.events,
        # Up to the last request, so that no pointer is newer than the store.
        last_ts + draw(st.sampled_from((0, 1, 30))),
        cadence_ms,
        cadence_offset_ms,
        lookback_ms=draw(st.sampled_from((None, None, 40))),
        erase=draw(st.sampled_from((frozenset[int](), frozenset(USERS[:1])))),
    )
    return PastRequests(
        replace(world, runs=[run]),
        requests,
        cadence_ms,
        draw(st.sampled_from((0, 0, 1, 5, 60))),
        draw(st.sampled_from((None, None, 1, 20, 60))),
        draw(st.sampled_from((0, 0, 1, 3))),
        cadence_offset_ms,
    )


def rows_of(folder: Path) -> pa.Table:
    """Reads the rows of all files, in the order of their names."""
    return pq.ParquetDataset(folder).read()


def content(table: pa.Table) -> bytes:
    """Returns all values of a table as bytes, so that NaNs are equal if their bits are."""
    sink = BytesIO()
    pq.write_table(table.combine_chunks(), sink)
    return sink.getvalue()


def requested_world(folder: Path, shards: int = 2) -> World:
    """Requests, three days of events, a store of two of them, and its rows."""
    world = new_world(folder)
    events = some_events()
    world.compact(events, 1, shards=shards)
    world.compact(events, 2, shards=shards)
    requests = pa.table(
        {
            "user_id": events["user_id"],
            "request_ts": [ts + 1 for ts in events["event_ts"].to_pylist()],
        }
    )
    world.write("requests.parquet", requests, row_group_size=100)
    run_backfill(backfill_of(world), EngineConfig())
    return world


def backfill_of(world: World) -> BackfillConfig:
    return BackfillConfig(
        requests=world.folder / "requests.parquet",
        store=world.store,
        events=world.folder / "events-2.parquet",
        rows=world.folder / "one.parquet",
    )


def expected_rows(world: World) -> pa.Table:
    return pq.read_table(world.folder / "one.parquet")
