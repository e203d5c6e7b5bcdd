"""Files of thin rows as a source: which rows are whose, in what order, and how far one has come.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch.distributed
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import (
    conformed_batch,
    joint_schema,
    leaf_count,
    load_pyarrow,
    one_batch,
    plain_type,
)
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import data_files
from thinrow.core.files.rows import check, complete, other_columns, snapshots_type, to_thin_rows
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.files.parquet import ParquetTable
    from thinrow.core.files.paths import DataFile, Named
    from thinrow.core.pointers import Projection

__all__ = ["FileSource", "RowFiles"]

STATE_VERSION = 1
# Rows decoded at once; what a row group has before the rows wanted is decoded and let go.
READ_ROWS = 4096
# Footers are mostly waiting for a remote store.
FOOTER_THREADS_MAX = 16

Order = Literal["users", "rows", "files"]
EVENT_TIMES = ("event_ts", "arrival_ts")
"""What of a mutable event is read whichever traits are wanted."""


class Footer(NamedTuple):
    """What is known of a file before it is read."""

    schema: pa.Schema
    group_rows: list[int]
    group_bytes: list[int]


class RowFiles:
    """Parquet files of thin rows, the order of their rows, and this trainer's rank among others.

    paths: files, folders, globs, or URLs of either that fsspec knows, one or several. They are
        sorted, and one that is named twice counts once. Keys of Hive folders are columns.
    order: "users" puts one user's rows of a window together, users in seeded order; "rows"
        shuffles a window's rows; both shuffle row groups, too. "files": as they are in the files.
    seed: of the shuffle; each epoch has another one.
    window_rows: rows shuffled with each other, and held in memory.
    rank, world_size: of this trainer. Default: those of torch.distributed where it is
        initialised, otherwise 0 and 1.

    All footers are read here, once. Copies for other processes take them along. Raises InputError
    where there is no file, or one holds no thin rows.
    """

    def __init__(
        self,
        paths: Named,
        *,
        order: Order = "users",
        seed: int = 0,
        window_rows: int = 65_536,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if order not in ("users", "rows", "files"):
            raise UsageError(f"order is {order!r}, but must be 'users', 'rows' or 'files'.")
        if window_rows < 1:
            raise UsageError(f"window_rows is {window_rows}, but must be 1 or more.")
        if (rank is None) != (world_size is None):
            raise UsageError("Give both rank and world_size, or neither.")
        if rank is None or world_size is None:
            rank, world_size = ranks()
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank}, but must be in 0..{world_size - 1}.")
        self.order, self.seed, self.window_rows = order, seed, window_rows
        self.rank, self.world_size = rank, world_size
        self.files = data_files(paths)
        self.paths = [file.name for file in self.files]
        threads = min(FOOTER_THREADS_MAX, len(self.paths))
        with ThreadPoolExecutor(threads, thread_name_prefix="thinrow-footers") as pool:
            footers = list(pool.map(read_footer, self.files))
        self._schemas = [footer.schema for footer in footers]
        self.fingerprint = fingerprint(self.paths, footers)
        counts = [len(footer.group_rows) for footer in footers]
        self._group_files = np.repeat(np.arange(len(footers)), counts)
        self._group_places = np.concatenate([np.arange(count) for count in counts])
        self._group_rows = np.array(
            [rows for footer in footers for rows in footer.group_rows], np.int64
        )
        self._group_ids = np.cumsum(self._group_rows) - self._group_rows

    def __len__(self) -> int:
        """Rows in all files."""
        return int(self._group_rows.sum())

    def __repr__(self) -> str:
        return f"RowFiles({len(self.paths)} files, {len(self)} rows, order {self.order!r})"

    def source(
        self,
        worker: int = 0,
        workers: int = 1,
        columns: Sequence[str] | None = None,
        traits: Sequence[str] | None = None,
    ) -> FileSource:
        """Makes the source of one worker of this rank.

        columns: those of the other columns that are read. None: all. Raises InputError for one
            that is not there. traits: those of the mutable events that are read. None: all.
        """
        schema = self.reads(columns, traits)
        return FileSource(self, self.rank * workers + worker, self.world_size * workers, schema)

    def reads(self, columns: Sequence[str] | None, traits: Sequence[str] | None) -> pa.Schema:
        """Chooses the columns to read; those of the pointers always are.

        Raises InputError where a file lacks one, or holds it in another type than the first.
        """
        names = list(dict.fromkeys(name for schema in self._schemas for name in schema.names))
        others = [name for name in names if name not in ("uih", "mutable")]
        if columns is not None:
            missing = [name for name in columns if name not in others]
            if missing:
                raise InputError(
                    f"The thin rows have no column {missing[0]!r}; there are {', '.join(others)}."
                )
            others = [name for name in others if name in {*columns, "user_id", "request_ts"}]
        schema = joint_schema(self.paths, self._schemas, [*others, "uih", "mutable"])
        arrow = load_pyarrow()
        mutable = snapshots_type(schema.field("mutable").type)
        if traits is not None:
            events = mutable.value_type
            kept = [field for field in events if field.name in {*EVENT_TIMES, *traits}]
            mutable = arrow.large_list(arrow.struct(kept))
        return schema.set(len(schema) - 1, arrow.field("mutable", mutable))

    def read(
        self, epoch: int, start: int, stop: int, schema: pa.Schema
    ) -> Iterator[tuple[pa.RecordBatch, int, str]]:
        """Reads the places [start, stop) of an epoch's sequence: rows, first number, file."""
        groups = np.arange(len(self._group_rows))
        if self.order != "files":
            groups = shuffled(groups, self.seed, epoch)
        ends = np.cumsum(self._group_rows[groups])
        for place in range(int(np.searchsorted(ends, start, side="right")), len(groups)):
            group = groups[place]
            begin = int(ends[place] - self._group_rows[group])
            if begin >= stop:
                return
            origin = self.files[self._group_files[group]]
            first, last = max(start - begin, 0), min(stop, int(ends[place])) - begin
            seen = 0
            with open_parquet(origin) as file:
                for batch in file.iter_batches(
                    READ_ROWS,
                    row_groups=[int(self._group_places[group])],
                    columns=schema.names,
                    leaves=leaves_of(file, schema),
                ):
                    low, high = max(first - seen, 0), min(last - seen, len(batch))
                    if low < high:
                        part = conformed_batch(origin, batch.slice(low, high - low), schema)
                        yield part, int(self._group_ids[group]) + seen + low, origin.name
                    seen += len(batch)
                    if seen >= last:
                        break


class FileSource:
    """The rows of one shard: a RowSource.

    State: version, files (a fingerprint), rows, order, window_rows, seed, shard, shards, epoch,
    done (rows of this shard that were taken in this epoch).
    """

    def __init__(self, files: RowFiles, shard: int, shards: int, schema: pa.Schema) -> None:
        self._files, self._schema = files, schema
        self.shard, self.shards = shard, shards
        # Where nothing is shuffled a window need not be waited for.
        self._window_rows = READ_ROWS if files.order == "files" else files.window_rows
        self._start = shard * len(files) // shards
        self._stop = (shard + 1) * len(files) // shards
        self._epoch = 0
        self._done = 0

    def __len__(self) -> int:
        """Rows of this shard."""
        return self._stop - self._start

    @property
    def epoch(self) -> int:
        """The epoch whose rows are taken."""
        return self._epoch

    @property
    def done(self) -> int:
        """Rows of the shard that were taken in this epoch."""
        return self._done

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; the epoch it is in already goes on."""
        if epoch != self._epoch:
            self._epoch, self._done = epoch, 0

    def restart(self) -> None:
        """Goes back to the start of the epoch."""
        self._done = 0

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        """See RowSource: in epoch order, at most `examples` at a time."""
        number, skip = divmod(self._done, self._window_rows)
        for window in self._windows(self._epoch, number):
            order = window.order[skip:]
            skip = 0
            for first in range(0, len(order), examples):
                yield window.chunk(order[first : first + examples])

    def took(self, rows: int) -> None:
        """See RowSource."""
        self._done += rows

    def commit(self) -> None:
        """Files have nothing to let go of."""

    def state_dict(self) -> dict[str, Any]:
        """See RowSource."""
        return {**self._identity(), "epoch": self._epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See RowSource. Raises UsageError where it is of other files, shards or order."""
        told = state.get("version")
        if told != STATE_VERSION:
            raise UsageError(
                f"The state has version {told}, but this release reads {STATE_VERSION}; resume "
                f"with the release that saved it, or start the epoch anew."
            )
        mine = self._identity()
        differing = [name for name in mine if state.get(name) != mine[name]]
        if {"files", "rows"} & set(differing):
            raise UsageError(
                "The state belongs to other files of thin rows; resume with the same files, or "
                "start the epoch anew."
            )
        if {"shard", "shards"} & set(differing):
            raise UsageError(
                f"The state belongs to shard {state.get('shard')} of {state.get('shards')}, but "
                f"this is shard {self.shard} of {self.shards} (world size x workers); resume with "
                f"as many ranks and workers, each with its own state, or start the epoch anew."
            )
        for name in differing:
            raise UsageError(
                f"The state was saved with {name} {state.get(name)!r}, but this has "
                f"{mine[name]!r}; give the same, or start the epoch anew."
            )
        epoch, done = state.get("epoch"), state.get("done")
        if not (isinstance(epoch, int) and isinstance(done, int) and 0 <= done <= len(self)):
            raise UsageError("The state is damaged: it needs an epoch, and the rows done in it.")
        self._epoch, self._done = epoch, done

    def close(self) -> None:
        """Files are closed when `chunks` is."""

    def _identity(self) -> dict[str, Any]:
        """What a state must have in common with this source."""
        files = self._files
        return {
            "version": STATE_VERSION,
            "files": files.fingerprint,
            "rows": len(files),
            "order": files.order,
            "window_rows": files.window_rows,
            "seed": files.seed,
            "shard": self.shard,
            "shards": self.shards,
        }

    def _windows(self, epoch: int, number: int) -> Iterator[Window]:
        """Reads the shard's windows from the one with this number on."""
        files = self._files
        start = self._start + number * self._window_rows
        held: list[tuple[pa.RecordBatch, int, str]] = []
        room = self._window_rows
        for batch, first, path in files.read(epoch, start, self._stop, self._schema):
            while len(batch) >= room:
                held.append((batch.slice(0, room), first, path))
                yield Window(held, files, (epoch, number))
                batch, first = batch.slice(room), first + room
                held, room, number = [], self._window_rows, number + 1
            if len(batch):
                held.append((batch, first, path))
                room -= len(batch)
        if held:
            yield Window(held, files, (epoch, number))


class Window:
    """Rows that are put in order together."""

    def __init__(
        self,
        parts: Sequence[tuple[pa.RecordBatch, int, str]],
        files: RowFiles,
        salts: tuple[int, int],
    ) -> None:
        table = load_pyarrow().Table.from_batches([batch for batch, _, _ in parts])
        self._rows = one_batch(table)
        self._ids = np.concatenate(
            [np.arange(first, first + len(batch)) for batch, first, _ in parts]
        )
        self._paths = ", ".join(dict.fromkeys(path for _, _, path in parts))
        order = np.arange(len(self._ids))
        self._is_shuffled = files.order != "files"
        if files.order == "users":
            users = np.concatenate(
                [complete(path, "user_id", batch["user_id"]) for batch, _, path in parts]
            )
            order = order[np.argsort(mixed(users, files.seed, *salts), kind="stable")]
        elif files.order == "rows":
            order = shuffled(order, files.seed, *salts)
        self.order: NDArray[np.int64] = order

    def chunk(self, places: NDArray[np.int64]) -> RowChunk:
        """Takes the rows at some places of the window, in that order."""
        pa = load_pyarrow()
        if self._is_shuffled:
            batch = self._rows.take(pa.array(places))
        else:
            batch = self._rows.slice(int(places[0]), len(places))
        others = pa.Table.from_batches([batch.select(other_columns(batch.schema))])
        return RowChunk(to_thin_rows(self._paths, batch), others, self._ids[places])


def traits_named(projection: Projection | str) -> tuple[str, ...] | None:
    """The traits that a projection is sure to be content with; None where only the server knows."""
    if isinstance(projection, str) or projection.feature_groups:
        return None
    return projection.traits or None


def ranks() -> tuple[int, int]:
    """This process's rank and the world size."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def read_footer(file: DataFile) -> Footer:
    """Reads what a file holds. Raises InputError where it does not hold thin rows."""
    with open_parquet(file) as table:
        check(file, table.schema_arrow)
        metadata = table.metadata
        groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
        return Footer(
            table.schema_arrow.remove_metadata(),
            [group.num_rows for group in groups],
            [group.total_byte_size for group in groups],
        )


def leaves_of(table: ParquetTable, schema: pa.Schema) -> list[int]:
    """The columns of a file that hold what a schema has, mutable events without other traits."""
    traits = set(schema.field("mutable").type.value_type.names)
    leaves: list[int] = []
    for name in schema.names:
        if name != "mutable":
            leaves += table.leaves(name)
            continue
        kind = plain_type(table.schema_arrow.field(name).type)
        if snapshots_type(kind) != kind:  # no events, and one leaf of nulls
            leaves += table.leaves(name)
            continue
        first = table.leaves(name).start
        for field in kind.value_type:
            count = leaf_count(field.type)
            if field.name in traits:
                leaves += range(first, first + count)
            first += count
    return leaves


def fingerprint(paths: Sequence[str], footers: Sequence[Footer]) -> str:
    """Tells lists of files apart; where they lie does not matter."""
    digest = hashlib.sha256()
    for path, footer in zip(paths, footers, strict=True):
        told = (path.rsplit("/", 1)[-1], footer.group_rows, footer.group_bytes)
        digest.update(repr(told).encode())
    return digest.hexdigest()[:16]


def shuffled(values: NDArray[np.int64], *salts: int) -> NDArray[np.int64]:
    """Puts values in an order that the salts name, the same with every release of numpy."""
    return values[np.argsort(mixed(np.arange(len(values)), *salts), kind="stable")]


def mixed(values: NDArray[np.int64], *salts: int) -> NDArray[np.uint64]:
    """Scatters values over 64 bits, one to one, so that two users never fall together."""
    words = values.astype(np.int64).view(np.uint64)
    for salt in salts:
        words = scatter(words ^ scatter(np.array([salt % (1 << 64)], np.uint64)))
    return words


def scatter(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: a step of its sequence and its finalizer."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
