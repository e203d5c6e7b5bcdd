"""Writes what a run saw into the table of docs/reliability.md.

    python report.py TRIED PAGE

TRIED has a JSON line a row, as tried.py keeps them; of a fault tried twice the last counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.tried import Tried

BEGIN, END = "<!-- tried -->\n", "<!-- end -->\n"


def table(rows: list[Tried]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | tried | promised | seen |", "| --- | ---: | --- | --- |"]
    for row in rows:
        cells = (row.fault, f"{row.times:,}", row.promised, row.seen)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join([*lines, "", f"Tried {sum(row.times for row in rows):,} times in all."])


def main() -> None:
    """Replaces the table, and keeps the prose."""
    tried, page = Path(sys.argv[1]), Path(sys.argv[2])
    lines = tried.read_text(encoding="utf-8").splitlines()
    rows = {row.fault: row for row in (Tried(**json.loads(line)) for line in lines)}
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}{table(list(rows.values()))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
