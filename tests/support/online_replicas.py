"""Servers of a topic behind one client."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from support.event_topics import TopicOnline
from support.scenarios import schema_toml
from support.worlds import new_world, running_online
from thinrow.client import ClientConfig, Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.online.config import OnlineConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.kafka_broker import Broker
    from support.oracle import Schema
    from thinrow.client.online import Snapshot

ALL = Projection()
QUICK = ClientConfig(retry_deadline_s=0, request_deadline_s=60)
"""Tries each replica once, so that a test need not wait for what is gone."""


def new_online(
    broker: Broker, folder: Path, schema: Schema, partitions: int, poll_s: float = 0.5
) -> TopicOnline:
    """A world with a topic of its own."""
    world = new_world(folder, schema_toml(schema))
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        drain_s=1,
        poll_s=poll_s,
    )
    return TopicOnline(world, schema, config, [], broker=broker, partitions=partitions)


@contextmanager
def connected(*addresses: str, config: ClientConfig | None = None) -> Iterator[OnlineClient]:
    """One client of several servers."""
    with connect_online(list(addresses), config) as client:
        yield client


def running_replica(online: TopicOnline, name: str, *options: object) -> Any:  # noqa: ANN401
    """A replica in a process of its own: a context manager, as `running_online`."""
    return running_online(
        online.world,
        *("--events", f"kafka:{online.topic}", "--bootstrap-servers", online.broker.address),
        *("--data", online.world.folder / name, *options),
    )


def contents(seen: Snapshot) -> tuple[Any, ...]:
    """All that a snapshot shows, but for how far its server had come."""
    batch = seen.batch
    return (
        repr(seen.thin_row),  # in which NaN equals itself
        batch.statuses.tolist(),
        {name: repr(batch.to_lists(name)) for name in batch.values},
    )
