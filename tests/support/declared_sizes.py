"""Columns and batches that declare more than they hold, and limits on what refusing them takes."""

# ruff: noqa: ANN401 - messages of any kind

from __future__ import annotations

from typing import Any

import pytest
from support.peak import MIB
from support.worlds import World, new_world
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

REFUSED_BYTES_MAX = 48 * MIB
"""Limit on what a refused message may cost: a few times its own size."""


UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


def constant_answer(request: wire.MaterializeRequest) -> bytes:
    """A thousand equal events of each example, in a run of their own."""
    examples = len(request.user_ids)
    return wire.MaterializeResponse(
        generation=1,
        watermark_ts=9,
        statuses=[wire.STATUS_OK] * examples,
        view_starts=range(0, 1000 * examples, 1000),
        view_lengths=[1000] * examples,
        block_lengths=[1000] * examples,
        truncation=wire.TRUNCATION_NEWEST,
        columns=[
            wire.Column(
                trait="x",
                type=wire.TRAIT_TYPE_INT64,
                vector_size=1,
                bases=range(5, 5 + examples),
                widths=bytes(examples),
            )
        ],
    ).SerializeToString()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    schema = """
[item]
item_id = { type = "int64", key = true }
brand = "string"
[feedback]
embedding = { type = "float64", size = 4096, sparse = true }
"""
    return new_world(tmp_path_factory.mktemp("world"), schema)


def column(trait: str, kind: Any, size: int = 1, **fields: Any) -> wire.Column:
    return wire.Column(
        **{"trait": trait, "type": kind, "vector_size": size, "bases": [1], "widths": bytes(1)}
        | fields
    )


def batch(events: int, *columns: wire.Column) -> online_pb2.EventBatch:
    plain = [
        column("event_ts", wire.TRAIT_TYPE_INT64),
        column("item_id", wire.TRAIT_TYPE_INT64),
        column("brand", wire.TRAIT_TYPE_STRING, bases=[0], strings=["a"]),
    ]
    replaced = {each.trait for each in columns}
    kept = [each for each in plain if each.trait not in replaced]
    return online_pb2.EventBatch(user_ids=[1] * events, columns=[*kept, *columns])


VECTOR = column("embedding", wire.TRAIT_TYPE_FLOAT64, 4096)
