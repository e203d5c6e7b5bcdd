"""Past requests, and the generation that each was served from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.files.parquet import open_parquet
from thinrow.core.ids import is_text_kind
from thinrow.errors import InputError, UsageError
from thinrow.events.units import PLAUSIBLE_UNTIL_TS
from thinrow.events.user_ids import UserIdReader, user_column
from thinrow.store.directory import NEVER_TS
from thinrow.store.times import Cadence
from thinrow.store.user_texts import look_up_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.events.time_columns import TimeReader
    from thinrow.jobs.config import BackfillConfig
    from thinrow.store.generation import Generation
    from thinrow.store.manifest import Manifest

__all__ = [
    "PastWatermarks",
    "ServedRequests",
    "check_request_columns",
    "read_requests",
    "text_user_keys",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequests:
    """Requests and their histories; int64 arrays of shape (requests,)."""

    user_ids: NDArray[np.int64]
    request_ts: NDArray[np.int64]
    start_ts: NDArray[np.int64]
    end_ts: NDArray[np.int64]
    mutable_from_ts: NDArray[np.int64]
    """Events that arrived since then are mutable; the least int64 before the first generation."""

    @property
    def pointing(self) -> NDArray[np.bool_]:
        """True for requests that a published generation served; shape (requests,)."""
        return np.asarray(self.mutable_from_ts != NEVER_TS)

    def take(self, rows: NDArray[np.int64]) -> ServedRequests:
        """Returns some of the requests, by their places."""
        columns = {item.name: getattr(self, item.name)[rows] for item in fields(self)}
        return ServedRequests(**columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastWatermarks:
    """Watermarks that a store was published with, by which past requests were served."""

    watermarks: NDArray[np.int64]
    """Ascending; shape (watermarks,)."""
    cadence: Cadence | None
    """The grid that the last run cut the store at."""

    @staticmethod
    def of(manifest: Manifest) -> PastWatermarks:
        """Returns those of a generation's history."""
        run = manifest.run
        grid = None if run.cadence_ms is None else Cadence(run.cadence_ms, run.cadence_offset_ms)
        return PastWatermarks(
            watermarks=np.array(manifest.watermarks, dtype=np.int64), cadence=grid
        )

    def check(self, config: BackfillConfig, request_ts: NDArray[np.int64]) -> None:
        """Checks that the store has what served some requests.

        Args:
            config: The run.
            request_ts: Times of the requests, the latest plausible one and the latest among them.

        Raises:
            UsageError: The store does not reach the requests, or was cut at other watermarks.
        """
        stored = self.watermarks
        published_ts = request_ts - config.publish_delay_ms
        newest = np.searchsorted(stored, published_ts, side="right") - 1
        if config.cadence is not None:
            _check_cut(config.cadence, stored[: int(newest.max(initial=-1)) + 1])
        cadence = config.cadence or self.cadence
        plausible = published_ts[request_ts < PLAUSIBLE_UNTIL_TS]
        if cadence is not None and len(plausible):
            wanted = cadence.at_or_before(int(plausible.max()))
            if wanted > stored[-1]:
                raise UsageError(
                    f"The last requests were served from watermark {wanted}, and the store only "
                    f"reaches {stored[-1]}; compact up to --watermark {wanted} first."
                )

    def serve(
        self,
        config: BackfillConfig,
        user_ids: NDArray[np.int64],
        request_ts: NDArray[np.int64],
    ) -> ServedRequests:
        """Finds the generation and the history of each request.

        Args:
            config: The run.
            user_ids: Keys of the requests' users; int64, shape (requests,).
            request_ts: Times of the requests, ms; shape (requests,).
        """
        stored = self.watermarks
        newest = np.searchsorted(stored, request_ts - config.publish_delay_ms, side="right") - 1
        before_first = newest < 0
        start_ts = np.zeros_like(request_ts)
        if config.lookback_ms is not None:
            start_ts = request_ts - config.lookback_ms
        end_ts = np.where(before_first, start_ts, stored[newest])
        return ServedRequests(
            user_ids=user_ids,
            request_ts=request_ts,
            # A lookback shorter than the generation is old leaves nothing of it: an empty window.
            start_ts=np.minimum(start_ts, end_ts),
            end_ts=end_ts,
            mutable_from_ts=np.where(before_first, NEVER_TS, stored[newest]),
        )


def read_requests(
    config: BackfillConfig, files: Sequence[DataFile], generation: Generation, times: TimeReader
) -> ServedRequests:
    """Reads the requests of one run.

    Raises:
        InputError: A file lacks a column, or has one that backfill writes.
        UsageError: The store does not reach the requests, or was cut at other watermarks.
    """
    users_read, times_read = [], []
    for path in files:
        with open_parquet(path) as file:
            check_request_columns(path, file.schema_arrow.names)
            table = file.read(["user_id", "request_ts"])
        users_read.append(_keys(generation, path, table.column("user_id")))
        read = times.read(path, table.column("request_ts"), "request_ts")
        times_read.append(read.ms.to_numpy())
        times.finish(path)
    past = PastWatermarks.of(generation.manifest)
    request_ts = np.concatenate(times_read)
    past.check(config, request_ts)
    return past.serve(config, np.concatenate(users_read), request_ts)


def check_request_columns(path: DataFile, names: Sequence[str]) -> None:
    """Checks the columns of a file of requests.

    Raises:
        InputError: It lacks one, or has one that backfill writes.
    """
    for required in ("user_id", "request_ts"):
        if required not in names:
            raise InputError(f"{path} has no column {required}; every request needs one.")
    for reserved in ("uih", "mutable"):
        if reserved in names:
            raise InputError(
                f"{path} already has a column {reserved}, which backfill writes; rename it."
            )


def _keys(generation: Generation, path: DataFile, column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns the keys of users; another user's key is never that of a text that has none."""
    kind = generation.schema.user_ids
    if not is_text_kind(kind):
        return UserIdReader(kind).keys(path, column)
    return text_user_keys(generation, user_column(path, column, kind).combine_chunks())


def text_user_keys(generation: Generation, texts: pa.Array) -> NDArray[np.int64]:
    """Returns the keys of users of requests, by their texts: see `look_up_keys`."""
    users = texts.dictionary_encode()
    keys = look_up_keys(generation, users.dictionary.to_pylist())
    owners: NDArray[np.int64] = keys[users.indices.to_numpy()]
    return owners


def _check_cut(cadence: Cadence, cut: NDArray[np.int64]) -> None:
    """Refuses watermarks that are not every point of a grid; the last may lie off it."""
    if not len(cut):
        return
    first, last = int(cut[0]), int(cut[-1])
    begin = cadence.at_or_before(first - 1) + cadence.length_ms
    count = (cadence.at_or_before(last) - begin) // cadence.length_ms + 1
    # Counted first: a cadence of a millisecond would fill the memory.
    on_grid = cut[: -1 if cadence.at_or_before(last) != last else None]
    if count != len(on_grid) or (on_grid != begin + cadence.length_ms * np.arange(count)).any():
        raise UsageError(
            f"The store was not cut at every multiple of {cadence.length_ms} ms (and an offset of "
            f"{cadence.offset_ms} ms) from {first} to {last}; leave --cadence out to take the "
            f"store's watermarks as they are, or give the --cadence that compact was given and its "
            f"--cadence-offset."
        )
