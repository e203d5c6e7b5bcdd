"""The dataset: the loader's batches through torch's DataLoader and its worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import pyarrow as pa
from thinrow.client.client import connect
from thinrow.client.local_store import load_store_libraries
from thinrow.client.target import parse_targets
from thinrow.client.torch.batch import TensorBatch
from thinrow.client.torch.config import LoaderConfig
from thinrow.client.torch.device import DeviceCopy
from thinrow.client.torch.pipeline import BATCHES_IN_USE, Pipeline
from thinrow.client.torch.rows.files import RowFiles
from thinrow.client.torch.rows.worker_progress import WorkerProgress
from thinrow.client.torch.starvation import Starvation
from thinrow.core.files.rows import traits_named
from thinrow.errors import UsageError
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from thinrow.client.target import Target
    from thinrow.client.torch.rows.file_source import FileSource
    from thinrow.core.files.tables import Rows
    from thinrow.core.pointers import Projection

__all__ = ["ThinRowDataset"]


class ThinRowDataset(IterableDataset["TensorBatch"]):
    """Histories of thin rows, for `DataLoader(dataset, batch_size=None)`.

    Each worker process has its own shard, and its own connection; a store is opened in each.
    torchdata's StatefulDataLoader saves and resumes it: state_dict and load_state_dict apply to the
    shard of the calling process.

    An iteration is one epoch, from its start, or from the state just loaded. If a process iterates
    again after an epoch that ended, the next epoch follows. New worker processes begin with the
    epoch of this object, so call `set_epoch` before each iteration. Arguments and errors are those
    of ThinRowLoader.
    """

    def __init__(
        self,
        rows: Rows | RowFiles,
        server: Target,
        projection: Projection | str,
        config: LoaderConfig | None = None,
    ) -> None:
        super().__init__()
        self._files = rows if isinstance(rows, RowFiles) else RowFiles(rows)
        self._server = parse_targets(server)
        load_libraries(self._server)
        self._projection = projection
        self._config = config or LoaderConfig()
        # A missing column is an error here, not in every worker.
        self._files.reads(self._config.columns, traits=None)
        self._epoch: int | None = None
        self._shard: FileSource | None = None
        self._resuming = False
        self._loaded: Any = None
        """The states to resume from, until another epoch is set: workers start with them."""
        self._progress = WorkerProgress()

    def __len__(self) -> int:
        """Returns the batches of a whole epoch, of this rank: of all its workers together.

        Raises TypeError where they are not known in advance; see ThinRowLoader.
        """
        return self._config.batches(len(self._source_of(0, 1)))

    def __iter__(self) -> Iterator[TensorBatch]:
        source = self._source()
        if self._resuming:
            self._resuming = False
        elif source.is_over and not self._config.whole_passes:
            source.next_epoch()
        else:
            source.restart()
        if (worker := get_worker_info()) is not None:
            self._progress.publish(worker, source.epoch, is_over=source.is_over)
        return self._batches(source)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, which begins at its start if the epoch changes."""
        self._epoch = epoch
        if self._shard is not None:
            self._shard.set_epoch(epoch)
            if not self._shard.is_resumed:
                self._loaded, self._resuming = None, False

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last batch delivered: a handful of JSON fields."""
        return self._source().state_dict()

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401
        """Resumes at a place, in this process or in the worker processes that it starts.

        Args:
            state: A state of this dataset, of a ThinRowLoader or of a StatefulDataLoader, or a list
                of those of all ranks; the numbers of ranks and workers may have been other ones.

        Raises:
            UsageError: The state belongs to other files, or some states are missing.
        """
        self._source().load_state_dict(state)
        self._loaded, self._resuming, self._epoch = state, True, None

    def _source(self) -> FileSource:
        """Returns the shard of this process."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine = self._shard
        source = self._source_of(number, workers)
        if mine is not None and (mine.home, mine.shards) == (source.home, source.shards):
            return mine
        if self._loaded is not None:
            source.load_state_dict(self._loaded)
        if self._epoch is not None:
            source.set_epoch(self._epoch)
        self._shard = source
        return source

    def _source_of(self, worker: int, workers: int) -> FileSource:
        traits = traits_named(self._projection)
        config = self._config
        return self._files.source(worker, workers, config.columns, traits, config.dealing)

    def _batches(self, source: FileSource) -> Generator[TensorBatch, None, None]:
        worker = get_worker_info()
        is_rest = source.begin_pass()
        if is_rest and worker is not None and worker.num_workers > 1:
            # Other workers may have batches left of this epoch.
            is_rest = source.is_all_over or self._progress.all_over(worker, source.epoch)
        batches = yield from self._rest_of_epoch(source)
        if is_rest and not batches:
            source.next_epoch_in_turn()
            yield from self._rest_of_epoch(source)
        # Other workers may not have ended: until all have, a state must show this one as ended.
        if worker is None and not self._config.whole_passes:
            source.next_epoch()

    def _rest_of_epoch(self, source: FileSource) -> Generator[TensorBatch, None, int]:
        """Yields the batches up to the end of the epoch; returns their number."""
        copies = DeviceCopy("cpu", slots=self._config.batches_ahead + BATCHES_IN_USE)
        batches = 0
        with connect(self._server, self._config.client) as client:
            pipeline = Pipeline(
                source, client, self._projection, self._config, copies, Starvation()
            )
            try:
                for batch in pipeline.batches():
                    batches += 1
                    yield batch
            finally:
                pipeline.close()
        return batches


def load_libraries(server: str | tuple[str, ...] | Path) -> None:
    """Loads the compiled libraries that reading rows and histories needs.

    Worker processes load them lazily otherwise, each for itself. One that was forked may then crash
    when a thread of its own ends (glibc 2.36 with pyarrow 26: 6 of 48 first epochs).
    """
    # The first conversion to NumPy loads pandas, where it is installed.
    pa.array([0]).to_numpy()
    if isinstance(server, Path):
        load_store_libraries(server)


def refuse_to_collate(*_: object, **__: object) -> Never:
    """Raises UsageError: a DataLoader with a batch_size joins what its dataset yields."""
    raise UsageError("ThinRowDataset yields whole batches; give the DataLoader batch_size=None.")


default_collate_fn_map[TensorBatch] = refuse_to_collate
