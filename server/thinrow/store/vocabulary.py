"""Vocabularies: the values of a trait, and the codes that a store has given them.

A vocabulary is only ever appended to: value i has the code FIRST_CODE + i in each generation that
has it. A generation holds it as one Parquet file for each trait, which it shares with the
generation before if a run brought no value. Where a rollback sets generations aside, the store
keeps their vocabularies, and later generations continue them: a code has one meaning in all.
"""

from __future__ import annotations

import os
import secrets
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from thinrow.core.codes import ABSENT_CODE, FIRST_CODE, UNKNOWN_CODE
from thinrow.core.files.arrow import one_array, trait_type
from thinrow.core.files.permissions import file_mode, make_folder
from thinrow.errors import StoreCorruptError
from thinrow.store.layout import NEW, VOCABULARIES
from thinrow.store.shard import fsync, link_or_copy
from thinrow.store.stored_files import StoredFile, file_summary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.schema import Trait

__all__ = ["Vocabulary", "keep_vocabularies", "kept_vocabulary", "vocabulary_name"]


class Vocabulary:
    """The values of one trait, in the order of their codes. Thread-safe.

    Args:
        values: Distinct values without nulls, as the trait has them outside of stores.
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = values

    @staticmethod
    def empty(trait: Trait) -> Vocabulary:
        """Returns the vocabulary of a trait that has no values yet."""
        assert trait.coded is not None
        return Vocabulary(pa.array([], trait_type(trait.coded)))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def codes_end(self) -> int:
        """All codes are below, so that it is the number of rows of an embedding."""
        return FIRST_CODE + len(self)

    def extended(self, values: pa.Array) -> Vocabulary:
        """Returns this vocabulary with more values at its end, none of which it has."""
        return Vocabulary(pa.concat_arrays([self.values, values]))

    def starts_with(self, other: Vocabulary) -> bool:
        """Returns True if the codes of another vocabulary mean the same in this one."""
        return bool(self.values.slice(0, len(other)).equals(other.values))

    def codes(self, values: pa.Array) -> NDArray[np.int32]:
        """Returns the code of each value: 0 for nulls, 1 for values that are not there."""
        encoded = values.dictionary_encode()
        places = self.places(encoded.dictionary)
        own = np.where(places < 0, UNKNOWN_CODE, places + FIRST_CODE).astype(np.int32)
        codes = pa.array(own).take(encoded.indices).fill_null(ABSENT_CODE)
        found: NDArray[np.int32] = codes.to_numpy()
        return found

    def places(self, values: pa.Array) -> NDArray[np.int64]:
        """Returns the place of each value, which are distinct and no nulls; -1 for unknown ones."""
        seed, hashes, order = self._index
        found = np.full(len(values), -1, np.int64)
        wanted = _hashes(values, seed)
        pending, at = np.arange(len(values)), np.searchsorted(hashes, wanted)
        while True:
            inside = at < len(hashes)
            inside[inside] = hashes[at[inside]] == wanted[pending[inside]]
            pending, at = pending[inside], at[inside]
            if not len(pending):
                return found
            own = self.values.take(pa.array(order[at]))
            same = pc.equal(own, values.take(pa.array(pending))).to_numpy(zero_copy_only=False)
            found[pending[same]] = order[at[same]]
            # Values that share a hash stand side by side.
            pending, at = pending[~same], at[~same] + 1

    def values_of(self, codes: Sequence[int]) -> list[str | int | None]:
        """Returns the value of each code; None for absent, unknown and other ones."""
        places = np.array(codes, np.int64) - FIRST_CODE
        known = (places >= 0) & (places < len(self))
        taken = self.values.take(pa.array(np.where(known, places, 0), mask=~known))
        found: list[str | int | None] = taken.to_pylist()
        return found

    @property
    def table(self) -> pa.Table:
        """The values and their codes, as files have them."""
        codes = np.arange(FIRST_CODE, self.codes_end, dtype=np.int32)
        return pa.table({"value": self.values, "code": codes})

    def write(self, path: Path) -> StoredFile:
        """Writes the vocabulary to a new file, which is on the disk when this returns."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, file_mode()), "wb") as sink:
            pq.write_table(self.table, sink, compression="zstd", use_dictionary=False)
            sink.flush()
            os.fsync(sink.fileno())
        return file_summary(path)

    @staticmethod
    def read(path: Path, expected: StoredFile | None = None) -> Vocabulary:
        """Reads a file of `write`.

        Args:
            path: The file.
            expected: Its size and checksum; None where they are not known.

        Raises:
            StoreCorruptError: It is missing or altered.
        """
        try:
            if expected is not None and not file_summary(path).has_content_of(expected):
                raise StoreCorruptError(f"{path} is damaged: its checksum differs.")
            # `read_table` would load libraries for data sets of many files.
            with pq.ParquetFile(path) as file:
                table = file.read()
            codes = table.column("code").to_numpy()
            if not np.array_equal(codes, np.arange(FIRST_CODE, FIRST_CODE + len(codes))):
                raise StoreCorruptError(f"{path} is damaged: its codes do not ascend by 1.")
        except (OSError, KeyError, pa.ArrowException) as error:
            raise StoreCorruptError(f"{path} is damaged: {error}.") from error
        return Vocabulary(one_array(table.column("value")))

    @cached_property
    def _index(self) -> tuple[int, NDArray[np.uint64], NDArray[np.int64]]:
        """A seed, the values' hashes in order, and the place of each value in that order."""
        # With an unknown seed no caller can choose values that share a hash.
        seed = secrets.randbits(63)
        hashes = _hashes(self.values, seed)
        order = np.argsort(hashes, kind="stable")
        return seed, hashes[order], order


def _hashes(values: pa.Array, seed: int) -> NDArray[np.uint64]:
    series = pl.Series(pl.from_arrow(values))
    hashes: NDArray[np.uint64] = series.hash(seed).to_numpy()
    return hashes


def vocabulary_name(trait: Trait) -> str:
    """Returns the name of a trait's file; another trait that has its number has another name."""
    assert trait.coded is not None
    return f"{trait.number}-{trait.name}-{trait.coded.label}.parquet"


def kept_vocabulary(store: Path, trait: Trait) -> Vocabulary:
    """Returns the vocabulary that generations which were set aside have; empty without them.

    Raises:
        StoreCorruptError: Its file is damaged.
    """
    path = store / VOCABULARIES / vocabulary_name(trait)
    return Vocabulary.read(path) if path.exists() else Vocabulary.empty(trait)


def keep_vocabularies(store: Path, folder: Path, files: Sequence[StoredFile]) -> None:
    """Keeps the vocabularies of a generation that is set aside, if they are the longest so far."""
    kept = store / VOCABULARIES
    for file in files:
        if not kept.is_dir():
            make_folder(kept)
        path, new = kept / file.name, kept / (file.name + NEW)
        source = folder / VOCABULARIES / file.name
        if path.exists() and pq.read_metadata(path).num_rows >= pq.read_metadata(source).num_rows:
            continue
        new.unlink(missing_ok=True)
        link_or_copy(source, new)
        new.replace(path)
        fsync(kept)
