"""Requests with a map's version: a user whose shard is not open is ELSEWHERE, and no other one."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from support.unrouted import Unrouted
from support.worlds import as_of, new_world, some_events
from thinrow.client import Pointers
from thinrow.core.shards import shard_of
from thinrow.core.status import Status
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.store.user_texts import text_keys

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHARDS = 8
KNOWN = range(1, 61)
REQUESTS = 12
"""Requests of random users, known and not, of each server."""


def named(user: int, kind: str) -> Any:  # noqa: ANN401 - an id of the kind
    """Returns a user's id of a kind; odd users of uint64 are beyond int64."""
    if kind == "uint64":
        return (user << 58 | user) % (1 << 64)
    if kind == "uuid":
        return str(uuid.UUID(int=user * 7919))
    return f"user-{user}" if kind == "string" else user


def keys_of(users: list[Any], kind: str) -> NDArray[np.int64]:
    """Returns the keys of users, which their shards follow from."""
    if kind in ("uuid", "string"):
        return text_keys((user.encode() for user in users), len(users))
    return np.array(users, kind).view(np.int64)


@pytest.mark.parametrize("kind", ["int64", "uint64", "uuid", "string"])
def test_each_example_is_that_of_a_full_server_or_elsewhere(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    schema = '[item]\nitem_id = { type = "int64", key = true }\nbrand = "string"\n'
    world = new_world(tmp_path / "world", f'{schema}[user]\nid = "{kind}"\n')
    events = some_events(500, users=len(KNOWN)).select(["user_id", "event_ts", "item_id", "brand"])
    users = [named(user, kind) for user in events["user_id"].to_pylist()]
    world.compact(
        events.set_column(0, "user_id", [np.array(users, kind) if kind == "uint64" else users]),
        3,
        shards=SHARDS,
    )
    counts: Counter[Status] = Counter()
    with (
        Server(config(world.store)) as full_server,
        Unrouted(full_server.address) as full,
    ):
        for shards in ("2-4", "7", "0-7"):
            first, _, last = shards.partition("-")
            is_open = np.isin(np.arange(SHARDS), range(int(first), int(last or first) + 1))
            with (
                Server(config(world.store, shards=shards)) as server,
                Unrouted(server.address) as some,
            ):
                for version in range(1, REQUESTS + 1):
                    some_users = [named(rng.randint(1, 70), kind) for _ in range(rng.randint(1, 9))]
                    # Some are past the watermark, which a server of another shard cannot say.
                    end_ts = [as_of(rng.choice((3, 3, 3, 4))) for _ in some_users]
                    lengths = [rng.randint(0, 5) for _ in some_users]
                    pointers = Pointers(user_ids=some_users, end_ts=end_ts, max_lengths=lengths)
                    is_here = is_open[shard_of(keys_of(some_users, kind), SHARDS)]
                    expected, found = (
                        full.materialize(pointers),
                        some.materialize(pointers, version),
                    )
                    for place, (status, histories) in enumerate(found):
                        counts[Status(status)] += 1
                        if is_here[place]:
                            assert (status, histories) == expected[place]
                        else:
                            assert status == Status.ELSEWHERE
                            assert not any(histories.values())
                    if is_here.all():
                        assert some.materialize(pointers) == expected
                        continue
                    with pytest.raises(grpc.RpcError, match="without shard") as raised:
                        some.materialize(pointers)
                    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
                elsewhere = server.metrics.registry.get_sample_value(
                    "thinrow_examples_total", {"tenant": "", "status": "ELSEWHERE"}
                )
                assert (elsewhere or 0) > 0 or is_open.all()
    assert counts[Status.OK] > 20 and counts[Status.ELSEWHERE] > 20 and counts[Status.NOT_READY], (
        counts
    )


def config(store: Path, **options: Any) -> ServerConfig:  # noqa: ANN401
    return ServerConfig(store=store, listen="127.0.0.1:0", metrics=None, **options)
