"""`thinrow store`: the generations of a store, its vocabularies, and rollback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from thinrow.cli.command import command
from thinrow.cli.values import parse_duration
from thinrow.jobs.console import EXIT_FAILED, out, progress_bar, readable_bytes

if TYPE_CHECKING:
    from thinrow.store.generations import StoredGeneration
    from thinrow.store.manifest import Manifest

__all__ = ["app"]

app = typer.Typer(help="Show, verify, clean up and roll back the generations of a store.")

FILLS_SHOWN_MAX = 10
"""Fills that `list` shows, the newest, and the files of each."""
OFFSETS_SHOWN_MAX = 32
"""Partitions of a topic whose offsets `list` shows."""
Store = Annotated[str, typer.Option(metavar="FOLDER|URL", help="Folder or URL of the store.")]
GRACE = "1d"
PROBLEMS_SHOWN_MAX = 20


@command(app, "list")
def list_command(store: Store) -> None:
    """Show the generations of a store; changes nothing."""
    from thinrow.errors import StoreMissingError
    from thinrow.store.times import readable_time

    found = _generations(store)
    if not found:
        raise StoreMissingError(f"{store} has no generations; build one with thinrow compact.")
    table = Table(title=store, title_justify="left")
    for name in ("generation", "state", "watermark", "events", "users", "stored"):
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
    for generation in found:
        manifest = generation.manifest
        cells = [""] * 4
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
            _print_writer(generation.manifest)
            _print_topic(generation.manifest)
            _print_fills(generation.manifest)
        if generation.problem is not None:
            out.print(f"{generation.folder.name}: {generation.problem}", soft_wrap=True)
    if not any(generation.is_current for generation in found):
        out.print("CURRENT names none of them; choose one with thinrow store rollback.")


def _generations(store: str) -> list[StoredGeneration]:
    from thinrow.store.generations import stored_generations
    from thinrow.store.place import is_url
    from thinrow.store.shard import storage_error

    if is_url(store):
        from thinrow.remote.listing import remote_generations
        from thinrow.remote.object_store import ObjectStore

        return remote_generations(ObjectStore(store))
    try:
        return stored_generations(Path(store))
    except OSError as error:
        raise storage_error(error, Path(store)) from error


def _print_writer(manifest: Manifest) -> None:
    """Shows the shards of a generation, and the run that wrote it where its manifest names it."""
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    written = f", written by run {manifest.run_id} of the {manifest.engine} engine ({versions})"
    out.print(
        f"Generation {manifest.number}: {manifest.shard_count:,} shards, manifest format "
        f"{manifest.format}{'' if manifest.run_id is None else written}",
        soft_wrap=True,
    )


def _print_topic(manifest: Manifest) -> None:
    """Shows how far a generation holds a topic, partition by partition."""
    if manifest.topic is None:
        return
    offsets = manifest.topic.offsets
    shown = ", ".join(map(str, offsets[:OFFSETS_SHOWN_MAX]))
    more = len(offsets) - OFFSETS_SHOWN_MAX
    out.print(
        f"Topic {manifest.topic.name}: {len(offsets):,} partitions, sealed at offsets {shown}"
        f"{f', and {more:,} more' if more > 0 else ''}",
        soft_wrap=True,
    )


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
    from thinrow.remote.reading import local_store

    with progress_bar() as progress, local_store(store, progress) as folder:
        vocabulary = export_vocabulary(folder, trait, to)
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
    from thinrow.errors import UsageError
    from thinrow.store.place import is_url
    from thinrow.store.rollback import rollback
    from thinrow.store.times import readable_time

    if is_url(store):
        from thinrow.remote.object_store import ObjectStore
        from thinrow.remote.rollback import roll_back

        if newer == "remove":
            raise UsageError(
                "At a URL only thinrow store gc removes generations: give --newer keep, then run "
                "thinrow store gc --withdrawn."
            )
        report = roll_back(ObjectStore(store), to)
    else:
        report = rollback(Path(store), to, newer)
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


@command(app, "verify")
def verify_command(
    store: Store,
    sizes_only: Annotated[
        bool, typer.Option("--sizes-only", help="Compare sizes, and read only what is small.")
    ] = False,
) -> None:
    """Check that every file of every generation is there and unaltered; changes nothing."""
    from thinrow.store.place import is_url
    from thinrow.store.verification import verify_store

    with progress_bar() as progress:
        if is_url(store):
            from thinrow.remote.object_store import ObjectStore
            from thinrow.remote.verification import verify_remote

            found = verify_remote(ObjectStore(store), sizes_only=sizes_only, progress=progress)
        else:
            found = verify_store(Path(store), sizes_only=sizes_only, progress=progress)
    numbers, problems = ", ".join(map(str, found.generations)), len(found.problems)
    out.print(
        f"Generations {numbers}: {found.file_count:,} files, {readable_bytes(found.byte_count)}, "
        f"{problems} {'problem' if problems == 1 else 'problems'}.",
        soft_wrap=True,
    )
    for problem in found.problems[:PROBLEMS_SHOWN_MAX]:
        out.print(problem, soft_wrap=True)
    if found.problems:
        raise typer.Exit(EXIT_FAILED)


@command(app, "gc")
def gc_command(
    store: Store,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Remove all generations but this number of the newest. [default: keep all]"
        ),
    ] = None,
    withdrawn: Annotated[
        bool, typer.Option("--withdrawn", help="Remove generations that a rollback set aside.")
    ] = False,
    grace: Annotated[
        int | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help=f"Time for which objects stay at a URL after they were written or replaced; "
            f"longer than any compaction takes. [default: {GRACE}]",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report only, and remove nothing; at a URL.")
    ] = False,
) -> None:
    """Remove what killed runs left, and generations that are no longer wanted."""
    from thinrow.errors import UsageError
    from thinrow.store.care import clean_up
    from thinrow.store.place import is_url

    if not is_url(store):
        if grace is not None or dry_run:
            raise UsageError("--grace and --dry-run are for stores at a URL; leave them out.")
        removed = clean_up(Path(store), keep, withdrawn=withdrawn)
        out.print(f"Removed {_named(removed)}.", soft_wrap=True)
        return
    from thinrow.cluster.map_objects import old_maps
    from thinrow.remote.gc import collect_garbage
    from thinrow.remote.object_store import ObjectStore

    with progress_bar() as progress:
        report = collect_garbage(
            ObjectStore(store),
            keep=keep,
            withdrawn=withdrawn,
            grace_ms=parse_duration(GRACE) if grace is None else grace,
            is_trial=dry_run,
            others=old_maps,
            progress=progress,
        )
    out.print(
        f"{'Would remove' if dry_run else 'Removed'} {_named(report.generations)} and "
        f"{report.object_count:,} objects, {readable_bytes(report.byte_count)}; "
        f"{report.kept_by_grace:,} more are not needed and stay until their grace period ends.",
        soft_wrap=True,
    )
    if report.generations_kept_by_grace:
        out.print(
            f"Kept {_named(report.generations_kept_by_grace)} until the grace period after what "
            f"replaced it ends.",
            soft_wrap=True,
        )
    if report.has_versions:
        out.print(
            "The bucket keeps versions of objects: only a lifecycle rule of the bucket removes "
            "those, and with them the users erased.",
            soft_wrap=True,
        )


def _named(numbers: list[int]) -> str:
    """Returns generations as a sentence names them."""
    if not numbers:
        return "no generation"
    return f"{'generation' if len(numbers) == 1 else 'generations'} {', '.join(map(str, numbers))}"
