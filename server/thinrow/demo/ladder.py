"""``thinrow ladder``: what longer histories are worth, and what they cost, from one set of rows."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from thinrow.client import Projection, read_thin_rows, row_count
from thinrow.core.files.parquet import open_parquet
from thinrow.demo.sample_data import complete_journey
from thinrow.demo.steps import Demo, load_torch, size
from thinrow.errors import UsageError
from thinrow.jobs.connecting import Access, connected
from thinrow.jobs.console import out, progress_bar
from thinrow.jobs.materialize import materialize
from thinrow.jobs.pyplot import load_pyplot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from thinrow.client import Client, ThinRows
    from thinrow.core.lookup.answer import Answer
    from thinrow.demo.training import Quality, Study

    Progress = Callable[[str, int, int], None]

__all__ = ["FULL", "Rung", "parse_lengths", "run_ladder"]

FULL = 0
"""The length that stands for all events, as in a projection."""
EXAMPLES_MAX = 40_000
REQUEST_EXAMPLES = 512
VALUE_BYTES = 8
ORDERS = {"by user": ["user_id", "request_ts"], "by time": ["request_ts", "user_id"]}
"""Orders of examples in a file; the loader, too, puts one user's together, and trains so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One sequence length. Bytes are those of one of the examples that are trained on."""

    sequence_length: int
    longest: int
    """Events of the longest history."""
    events: float
    """Events of an example."""
    thin_bytes: float
    """The thin row in its Parquet file."""
    wire_bytes: dict[str, float]
    """Bytes that the server sends, by the order of the examples."""
    fat_bytes: dict[str, float]
    """The fat row in a Parquet file with zstd, by their order."""
    qualities: list[Quality]
    """Quality of each seed."""

    @property
    def name(self) -> str:
        """The length as people write it."""
        return f"{self.sequence_length:,}" if self.sequence_length else "full"


def run_ladder(
    folder: Path,
    rows: Path | None,
    server: Sequence[str],
    *,
    target: str,
    lengths: Sequence[int],
    epochs: int,
    seeds: int,
    examples_max: int = EXAMPLES_MAX,
    access: Access | None = None,
) -> list[Rung]:
    """Trains at every length, and writes ``ladder.md`` and ``ladder.png`` into ``folder``.

    Without ``rows`` and ``server``, a store of real events is built and served there first.
    Raises UsageError for one without the other, or where PyTorch or Matplotlib is missing.
    """
    load_torch("The ladder")
    load_pyplot("The ladder")
    if (rows is None) != (not server):
        raise UsageError("Thin rows and their server belong together; give both or neither.")
    if rows is not None:
        rungs = climb(folder, rows, server, target, lengths, epochs, seeds, access)
    else:
        demo = Demo(folder)
        demo.write_inputs(complete_journey(), examples_max)
        demo.compact()
        demo.backfill()
        with demo.serve() as address:
            demo.say("Train one model at every length from the same thin rows")
            rungs = climb(folder, demo.rows, [address], target, lengths, epochs, seeds)
    out.print(*to_tables(rungs))
    (folder / "ladder.md").write_text(to_markdown(rungs), encoding="utf-8")
    plot(rungs, folder / "ladder.png")
    out.print(f"Table and picture are in {folder}: ladder.md, ladder.png")
    return rungs


def climb(
    folder: Path,
    rows: Path,
    server: Sequence[str],
    target: str,
    lengths: Sequence[int],
    epochs: int,
    seeds: int,
    access: Access | None = None,
) -> list[Rung]:
    """Measures every length, from the shortest."""
    from thinrow.demo.training import Split, Study

    access = access or Access()
    with connected(server, access) as client:
        split = Split.of(rows, folder)
        study = Study(split, server, target, order="users", client=access.config())
        out.print(
            f"{row_count(split.train):,} examples to learn from, {row_count(split.held_out):,} "
            f"later ones to be evaluated; {len(study.catalogue):,} items; on {study.device}"
        )
        upwards = sorted(set(lengths), key=lambda length: (length == FULL, length))
        return [rung(client, study, length, epochs, seeds) for length in upwards]


def parse_lengths(text: str) -> list[int]:
    """Lengths with commas between; "full" is 0. Raises UsageError for anything else."""
    names = [name.strip() for name in text.split(",")]
    if not all(name == "full" or (name.isdecimal() and int(name)) for name in names):
        raise UsageError(f"{text!r} is no list of lengths; write for example 16,256,full.")
    return [FULL if name == "full" else int(name) for name in names]


def rung(client: Client, study: Study, length: int, epochs: int, seeds: int) -> Rung:
    """Measures one length."""
    label = f"length {length}" if length else "full length"
    examples = row_count(study.split.train)
    projection = Projection(length, traits=(study.target,))
    wire_bytes, fat_bytes, qualities = {}, {}, []
    with progress_bar() as progress:
        for order, path in ordered(study.split.train).items():
            answers = client.answers(thin_rows(path), projection)
            sent, events, longest = np.array(list(map(measured, answers))).T
            fat = path.with_name("ladder-fat.parquet")
            materialize(client, path, projection, fat, progress)
            wire_bytes[order] = float(sent.sum()) / examples
            fat_bytes[order] = size(fat) / examples
            fat.unlink()
        for seed in range(seeds):

            def report(
                step: int, steps: int, stage: str = f"Training, {label}, seed {seed}"
            ) -> None:
                progress(stage, step, steps)

            model, _ = study.train(length, epochs, seed, report)
            qualities.append(study.evaluate(model, length))
    hit_rate = fmean(quality.hit_rate for quality in qualities)
    out.print(f"At {label}, {hit_rate:.1%} are among ten guesses")
    return Rung(
        sequence_length=length,
        longest=int(longest.max()),
        events=float(events.sum()) / examples,
        thin_bytes=size(study.split.train) / examples,
        wire_bytes=wire_bytes,
        fat_bytes=fat_bytes,
        qualities=qualities,
    )


def ordered(rows: Path) -> dict[str, Path]:
    """Writes thin rows in each order, beside their file."""
    paths = {order: rows.with_stem(f"{rows.stem}-{order.replace(' ', '-')}") for order in ORDERS}
    table = open_parquet(rows).read()
    for order, path in paths.items():
        pq.write_table(table.sort_by([(key, "ascending") for key in ORDERS[order]]), path)
    return paths


def measured(answer: Answer) -> tuple[int, int, int]:
    """An answer's bytes, its events, and those of its longest history."""
    return answer.answer_bytes, int(answer.lengths.sum()), int(answer.lengths.max())


def thin_rows(path: Path) -> Iterator[ThinRows]:
    """The thin rows of a file, as many at a time as one request takes."""
    for rows, _ in read_thin_rows(path, examples=REQUEST_EXAMPLES):
        yield rows


HEADERS = (
    "length",
    "events",
    "hit rate@10, %",
    "normalised entropy",
    "thin row",
    *(f"sent {order}" for order in ORDERS),
    *(f"fat row {order}" for order in ORDERS),
    "8 B a value",
)
QUALITY_COLUMNS = (0, 1, 2, 3)
BYTES_COLUMNS = (0, *range(4, len(HEADERS)))


def fields(rung: Rung) -> list[str]:
    """A line of the table."""
    return [
        rung.name,
        f"{rung.events:,.1f}",
        spread([100 * quality.hit_rate for quality in rung.qualities], 1),
        spread([quality.entropy for quality in rung.qualities], 3),
        f"{rung.thin_bytes:,.0f}",
        *(f"{rung.wire_bytes[order]:,.0f}" for order in ORDERS),
        *(f"{rung.fat_bytes[order]:,.0f}" for order in ORDERS),
        f"{rung.events * VALUE_BYTES:,.0f}",
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """A mean, and the standard deviation where there are several."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.{digits}f}"


def to_tables(rungs: Sequence[Rung]) -> list[Table]:
    """The figures, for the screen, which is too narrow for all in one table."""
    tables = [Table(title="\nQuality"), Table(title="\nBytes", caption=baseline(rungs))]
    for table, columns in zip(tables, (QUALITY_COLUMNS, BYTES_COLUMNS), strict=True):
        for column in columns:
            table.add_column(HEADERS[column], justify="right")
        for rung in rungs:
            figures = fields(rung)
            table.add_row(*(figures[column] for column in columns))
    return tables


def to_markdown(rungs: Sequence[Rung]) -> str:
    """The figures, for a page."""
    lines = [HEADERS, ["---:"] * len(HEADERS), *(fields(rung) for rung in rungs)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    picture = "![Quality and bytes against sequence length](ladder.png)"
    return f"{picture}\n\n{table}\n\n{baseline(rungs)}\n"


def baseline(rungs: Sequence[Rung]) -> str:
    """Text on the comparison of the figures."""
    popular = rungs[0].qualities[0].popularity_hit_rate
    return (
        f"Events and bytes are those of an example. The ten most popular items hit {popular:.1%}. "
        "Normalised entropy is the mean loss divided by that of popularity: less is better."
    )


def plot(rungs: Sequence[Rung], path: Path) -> None:
    """Draws quality and bytes against length."""
    plt = load_pyplot("The ladder")
    # A full history is as long as it is: it stands at the longest.
    places = [rung.sequence_length or rung.longest for rung in rungs]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    rates = [[100 * quality.hit_rate for quality in rung.qualities] for rung in rungs]
    errors = [stdev(rate) if len(rate) > 1 else 0 for rate in rates]
    left.errorbar(places, [fmean(rate) for rate in rates], errors, marker="o", capsize=3)
    popular = 100 * rungs[0].qualities[0].popularity_hit_rate
    left.axhline(popular, color="gray", linestyle="--")
    left.annotate("ten most popular", (places[0], popular), (0, 4), textcoords="offset points")
    left.set(ylabel="hit rate@10, %", ylim=(0, None), title="Quality")
    for order, line in zip(ORDERS, ("-", "--"), strict=True):
        fat = [rung.fat_bytes[order] for rung in rungs]
        sent = [rung.wire_bytes[order] for rung in rungs]
        right.plot(places, fat, f"C3o{line}", label=f"fat row, zstd Parquet, {order}")
        right.plot(places, sent, f"C0o{line}", label=f"sent by the server, {order}")
    right.plot(places, [rung.thin_bytes for rung in rungs], "C2o-", label="thin row, Parquet")
    right.set(ylabel="bytes per example", yscale="log", title="Bytes")
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for panel in (left, right):
        panel.set(xlabel="sequence length, events", xscale="log")
        panel.set_xticks(places, [rung.name for rung in rungs])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
