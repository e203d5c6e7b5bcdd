"""Codes of values, as a generation's vocabularies have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.codes import UNKNOWN_CODE, VALUES_PER_REQUEST_MAX
from thinrow.errors import RequestError, UnavailableError
from thinrow.schema import TraitType
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinrow.schema import Trait
    from thinrow.store.generation import Generation

__all__ = ["looked_up"]


def looked_up(
    generation: Generation | None, traits: Iterable[Trait], request: wire.LookUpCodesRequest
) -> wire.LookUpCodesResponse:
    """Returns the codes of a request's values.

    Args:
        generation: The generation whose vocabulary answers; before the first, which is None, no
            value has a code.
        traits: Traits that the request may name.
        request: The request.

    Raises:
        RequestError: The trait has no vocabulary, or values are of another type or too many.
        UnavailableError: The vocabulary ends before the request's least end.
        StoreCorruptError: The vocabulary is damaged.
    """
    trait = next((each for each in traits if each.name == request.trait), None)
    if trait is None or trait.coded is None:
        raise RequestError(
            f"{request.trait!r} is no trait with a vocabulary; DescribeStore shows which are."
        )
    is_text = trait.coded is TraitType.STRING
    if request.integers if is_text else request.strings:
        raise RequestError(
            f"The vocabulary of {trait.name} has {trait.coded.label}; send "
            f"{'strings' if is_text else 'integers'}."
        )
    given = request.strings if is_text else request.integers
    if len(given) > VALUES_PER_REQUEST_MAX:
        raise RequestError(
            f"The request has {len(given):,} values; at most {VALUES_PER_REQUEST_MAX:,} are taken."
        )
    if request.codes_end_min > trait.codes_end:
        raise UnavailableError(
            f"{generation.folder.name if generation else 'No generation'} has codes of "
            f"{trait.name} up to {trait.codes_end}, and the request needs "
            f"{request.codes_end_min}; repeat it, or call another replica."
        )
    if generation is None:
        return wire.LookUpCodesResponse(
            codes_end=trait.codes_end, codes=[UNKNOWN_CODE] * len(given)
        )
    import pyarrow as pa  # which takes long to load, and stores without vocabularies never need

    vocabulary = generation.vocabulary(trait)
    kind = vocabulary.values.type
    if is_text:
        values = pa.array(list(given), kind)
        known = None
    else:
        words = np.array(given, np.int64)
        dtype = trait.coded.value_dtype
        fitted = words.view(np.uint64) if dtype == np.uint64 else words
        bounds = np.iinfo(dtype)
        known = (fitted >= bounds.min) & (fitted <= bounds.max)
        values = pa.array(np.where(known, fitted, 0).astype(dtype), kind, mask=~known)
    codes = vocabulary.codes(values)
    if known is not None:
        codes = np.where(known, codes, np.int32(UNKNOWN_CODE))
    return wire.LookUpCodesResponse(
        generation=generation.number,
        codes_end=trait.codes_end,
        codes=codes.tolist(),
    )
