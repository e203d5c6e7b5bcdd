"""The dataset: the same batches through torch's DataLoader and its worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinrow.client.client import connect
from thinrow.client.torch.config import LoaderConfig
from thinrow.client.torch.device import DeviceCopy
from thinrow.client.torch.files import FileSource, RowFiles, traits_named
from thinrow.client.torch.pipeline import BATCHES_IN_USE, Pipeline
from thinrow.client.torch.starvation import Starvation
from thinrow.errors import UsageError
from torch.utils.data import IterableDataset, get_worker_info

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from thinrow.client.torch.batch import TensorBatch
    from thinrow.core.pointers import Projection

__all__ = ["ThinRowDataset"]


class ThinRowDataset(IterableDataset["TensorBatch"]):
    """Thin rows put back into histories, for `DataLoader(dataset, batch_size=None)`.

    Each worker process takes its own shard and connects by itself. torchdata's StatefulDataLoader
    saves and resumes it: state_dict and load_state_dict are of the shard of the process they are
    called in.

    An iteration is one epoch, from its start, or from the state just loaded. Where a process
    iterates again, the next epoch follows one that ended. New worker processes begin with the epoch
    of this object, so call `set_epoch` before each iteration. Arguments and errors are those of
    ThinRowLoader.
    """

    def __init__(
        self,
        rows: str | Path | Sequence[str | Path] | RowFiles,
        server: str | Sequence[str],
        projection: Projection | str,
        config: LoaderConfig | None = None,
    ) -> None:
        super().__init__()
        self._files = rows if isinstance(rows, RowFiles) else RowFiles(rows)
        self._server = server
        self._projection = projection
        self._config = config or LoaderConfig()
        # A column that is not there is told here and not by every worker.
        self._files.reads(self._config.columns, traits=None)
        self._epoch = 0
        self._shard: FileSource | None = None
        self._resuming = False

    def __iter__(self) -> Iterator[TensorBatch]:
        source = self._source()
        if self._resuming:
            self._resuming = False
        elif source.done and source.done == len(source):
            source.set_epoch(source.epoch + 1)
        else:
            source.restart()
        return self._batches(source)

    def set_epoch(self, epoch: int) -> None:
        """Lets the next iteration be of this epoch, from its start unless it is under way."""
        self._epoch = epoch
        if self._shard is not None:
            self._shard.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Tells the place behind the last batch handed out: a handful of JSON fields."""
        return self._source().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a place. Raises UsageError where it belongs to another shard or files."""
        self._source().load_state_dict(state)
        self._resuming = True

    def _source(self) -> FileSource:
        """The shard of this process."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        source = self._files.source(
            number, workers, self._config.columns, traits_named(self._projection)
        )
        mine = self._shard
        if mine is not None and (mine.shard, mine.shards) == (source.shard, source.shards):
            return mine
        if self._resuming:
            raise UsageError(
                "The state was loaded before the worker processes started, which have shards of "
                "their own; load it into torchdata's StatefulDataLoader instead."
            )
        source.set_epoch(self._epoch)
        self._shard = source
        return source

    def _batches(self, source: FileSource) -> Generator[TensorBatch, None, None]:
        copies = DeviceCopy("cpu", slots=self._config.batches_ahead + BATCHES_IN_USE)
        with connect(self._server, self._config.client) as client:
            pipeline = Pipeline(
                source, client, self._projection, self._config, copies, Starvation()
            )
            try:
                yield from pipeline.batches()
            finally:
                pipeline.close()
        # Other workers may not have ended: until all have, a state must say so of this one.
        if get_worker_info() is None:
            source.set_epoch(source.epoch + 1)
