"""DuckDB: events joined to requests by time.

The events are a table of its own format, sorted by user and time as its documentation advises, and
numbered within each user. An ASOF join, which it has for this, finds each request's last event; the
numbers before that are joined to the events. One query for all requests, its result as Arrow: that
is where DuckDB is at its best, so there is no latency of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from sides import ahead

from peers.parquet import int64_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from expected import Examples
    from sides import Tensors

QUERY = """
with last as (
    select example, requests.user_id, place
    from requests asof join events
    on requests.user_id = events.user_id and requests.request_ts > events.event_ts
), wanted as (
    select example, user_id, unnest(range(greatest(place - {length} + 1, 0), place + 1)) as place
    from last
)
select example, {traits}
from events join wanted using (user_id, place)
order by example, place
"""


class DuckDBJoin:
    """The newest events before each request."""

    name = "DuckDB, join"
    pids: Sequence[int] = ()

    def __init__(
        self, folder: Path, examples: Examples, request_ts: np.ndarray, sequence_length: int
    ) -> None:
        """Writes both tables."""
        import duckdb

        folder.mkdir()
        self.examples = examples
        self.length = sequence_length
        self.database = duckdb.connect(str(folder / "events.duckdb"))
        histories = examples.histories
        ranks = np.repeat(np.arange(len(histories.users)), np.diff(histories.starts))
        events = pa.table(
            {
                "user_id": histories.users[ranks],
                "event_ts": histories.event_ts,
                "place": np.arange(len(ranks)) - histories.starts[ranks],
                **histories.traits,
            }
        )
        requests = pa.table(
            {
                "example": np.arange(len(examples)),
                "user_id": examples.user_ids,
                "request_ts": request_ts,
            }
        )
        for name, table in (("events", events), ("requests", requests)):
            self.database.register("arrow_table", table)
            self.database.execute(f"create table {name} as from arrow_table")
            self.database.unregister("arrow_table")

    def close(self) -> None:
        """Closes the database."""
        self.database.close()

    def batches(self) -> Iterator[Tensors]:
        """Read ahead in a thread."""
        return ahead(self.tensors())

    def tensors(self) -> Iterator[Tensors]:
        """Batches cut from the result."""
        traits, size = self.examples.traits, self.examples.batch_examples
        query = QUERY.format(length=self.length, traits=", ".join(traits))
        table = self.database.sql(query).to_arrow_table()
        numbers = table["example"].to_numpy()
        columns = [table[trait].to_numpy() for trait in traits]
        for start in range(0, len(self.examples), size):
            stop = min(start + size, len(self.examples))
            bounds = np.searchsorted(numbers, np.arange(start, stop + 1))
            yield int64_tensors(
                bounds - bounds[0], [column[bounds[0] : bounds[-1]] for column in columns]
            )
