"""The first phase of work on many events: to scratch files by shard, so that memory holds one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.core.files.parquet import open_parquet
from thinrow.core.runs import offsets_of
from thinrow.core.user_ids import is_text_kind
from thinrow.events.canonical import canonical_schema, read_events
from thinrow.events.time_columns import TimeSpan
from thinrow.events.user_ids import USERS, UserIdReader
from thinrow.store.hashing import shard_of
from thinrow.store.user_texts import unique_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.core.files.paths import AnyFile
    from thinrow.events.time_columns import TimeReader
    from thinrow.schema import Schema
    from thinrow.store.user_texts import UserTexts

__all__ = ["Progress", "SplitEvents", "read_split", "split_by_user", "split_events"]

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
    """Reads the rows of one shard that `split_by_user` wrote, in the order of the input."""
    with pa.memory_map(str(folder / f"{shard:04d}.arrow")) as source:
        return pa.ipc.open_stream(source).read_all()


def split_by_user(
    tables: Iterator[pa.Table], schema: pa.Schema, shards: int, folder: Path
) -> Iterator[pa.Table]:
    """Writes tables with `user_id` by shard into ``folder``, which it makes; yields each again."""
    folder.mkdir()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                pa.ipc.new_stream(
                    stack.enter_context(pa.OSFile(str(folder / f"{shard:04d}.arrow"), "wb")),
                    schema,
                    options=options,
                )
            )
            for shard in range(shards)
        ]
        for table in tables:
            if not table.num_rows:
                continue
            owners = shard_of(table.column("user_id").to_numpy(), shards)
            # Numbers of two bytes are sorted in one pass.
            order = np.argsort(owners.astype(np.uint16), kind="stable")
            by_shard = table.take(pa.array(order))
            bounds = offsets_of(np.bincount(owners, minlength=shards)).tolist()
            for shard, (first, last) in enumerate(pairwise(bounds)):
                if first < last:
                    writers[shard].write_table(by_shard.slice(first, last - first))
            yield table


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
    total = sum(open_parquet(file).metadata.num_rows for file in files)
    rows = 0
    arrivals = TimeSpan()
    users = UserIdReader(schema.user_ids)
    is_done, has_texts = False, is_text_kind(schema.user_ids)

    def texts() -> Iterator[pa.Table]:
        while not is_done:
            yield users.take_users()

    tables = (table for file in files for table in read_events(file, schema, times, users))
    by_text = split_by_user(texts(), USERS, shards, folder / TEXTS)
    for table in split_by_user(tables, canonical_schema(schema), shards, folder):
        observe(table)
        if has_texts:
            next(by_text)
        rows += table.num_rows
        arrivals.add(TimeSpan.of(table.column("arrival_ts").to_numpy()))
        progress("Reading events", rows, total)
    is_done = True
    if has_texts:
        next(by_text, None)
    return SplitEvents(
        folder=folder, shards=shards, rows=rows, arrivals=arrivals, has_texts=has_texts
    )
