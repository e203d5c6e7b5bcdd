"""`thinrow store`: the generations of a store, its vocabularies, and rollback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from thinrow.cli.command import command
from thinrow.jobs.console import out, readable_bytes

if TYPE_CHECKING:
    from thinrow.store.generations import StoredGeneration
    from thinrow.store.manifest import Manifest

__all__ = ["app"]

app = typer.Typer(help="Show a store's generations, export vocabularies, and roll back.")

FILLS_SHOWN_MAX = 10
"""Fills that `list` shows, the newest, and the files of each."""
Store = Annotated[Path, typer.Option(help="Folder of the store.")]


@command(app, "list")
def list_command(store: Store) -> None:
    """Show the generations of a store; changes nothing."""
    from thinrow.errors import StoreMissingError
    from thinrow.store.generations import stored_generations
    from thinrow.store.shard import storage_error
    from thinrow.store.times import readable_time

    try:
        found = stored_generations(store)
    except OSError as error:
        raise storage_error(error, store) from error
    if not found:
        raise StoreMissingError(f"{store} has no generations; build one with thinrow compact.")
    table = Table(title=str(store), title_justify="left")
    for name in ("generation", "state", "watermark", "events", "users", "stored"):
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
    for generation in found:
        manifest = generation.manifest
        cells = ["", "", "", ""]
        if manifest is not None:
            cells = [
                readable_time(manifest.watermark_ts),
                f"{manifest.event_count:,}",
                f"{manifest.user_count:,}",
                readable_bytes(manifest.stored_bytes),
            ]
        table.add_row(str(generation.number), _state(generation), *cells)
    out.print(table)
    for generation in found:
        if generation.is_current and generation.manifest is not None:
            _print_fills(generation.manifest)
        if generation.problem is not None:
            out.print(f"{generation.folder.name}: {generation.problem}", soft_wrap=True)
    if not any(generation.is_current for generation in found):
        out.print("CURRENT names none of them; choose one with thinrow store rollback.")


def _print_fills(manifest: Manifest) -> None:
    from thinrow.store.times import readable_time

    for record in manifest.fills[-FILLS_SHOWN_MAX:]:
        files = ", ".join(text.rpartition(" ")[0] for text in record.values[:FILLS_SHOWN_MAX])
        out.print(
            f"Fill {record.generation} at {readable_time(record.filled_ts)}: {record.group} "
            f"({', '.join(record.traits)}) by {', '.join(record.by)}, {record.events:,} events "
            f"from {files}",
            soft_wrap=True,
        )


def _state(generation: StoredGeneration) -> str:
    if generation.problem is not None:
        state = "not complete"
    elif generation.is_withdrawn:
        state = "withdrawn"
    else:
        is_fill = generation.manifest is not None and generation.manifest.is_fill
        state = "complete, a fill" if is_fill else "complete"
    return f"{state}, current" if generation.is_current else state


@command(app, "vocabulary")
def vocabulary_command(
    store: Store,
    trait: Annotated[str, typer.Option(help='A trait with codes = "vocabulary".')],
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="Parquet file to write.")],
) -> None:
    """Write the vocabulary of a trait: its values and their codes, as Parquet."""
    from thinrow.jobs.vocabulary import export_vocabulary

    vocabulary = export_vocabulary(store, trait, to)
    out.print(
        f"{to}: {len(vocabulary):,} values of {trait}; an embedding needs "
        f"{vocabulary.codes_end:,} rows for these: 0 is absent and padding, 1 unknown.",
        soft_wrap=True,
    )


@command(app, "rollback")
def rollback_command(
    store: Store,
    to: Annotated[int, typer.Option(metavar="NUMBER", help="The generation to serve again.")],
    newer: Annotated[
        Literal["keep", "remove"],
        typer.Option(
            help="Keep newer generations under another name (withdrawn-NUMBER), or remove them."
        ),
    ],
) -> None:
    """Serve an older generation again; servers take it up as they take up a new one."""
    from thinrow.store.rollback import rollback
    from thinrow.store.times import readable_time

    report = rollback(store, to, newer)
    out.print(
        f"Generation {to} serves, with watermark {readable_time(report.watermark_ts)}; rows "
        f"that point past it are NOT_READY until it is passed again.",
        soft_wrap=True,
    )
    for verb, numbers in (("Kept aside", report.withdrawn), ("Removed", report.removed)):
        if numbers:
            out.print(f"{verb}: {', '.join(map(str, numbers))}")
    if report.erasing:
        out.print(
            f"Users were erased in {', '.join(map(str, report.erasing))} and may be in the "
            f"store again: give those users to --erase of the next compact.",
            soft_wrap=True,
        )
