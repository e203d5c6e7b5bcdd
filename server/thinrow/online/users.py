"""Users of the online service's messages: integers, or texts and their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from thinrow.core.ids import canonical_text, is_text_kind
from thinrow.errors import InputError, RequestError
from thinrow.store.user_texts import look_up_keys, text_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.core.ids import IdKind
    from thinrow.store.generation import Generation

__all__ = ["NamedUsers", "named_users"]


class NamedUsers(NamedTuple):
    """Users by the keys under which the tier has their events."""

    keys: Sequence[int]
    texts: Sequence[str] | None = None
    """Their ids where these are texts, as stores have them."""

    def stored_keys(self, generation: Generation) -> Sequence[int]:
        """Returns the keys by which a generation is read.

        Another user of the generation may have the key of a text, whose user then has none.
        """
        return self.keys if self.texts is None else look_up_keys(generation, self.texts).tolist()


def named_users(user_ids: Sequence[int], texts: Sequence[str], kind: IdKind) -> NamedUsers:
    """Returns the users of a message.

    Args:
        user_ids: Users as integers.
        texts: Users as texts; a message has one of the two.
        kind: The kind of user ids of the tier.

    Raises:
        RequestError: The users are of another kind.
    """
    if not is_text_kind(kind):
        if texts:
            raise RequestError(
                f"The users of this server are {kind}, and the request names them as texts; name "
                f"them by integers."
            )
        return NamedUsers(user_ids)
    if user_ids:
        raise RequestError(
            f"The users of this server are {kind}, and the request names them as integers; name "
            f"them by texts."
        )
    try:
        known = [canonical_text(text, kind) for text in texts]
    except InputError as error:
        raise RequestError(str(error)) from error
    return NamedUsers(text_keys((text.encode() for text in known), len(known)).tolist(), known)
