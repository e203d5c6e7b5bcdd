"""Removal of forgotten and erased events from the files of the tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rocksdict import BottommostLevelCompaction, CompactOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rocksdict import Rdict
    from thinrow.online.database import WriteAheadLog

__all__ = ["EVERYTHING", "Range", "rewrite_files"]

Range = tuple[bytes | None, bytes | None]
EVERYTHING: Range = (None, None)


def rewrite_files(database: Rdict, log: WriteAheadLog, ranges: Sequence[Range]) -> None:
    """Writes all files anew that overlap some ranges of keys, without what was deleted there.

    Other threads read and write meanwhile. The write-ahead logs so far are removed.
    """
    chosen = CompactOptions()
    chosen.set_exclusive_manual_compaction(False)
    # Else a file on the last level stays as it is.
    chosen.set_bottommost_level_compaction(BottommostLevelCompaction.force())
    database.flush(True)
    for begin, end in ranges:
        database.compact_range(begin, end, chosen)
    log.sync()  # lets go of the logs that are gone
