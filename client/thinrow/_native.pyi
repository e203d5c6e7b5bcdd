"""
Loops over every event and example, in native code, without the interpreter's lock.

Functions raise ValueError for arrays that do not fit together, and IndexError for positions out of bounds.
"""

from collections.abc import Callable, Sequence
from typing import overload

import numpy
from numpy.typing import NDArray

def scan_events(
    messages: list[bytes], traits: Sequence[tuple[str, int, bool]], events_max: int
) -> tuple[
    NDArray[numpy.int64],
    list[str],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    list[str],
    list[
        tuple[
            NDArray[numpy.int64],
            NDArray[numpy.int64],
            NDArray[numpy.int64],
            NDArray[numpy.float64],
            list[str],
        ]
    ],
]:
    """
    Read encoded UserEvents into columns.

    Args:
        messages: The messages.
        traits: Of each trait its name, the field of its elements (0 integer, 1 number, 2 text), and
            True for a vector or a list.
        events_max: Most events of one message.

    Returns:
        User ids as integers, and as texts; the number of events of each message; event_ts; the rows of
        events with ids, the ids as integers, and as texts; and for each trait the rows of the events
        that have it, the lengths of vectors and lists, and integers, numbers or texts.

    Raises:
        ValueError: A message is malformed, or has a value of another type than its trait's.
    """

class Run:
    """One column of an answer, in narrow blocks."""

    def __init__(
        self,
        data: NDArray[numpy.uint8],
        widths: NDArray[numpy.uint8],
        bases: NDArray[numpy.int64],
        counts: NDArray[numpy.int64],
        dictionary: NDArray[numpy.int64] | None = None,
    ) -> None:
        """
        Check the blocks; the arrays are not copied.

        Args:
            data: Offsets of all blocks of width 1, in block order, then of width 2, 4 and 8.
            widths: Bytes per offset of each block: 0, 1, 2, 4 or 8.
            bases: Value to which the offsets of each block are added, modulo 2^64.
            counts: Words of each block.
            dictionary: Values that the words index; None if the words are the values.
        """

def write(
    jobs: Sequence[
        tuple[
            Sequence[Run],
            NDArray[numpy.int64],
            NDArray[numpy.int64],
            NDArray[numpy.int64],
            NDArray[numpy.int64],
            int,
            int,
            int,
            NDArray,
        ]
    ],
    threads: int,
) -> int:
    """
    Write every event of the jobs' views, on several threads if there is enough work.

    Args:
        jobs: For each job its runs; the run, start, length and place of each view, in events; words per
            event; the integer types (0 to 7: i8, i16, i32, i64, u8, u16, u32, u64) that words are read
            as and written as (0 to 3); the output.
        threads: Limit on the threads.

    Returns:
        Number of the first job with a word that exceeds its dictionary, or the number of jobs.
    """

def present_counts(
    bits: NDArray[numpy.uint8], lengths: NDArray[numpy.int64]
) -> NDArray[numpy.int64]:
    """
    Count the events of each block that have a trait.

    Args:
        bits: Presence bits of all events, lowest bit first.
        lengths: Events of each block.
    """

def arrived_outside(
    arrival_ts: NDArray[numpy.int64],
    starts: NDArray[numpy.int64],
    lengths: NDArray[numpy.int64],
    first_ts: NDArray[numpy.int64],
    end_ts: NDArray[numpy.int64],
) -> NDArray[numpy.bool_]:
    """
    Find the examples with an event that arrived outside [first_ts, end_ts).

    Args:
        arrival_ts: Arrival of every event.
        starts: Place of each example's first event.
        lengths: Events of each example.
        first_ts: First arrival that each example may have, inclusive.
        end_ts: Last one, exclusive.
    """

class RecordFormat:
    """The layout of the records of one schema."""

    def __init__(
        self,
        number: int,
        record_bytes: int,
        columns: Sequence[tuple[str, int, int, bool, int, int, int, int]],
    ) -> None:
        """
        Check the layout.

        Args:
            number: Number of the schema, with which its records begin.
            record_bytes: Bytes of a record without its texts and lists.
            columns: Name, thinrow.v1.TraitType, words per event, nullable, bytes per word, the positions of
                its words and of its presence byte, and the limit on the elements of a list, of each column.
        """

    def events(self, arrival_ts: Sequence[int], records: list[bytes]) -> bytes | None:
        """
        Return the records as an encoded MutableEvents.

        Args:
            arrival_ts: Arrival of each record.
            records: At most as many as one response holds.

        Returns:
            None if a record has another format.

        Raises:
            StoreCorruptError: A record is cut off.
        """

    def topic_events(self, records: list[bytes]) -> list[bytes]:
        """
        Return each record as an encoded field ``events`` of a UserEvents.

        Args:
            records: Records of this format.

        Raises:
            ValueError: A record has another format.
            StoreCorruptError: A record is cut off.
        """

def record_order(records: list[bytes], event_id: int) -> list[int]:
    """
    Return the order of records by event_ts, presence of event_id, and event_id.

    Args:
        records: Records of one tier, of any of its schemas.
        event_id: thinrow.v1.TraitType of the ids.

    Returns:
        Positions of the records; empty if two records are equal in all three.

    Raises:
        StoreCorruptError: A record is cut off.
    """

class MaterializeRequest:
    """A decoded MaterializeRequest."""

    def __init__(self, message: bytes, examples_max: int) -> None:
        """
        Decode a message.

        Args:
            examples_max: Elements of each column that are kept; those beyond are counted.

        Raises:
            ValueError: The bytes are no such message.
        """

    @property
    def tenant(self) -> str:
        """Name of the tenant; empty for none."""

    @property
    def projection(self) -> bytes | None:
        """The encoded Projection, not checked; None if the request has none."""

    @property
    def counts(self) -> list[int]:
        """
        Elements of user_ids, start_ts, end_ts, max_lengths, digests, request_ts,
        mutable_lengths and user_texts.
        """

    @property
    def user_id_kind(self) -> int:
        """Number of the kind of user ids that the request names; 0 for none."""

    @property
    def user_texts(self) -> list[str]:
        """Users given as text."""

    @property
    def user_ids(self) -> NDArray[numpy.int64]:
        """Users given as ids; int64."""

    @property
    def map_version(self) -> int:
        """Version of the cluster's map that the client knows; 0 for none."""

    def set_elsewhere(self, is_elsewhere: NDArray[numpy.bool_]) -> None:
        """
        Mark the examples whose users' shards are not open here.

        Args:
            is_elsewhere: bool, shape (examples,).

        Raises:
            ValueError: The marks are not as many as the users.
        """

    def set_user_ids(self, user_ids: NDArray[numpy.int64]) -> None:
        """
        Give each example the key of its user.

        Args:
            user_ids: int64, shape (examples,).

        Raises:
            ValueError: They are not as many as the users.
        """

class MaterializeStreamRequest:
    """A decoded MaterializeStreamRequest."""

    def __init__(self, message: bytes, examples_max: int) -> None:
        """
        Decode a message.

        Args:
            examples_max: Elements of each column that are kept; those beyond are counted.

        Raises:
            ValueError: The bytes are no such message.
        """

    @property
    def cursor(self) -> int:
        """Chosen by the client."""

    @property
    def has_request(self) -> bool:
        """False without a batch."""

    @property
    def request(self) -> MaterializeRequest:
        """The batch; empty without one."""

    @property
    def traceparent(self) -> str:
        """The caller's span, as W3C Trace Context writes it."""

def varints(numbers: NDArray[numpy.int64]) -> bytes:
    """Return the numbers as the content of a packed field."""

def count_fields(message: bytes, path: Sequence[int]) -> int:
    """
    Count the fields that a path of field numbers leads to, from a message into nested ones.

    Raises:
        ValueError: The bytes are no protobuf message, or the path is empty.
    """

def read_response(
    message: bytes,
) -> tuple[
    int,
    int,
    int,
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    list[
        tuple[
            str,
            int,
            int,
            bool,
            NDArray[numpy.int64],
            NDArray[numpy.uint8],
            NDArray[numpy.uint8],
            NDArray[numpy.uint8],
            NDArray[numpy.int64],
            list[str],
            int | None,
            str | None,
            int,
            NDArray[numpy.uint8],
            bool,
        ]
    ],
    int,
    int,
    int,
    int,
]:
    """
    Read an encoded MaterializeResponse.

    Returns:
        The fields of thinrow.core.wire.response.Response.

    Raises:
        ValueError: The bytes are no such message.
        AnswerTooLargeError: Its texts would take many times the bytes of the message.
    """

def read_stream_response(
    message: bytes,
) -> tuple[
    int,
    int,
    int,
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    list[
        tuple[
            str,
            int,
            int,
            bool,
            NDArray[numpy.int64],
            NDArray[numpy.uint8],
            NDArray[numpy.uint8],
            NDArray[numpy.uint8],
            NDArray[numpy.int64],
            list[str],
            int | None,
            str | None,
            int,
            NDArray[numpy.uint8],
            bool,
        ]
    ],
    int,
    int,
    int,
    int,
]:
    """
    Read an encoded MaterializeStreamResponse.

    Returns:
        The fields of thinrow.core.wire.response.Response.

    Raises:
        ValueError: The bytes are no such message.
        AnswerTooLargeError: Its texts would take many times the bytes of the message.
    """

class RowIndex:
    """
    Rows of a table by their key.

    Not safe for calls of several threads at once.
    """

    def __init__(self, words: NDArray[numpy.uint64], size: int) -> None:
        """
        Index the rows.

        Args:
            words: Keys, one after the other; they must not change.
            size: Words of each key.
        """

    def firsts(self) -> NDArray[numpy.int64]:
        """Return the first row with the key of each row; int64, shape (rows,)."""

    def find(self, words: NDArray[numpy.uint64]) -> NDArray[numpy.int64]:
        """
        Return the first row with each of some keys; int64, -1 for none.

        Args:
            words: Keys, one after the other.
        """

class Trait:
    """A trait of the schema."""

    def __init__(
        self,
        name: str,
        number: int,
        type: int,
        size: int,
        nullable: bool,
        default_word: int | None,
        default_text: str | None,
        group: int,
        length_max: int = 0,
        filled: bool = False,
        codes_end: int = 0,
    ) -> None:
        """
        Check the trait.

        Args:
            type: A value of thinrow.v1.TraitType.
            size: Words per event.
            default_word: Default of a trait that is no string.
            default_text: Default of a string, in UTF-8.
            group: Number of the stored group that has the trait.
            length_max: Limit on the elements of a list; 0 if the trait is no list.
            filled: True if some values came after the events were served.
            codes_end: End of the codes of its vocabulary; 0 if it has none.
        """

class Plan:
    """
    The resolution of a batch of pointers, in steps.

    Methods raise StoreCorruptError if directories and stripes contradict themselves or each other.
    """

    @overload
    def __init__(
        self,
        user_ids: NDArray[numpy.int64],
        start_ts: NDArray[numpy.int64],
        end_ts: NDArray[numpy.int64],
        max_lengths: NDArray[numpy.int64],
        digests: NDArray[numpy.uint64],
        request_ts: NDArray[numpy.int64],
        mutable_lengths: NDArray[numpy.int64],
        watermarks: NDArray[numpy.int64],
        sequence_length: int,
        head: bool,
        record_digests: bool,
    ) -> None:
        """
        Decide each example as far as possible without reading.

        Args:
            digests: Recorded digests; 0 where none was recorded.
            watermarks: Watermarks of the generation, ascending.
            sequence_length: Most events of immutable and mutable part; 0 for no limit.
            head: Keep the oldest events instead of the newest.
            record_digests: Compute the digest of every example, not only of those with a recorded one.
        """

    @overload
    def __init__(
        self,
        request: MaterializeRequest,
        watermarks: NDArray[numpy.int64],
        sequence_length: int,
        head: bool,
        record_digests: bool,
    ) -> None:
        """
        Decide each example of a decoded request, with its columns filled in.

        Raises:
            ValueError: Columns differ in length, or there are too many examples.
        """

    def directory_keys(self) -> bytes:
        """Return the keys of the users' directories, concatenated."""

    def choose_stripes(
        self, directories: list[bytes | None], groups: Sequence[tuple[int, bool, bool, int]]
    ) -> None:
        """
        Choose the stripes to read.

        Args:
            directories: Values of `directory_keys`.
            groups: Number of each stored group, whether its stripes are wanted, whether the digest has
                traits of it, and the bytes of one of its events.
        """

    def stripe_keys(self) -> bytes:
        """Return the keys of the chosen stripes, concatenated."""

    def set_stripes(self, stripes: list[bytes | None]) -> int:
        """
        Set the stripes that were read.

        Args:
            stripes: Values of `stripe_keys`.

        Returns:
            Their bytes.
        """

    def resolve(
        self, key_traits: Sequence[Trait], text_hash: Callable[[bytes], int], memory: DigestMemory
    ) -> None:
        """
        Find, check and truncate the window of every example.

        Args:
            key_traits: Traits of the digest.
            text_hash: Returns the 64-bit hash of a text.
            memory: Remembers digest sums across batches.
        """

    def selection(
        self,
    ) -> tuple[
        NDArray[numpy.uint8],
        NDArray[numpy.int64],
        NDArray[numpy.int64],
        NDArray[numpy.int64],
        NDArray[numpy.uint64],
    ]:
        """
        Return the statuses, first ordinals, counts, available counts and digests.
        """

    def answer(
        self,
        traits: Sequence[Trait],
        generation: int,
        watermark_ts: int,
        bytes_max: int,
        cursor: int | None,
        elapsed_us: int,
        map_version: int = 0,
    ) -> tuple[bytes, int]:
        """
        Encode the selected events as a MaterializeResponse.

        Args:
            traits: Traits of the columns, in order.
            bytes_max: Limit on the bytes of the message.
            cursor: If given, the message is wrapped in a MaterializeStreamResponse.
            elapsed_us: Time already spent, which `server_us` includes.
            map_version: Version of the cluster's map; 0 outside a cluster.

        Returns:
            The message, and the events of its examples.

        Raises:
            AnswerTooLargeError: The message would have more than `bytes_max` bytes.
        """

    @property
    def events_at_most(self) -> int:
        """Bound on the events of the answer, known before stripes are read."""

    @property
    def stripe_bytes_at_most(self) -> int:
        """
        Bound on the bytes of the stripes without texts, known before they are read.
        """

def stripe_memory_bytes(stripes: list[bytes | None]) -> int:
    """
    Return the memory that stripes take with their dictionaries' entries.

    Raises:
        StoreCorruptError: A stripe contradicts itself.
    """

class DigestMemory:
    """Recently computed digest sums. Thread-safe."""

    def __init__(self, sums_max: int) -> None: ...

class ValueCache:
    """Recently read values of a store's keys."""

    def __init__(self, bytes_max: int) -> None: ...
    def look_up(self, keys: bytes) -> tuple[list[bytes | None], list[int]]:
        """
        Look up concatenated keys.

        Returns:
            A value for each key, None for a key without a value; and the positions of the keys that are not
            cached, whose values are None as well.
        """

    def add(self, keys: bytes, values: list[bytes | None]) -> None:
        """Add the values of concatenated keys; None for a key without a value."""

def decode_stripes(
    stripes: list[bytes | None], counts: NDArray[numpy.int64], trait: Trait
) -> tuple[
    NDArray[numpy.uint64], NDArray[numpy.uint8], bytes, NDArray[numpy.int64], NDArray[numpy.int64]
]:
    """
    Decode one trait of whole stripes.

    Args:
        stripes: Stripes of the trait's group.
        counts: Events of each stripe, as its directory names them.

    Returns:
        The words of the events that have the trait (numbers of texts for a string); for each event
        whether it has the trait, empty if the trait is not nullable; the texts, one after the other;
        their ends, after a 0; the length of each event's list, empty if the trait is no list.

    Raises:
        StoreCorruptError: A stripe contradicts itself or its count.
    """

class CachedSnapshotPath:
    """Snapshots of cached users, of one projection and generation."""

    def __init__(
        self,
        groups: Sequence[tuple[int, bool, bool, int]],
        key_traits: Sequence[Trait],
        traits: Sequence[Trait],
        sequence_length: int,
        head: bool,
        watermarks: Sequence[int],
        generation: int,
        event_bytes: int,
    ) -> None:
        """
        Resolve the projection.

        Args:
            groups: Groups to read, as for Plan.choose_stripes.
            key_traits: Traits of the digest.
            traits: Traits of the projection.
            sequence_length: Most events of immutable and mutable part; 0 for no limit.
            head: Keep the oldest events instead of the newest.
            watermarks: Watermarks of the generation, ascending.
            generation: Number of the generation.
            event_bytes: Bytes of a decoded event of the projection.
        """

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
    ) -> tuple[bytes, int] | None:
        """
        Answer one request.

        Args:
            mutable: An encoded MutableEvents of `mutable_length` events.
            work_bytes_max: Bytes of stripes and decoded events that the call may hold.

        Returns:
            An encoded SnapshotResponse, and the number of values read. None if a value is not cached or the
            call would hold more than `work_bytes_max`.

        Raises:
            AnswerTooLargeError: The response would have more than `response_bytes_max` bytes.
            StoreCorruptError: A stripe or a directory contradicts itself.
        """
