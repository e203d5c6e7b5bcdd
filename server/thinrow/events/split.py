"""The first phase of work on many events: to scratch files by shard, so that memory holds one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
from thinrow.core.files.parquet import open_parquet
from thinrow.core.ids import is_text_kind
from thinrow.core.runs import offsets_of
from thinrow.core.shards import shard_of
from thinrow.events.canonical import canonical_schema, read_events
from thinrow.events.time_columns import TimeSpan
from thinrow.events.user_ids import USERS, UserIdReader
from thinrow.store.user_texts import unique_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from thinrow.core.files.paths import AnyFile
    from thinrow.events.time_columns import TimeReader
    from thinrow.schema import Schema
    from thinrow.store.user_texts import UserTexts

__all__ = [
    "TEXTS",
    "Progress",
    "ShardFiles",
    "SplitEvents",
    "read_split",
    "split_events",
    "split_tables",
]

Progress = Callable[[str, int, int], None]
"""Receives the stage, the amount done, and the total."""
TEXTS = "users"
"""Folder of the users' texts, where ids are texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEvents:
    """Events in canonical form, by shard."""

    folder: Path
    shards: int
    rows: int
    arrivals: TimeSpan
    has_texts: bool = False
    """True where ids are texts."""

    def read(self, shard: int) -> pa.Table:
        """The events of one shard, in no order."""
        return read_split(self.folder, shard)

    def read_texts(self, shard: int, others: pa.Table) -> UserTexts | None:
        """The texts of one shard's users; None where ids are integers.

        Args:
            shard: Number of the shard.
            others: More users, of any shard, to be compared with these.

        Raises:
            InputError: Two texts have one key.
        """
        if not self.has_texts:
            return None
        users = read_split(self.folder / TEXTS, shard)
        owners = shard_of(others.column("user_id").to_numpy(), self.shards)
        return unique_texts(pa.concat_tables([users, others.filter(pa.array(owners == shard))]))


def read_split(folder: Path, shard: int) -> pa.Table:
    """Reads the rows of one shard that `ShardFiles` wrote, in the order of the input."""
    with pa.memory_map(str(folder / f"{shard:04d}.arrow")) as source:
        return pa.ipc.open_stream(source).read_all()


class ShardFiles:
    """Files of rows by shard, which are written table after table. A context manager.

    Args:
        folder: Folder to create.
        schema: Schema of the tables, which have `user_id`.
        shards: Number of shards.
    """

    def __init__(self, folder: Path, schema: pa.Schema, shards: int) -> None:
        self._folder, self._schema, self._shards = folder, schema, shards
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with ExitStack() as stack:
            self._writers = [
                stack.enter_context(
                    pa.ipc.new_stream(
                        stack.enter_context(
                            pa.OSFile(str(self._folder / f"{shard:04d}.arrow"), "wb")
                        ),
                        self._schema,
                        options=options,
                    )
                )
                for shard in range(self._shards)
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, table: pa.Table) -> None:
        """Writes each row to the file of its shard."""
        owners = shard_of(table.column("user_id").to_numpy(), self._shards)
        # Numbers of two bytes are sorted in one pass.
        order = np.argsort(owners.astype(np.uint16), kind="stable")
        by_shard = table.take(pa.array(order))
        bounds = offsets_of(np.bincount(owners, minlength=self._shards)).tolist()
        for shard, (first, last) in enumerate(pairwise(bounds)):
            if first < last:
                self._writers[shard].write_table(by_shard.slice(first, last - first))


def split_events(
    files: Sequence[AnyFile],
    schema: Schema,
    shards: int,
    folder: Path,
    times: TimeReader,
    progress: Progress,
    observe: Callable[[pa.Table], None] = lambda _: None,
) -> SplitEvents:
    """Reads Parquet files of events and writes them by shard into ``folder``, which it makes.

    ``observe`` receives the events, table after table.

    Raises:
        InputError: names the file, the column at fault and what would be right.
    """
    users = UserIdReader(schema.user_ids)

    def tables() -> Iterator[pa.Table]:
        total = sum(open_parquet(file).metadata.num_rows for file in files)
        rows = 0
        for file in files:
            for table in read_events(file, schema, times, users):
                yield table
                rows += table.num_rows
                progress("Reading events", rows, total)

    return split_tables(tables(), schema, shards, folder, users, observe)


def split_tables(
    tables: Iterable[pa.Table],
    schema: Schema,
    shards: int,
    folder: Path,
    users: UserIdReader,
    observe: Callable[[pa.Table], None] = lambda _: None,
) -> SplitEvents:
    """Writes events by shard into ``folder``, which it makes.

    Args:
        tables: Events in canonical form.
        schema: The schema of the events.
        shards: Number of shards.
        folder: The folder.
        users: Has read the users of each table.
        observe: Receives the events, table after table.
    """
    rows = 0
    arrivals = TimeSpan()
    has_texts = is_text_kind(schema.user_ids)
    with ExitStack() as stack:
        events = stack.enter_context(ShardFiles(folder, canonical_schema(schema), shards))
        texts = None
        if has_texts:
            texts = stack.enter_context(ShardFiles(folder / TEXTS, USERS, shards))
        for table in tables:
            if not table.num_rows:
                continue
            events.write(table)
            observe(table)
            if texts is not None:
                texts.write(users.take_users())
            rows += table.num_rows
            arrivals.add(TimeSpan.of(table.column("arrival_ts").to_numpy()))
    return SplitEvents(
        folder=folder, shards=shards, rows=rows, arrivals=arrivals, has_texts=has_texts
    )
