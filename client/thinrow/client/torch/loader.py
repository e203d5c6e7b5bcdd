"""The loader: batches on the trainer's device, from within its own process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from thinrow.client.client import connect
from thinrow.client.target import parse_targets
from thinrow.client.torch.config import LoaderConfig
from thinrow.client.torch.device import DeviceCopy
from thinrow.client.torch.pipeline import BATCHES_IN_USE, Pipeline
from thinrow.client.torch.routing_series import RoutingSeries
from thinrow.client.torch.rows.file_source import FileSource
from thinrow.client.torch.rows.files import RowFiles
from thinrow.client.torch.starvation import Starvation
from thinrow.core.files.rows import traits_named
from thinrow.core.files.tables import is_table
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import torch
    from prometheus_client import CollectorRegistry
    from thinrow.client.client import Client
    from thinrow.client.router import Routing
    from thinrow.client.target import Target
    from thinrow.client.torch.batch import TensorBatch
    from thinrow.client.torch.source import RowSource
    from thinrow.core.files.tables import Rows
    from thinrow.core.pointers import Projection

__all__ = ["ThinRowLoader"]


class ThinRowLoader:
    """Iterates over batches of histories of thin rows, looked up and copied ahead of the trainer.

    ::

        loader = ThinRowLoader("rows/*.parquet", "localhost:7878", Projection(), device="cuda")
        with loader:
            for batch in loader:
                train(batch)

    A pass over files is one epoch, in the order of that epoch; the next pass is the next epoch. A
    pass that was left continues after the last batch delivered. Everything but the iteration may be
    called between batches.

    Args:
        rows: Files or a table in memory (see RowFiles), or any RowSource.
        server: HOST:PORT, or several replicas of one store; or the path of a store, which is then
            read in this process (see `connect`).
        projection: The wanted part of each history, or the name of a tenant.
        config: Batches, statuses and bounds.
        device: Device of the batches.
        registry: Of Prometheus, for the metrics of `starvation` and of the routing to a cluster.

    Raises:
        StatusError: An example has a status whose policy is "fail".
        InputError: Rows or their columns do not fit.
        ThinRowError: Any error of Client.stream.
    """

    def __init__(
        self,
        rows: Rows | RowFiles | RowSource,
        server: Target,
        projection: Projection | str,
        config: LoaderConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config or LoaderConfig()
        self._rows = to_rows(rows)
        self._projection = projection
        # A missing column is an error here, not in the first pass.
        self._source = self._open()
        self._server = parse_targets(server)
        self._copies = DeviceCopy(device, slots=self._config.batches_ahead + BATCHES_IN_USE)
        self._starvation = Starvation(registry)
        self._pipeline: Pipeline | None = None
        self._client: Client | None = None
        if registry is not None:
            registry.register(RoutingSeries(self._routing))
        self._uncommitted = False
        self._loaded: Any = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        # The trainer failed in its last batch.
        self._uncommitted = self._uncommitted and failed is None
        self.close()

    def __iter__(self) -> Iterator[TensorBatch]:
        return self._pass()

    def __len__(self) -> int:
        """Returns the batches of a whole epoch, of this rank.

        Raises TypeError where they are not known in advance: with `batch_events`, with a policy
        "skip" (the default for ERASED) and no `even_ends`, and for a source other than files.
        """
        self._follow_rank()
        if not isinstance(self._source, FileSource):
            raise TypeError("The rows of this source have no end, so the loader has no length.")
        return self._config.batches(len(self._source))

    def __repr__(self) -> str:
        server = self._server
        names = str(server) if isinstance(server, Path) else ", ".join(server)
        return (
            f"ThinRowLoader({self._source!r} at {names}, batches of "
            f"{self._config.batch_examples} examples on {self._copies.device})"
        )

    def _routing(self) -> Routing | None:
        return None if self._client is None else self._client.routing

    @property
    def starvation(self) -> Starvation:
        """Time that the trainer waited, by stage."""
        return self._starvation

    @property
    def epoch(self) -> int:
        """The epoch of the next batch.

        Raises:
            UsageError: The source has no epochs.
        """
        files = self._files()
        return files.epoch + files.is_over

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of another epoch.

        Raises:
            UsageError: The source has no epochs, or a pass is in progress.
        """
        self._between_passes("set the epoch")
        self._files().set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last batch delivered: a handful of JSON fields."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any] | list[Any]) -> None:
        """Resumes at a place.

        Args:
            state: This rank's state, or a list of the states of all ranks, whose number may have
                been another one. The state of one rank stands for all that are in step with it.

        Raises:
            UsageError: The state belongs to another source, the states do not say where all ranks
                are, or a pass is in progress.
        """
        self._between_passes("load a state")
        self._source.load_state_dict(state)
        self._loaded = state

    def close(self) -> None:
        """Ends threads, connections and files. Delivered batches count as trained."""
        if self._closed:
            return
        self._closed = True
        self._end_pass()
        self._commit()
        if self._client is not None:
            self._client.close()
        self._copies.close()
        self._source.close()

    def _pass(self) -> Generator[TensorBatch, None, None]:
        self._end_pass()
        self._follow_rank()
        self._restart_whole()
        is_rest = isinstance(self._source, FileSource) and self._source.begin_pass()
        batches = yield from self._rest_of_epoch()
        if is_rest and not batches:
            yield from self._rest_of_epoch()

    def _rest_of_epoch(self) -> Generator[TensorBatch, None, int]:
        """Yields the batches up to the end of the epoch; returns their number."""
        if self._closed:
            raise UsageError("The loader is closed; make another one.")
        self._commit()
        # Connected, or opened, for all passes; one that was left may have closed the connection.
        if self._client is None or self._client.closed:
            self._client = connect(self._server, self._config.client)
        pipeline = self._pipeline = Pipeline(
            self._source,
            self._client,
            self._projection,
            self._config,
            self._copies,
            self._starvation,
        )
        batches = 0
        try:
            for batch in pipeline.batches():
                batches += 1
                self._uncommitted = True
                yield batch
                self._commit()
        finally:
            pipeline.close()
            if self._pipeline is pipeline:
                self._pipeline = None
        self._source.commit()
        if isinstance(self._source, FileSource) and not self._config.whole_passes:
            self._source.next_epoch()
        self._restart_whole()
        return batches

    def _restart_whole(self) -> None:
        """Returns to the start of the epoch where passes are whole."""
        if self._config.whole_passes:
            self._files().restart()

    def _commit(self) -> None:
        if self._uncommitted:
            self._uncommitted = False
            self._source.commit()

    def _end_pass(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _between_passes(self, what: str) -> None:
        """Rejects a change during a pass, whose rows are already read ahead."""
        if self._pipeline is not None:
            raise UsageError(f"Leave the loop over the loader before you {what}.")
        self._follow_rank()

    def _open(self) -> RowSource:
        if not isinstance(self._rows, RowFiles):
            return self._rows
        config = self._config
        return self._rows.source(
            columns=config.columns, traits=traits_named(self._projection), dealing=config.dealing
        )

    def _follow_rank(self) -> None:
        """Goes on as the rank that this process has now.

        Lightning and others initialize torch.distributed after the loader is made.

        Raises:
            UsageError: The states loaded as another rank do not say where this one is.
        """
        rows, source = self._rows, self._source
        if self._pipeline is not None or not isinstance(rows, RowFiles):
            return
        assert isinstance(source, FileSource)
        if (source.home, source.shards) != (rows.rank, rows.world_size):
            followed = self._open()
            assert isinstance(followed, FileSource)
            followed.follow(source, self._loaded)
            self._source = followed

    def _files(self) -> FileSource:
        if not isinstance(self._source, FileSource):
            raise UsageError("Only files have epochs; this source has none.")
        return self._source


def to_rows(rows: Rows | RowFiles | RowSource) -> RowFiles | RowSource:
    """Names files and tables as RowFiles; returns RowFiles or a RowSource as they are."""
    # A DataFrame has its columns as attributes.
    is_source = hasattr(rows, "chunks") and not is_table(rows)
    if isinstance(rows, RowFiles) or is_source:
        return cast("RowFiles | RowSource", rows)
    return RowFiles(cast("Rows", rows))
