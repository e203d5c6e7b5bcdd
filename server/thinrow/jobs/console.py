"""Output of commands: progress bars, tables, and errors in one sentence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from thinrow.errors import StoreMissingError, ThinRowError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

__all__ = [
    "EXIT_FAILED",
    "EXIT_STOPPED",
    "EXIT_USAGE",
    "err",
    "facts",
    "one_sentence",
    "out",
    "progress_bar",
    "readable_bytes",
    "warn",
]

# Names, texts and ids may look like markup or emoji; what is coloured says so with a style.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 130


@contextmanager
def one_sentence() -> Iterator[None]:
    """Ends the command with a sentence instead of a traceback: 2 for a mistake, else 1."""
    try:
        yield
    except ThinRowError as error:
        err.print(Text("Error:", "bold red"), str(error), soft_wrap=True)
        mistake = isinstance(error, UsageError | StoreMissingError)
        raise typer.Exit(EXIT_USAGE if mistake else EXIT_FAILED) from None
    except KeyboardInterrupt:
        err.print("Stopped.")
        raise typer.Exit(EXIT_STOPPED) from None


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error; the function receives stage, done and total."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def facts(title: str, rows: dict[str, object]) -> Table:
    """A table of names and values; whole numbers are grouped by thousands."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if type(value) is int else str(value))
    return table


def warn(sentences: str) -> None:
    """Prints what a user should know about a result."""
    out.print(Text("Warning:", "bold yellow"), sentences, soft_wrap=True)


def readable_bytes(count: int) -> str:
    """Bytes as people read them."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
