"""One pass over a source: rows become tensors on the device ahead of the trainer.

Three threads with bounded queues between them: `rows` reads chunks; `lookup` sends requests for
them; `widen` cuts batches from the answers, widens these into host memory, and starts their copies.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from thinrow.client.torch.batching import AnsweredRows, Batcher, chosen, to_tensors, together
from thinrow.client.torch.queues import BoundedQueue, ClosedError
from thinrow.client.torch.starvation import StageClock
from thinrow.core.memory import keep_freed_memory
from thinrow.core.status import Status, status_name
from thinrow.core.tracing import UNTRACED, PassTrace, tracing
from thinrow.errors import ThinRowError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from thinrow.client.client import Client
    from thinrow.client.torch.batch import TensorBatch
    from thinrow.client.torch.batching import BatchParts
    from thinrow.client.torch.config import LoaderConfig
    from thinrow.client.torch.device import DeviceCopy, PendingCopy
    from thinrow.client.torch.source import RowChunk, RowSource
    from thinrow.client.torch.starvation import Stage, Starvation
    from thinrow.core.lookup.answer import Answer
    from thinrow.core.pointers import Projection, ThinRows

__all__ = ["BATCHES_IN_USE", "Pipeline"]

Item = TypeVar("Item")

log = logging.getLogger("thinrow.loader")

# Batches besides the queued ones: one that the trainer holds, and one that is being written. Small
# batches that are made together count as one.
BATCHES_IN_USE = 2
# Pauses between two requests for examples that are not queued.
NOT_READY_PAUSE_S_INITIAL = 0.1
NOT_READY_PAUSE_S_MAX = 5.0
# A pass of 4,096 rows in time order took 3 to 7 % longer with 2, and 8 gained no more.
CHUNK_GROWTH = 4
# Answers received and not yet widened.
ANSWERS_AHEAD = 1
# Interval of the log lines of a long epoch.
LOG_INTERVAL_S = 60.0


class QueuedBatch(NamedTuple):
    """A batch for the trainer, and the rows that it accounts for."""

    sent: PendingCopy | None
    """None if only skipped rows follow the last batch."""

    rows: int
    statuses: dict[str, int]


class Pipeline:
    """Starts with the first request for a batch; the owner closes it in any case.

    Interrupts the client as well, unless the pass came to its end.
    """

    def __init__(
        self,
        source: RowSource,
        client: Client,
        projection: Projection | str,
        config: LoaderConfig,
        copies: DeviceCopy,
        starvation: Starvation,
    ) -> None:
        self._source = source
        self._projection = projection
        self._config = config
        self._copies = copies
        self._starvation = starvation
        self._client = client
        self._ended = False
        self._clock = StageClock("rows")
        spans = tracing("thinrow-client")
        self._trace = None if spans is None else PassTrace(spans)
        self._chunks: BoundedQueue[RowChunk] = BoundedQueue(config.chunks_ahead)
        self._in_flight: deque[RowChunk] = deque()
        self._answers: BoundedQueue[AnsweredRows] = BoundedQueue(ANSWERS_AHEAD)
        self._batches: BoundedQueue[list[QueuedBatch]] = BoundedQueue(config.batches_ahead)
        self._input_error: Exception | None = None
        self._closing = threading.Event()
        if config.freed_bytes_kept:
            keep_freed_memory(config.freed_bytes_kept)
        self._threads = [
            stage("rows", self._read, self._chunks),
            stage("lookup", self._look_up, self._answers),
            stage("widen", self._widen, self._batches),
        ]

    def batches(self) -> Generator[TensorBatch, None, None]:
        """Yields the batches, in the trainer's thread."""
        last_s = logged_s = time.perf_counter()
        left_out: dict[str, int] = {}
        received: deque[QueuedBatch] = deque()
        # A thread inside gRPC at the end of the interpreter would crash it.
        atexit.register(self.close)
        try:
            for thread in self._threads:
                thread.start()
            while True:
                started_s = received_s = time.perf_counter()
                waited: dict[Stage, float] = {}
                if not received or self._closing.is_set():
                    received.extend(self._next())
                    received_s = time.perf_counter()
                    waited = self._clock.between(started_s, received_s)
                queued = received.popleft() if received else None
                batch = None
                if queued is not None and queued.sent is not None:
                    batch = self._copies.receive(queued.sent)
                now_s = time.perf_counter()
                waited["copy"] = waited.get("copy", 0.0) + now_s - received_s
                self._starvation.waited(waited)
                if self._trace is not None:
                    self._trace.waited(now_s - started_s, waited)
                self._starvation.elapsed(now_s - last_s)
                last_s = now_s
                if queued is None:
                    self._ended = True
                    return
                self._source.took(queued.rows)
                self._starvation.count(queued.statuses)
                for status, count in queued.statuses.items():
                    if status != "OK" and self._config.policy(status) == "skip":
                        left_out[status] = left_out.get(status, 0) + count
                if now_s - logged_s > LOG_INTERVAL_S:
                    logged_s = now_s
                    log.info("So far %s.", self._starvation)
                if batch is not None:
                    transform = self._config.transform
                    yield batch if transform is None else transform(batch)
        finally:
            self.close()
            log.info("In all %s.", self._starvation)
            if left_out:
                skipped = ", ".join(f"{count} {status}" for status, count in left_out.items())
                log.warning("Skipped by policy: %s.", skipped)

    def close(self) -> None:
        """Ends the threads, and waits for them. Delivered batches stay valid."""
        atexit.unregister(self.close)
        # The end of the interpreter also ends the generator, when gRPC is gone already.
        is_first = not self._closing.is_set()
        self._closing.set()
        if self._trace is not None:
            self._trace.end()
        self._chunks.close()
        self._answers.close()
        self._batches.close()
        if is_first and not self._ended:
            self._client.interrupt()
        # The garbage collector may call this in one of our threads, which must not wait then.
        waits = not threading.current_thread().name.startswith("thinrow-")
        for thread in self._threads:
            if waits and thread.ident is not None:
                thread.join()

    def _next(self) -> Sequence[QueuedBatch]:
        """Waits for the next batches; none at the end of the pass.

        Raises:
            UsageError: The pipeline was closed.
        """
        try:
            return next(self._batches, ())
        except ClosedError:
            raise UsageError(
                "The loader was closed or has a newer iteration; iterate over it again."
            ) from None

    def _read(self) -> Iterator[RowChunk]:
        return self._source.chunks(self._config.lookup_examples)

    def _look_up(self) -> Iterator[AnsweredRows]:
        with UNTRACED if self._trace is None else self._trace.current():
            yield from self._parts()

    def _widen(self) -> Iterator[list[QueuedBatch]]:
        batcher = Batcher(self._config)
        for part in self._answers:
            self._clock.work("widen")
            for group in together(batcher.add(part)):
                yield self._queued(group)
            self._clock.rest()
        rest = batcher.rest()
        if self._config.drop_last and rest.examples < self._config.batch_examples:
            if rest.examples:
                log.info("Left out the last %d examples, too few for a batch.", rest.examples)
            rest.parts = []
        if rest.rows:
            yield self._queued([rest])

    def _queued(self, group: Sequence[BatchParts]) -> list[QueuedBatch]:
        """Makes the batches of a group, or only counts its skipped rows."""
        sent: Sequence[PendingCopy | None] = [None]
        if group[0].parts:
            self._clock.work("widen")
            config = self._config
            batches = to_tensors(
                [batch.parts for batch in group],
                config.integer_dtype,
                self._copies.allocate,
                config.widen_threads,
                config.uint64_dtype,
            )
            self._clock.work("copy")
            sent = self._copies.send_all(batches)
            self._clock.work("widen")
        return [
            QueuedBatch(
                copy,
                batch.rows,
                {status_name(status): count for status, count in batch.statuses.items()},
            )
            for copy, batch in zip(sent, group, strict=True)
        ]

    def _parts(self) -> Iterator[AnsweredRows]:
        """Yields the answer to each chunk, in order."""
        with closing(self._client.answers(self._rows(), self._projection)) as stream:
            while True:
                since_s = time.perf_counter()
                self._clock.enter("wire")
                answer = next(stream, None)
                if answer is None:
                    break
                self._clock.answered(since_s, answer.server_s)
                chunk = self._in_flight.popleft()
                if not len(answer):
                    continue
                self._starvation.looked_up(answer.groups)
                columns = chosen(chunk.columns, self._config.columns)
                yield AnsweredRows(self._settled(answer), columns, chunk.example_ids)
        if self._input_error is not None:
            raise self._input_error
        if self._in_flight:
            raise ThinRowError(
                f"The stream ended without answers to {len(self._in_flight)} chunks; report this."
            )

    def _rows(self) -> Iterator[ThinRows]:
        """Yields the rows to look up; the stream pulls them."""
        self._clock.enter("rows")
        try:
            for chunk in growing(self._chunks, self._config.batch_examples):
                self._clock.enter("wire")
                self._in_flight.append(chunk)
                yield chunk.rows
                self._clock.enter("rows")
        except ClosedError:
            raise
        except Exception as error:
            # Rows read before are delivered first.
            self._input_error = error
        self._clock.enter("wire")

    def _settled(self, answer: Answer) -> Answer:
        """Repeats the lookup of examples that are not ready, while the config allows."""
        give_up_s = time.monotonic() + self._config.not_ready_wait_s
        pause_s = NOT_READY_PAUSE_S_INITIAL
        while len(waiting := np.flatnonzero(answer.statuses == Status.NOT_READY)):
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                break
            self._clock.enter("lookup")
            if self._closing.wait(min(pause_s, left_s)):
                raise ClosedError
            pause_s = min(2 * pause_s, NOT_READY_PAUSE_S_MAX)
            with closing(self._client.answers([answer.rows[waiting]], self._projection)) as again:
                answer = answer.with_replacements(waiting, next(again))
        return answer


def stage(
    name: str, produce: Callable[[], Iterable[Item]], queue: BoundedQueue[Item]
) -> threading.Thread:
    """Returns a thread that puts all items into a queue, and then the error that ended them."""
    return threading.Thread(target=lambda: queue.fill(produce), name=f"thinrow-{name}", daemon=True)


def growing(chunks: Iterable[RowChunk], examples: int) -> Iterator[RowChunk]:
    """Cuts the first chunks small, each a few times as large as the one before.

    The first batch comes soon, and soon chunks are large enough to have several rows of a user.
    """
    for chunk in chunks:
        start = 0
        while len(chunk.rows) - start > examples:
            yield chunk.cut(start, start + examples)
            start += examples
            examples *= CHUNK_GROWTH
        yield chunk.cut(start, len(chunk.rows))
