"""Batches of a dataset of Ray, widened in the trainer's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from thinrow.client.ray.example_ids import ExampleIds
from thinrow.client.torch.batching import AnsweredRows, Batcher, to_tensors
from thinrow.client.torch.config import LoaderConfig
from thinrow.core.lookup.packed import unpack
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from thinrow.client.torch.batch import TensorBatch
    from thinrow.client.torch.batching import BatchParts

__all__ = ["RayBatches"]


class RayBatches:
    """Iterates over the batches of a dataset that reads a ThinRowDatasource.

    Batches have the examples, policies and dtypes that the loader gives them. Their order is that
    in which Ray's tasks end, so the place of a run is the set `done` and no number of batches.

    Args:
        dataset: A `ray.data.Dataset`, or the shard of one (`ray.train.get_dataset_shard`).
        config: Batches, statuses, dtypes; settings of lookups and threads have no use here.
        done: Examples that earlier runs have trained on; later ones are added.
    """

    def __init__(
        self,
        dataset: Any,  # noqa: ANN401 - one of several classes of Ray
        config: LoaderConfig | None = None,
        done: ExampleIds | None = None,
    ) -> None:
        self._dataset = dataset
        self._config = config or LoaderConfig()
        if self._config.even_ends is not None or self._config.not_ready_wait_s:
            raise UsageError(
                "Batches of Ray have no even_ends and no not_ready_wait_s; use ThinRowLoader."
            )
        self.done = ExampleIds() if done is None else done
        """Examples of delivered batches; with state of the model, the place of the run."""

    def __iter__(self) -> Iterator[TensorBatch]:
        batcher = Batcher(self._config)
        for part in parts(self._dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
            for group in batcher.add(part):
                yield from self._batches(group)
        rest = batcher.rest()
        if not self._config.drop_last or rest.examples == self._config.batch_examples:
            yield from self._batches(rest)

    def _batches(self, group: BatchParts) -> Iterator[TensorBatch]:
        """Widens a group; counts it once the trainer wants the next one."""
        if not group.parts:
            return
        config = self._config
        [batch] = to_tensors(
            [group.parts],
            config.integer_dtype,
            threads=config.widen_threads,
            uint64_dtype=config.uint64_dtype,
        )
        ids = batch.example_ids.numpy().copy()
        yield batch if config.transform is None else config.transform(batch)
        self.done.add(ids)


def parts(blocks: Iterable[pa.Table]) -> Iterator[AnsweredRows]:
    """Yields the answer in each row of a dataset's blocks."""
    for block in blocks:
        for ids, answer, columns in zip(
            block["example_ids"], block["answer"], block["columns"], strict=True
        ):
            yield AnsweredRows(
                unpack(np.frombuffer(answer.as_buffer(), np.uint8)),
                pa.ipc.open_stream(columns.as_buffer()).read_all(),
                ids.values.to_numpy(),
            )
