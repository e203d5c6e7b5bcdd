"""Messages of thin rows hold what files hold."""

from __future__ import annotations

import itertools
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.row_tables import assert_same, table
from thinrow.client import read_thin_rows
from thinrow.core.files.message import (
    MESSAGE_ROWS_MAX,
    decode_thin_rows,
    encode_thin_rows,
    split_thin_rows,
)
from thinrow.errors import InputError


@settings(max_examples=25)
@given(st.lists(st.integers(0, 40), max_size=5))
def test_messages_hold_what_a_file_holds(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    source = table(40)
    pq.write_table(source, path)
    (want,) = read_thin_rows(path, examples=40)
    parts = [
        decode_thin_rows("here", encode_thin_rows(source.slice(start, end - start)))
        for start, end in itertools.pairwise([0, *sorted(cuts), 40])
    ]
    assert_same(*split_thin_rows("here", pa.concat_tables(parts)), want)


def test_a_message_altered_in_any_way_is_read_or_refused() -> None:
    rng = random.Random(0)
    message = encode_thin_rows(table(9))
    refused = 0
    for _ in range(3000):
        altered = bytearray(message[: rng.choice((None, rng.randrange(len(message))))])
        for _ in range(rng.randrange(4)):
            altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
        try:
            split_thin_rows("here", decode_thin_rows("here", bytes(altered)))
        except InputError:
            refused += 1
    assert 1000 < refused < 3000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (table(2).drop_columns(["uih"]), "The table has no column uih"),
        (table(MESSAGE_ROWS_MAX + 1), "has 1025 rows, but a message holds at most 1024"),
        (
            table(1).set_column(1, "user_id", pa.array([None], pa.int64())),
            "column user_id must not be null",
        ),
    ],
)
def test_what_could_not_be_read_back_is_not_encoded(source: pa.Table, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_thin_rows(source)
