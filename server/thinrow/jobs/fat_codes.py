"""Codes of the values that fat rows have, to be compared with those of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.core.codes import ABSENT_CODE
from thinrow.core.files.arrow import one_array
from thinrow.core.files.trait_arrays import trait_array
from thinrow.core.traits import TraitForm, TraitType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinrow.client import Client
    from thinrow.core.files.paths import AnyFile

__all__ = ["codes_of", "fat_codes", "with_codes_named"]

CODES = b"thinrow:codes"
"""Metadata of a file of fat rows: the traits that it has codes of, one a line."""


def with_codes_named(fields: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Returns the schema of a file that says which of its traits are codes."""
    coded = [name for name in fields.names if name in {*names}]
    return fields.with_metadata((fields.metadata or {}) | {CODES: "\n".join(coded).encode()})


def codes_of(fields: pa.Schema) -> list[str]:
    """Returns the traits of which a file says that it has codes."""
    named: bytes = (fields.metadata or {}).get(CODES, b"")
    return named.decode(errors="replace").splitlines()


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
