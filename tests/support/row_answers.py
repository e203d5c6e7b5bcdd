"""Answers of a server for each row of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinrow.client import Projection, connect, read_thin_rows
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

    from support.worlds import World


def answers(world: World, rows: Path) -> list[tuple[str, list[Any] | None]]:
    """Status and items of each row."""
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        [(piece, _)] = read_thin_rows(rows, examples=100)
        batch = client.materialize(piece, Projection(traits=("item_id",)))
    names = [wire.Status.Name(number) for number in batch.statuses.tolist()]
    return list(zip(names, batch.to_lists("item_id"), strict=True))
