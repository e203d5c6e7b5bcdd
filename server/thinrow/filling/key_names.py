"""Keys of the rows and events of a fill, as people know them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.ids import is_text_kind, shown_id
from thinrow.store.user_texts import check_texts, from_stored_text, known_texts, unique_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from thinrow.store.generation import Generation
    from thinrow.store.vocabulary import Vocabulary

__all__ = ["KeyNames"]


class KeyNames:
    """Names users by their ids instead of their keys, and values instead of their codes.

    Args:
        generation: The store.
        vocabularies: Vocabularies of the traits that join rows to events and have codes, by trait.
        read: Keys and texts of the users of one shard whom rows name, where ids are texts; else
            None.

    Raises:
        InputError: Two users have one key, among those of the rows and of the store.
    """

    def __init__(
        self,
        generation: Generation,
        vocabularies: Mapping[str, Vocabulary],
        read: pa.Table | None = None,
    ) -> None:
        self._generation, self._vocabularies = generation, vocabularies
        self._kind = generation.schema.user_ids
        self._texts: dict[int, str] = {}
        if read is not None:
            users = unique_texts(read)
            check_texts(users, known_texts(generation, users.keys), self._kind)
            self._texts = dict(zip(users.keys.tolist(), users.texts, strict=True))

    def shown(self, key: dict[str, object]) -> dict[str, object]:
        """Returns the columns that join a row or an event, with the user's id and values."""
        for trait, vocabulary in self._vocabularies.items():
            code = key[trait]
            assert isinstance(code, int)
            key = key | dict(zip([trait], vocabulary.values_of([code]), strict=True))
        user = key.get("user_id")
        if not isinstance(user, int):
            return key
        if not is_text_kind(self._kind):
            return {**key, "user_id": shown_id(user, self._kind)}
        if user not in self._texts:
            [stored] = known_texts(self._generation, np.array([user], np.int64))
            assert stored is not None, "a user with events has a text"
            self._texts[user] = from_stored_text(stored, self._kind)
        return {**key, "user_id": self._texts[user]}
