"""Keys of fat events: different events have different ones."""

from __future__ import annotations

from itertools import product

import polars as pl
from thinrow.jobs.fat import event_keys
from thinrow.schema import parse_schema

SCHEMA = """
[g]
a = { type = "int64", sparse = true }
b = { type = "list<int64>", length_max = 3, sparse = true }
c = { type = "list<int64>", length_max = 3 }
"""


def test_lists_of_small_numbers_have_keys_of_their_own() -> None:
    numbers = (0, 1, 2, 3, -1)
    lists = [list(each) for size in range(4) for each in product(numbers, repeat=size)]
    cases = [*product((None,), (None,), lists), *product((None, 0, 1), (None, [], [1], [2]), lists)]
    cases = list({repr(case): case for case in cases}.values())
    columns = list(zip(*cases, strict=True))
    events = pl.DataFrame(
        {
            "user_id": [2] * len(cases),
            "event_ts": [82] * len(cases),
            "event_id": pl.Series([None] * len(cases), dtype=pl.Int64),
            "a": pl.Series(columns[0], dtype=pl.Int64),
            "b": pl.Series(columns[1], dtype=pl.List(pl.Int64)),
            "c": pl.Series(columns[2], dtype=pl.List(pl.Int64)),
        }
    )
    keys = event_keys(events, parse_schema(SCHEMA))
    assert len(set(keys.tolist())) == len(cases) > 1000
