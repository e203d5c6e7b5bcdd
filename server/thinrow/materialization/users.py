"""Users of requests, by the keys of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.ids import (
    from_wire_kind,
    is_text_kind,
    parse_user_id,
    to_wire_kind,
)
from thinrow.errors import InputError, RequestError
from thinrow.materialization.request import LocalRequest, MaterializeRequest
from thinrow.store.user_texts import look_up_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind
    from thinrow.store.generation import Generation
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["inspected_key", "mark_elsewhere", "with_keys"]


def with_keys(
    generation: Generation, request: MaterializeRequest | LocalRequest
) -> MaterializeRequest | LocalRequest:
    """Returns a request whose users are the store's keys.

    Raises:
        RequestError: Its users are of another kind than the store's.
    """
    kind = generation.schema.user_ids
    texts = request.user_texts
    if is_text_kind(kind):
        if not texts and request.counts[0]:
            raise _other_kind(kind, "integers")
        if request.counts[0]:
            raise RequestError("A request names users by user_ids or by user_texts, not both.")
        try:
            keys = look_up_keys(generation, texts, may_lack=request.map_version > 0)
        except InputError as error:
            raise RequestError(str(error)) from error
        if isinstance(request, LocalRequest):
            return replace(request, user_ids=keys)
        request.set_user_ids(keys)
        return request
    if texts:
        raise _other_kind(kind, "texts")
    named = request.user_id_kind
    if named not in (0, to_wire_kind("int64"), to_wire_kind(kind)):
        raise _other_kind(kind, _kind_text(named))
    if kind == "uint64" and named != to_wire_kind(kind) and (request.user_ids < 0).any():
        raise _other_kind(kind, "negative integers")
    return request


def mark_elsewhere(generation: Generation, request: MaterializeRequest | LocalRequest) -> None:
    """Marks the examples of users whose shards are not open here, if the client knows the map.

    Raises:
        ShardMissingError: There are some, and the client knows no map.
    """
    if not request.map_version or isinstance(request, LocalRequest):
        generation.check_open(request.user_ids)
        return
    is_elsewhere = generation.is_elsewhere(request.user_ids)
    if is_elsewhere.any():
        request.set_elsewhere(is_elsewhere)


def _kind_text(number: int) -> str:
    try:
        return from_wire_kind(number)
    except InputError:
        return f"kind {number}"


def _other_kind(kind: IdKind, given: str) -> RequestError:
    return RequestError(
        f"The users of this store are {kind}, and the request names them as {given}; request "
        f"users of this store."
    )


def inspected_key(generation: Generation, request: wire.InspectRequest) -> NDArray[np.int64]:
    """Returns the key of the user whom a request of Inspect names; shape (1,).

    Raises:
        RequestError: The user is of another kind than the store's.
    """
    kind = generation.schema.user_ids
    if not request.HasField("user"):
        if is_text_kind(kind):
            raise _other_kind(kind, "an integer")
        if kind == "uint64" and request.user_id < 0:
            raise _other_kind(kind, "a negative integer")
        return np.array([request.user_id], np.int64)
    try:
        user = parse_user_id(request.user, kind)
        if isinstance(user, str):
            return look_up_keys(generation, [user])
        return np.array([user], kind).view(np.int64)
    except InputError as error:
        raise RequestError(str(error)) from error
