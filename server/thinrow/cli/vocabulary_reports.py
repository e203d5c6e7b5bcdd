"""Reports of vocabularies: their sizes, and what a run added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.jobs.console import out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.compaction.vocabularies import VocabularyGrowth

__all__ = ["print_vocabularies"]


def print_vocabularies(vocabularies: Sequence[VocabularyGrowth]) -> None:
    """Prints a line for each vocabulary."""
    for vocabulary in vocabularies:
        out.print(
            f"Vocabulary of {vocabulary.trait}: {vocabulary.values:,} of at most "
            f"{vocabulary.values_max:,} values, {vocabulary.added:,} of them new; an embedding "
            f"needs {vocabulary.codes_end:,} rows for these.",
            soft_wrap=True,
        )
