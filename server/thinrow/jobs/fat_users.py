"""The texts of the users of fat rows, where ids are texts, in the scratch folder of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.core.ids import is_text_kind
from thinrow.jobs.batch_files import read_batch, write_batches
from thinrow.store.user_texts import unique_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from thinrow.core.ids import IdKind
    from thinrow.events.user_ids import UserIdReader
    from thinrow.jobs.facts import Facts
    from thinrow.store.user_texts import UserTexts

__all__ = ["read_users", "with_names", "write_users"]

FILE = "users.arrow"


def write_users(folder: Path, users: UserIdReader) -> None:
    """Writes the texts that were read into a part's folder; nothing where ids are integers."""
    if is_text_kind(users.kind):
        texts = users.take_users()
        write_batches(folder / FILE, texts, np.array([0, len(texts)]))


def read_users(parts: Sequence[Path], kind: IdKind) -> UserTexts | None:
    """Returns the texts of all users of some parts; None where ids are integers.

    Raises:
        InputError: Two texts have one key.
    """
    if not is_text_kind(kind):
        return None
    return unique_texts(pa.concat_tables(read_batch(part / FILE, 0) for part in parts))


def with_names(facts: Facts, users: UserTexts | None) -> Facts:
    """Returns findings whose examples name users by their texts, where ids are texts."""
    if users is None:
        return facts
    known = dict(zip(users.keys.tolist(), users.texts, strict=True))
    named = [replace(one, user_id=known[int(one.user_id)]) for one in facts.examples]
    return replace(facts, examples=named)
