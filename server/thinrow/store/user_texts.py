"""Texts that name users, where ids are UUIDs or strings: their keys, and how a store holds them.

The key of a text is XXH3 (64 bits, seed 0) of its UTF-8. Each user's text lies beside the user's
history and is compared wherever a text is looked up, so that two users never share a history.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash
from thinrow.core.ids import IdKind, canonical_text
from thinrow.core.shards import shard_of
from thinrow.errors import InputError, StoreError
from thinrow.schema import DIRECTORY_GROUP, USER_GROUP
from thinrow.store.keys import pack_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.store.generation import Generation

__all__ = [
    "UserTexts",
    "check_texts",
    "collision",
    "from_stored_text",
    "known_texts",
    "look_up_keys",
    "text_hash",
    "text_keys",
    "to_stored_text",
    "unique_texts",
]

STAND_INS_MAX = 64
"""Keys that are tried for a text whose own key another user has."""


def text_hash(text: bytes, seed: int = 0) -> int:
    """Returns the hash of a text, unsigned, 64 bits."""
    return xxhash.xxh3_64_intdigest(text, seed)


def text_keys(texts: Iterable[bytes], count: int) -> NDArray[np.int64]:
    """Returns the key of each text in UTF-8; int64, shape (count,)."""
    return np.fromiter(map(text_hash, texts), np.uint64, count).view(np.int64)


def to_stored_text(text: str, kind: IdKind) -> bytes:
    """Returns a text as a store holds it: a UUID as 16 bytes."""
    return bytes.fromhex(text.replace("-", "")) if kind == "uuid" else text.encode()


def from_stored_text(stored: bytes, kind: IdKind) -> str:
    """Returns the text that a store holds."""
    return str(uuid.UUID(bytes=stored)) if kind == "uuid" else stored.decode()


class UserTexts(NamedTuple):
    """Users, each once, ascending by key as unsigned numbers."""

    keys: NDArray[np.int64]
    texts: list[str]


def unique_texts(users: pa.Table) -> UserTexts:
    """Brings together the users of some events.

    Args:
        users: Columns ``user_id`` (the key) and ``text``, in any order, repeatedly.

    Raises:
        InputError: Two texts have one key.
    """
    import polars as pl  # which takes long to load, and servers never need

    frame = pl.from_arrow(users)
    assert isinstance(frame, pl.DataFrame)
    frame = frame.unique()
    order = np.argsort(frame["user_id"].to_numpy().view(np.uint64), kind="stable")
    frame = frame[order]
    keys, texts = frame["user_id"].to_numpy(), frame["text"].to_list()
    same = np.flatnonzero(keys[1:] == keys[:-1])
    if len(same):
        raise collision(texts[same[0]], texts[same[0] + 1])
    return UserTexts(keys, texts)


def check_texts(users: UserTexts, stored: Sequence[bytes | None], kind: IdKind) -> None:
    """Compares users with those whom a store has under their keys.

    Raises:
        InputError: Another text has the key of one of them.
    """
    for text, other in zip(users.texts, stored, strict=True):
        if other is not None and other != to_stored_text(text, kind):
            raise collision(from_stored_text(other, kind), text)


def collision(*texts: str) -> InputError:
    """Returns the error of two users whose texts have one key."""
    first, second = sorted(texts)
    return InputError(
        f"The users {first!r} and {second!r} have the same key of 64 bits, so that one store "
        f"cannot hold both, and nothing was written; give one of them another id."
    )


def look_up_keys(
    generation: Generation, texts: Sequence[str], *, may_lack: bool = False
) -> NDArray[np.int64]:
    """Returns the key by which each user is looked up in a generation.

    It is a key that no user has, where the text's own key belongs to a user of another text. A text
    whose own key's shard is not open here has that key, if `may_lack` allows it.

    Args:
        generation: The generation to read.
        texts: Users.
        may_lack: Some of their shards may not be open here.

    Raises:
        InputError: A text is no id of the store's kind.
        ShardMissingError: A shard is not open here.
    """
    kind = generation.schema.user_ids
    places: dict[str, int] = {}
    users = [places.setdefault(text, len(places)) for text in texts]
    if not places:
        return np.empty(0, np.int64)
    ids = [canonical_text(text, kind) for text in places]
    keys = text_keys((text.encode() for text in ids), len(ids))
    compared = np.arange(len(keys))
    if may_lack:
        compared = np.flatnonzero(~generation.is_elsewhere(keys))
    for place, found in zip(
        compared.tolist(), known_texts(generation, keys[compared]), strict=True
    ):
        if found is not None and found != to_stored_text(ids[place], kind):
            keys[place] = _stand_in(generation, ids[place])
    return keys[np.array(users, np.int64)]


def known_texts(generation: Generation, keys: NDArray[np.int64]) -> list[bytes | None]:
    """Returns the text of each key's user, as stored; None where there is none."""
    return generation.values(b"".join(pack_keys(keys, USER_GROUP, 0)))


def _stand_in(generation: Generation, text: str) -> int:
    """Returns a key that no user has, of a shard that is open here."""
    tried = 0
    for seed in range(1, STAND_INS_MAX * generation.shard_count + 1):
        key = np.array([text_hash(text.encode(), seed)], np.uint64).view(np.int64)
        if int(shard_of(key, generation.shard_count)[0]) not in generation.shards:
            continue
        tried += 1
        if tried > STAND_INS_MAX:
            break
        pair = pack_keys(key, DIRECTORY_GROUP, 0) + pack_keys(key, USER_GROUP, 0)
        if generation.values(b"".join(pair)) == [None, None]:
            return int(key[0])
    raise StoreError(f"The store has users under every key that was tried for {text!r}.")
