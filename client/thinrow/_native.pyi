# Loops over every event, in native code, without the interpreter's lock. Arrays are contiguous.
# They raise ValueError for arrays that do not fit together, IndexError for what is out of bounds.

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Run:
    def __init__(
        self,
        data: NDArray[np.uint8],
        widths: NDArray[np.uint8],
        bases: NDArray[np.int64],
        counts: NDArray[np.int64],
        dictionary: NDArray[np.int64] | None = None,
    ) -> None: ...

def write(
    jobs: Sequence[
        tuple[
            Sequence[Run],
            NDArray[np.int64],  # of each view the run, its start, its length, its place
            NDArray[np.int64],
            NDArray[np.int64],
            NDArray[np.int64],
            int,  # words per event
            int,  # what they are read as
            int,  # what they are written as
            NDArray[np.uint8],
        ]
    ],
    threads: int,
) -> int: ...
def count_fields(message: bytes, path: list[int], /) -> int: ...
def present_counts(bits: NDArray[np.uint8], lengths: NDArray[np.int64], /) -> NDArray[np.int64]: ...
def gather(
    buffer: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], /
) -> bytes: ...

# What follows reads the store, for the server. Plan and ValueCache raise StoreCorruptError for
# what contradicts itself.

class Trait:
    def __init__(
        self,
        name: str,
        number: int,
        kind: int,
        size: int,
        nullable: bool,
        default_word: int | None,
        default_text: str | None,
        group: int,
        /,
    ) -> None: ...

class Plan:
    def __init__(
        self,
        user_ids: NDArray[np.int64],
        start_ts: NDArray[np.int64],
        end_ts: NDArray[np.int64],
        max_lengths: NDArray[np.int64],
        digests: NDArray[np.uint64],
        request_ts: NDArray[np.int64],
        mutable_lengths: NDArray[np.int64],
        watermarks: NDArray[np.int64],
        sequence_length: int,
        head: bool,
        record_digests: bool,
        /,
    ) -> None: ...
    def directory_keys(self) -> bytes: ...
    def choose(
        self, directories: list[bytes | None], groups: Sequence[tuple[int, bool, bool, int]], /
    ) -> None: ...
    def stripe_keys(self) -> bytes: ...
    def take(self, stripes: list[bytes | None], /) -> int: ...
    def resolve(
        self,
        key_traits: Sequence[Trait],
        text_hash: Callable[[bytes], int],
        memory: DigestMemory,
        /,
    ) -> None: ...
    def selection(
        self,
    ) -> tuple[
        NDArray[np.uint8],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.uint64],
    ]: ...
    def answer(
        self,
        traits: Sequence[Trait],
        generation: int,
        watermark_ts: int,
        bytes_max: int,
        cursor: int | None,
        elapsed_us: int,
        /,
    ) -> tuple[bytes, int]: ...
    @property
    def events_at_most(self) -> int: ...
    @property
    def stripe_bytes_at_most(self) -> int: ...

class RecordFormat:
    def __init__(
        self,
        number: int,
        record_bytes: int,
        columns: Sequence[tuple[str, int, int, bool, int, int, int]],
        /,
    ) -> None: ...
    def events(self, arrival_ts: Sequence[int], records: list[bytes], /) -> bytes | None: ...

def record_order(records: list[bytes], /) -> list[int]: ...
def stripe_memory_bytes(stripes: list[bytes | None], /) -> int: ...

class DigestMemory:
    def __init__(self, sums_max: int, /) -> None: ...

class ValueCache:
    def __init__(self, bytes_max: int, /) -> None: ...
    def look_up(self, keys: bytes, /) -> tuple[list[bytes | None], list[int]]: ...
    def add(self, keys: bytes, values: Sequence[bytes | None], /) -> None: ...

class OneUser:
    def __init__(
        self,
        groups: Sequence[tuple[int, bool, bool, int]],
        key_traits: list[Trait],
        traits: list[Trait],
        sequence_length: int,
        head: bool,
        watermarks: list[int],
        generation: int,
        event_bytes: int,
        /,
    ) -> None: ...
    def answer(
        self,
        cache: ValueCache,
        memory: DigestMemory,
        text_hash: Callable[[bytes], int],
        user_id: int,
        start_ts: int,
        end_ts: int,
        max_length: int,
        request_ts: int,
        mutable_length: int,
        mutable: bytes,
        work_bytes_max: int,
        response_bytes_max: int,
        /,
    ) -> tuple[bytes, int] | None: ...

# Encoded answers, for the client: their fields in the order of thinrow.core.wire.response.Response,
# and of its columns. They raise ValueError for what is no such message.

def varints(numbers: NDArray[np.int64], /) -> bytes: ...
def read_response(message: bytes, /) -> tuple[Any, ...]: ...
def read_stream_response(message: bytes, /) -> tuple[Any, ...]: ...
