"""Streams of batches to append: decode a batch while the batches before it are committed."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.malformed import MalformedError
from thinrow.core.wire.sizes import COLUMNS_MAX
from thinrow.errors import AnswerTooLargeError, InputError, RequestError, ThinRowError
from thinrow.events.units import check_milliseconds
from thinrow.online.config import DECODING_MAX
from thinrow.online.decoding import request_decoder
from thinrow.online.records import batch_of
from thinrow.online.users import named_users
from thinrow.store.user_texts import UserTexts, check_texts, known_texts
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from thinrow.online.config import OnlineConfig
    from thinrow.online.event_tier import EventTier
    from thinrow.online.follower import Generations
    from thinrow.online.records import Batch
    from thinrow.online.source import BatchLog
    from thinrow.online.tier import CommittedBatch
    from thinrow.online.users import NamedUsers

__all__ = ["AppendStreams", "SubmittedBatch"]

decode_request = request_decoder(
    online_pb2.AppendEventsRequest,
    (
        online_pb2.AppendEventsRequest.EVENTS_FIELD_NUMBER,
        online_pb2.EventBatch.COLUMNS_FIELD_NUMBER,
    ),
    COLUMNS_MAX,
)
BATCHES_AHEAD_MAX = 16
"""Batches of one stream that wait to be durable."""
PUT_POLL_S = 1.0
"""Interval at which a reading thread checks that its stream still goes on."""


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """A batch of a stream on its way to the disk."""

    cursor: int
    """The client's name for the batch."""
    started_s: float
    """Time at which the server had received it; `time.perf_counter`."""
    outcome: Future[CommittedBatch] | ThinRowError
    """The commit, or the error that refused the batch."""


@dataclass(frozen=True, slots=True)
class _ReadingEnded:
    """The end of a stream, as its reading thread saw it."""

    received: int
    """Batches read."""
    failure: BaseException | None
    """The exception that ended the thread; None at the stream's regular end."""


class AppendStreams:
    """Reads streams of batches and submits them to be committed. Thread-safe.

    Args:
        config: Limits on a batch.
        tier: Its schema decodes the batches.
        batch_log: Makes the batches durable.
        published: The generation whose users appended ones are compared with.
    """

    def __init__(
        self,
        config: OnlineConfig,
        tier: EventTier,
        batch_log: BatchLog,
        published: Generations,
    ) -> None:
        self._config = config
        self._tier = tier
        self._batch_log = batch_log
        self._published = published
        self._decoders = ThreadPoolExecutor(DECODING_MAX, "thinrow-decode")

    def submitted(self, messages: Iterator[bytes]) -> Iterator[SubmittedBatch]:
        """Yields each batch of a stream, in order, once it is submitted or refused.

        Args:
            messages: An AppendEventsRequest each, which few threads decode.

        Raises:
            RequestError: A message is malformed.
            ThinRowError: A batch was read and not submitted, so that a stream never ends well with
                answers missing. The exception that ended the reading thread is raised as well.
        """
        ready: queue.Queue[SubmittedBatch | _ReadingEnded] = queue.Queue(BATCHES_AHEAD_MAX)
        ended = threading.Event()

        def put(item: SubmittedBatch | _ReadingEnded) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=PUT_POLL_S)
                    return

        def read() -> None:
            received, failure = 0, None
            try:
                for message in messages:
                    if ended.is_set():
                        return
                    received += 1
                    put(self._decoders.submit(self._submit, message, time.perf_counter()).result())
            except BaseException as error:
                failure = error
            finally:
                put(_ReadingEnded(received, failure))

        threading.Thread(target=read, name="thinrow-append", daemon=True).start()
        answered = 0
        try:
            while not isinstance(item := ready.get(), _ReadingEnded):
                yield item
                answered += 1
        finally:
            ended.set()
        if item.failure is not None:
            raise item.failure
        if answered != item.received:
            raise ThinRowError(
                f"The server answered {answered} of {item.received} batches; append the others "
                f"again."
            )

    def _submit(self, message: bytes, started_s: float) -> SubmittedBatch:
        request = decode_request(message)
        try:
            if not request.HasField("events"):
                raise RequestError("The message has no events; set them, also if none.")
            outcome = self._batch_log.submit(self.decode(request.events))
        except ThinRowError as error:
            # Tracebacks, its own and its cause's, hold frames that hold it: cycles with the whole
            # batch, which only the garbage collector ends.
            error.__cause__ = error.__context__ = None
            return SubmittedBatch(request.cursor, started_s, error.with_traceback(None))
        return SubmittedBatch(request.cursor, started_s, outcome)

    def _check_stored(self, users: NamedUsers) -> None:
        """Raises RequestError if the published generation has another text under a user's key."""
        with self._published.use() as generation:
            if generation is None or not users.keys:
                return
            known = dict(zip(users.keys, users.texts or (), strict=True))
            keys = np.array([*known], np.int64)
            texts = UserTexts(keys, [*known.values()])
            try:
                check_texts(texts, known_texts(generation, keys), generation.schema.user_ids)
            except InputError as error:
                raise RequestError(str(error)) from error

    def decode(self, events: online_pb2.EventBatch) -> Batch:
        """Decodes a batch.

        Raises:
            RequestError: The batch is too large, malformed, or does not fit the schema.
        """
        count = len(events.user_ids) or len(events.user_texts)
        if count > self._config.batch_events_max:
            raise RequestError(
                f"{count} events in one batch; this server accepts "
                f"{self._config.batch_events_max}, so send several."
            )
        record_format = self._tier.format
        if record_format is None:
            raise RequestError("This server has no schema yet; publish a generation first.")
        users = named_users(events.user_ids, events.user_texts, record_format.schema.user_ids)
        if users.texts is not None:
            self._check_stored(users)
        record_format.check_types(events.columns)
        try:
            given = from_wire(events.columns, count, self._config.batch_bytes_max)
        except AnswerTooLargeError as error:
            raise RequestError(
                f"The columns of {count} events would take more memory than this server allows "
                f"for one batch; send fewer events at once."
            ) from error
        except MalformedError as error:
            raise RequestError(
                f"The columns do not fit {count} events or contradict themselves: {error.reason}."
            ) from error
        record_format.check_size(given, count, self._config.batch_bytes_max)
        columns = record_format.checked(given, count)
        check_milliseconds(columns["event_ts"].values)
        return batch_of(users, columns, record_format)
