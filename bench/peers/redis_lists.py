"""Histories in Redis: a list of packed events per user, and a string of packed events per user.

As its documentation advises for many small reads: one pipeline per batch, without a transaction,
and the hiredis parser. LRANGE reads the newest events of a list, GETRANGE those of a string, which
is more compact; both receive the positions of the events, so Redis need not look for a time.
"""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from sides import ahead

from peers.parquet import int64_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from expected import Examples
    from redis import Redis
    from sides import Tensors

USERS_PER_PIPELINE = 64
CONFIG = """\
bind 127.0.0.1
port {port}
dir {folder}
save ""
appendonly no
daemonize no
"""


class RedisReads:
    """The newest events of one feature group."""

    def __init__(self, client: Redis, pid: int, examples: Examples, *, lists: bool) -> None:
        self.name = "Redis, LRANGE" if lists else "Redis, GETRANGE"
        self.pids: Sequence[int] = (pid,)
        self.client = client
        self.examples = examples
        self.lists = lists
        self.record_bytes = 8 * len(examples.traits)

    def batches(self) -> Iterator[Tensors]:
        """Read ahead in a thread."""
        return ahead(self.tensors())

    def tensors(self) -> Iterator[Tensors]:
        """One pipeline per batch."""
        examples, size = self.examples, self.record_bytes
        begin = examples.histories.starts[examples.histories.ranks(examples.user_ids)]
        for places in examples.places:
            starts = (examples.starts - begin)[places].tolist()
            ends = (examples.ends - begin)[places].tolist()
            users = examples.user_ids[places].tolist()
            pipeline = self.client.pipeline(transaction=False)
            for user, start, end in zip(users, starts, ends, strict=True):
                # Both ends count, and -1 is the last: a range of nothing must begin behind its end.
                first, last = (start, end - 1) if end > start else (1, 0)
                if self.lists:
                    pipeline.lrange(f"list:{user}", first, last)
                else:
                    pipeline.getrange(f"string:{user}", size * first, size * (last + 1) - 1)
            answers = pipeline.execute()
            if self.lists:
                answers = [b"".join(answer) for answer in answers]
            lengths = np.array([len(answer) // size for answer in answers])
            records = np.frombuffer(b"".join(answers), np.int64).reshape(-1, len(examples.traits))
            columns = [np.ascontiguousarray(records[:, at]) for at in range(records.shape[1])]
            yield int64_tensors(np.append(0, np.cumsum(lengths)), columns)


@contextmanager
def redis_reads(examples: Examples, folder: Path) -> Iterator[list[RedisReads]]:
    """A Redis server of its own with the histories of the examples' users."""
    import redis

    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "redis.conf").write_text(CONFIG.format(port=port, folder=folder))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["redis-server", str(folder / "redis.conf")], stdout=log)
    client = redis.Redis(port=port)
    try:
        wait_for(client)
        load(client, examples)
        yield [RedisReads(client, server.pid, examples, lists=lists) for lists in (True, False)]
    finally:
        client.close()
        server.terminate()
        server.wait()


def wait_for(client: Redis) -> None:
    """Waits until the server answers."""
    from redis.exceptions import ConnectionError as NotThereError

    for _ in range(100):
        try:
            client.ping()
        except NotThereError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("Redis does not answer.")


def load(client: Redis, examples: Examples) -> None:
    """Writes the users' whole histories."""
    histories = examples.histories
    size = 8 * len(examples.traits)
    users = np.unique(examples.user_ids)
    for start in range(0, len(users), USERS_PER_PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for user in users[start : start + USERS_PER_PIPELINE].tolist():
            rank = int(histories.ranks(np.array([user]))[0])
            first, end = histories.starts[rank : rank + 2].tolist()
            columns = [histories.traits[trait][first:end] for trait in examples.traits]
            packed = np.stack([column.astype(np.int64) for column in columns], axis=1).tobytes()
            pipeline.set(f"string:{user}", packed)
            pipeline.rpush(
                f"list:{user}", *(packed[at : at + size] for at in range(0, len(packed), size))
            )
        pipeline.execute()
