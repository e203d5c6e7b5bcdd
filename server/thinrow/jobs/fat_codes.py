"""Codes of the values that fat rows have, to be compared with those of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.core.codes import ABSENT_CODE
from thinrow.core.files.arrow import one_array
from thinrow.core.files.trait_arrays import trait_array
from thinrow.core.traits import TraitForm, TraitType

if TYPE_CHECKING:
    from thinrow.client import Client
    from thinrow.core.files.paths import AnyFile

__all__ = ["fat_codes"]


def fat_codes(
    client: Client, path: AnyFile, name: str, values: pa.Array, coded: TraitType
) -> pa.Array:
    """Returns values as the store's vocabulary codes them: 0 where absent, 1 where unknown.

    Integers for a trait of texts are codes already, as `thinrow materialize` writes them.

    Raises:
        InputError: A value is of another type than the trait's.
    """
    if coded is TraitType.STRING and pa.types.is_integer(values.type):
        return values.fill_null(ABSENT_CODE)
    column = trait_array(path, name, pa.chunked_array([values]), TraitForm(type=coded))
    encoded = one_array(column).dictionary_encode()
    codes = pa.array(client.codes(name, encoded.dictionary.to_pylist()), pa.int32())
    return codes.take(encoded.indices).fill_null(ABSENT_CODE)
