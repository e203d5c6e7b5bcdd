"""Writes what a run saw into the table of docs/reports/reliability.md.

    python report.py [--merge] TRIED PAGE

TRIED has a JSON line a row, as tried.py keeps them; of a fault tried twice the last counts. With
--merge the page keeps its rows of other faults: for a run of some of the tests.
"""

from __future__ import annotations

import argparse
import json
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


def rows_of(table: str) -> list[Tried]:
    """The rows of a table that `table` wrote."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [
        Tried(fault, int(times.replace(",", "")), promised, seen)
        for fault, times, promised, seen in rows[2:]
    ]


def main() -> None:
    """Replaces the table or some of its rows, and keeps the prose."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("tried", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    tried, page = options.tried, options.page
    lines = tried.read_text(encoding="utf-8").splitlines()
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    kept = rows_of(written) if options.merge else []
    rows = {row.fault: row for row in [*kept, *(Tried(**json.loads(line)) for line in lines)]}
    page.write_text(f"{before}{BEGIN}{table(list(rows.values()))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
