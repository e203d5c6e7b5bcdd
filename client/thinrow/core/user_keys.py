"""The keys by which shards and parts know users: an integer is its own, a text has a hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.ids import canonical_text, is_text_kind
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind
    from thinrow.core.pointers import Pointers

__all__ = ["check_keys", "key_of", "user_keys"]


def user_keys(pointers: Pointers, kind: IdKind) -> NDArray[np.int64]:
    """Returns the key of each example's user in a store of a kind; int64, shape (examples,).

    Users of another kind than the store's have no keys there. They get any, since every server
    rejects their request in a sentence of its own.

    Raises:
        InputError: A text is no id of this kind.
        UsageError: Texts have keys only with xxhash, which is not installed.
    """
    texts = pointers.user_texts
    if texts is None or not is_text_kind(kind):
        return pointers.user_ids
    text_hash = _text_hash()
    keys = (text_hash(canonical_text(text, kind).encode()) for text in texts.tolist())
    return np.fromiter(keys, np.uint64, len(texts)).view(np.int64)


def key_of(user: int | str) -> int:
    """Returns the key of one user, whose text is canonical.

    Raises:
        UsageError: As `user_keys`.
    """
    return _text_hash()(user.encode()) if isinstance(user, str) else user


def check_keys(kind: IdKind) -> None:
    """Checks that users of a kind have keys here.

    Raises:
        UsageError: As `user_keys`.
    """
    if is_text_kind(kind):
        _text_hash()


def _text_hash() -> Callable[[bytes], int]:
    """Returns XXH3 (64 bits, seed 0); the one place where the client loads xxhash."""
    try:
        import xxhash
    except ImportError as error:
        raise UsageError(
            f"Users are texts here, whose shards and parts are found by a hash that is not "
            f"installed ({error}); pip install 'thinrow[cluster]'."
        ) from error
    return xxhash.xxh3_64_intdigest
