"""`thinrow research`: from a raw interaction log to a store and split thin rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from thinrow.cli.command import command
from thinrow.cli.time_reports import print_outliers
from thinrow.events.units import UNIT_NAMES
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes
from thinrow.jobs.research_config import ResearchConfig

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.jobs.research import ResearchReport

__all__ = ["app", "training_lines"]

app = typer.Typer()


@command(app, "research")
def research_command(config: ResearchConfig) -> None:
    """Turn a raw interaction log into a store and thin rows to train on, validate and test.

    Memory holds the log, some 300 bytes for each interaction.
    """
    from thinrow.jobs.research import research

    with progress_bar() as progress:
        report = research(config, progress)
    out.print(facts(str(config.out), figures(config, report)))
    print_outliers({config.time: report.span})
    if report.left_out:
        out.print(
            f"Columns whose types no trait has were left out: {', '.join(report.left_out)}",
            soft_wrap=True,
        )
    out.print(comparison(report), soft_wrap=True)
    out.print("\nThis trains from it:\n")
    out.print(training_lines(config.out, report.items), soft_wrap=True, end="")


def figures(config: ResearchConfig, report: ResearchReport) -> dict[str, object]:
    """Returns the table of a run."""
    unit = f" (integers of {UNIT_NAMES[report.time_unit]})" if report.time_unit else ""
    thin = report.store_bytes + report.rows_bytes
    return {
        "events": report.events,
        f"{config.time}, from and to{unit}": report.span,
        "users": report.users,
        "items": report.items,
        **{f"rows: {part}": rows for part, rows in report.rows.items()},
        "events in the rows' histories": report.history_events,
        "of these carried inside rows": report.mutable_events,
        "store, bytes": readable_bytes(report.store_bytes),
        "thin rows, bytes": readable_bytes(report.rows_bytes),
        "store and thin rows, bytes": readable_bytes(thin),
        "the same as fat rows, bytes": readable_bytes(report.fat.bytes),
    }


def comparison(report: ResearchReport) -> str:
    """Returns what the comparison of bytes means."""
    thin, rows = report.store_bytes + report.rows_bytes, sum(report.rows.values())
    measured = report.fat.rows_measured
    how = "" if measured == rows else f", in proportion to {measured:,} of them that were written"
    ratio = (
        f"{report.fat.bytes / thin:.1f} times as many bytes"
        if report.fat.bytes > thin
        else "fewer bytes: these histories are short, and thin rows are made for long ones"
    )
    return (
        f"Fat rows are the same {rows:,} rows in one Parquet file (zstd), each with its whole "
        f"history inside, {report.history_events / rows:,.0f} events on average{how}. They take "
        f"{ratio}."
    )


def training_lines(folder: Path, items: int) -> str:
    """Returns a program that trains from a folder that `thinrow research` wrote.

    Args:
        folder: The folder.
        items: Number of items.
    """
    train, store = str(folder / "train.parquet"), str(folder / "store")
    return f"""\
from thinrow.client.torch import Projection, ThinRowLoader
from torch import nn, optim
model = nn.EmbeddingBag({items + 1}, 64, include_last_offset=True)  # a vector for each item
optimizer = optim.Adam(model.parameters(), lr=0.01)
for batch in ThinRowLoader({train!r}, {store!r}, Projection(100, traits=("item_id",))):
    scores = model(batch["item_id"], batch.offsets) @ model.weight.T  # of every item to come next
    (loss := nn.functional.cross_entropy(scores, batch["label_item_id"])).backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss of the last batch: {{loss.item():.2f}}")
"""
