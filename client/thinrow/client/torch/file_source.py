"""The rows of one shard of files, in the order of an epoch.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.torch.row_order import mixed, shuffled
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import load_pyarrow, one_batch
from thinrow.core.files.rows import complete, other_columns, to_thin_rows
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.files import RowFiles

__all__ = ["READ_ROWS", "FileSource"]

STATE_VERSION = 1
READ_ROWS = 4096
"""Rows decoded at once. Earlier rows of a row group are decoded and dropped."""


class FileSource:
    """The rows of one shard: a RowSource.

    State: version, files (a fingerprint), rows, order, window_rows, seed, shard, shards, epoch,
    done (rows of this shard counted in this epoch).
    """

    def __init__(self, files: RowFiles, shard: int, shards: int, schema: pa.Schema) -> None:
        self._files, self._schema = files, schema
        self.shard, self.shards = shard, shards
        # Without a shuffle, rows need not wait for a full window.
        self._window_rows = READ_ROWS if files.order == "files" else files.window_rows
        self._start = shard * len(files) // shards
        self._stop = (shard + 1) * len(files) // shards
        self._epoch = 0
        self._done = 0
        # Of the next pass: the epoch that `set_epoch` named, and whether a state was loaded.
        self._named_epoch: int | None = None
        self._is_resumed = False

    def __len__(self) -> int:
        """Returns the number of rows of this shard."""
        return self._stop - self._start

    def __repr__(self) -> str:
        return (
            f"FileSource(shard {self.shard} of {self.shards} of {self._files!r}, epoch "
            f"{self._epoch}, {self._done} of {len(self)} rows done)"
        )

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._epoch

    @property
    def done(self) -> int:
        """Rows of the shard counted in this epoch."""
        return self._done

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch, unless it is the current one.

        The current epoch starts again if its rows are all counted, unless a state was loaded: then
        nothing is left of it.
        """
        is_over = self._done == len(self) and not self._is_resumed
        if epoch != self._epoch or is_over:
            self._epoch, self._done = epoch, 0
        self._named_epoch = epoch

    def next_epoch(self) -> None:
        """Moves to the start of the next epoch."""
        self._epoch, self._done = self._epoch + 1, 0

    def begin_pass(self) -> bool:
        """Begins a pass at the current place.

        Returns:
            True if the pass goes on with the next epoch when the rest of this one has no batch. A
            trainer that counts steps leaves a pass after its last batch and never sees its end.
        """
        is_rest = self._done > 0 and self._named_epoch != self._epoch
        self._named_epoch, self._is_resumed = None, False
        return is_rest

    def restart(self) -> None:
        """Moves back to the start of the epoch."""
        self._done = 0

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        """Yields rows in the order of the epoch; see RowSource."""
        number, skip = divmod(self._done, self._window_rows)
        for window in self._windows(self._epoch, number):
            order = window.order[skip:]
            skip = 0
            for first in range(0, len(order), examples):
                yield window.chunk(order[first : first + examples])

    def took(self, rows: int) -> None:
        """Counts rows; see RowSource."""
        self._done += rows

    def commit(self) -> None:
        """Does nothing: files have nothing to release."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the counted rows; see RowSource."""
        return {**self._identity(), "epoch": self._epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a place; see RowSource.

        Raises:
            UsageError: The state is damaged, or of other files, shards or order.
        """
        version = state.get("version")
        if version != STATE_VERSION:
            raise UsageError(
                f"The state has version {version}, but this release reads {STATE_VERSION}; resume "
                f"with the release that saved it, or restart the epoch."
            )
        mine = self._identity()
        differing = [name for name in mine if state.get(name) != mine[name]]
        if {"files", "rows"} & set(differing):
            raise UsageError(
                "The state belongs to other files of thin rows; resume with the same files and "
                "filters, or restart the epoch."
            )
        if {"shard", "shards"} & set(differing):
            raise UsageError(
                f"The state belongs to shard {state.get('shard')} of {state.get('shards')}, but "
                f"this is shard {self.shard} of {self.shards} (world size x workers); resume with "
                f"as many ranks and workers, each with its own state, or restart the epoch."
            )
        for name in differing:
            raise UsageError(
                f"The state was saved with {name} {state.get(name)!r}, but this has "
                f"{mine[name]!r}; give the same, or restart the epoch."
            )
        epoch, done = state.get("epoch"), state.get("done")
        if not (isinstance(epoch, int) and isinstance(done, int) and 0 <= done <= len(self)):
            raise UsageError("The state is damaged: it needs an epoch, and the rows done in it.")
        self._epoch, self._done = epoch, done
        self._is_resumed = True

    def close(self) -> None:
        """Does nothing: files are closed with `chunks`."""

    def _identity(self) -> dict[str, Any]:
        """Returns the fields in which a state must equal this source."""
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
        """Yields the shard's windows, from number `number` on."""
        files = self._files
        start = self._start + number * self._window_rows
        held: list[tuple[pa.RecordBatch, NDArray[np.int64], str]] = []
        room = self._window_rows
        for batch, numbers, path in files.read(epoch, start, self._stop, self._schema):
            while len(batch) >= room:
                held.append((batch.slice(0, room), numbers[:room], path))
                yield Window(held, files, (epoch, number))
                batch, numbers = batch.slice(room), numbers[room:]
                held, room, number = [], self._window_rows, number + 1
            if len(batch):
                held.append((batch, numbers, path))
                room -= len(batch)
        if held:
            yield Window(held, files, (epoch, number))


class Window:
    """Rows that are ordered together."""

    def __init__(
        self,
        parts: Sequence[tuple[pa.RecordBatch, NDArray[np.int64], str]],
        files: RowFiles,
        salts: tuple[int, int],
    ) -> None:
        table = load_pyarrow().Table.from_batches([batch for batch, _, _ in parts])
        self._rows = one_batch(table)
        self._ids = np.concatenate([numbers for _, numbers, _ in parts])
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
        """Returns the rows at some places of the window, in that order."""
        pa = load_pyarrow()
        if self._is_shuffled:
            batch = self._rows.take(pa.array(places))
        else:
            batch = self._rows.slice(int(places[0]), len(places))
        others = pa.Table.from_batches([batch.select(other_columns(batch.schema))])
        return RowChunk(to_thin_rows(self._paths, batch), others, self._ids[places])
