"""The rows of one shard of files, in the order of an epoch.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.torch.rows.epoch_place import Deal, Place
from thinrow.client.torch.rows.file_states import (
    STATE_VERSION,
    ShardState,
    are_in_step,
    joint_progress,
    saved_states,
)
from thinrow.client.torch.rows.windows import LaneReader
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.rows import other_columns, to_thin_rows
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from thinrow.client.torch.rows.epoch_place import Dealing
    from thinrow.client.torch.rows.files import RowFiles
    from thinrow.client.torch.rows.order import EpochOrder
    from thinrow.client.torch.rows.windows import Window

__all__ = ["READ_ROWS", "FileSource"]

READ_ROWS = 4096
"""Rows decoded at once. Earlier rows of a row group are decoded and dropped."""
OPEN_LANES_MAX = 64
"""Lanes that keep their file open from window to window: those that were read last."""


class FileSource:
    """The rows of one shard: a RowSource.

    Batch t of worker w of rank r is number (t * workers + w) * ranks + r of the epoch's batches.

    State: version, files (a fingerprint), rows, order, window_rows, seed, length_column, and a
    ShardState.
    """

    def __init__(
        self, files: RowFiles, worker: int, workers: int, schema: pa.Schema, dealing: Dealing
    ) -> None:
        self._files, self._schema, self._dealing = files, schema, dealing
        self._world_size = files.world_size
        self.shards = workers * self._world_size
        self.home = worker * self._world_size + files.rank
        """The shard of this worker, if the first worker has the first batch of a pass."""
        self.shard = self.home
        self._begin(0)
        # Of the next pass: the epoch that `set_epoch` named, and whether a state was loaded.
        self._named_epoch: int | None = None
        self.is_resumed = False
        """A state was loaded, and the current place is still the one that it named."""
        self._waits = False
        """The shard has no row left of the epoch, but others do."""

    def __len__(self) -> int:
        """Returns the number of rows of this shard in a whole epoch."""
        return self._deal_from(Place()).count(self.shard)

    def __repr__(self) -> str:
        return (
            f"FileSource(shard {self.shard} of {self.shards} of {self._files!r}, epoch "
            f"{self._epoch}, {self._done} of {self._count} rows done)"
        )

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._epoch

    @property
    def is_begun(self) -> bool:
        """Returns True if rows of this epoch are done, by this shard or by others."""
        return self._done > 0 or self._deal.place != Place()

    @property
    def is_over(self) -> bool:
        """Returns True if rows of this epoch are done, and the shard has no more."""
        return self.is_begun and self._done == self._count

    @property
    def is_all_over(self) -> bool:
        """Returns True if no shard had rows left where the rows of the epoch were dealt."""
        return self.is_begun and not self._deal.dealt

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch, unless it is the current one.

        The current epoch starts again if its rows are all counted, unless a state was loaded: then
        nothing is left of it.
        """
        if epoch != self._epoch or (self.is_over and not self.is_resumed):
            self._begin(epoch)
            self.is_resumed = False
        self._named_epoch = epoch

    def next_epoch(self) -> None:
        """Moves to the start of the next epoch."""
        self._begin(self._epoch + 1)

    def next_epoch_in_turn(self) -> None:
        """Moves to the start of the next epoch, within a pass that several workers go on with.

        A DataLoader requests the next batch from the worker whose turn it is.
        """
        ranks, size = self._world_size, self._dealing.batch_examples
        of_rank = range(self.shard % ranks, self.shards, ranks)
        batches = sum(-(-self._deal.count(shard) // size) for shard in of_rank)
        shard = (self.shard - batches * ranks) % self.shards
        self._begin(self._epoch + 1, shard)

    def begin_pass(self) -> bool:
        """Begins a pass at the current place.

        Returns:
            True if the pass goes on with the next epoch when the rest of this one has no batch. A
            trainer that counts steps leaves a pass after its last batch and never sees its end.
        """
        is_rest = self.is_begun and not self._waits and self._named_epoch != self._epoch
        self._named_epoch, self.is_resumed, self._waits = None, False, False
        return is_rest

    def restart(self) -> None:
        """Moves back to the start of the epoch."""
        self._begin(self._epoch)

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        """Yields rows in the order of the epoch; see RowSource."""
        order, epoch = self._files.epoch_order(self._interleave_rows), self._epoch
        # Rows of several lanes are joined, which is cheaper where they stand in their order.
        sorts = self.shards <= order.lanes > 1
        pieces: list[tuple[Window, list[tuple[int, int]]]] = []
        rows = 0
        with ExitStack() as stack:
            readers: dict[int, LaneReader] = {}
            opened: dict[int, LaneReader] = {}
            for lane, first, last in self._segments(order):
                reader = readers.get(lane)
                if reader is None:
                    reader = LaneReader(self._files, self._schema, epoch, order, lane, sorts=sorts)
                    readers[lane] = reader
                    stack.callback(reader.close)
                while first < last:
                    if rows and not reader.holds(first):
                        # Decoding a window takes time, and the trainer may wait for these rows.
                        yield joined(pieces)
                        pieces, rows = [], 0
                    if not reader.holds(first):
                        opened.pop(lane, None)
                        opened[lane] = reader
                        if len(opened) > OPEN_LANES_MAX:
                            opened.pop(next(iter(opened))).close()
                    window, start, stop = reader.window(first)
                    taken = min(last, stop, first + examples - rows) - first
                    if not pieces or pieces[-1][0] is not window:
                        pieces.append((window, []))
                    pieces[-1][1].append((first - start, first - start + taken))
                    first, rows = first + taken, rows + taken
                    if rows == examples:
                        yield joined(pieces)
                        pieces, rows = [], 0
            if rows:
                yield joined(pieces)

    def took(self, rows: int) -> None:
        """Counts rows of a batch; see RowSource."""
        self._done += rows
        self._batches += rows > 0

    def commit(self) -> None:
        """Does nothing: files have nothing to release."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the counted rows; see RowSource."""
        state = asdict(self._state())
        return {**self._identity(), **state, "ahead": [list(part) for part in state["ahead"]]}

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401
        """Moves to a place; see RowSource.

        Args:
            state: A state; or those of several ranks and workers as a list, or in the state of a
                StatefulDataLoader.

        Raises:
            UsageError: A state is damaged, or of other files or another order; or the states do not
                say where all shards are.
        """
        found = [self._checked(one) for one in list(saved_states(state)) or [state]]
        mine = self._state()
        shard = self.home
        try:
            saved, done = joint_progress(found, len(self._files))
        except UsageError:
            # It may be enough for this shard, if each rank loads its own.
            saved, done = found[0], {found[0].shard: found[0].done}
            of_rank = (saved.run, saved.shard % saved.world_size)
            if len(found) > 1 or of_rank != (mine.run, self.home % self._world_size):
                raise
            shard = saved.shard
        self._epoch, self._interleave_rows = saved.epoch, saved.interleave_rows
        self.shard = shard
        deal = saved.deal(len(self._files))
        # Several workers begin with the first of them, so the rows are dealt again.
        if saved.run == mine.run and (len(found) == 1 or self.shards == self._world_size):
            self._deal_at(deal.place, done[self.shard])
            known = [one.batches for one in found if one.shard == self.shard]
            self._batches = (known or [-(-self._done // saved.batch_examples)])[0]
            self._in_step &= are_in_step(found, deal, done)
        else:
            self._deal_at(deal.after(done))
        is_last = len(done) < self.shards or all(
            rows == deal.count(shard) for shard, rows in done.items()
        )
        self._waits = self._done == self._count and not is_last
        self.is_resumed = True

    def follow(self, source: FileSource, loaded: Any) -> None:  # noqa: ANN401
        """Moves to the place of another source of the same files, as another rank.

        Args:
            source: The source that this one replaces.
            loaded: The state that it has loaded, if any.

        Raises:
            UsageError: The state does not say where this rank is.
        """
        self._begin(source.epoch)
        if source.is_resumed:
            self.load_state_dict(loaded)
        elif source.is_begun:
            self.load_state_dict(source.state_dict())
        self._named_epoch, self.is_resumed = source._named_epoch, source.is_resumed

    def close(self) -> None:
        """Does nothing: files are closed with `chunks`."""

    def _begin(self, epoch: int, shard: int | None = None) -> None:
        self._epoch, self._interleave_rows = epoch, self._dealing.batch_examples
        self.shard = self.home if shard is None else shard
        self._deal_at(Place())

    def _deal_from(self, place: Place) -> Deal:
        dealing, rows = self._dealing, len(self._files)
        batch, ends = dealing.batch_examples, dealing.even_ends
        return Deal(place, rows, batch, self._world_size, self.shards, ends)

    def _deal_at(self, place: Place, done: int = 0) -> None:
        """Deals the rows that remain after a place; some of the shard's own are done."""
        self._deal = self._deal_from(place)
        self._count = self._deal.count(self.shard)
        self._done, self._batches = done, 0
        self._in_step = self._dealing.in_step
        self._waits = False

    def _segments(self, order: EpochOrder) -> Iterator[tuple[int, int, int]]:
        """Yields the shard's rows that are not counted, as places of lanes."""
        for start, stop in self._deal.positions(self.shard, self._done):
            yield from order.segments(start, stop)

    def _state(self) -> ShardState:
        return ShardState(
            epoch=self._epoch,
            interleave_rows=self._interleave_rows,
            start=self._deal.place.start,
            ahead=self._deal.place.ahead,
            batch_examples=self._dealing.batch_examples,
            even_ends=self._dealing.even_ends,
            world_size=self._world_size,
            shard=self.shard,
            shards=self.shards,
            done=self._done,
            batches=self._batches,
            in_step=self._in_step,
        )

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
            "length_column": files.length_column,
        }

    def _checked(self, state: dict[str, Any]) -> ShardState:
        """Returns a state's place.

        Raises:
            UsageError: The state is damaged, or of other files or another order.
        """
        version = state.get("version") if isinstance(state, dict) else None
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
        for name in differing:
            raise UsageError(
                f"The state was saved with {name} {state.get(name)!r}, but this has "
                f"{mine[name]!r}; give the same, or restart the epoch."
            )
        return ShardState.from_fields(state, len(self._files))


def joined(pieces: list[tuple[Window, list[tuple[int, int]]]]) -> RowChunk:
    """Joins rows of some windows."""
    if len(pieces) == 1:
        window, ranges = pieces[0]
        return window.chunk(ranges)
    pa = load_pyarrow()
    parts = [window.take(ranges) for window, ranges in pieces]
    batch = pa.concat_batches([rows for rows, _ in parts])
    others = pa.Table.from_batches([batch.select(other_columns(batch.schema))])
    paths = ", ".join(dict.fromkeys(window.paths for window, _ in pieces))
    return RowChunk(to_thin_rows(paths, batch), others, np.concatenate([ids for _, ids in parts]))
