"""The texts of users, where ids are texts, as pairs of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.schema import USER_GROUP
from thinrow.store.keys import pack_keys
from thinrow.store.user_texts import UserTexts, check_texts, to_stored_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind
    from thinrow.store.shard import Shard

__all__ = ["new_pairs", "not_stored", "stored_keys"]


def not_stored(texts: UserTexts, previous: Shard | None, kind: IdKind) -> UserTexts:
    """Returns the users whose texts a shard does not have yet.

    Raises:
        InputError: It has another text under the key of one of the users.
    """
    if previous is None:
        return texts
    stored = previous.get(pack_keys(texts.keys, USER_GROUP, 0))
    check_texts(texts, stored, kind)
    new = np.array([text is None for text in stored], np.bool_)
    return UserTexts(
        texts.keys[new], [text for text, is_new in zip(texts.texts, new, strict=True) if is_new]
    )


def new_pairs(
    user_ids: NDArray[np.int64], new: UserTexts, erased: NDArray[np.int64], kind: IdKind
) -> tuple[list[bytes], list[bytes]]:
    """Returns keys and values of the texts of those among some users who are new and not erased.

    Args:
        user_ids: Users, one at least, ascending as unsigned numbers.
        new: Users whose texts are not stored yet.
        erased: Users to erase.
        kind: The kind of the store's ids.
    """
    keys = new.keys.view(np.uint64)
    first = np.searchsorted(keys, user_ids[0].view(np.uint64), side="left")
    last = np.searchsorted(keys, user_ids[-1].view(np.uint64), side="right")
    chosen = new.keys[first:last]
    staying = np.isin(chosen, user_ids) & ~np.isin(chosen, erased)
    places = (first + np.flatnonzero(staying)).tolist()
    texts = [to_stored_text(new.texts[place], kind) for place in places]
    return pack_keys(chosen[staying], USER_GROUP, 0), texts


def stored_keys(user_ids: NDArray[np.int64], previous: Shard | None) -> list[bytes]:
    """Returns the keys of the texts that a shard has of some users."""
    keys = pack_keys(user_ids, USER_GROUP, 0)
    found = [None] * len(keys) if previous is None else previous.get(keys)
    return [key for key, text in zip(keys, found, strict=True) if text is not None]
