"""The index of a table's rows, against a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scenarios import examples
from thinrow import _native

WORDS = st.integers(0, 3) | st.sampled_from((2**63, 2**64 - 1))


def keys_of(size: int) -> st.SearchStrategy[list[tuple[int, ...]]]:
    return st.lists(st.tuples(*[WORDS] * size), max_size=60)


def words(keys: list[tuple[int, ...]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([word for key in keys for word in key], dtype=np.uint64)


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), keys_of(n), keys_of(n))))
@examples(60)
def test_first_row_of_each_key(
    drawn: tuple[int, list[tuple[int, ...]], list[tuple[int, ...]]],
) -> None:
    size, rows, wanted = drawn
    first = {key: place for place, key in reversed([*enumerate(rows)])}
    index = _native.RowIndex(words(rows), size)
    assert index.firsts().tolist() == [first[key] for key in rows]
    assert index.find(words(wanted)).tolist() == [first.get(key, -1) for key in wanted]


def test_many_rows() -> None:
    rng = np.random.default_rng(0)
    keys = rng.permutation(200_000).astype(np.uint64)
    index = _native.RowIndex(keys, 1)
    assert np.array_equal(keys[index.find(np.arange(200_000, dtype=np.uint64))], np.arange(200_000))
    assert (index.find(np.arange(200_000, 200_100, dtype=np.uint64)) == -1).all()


def test_words_that_make_no_keys() -> None:
    with pytest.raises(ValueError, match="do not make up keys"):
        _native.RowIndex(np.zeros(3, np.uint64), 2)
    with pytest.raises(ValueError, match="do not make up keys"):
        _native.RowIndex(np.zeros(3, np.uint64), 0)
    with pytest.raises(ValueError, match="do not make up keys"):
        _native.RowIndex(np.zeros(4, np.uint64), 2).find(np.zeros(3, np.uint64))
