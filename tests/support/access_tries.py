"""Refuses each file of a small store in turn, in a process with failing_files.c under it.

    LD_PRELOAD=LIBRARY python access_tries.py LIBRARY FOLDER

Prints a JSON line: how often each error was met, and what came out wrong.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.small_store import Outcomes, all_files, lookups_of, small_world
from thinrow.errors import StoreError, StoreUnavailableError

OPENS, READS = 0, 1
TEMPORARY = (errno.EMFILE, errno.ENFILE, errno.ESTALE)
REFUSALS = (
    (errno.EACCES, OPENS),
    (errno.EMFILE, OPENS),
    (errno.ENFILE, OPENS),
    (errno.EIO, OPENS),
    (errno.EIO, READS),
    (errno.ESTALE, READS),
)


def main() -> None:
    library, world = ctypes.CDLL(sys.argv[1]), small_world(Path(sys.argv[2]).resolve())
    lookups, outcomes = lookups_of(world), Outcomes()
    met: Counter[str] = Counter()
    for path in all_files(world.store):
        for number, reads in REFUSALS:
            name = f"{errno.errorcode[number]} from {'reads' if reads else 'opens'}"
            library.failing_files(str(path).encode(), number, reads)
            error = outcomes.look(world, lookups, f"{path.name}: {name}")
            hits = library.failing_hits()
            library.failing_files(b"", 0, 0)
            met[name] += bool(hits)
            if error is not None and not is_named(error, path, number):
                outcomes.wrong.append(f"{path.name}: {name}: {error!r}")
            if error is None and hits:
                met["harmless"] += 1
    assert outcomes.look(world, lookups, "nothing refused") is None
    print(json.dumps({"met": met, "wrong": outcomes.wrong}))


def is_named(error: StoreError, path: Path, number: int) -> bool:
    """Returns whether an error names the reason and the file or its shard, and is no damage."""
    text = str(error)
    named = path.name in text or str(path.parent) in text
    kind = StoreUnavailableError if number in TEMPORARY else StoreError
    return type(error) is kind and os.strerror(number) in text and named


if __name__ == "__main__":
    main()
