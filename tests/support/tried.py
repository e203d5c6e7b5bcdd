"""Tries of each fault and their outcomes; docs/reports/reliability.md shows them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FULL = os.environ.get("THINROW_FAULTS") == "full"
"""`make faults` tries every fault as often as its page says; elsewhere a short version runs."""

SEED = int(os.environ.get("THINROW_FAULTS_SEED", "20261124"))


def times(short: int, full: int) -> int:
    """Number of tries in this run."""
    return full if FULL else short


@dataclass(frozen=True)
class Tried:
    """A row of the table: one fault, in one sentence each."""

    fault: str
    times: int
    promised: str
    seen: str

    def keep(self) -> None:
        """Adds the row to the file that THINROW_FAULTS_FILE names, if it does: a JSON line."""
        if named := os.environ.get("THINROW_FAULTS_FILE"):
            with Path(named).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")
