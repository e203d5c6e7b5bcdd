"""Lists as tensors: what the numpy batch says, whichever way a model looks at them."""

from __future__ import annotations

import importlib
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import torch
from support import worlds
from thinrow.client import Batch, Pointers, Projection, connect
from thinrow.client.torch.batching import AnsweredRows, to_tensors
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client import Answer
    from thinrow.client.torch import TensorBatch

SCHEMA = """
[item]
item_id = { type = "int64", key = true }

[lists]
tags = { type = "list<int64>", length_max = 5 }
codes = { type = "list<categorical>", length_max = 300, sparse = true }
words = { type = "list<string>", length_max = 3, sparse = true, default = [] }
weights = { type = "list<float32>", length_max = 5 }
"""
USERS = (1, 99, 2, 3)
ALL = Projection(traits=("item_id", "tags", "codes", "words", "weights"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Answer]]:
    world = worlds.new_world(tmp_path_factory.mktemp("lists"), SCHEMA)
    events = worlds.some_events(120, users=3)
    numbers = range(len(events))
    lists: dict[str, list[Any]] = {
        "tags": [[1 << 40, *range(n % 5)][: n % 6] for n in numbers],
        "codes": [None if n % 3 else [n % 7] * (n % 4) for n in numbers],
        "words": [None if n % 5 else ["a", "é", ""][: n % 4] for n in numbers],
        "weights": [[n / 8] * (n % 3) for n in numbers],
    }
    events = events.set_column(3, "item_id", pa.array(numbers))
    for name, values in lists.items():
        events = events.append_column(name, pa.array(values))
    world.compact(events, 3)
    with connect(world.store) as client:
        halves = [
            Pointers(user_ids=users, end_ts=[worlds.as_of(3)] * 2)
            for users in (USERS[:2], USERS[2:])
        ]
        yield list(client.answers(halves, ALL))


def tensors(answers: list[Answer], dtype: torch.dtype = torch.int64) -> TensorBatch:
    columns = pa.table({"label": [0, 1]})
    ids = torch.arange(2).numpy()
    return to_tensors([[AnsweredRows(answer, columns, ids) for answer in answers]], dtype)[0]


def lists_of(answers: list[Answer], trait: str) -> list[list[Any]]:
    """The lists of each example, empty where an event lacks one."""
    found = Batch.from_answers(answers).to_lists(trait)
    return [[value or [] for value in example or []] for example in found]


@pytest.mark.parametrize("trait", ["tags", "codes", "words", "weights"])
def test_views(answers: list[Answer], trait: str) -> None:
    batch, right = tensors(answers), lists_of(answers, trait)
    events = [value for example in right for value in example]
    shown: list[Any] = batch.values[trait].tolist()
    if trait in batch.strings:
        shown = [batch.strings[trait][code] for code in shown]
    assert shown == [element for value in events for element in value]
    assert batch.list_offsets[trait].diff().tolist() == list(map(len, events))
    assert batch.list_lengths_max[trait] == max(map(len, events))
    sums = [sum(map(len, example)) for example in right]
    assert batch.element_offsets(trait).diff().tolist() == sums
    assert batch[trait] is batch.values[trait] and batch.events == len(events)
    values = batch.values[trait]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        by_example = batch.to_njt(trait).unbind()
        by_event = batch.to_njt(trait, by="event").unbind()
    assert torch.equal(torch.cat(by_example), values) and torch.equal(torch.cat(by_event), values)
    assert list(map(len, by_example)) == sums and list(map(len, by_event)) == list(map(len, events))
    padded = batch.to_padded(trait, 4, -1, side="left", list_length=2)
    assert padded.shape == (len(USERS), 4, 2)
    for row, example in zip(padded.tolist(), right, strict=True):
        newest = [value[:2] for value in example[-4:]]
        lengths = [sum(code != -1 for code in event) for event in row]
        assert lengths == [0] * (4 - len(newest)) + list(map(len, newest))
        if trait in ("tags", "weights"):
            found = [element for event in row for element in event if element != -1]
            assert found == [element for value in newest for element in value]
    assert batch.to_padded(trait).shape == (len(USERS), batch.max_seqlen, max(map(len, events)))


def test_a_batch_moves_with_its_lists(answers: list[Answer]) -> None:
    batch = tensors(answers)
    copied = pickle.loads(pickle.dumps(batch))  # noqa: S301
    for other in (batch.to("cpu"), copied, batch.pin_memory()):
        assert other.list_lengths_max == batch.list_lengths_max
        for trait in batch.list_offsets:
            assert torch.equal(other.list_offsets[trait], batch.list_offsets[trait])
            assert torch.equal(other.values[trait], batch.values[trait])
    meta = batch.to("meta")
    assert all(offsets.is_meta for offsets in meta.list_offsets.values())
    assert batch.nbytes == sum(tensor.nbytes for tensor in batch._tensors())


def test_torchrec_sees_a_feature_of_each_list(answers: list[Answer]) -> None:
    if importlib.util.find_spec("torchrec") is None:
        pytest.skip("torchrec is not installed")
    batch = tensors(answers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchrec's imports
        importlib.import_module("torchrec")
    kjt = batch.to_kjt(["tags", "item_id", "codes"], contextual=["label"])
    assert kjt.keys() == ["label", "tags", "item_id", "codes"]
    for key, values in kjt.to_dict().items():
        if key == "label":
            assert values.lengths().tolist() == [1] * len(USERS)
            continue
        right = lists_of(answers, key) if key != "item_id" else []
        lengths = [sum(map(len, example)) for example in right] or batch.offsets.diff().tolist()
        assert values.lengths().tolist() == lengths
        assert torch.equal(values.values(), batch.values[key])


def test_what_fits_no_view_is_named(answers: list[Answer]) -> None:
    batch = tensors(answers)
    with pytest.raises(UsageError, match=r"'item_id' is no trait of lists; use batch\.offsets"):
        batch.element_offsets("item_id")
    with pytest.raises(UsageError, match="no trait 'nothing'"):
        batch.to_njt("nothing", by="event")
    with pytest.raises(UsageError, match="list_length is -1"):
        batch.to_padded("tags", list_length=-1)
    with pytest.raises(InputError, match="'tags' has values that do not fit int32"):
        tensors(answers, torch.int32)
