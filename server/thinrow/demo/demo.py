"""``thinrow demo``: what thin rows are for, on long histories, ending in a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.client import Projection, connect, row_count
from thinrow.demo.findings import Findings, Rung
from thinrow.demo.picture import draw
from thinrow.demo.recipes import RECIPES
from thinrow.demo.steps import Demo, load_torch, size
from thinrow.jobs.console import out, progress_bar
from thinrow.jobs.materialize import materialize
from thinrow.jobs.pyplot import load_pyplot

if TYPE_CHECKING:
    from thinrow.client import Client
    from thinrow.demo.comparison import Compared
    from thinrow.demo.recipes import Dataset, Recipe

__all__ = ["run_demo"]


def run_demo(
    directory: Path = Path(".demo"),
    dataset: Dataset = "completejourney",
    *,
    examples_max: int = 20_000,
) -> Findings:
    """Runs every step in ``directory``, saying what it does and where, and returns the findings.

    At most ``examples_max`` requests are made of the events.

    Raises:
        UsageError: PyTorch or Matplotlib is missing.
    """
    load_torch("The demo")
    load_pyplot("The demo")
    recipe = RECIPES[dataset]
    demo = Demo(directory / dataset)
    demo.write_inputs(recipe.load(), examples_max)
    demo.compact(recipe.cadence_ms)
    demo.backfill()
    with demo.serve() as address, connect(address) as client:
        demo.verify(client, address)
        found = Findings(
            rows_bytes=size(demo.rows),
            store_bytes=demo.store_bytes,
            tenants=compare_tenants(demo, recipe, client, address),
            rungs=train(demo, recipe, address),
        )
    picture = demo.root / "demo.png"
    draw(found, picture)
    for table, meaning in (
        (found.bytes_table(), found.bytes_meaning()),
        (found.speed_table(), found.speed_meaning()),
        (found.quality_table(), found.quality_meaning()),
    ):
        out.print(table, meaning, sep="\n")
    out.print(
        f"\n{recipe.remark}",
        f"The picture of this is {picture}; all files are in {demo.root}",
        "Your own log is next: thinrow research LOG.csv --out DIR",
        sep="\n\n",
    )
    return found


def compare_tenants(demo: Demo, recipe: Recipe, client: Client, address: str) -> list[Compared]:
    """Writes each tenant's fat rows, and measures both sides."""
    # PyTorch takes seconds to import.
    from thinrow.demo.comparison import compare

    compared = []
    for tenant in recipe.tenants:
        fat = demo.root / f"fat-{tenant.name}.parquet"
        demo.say(
            f"Write the fat rows of the model “{tenant.name}”, and read all examples, thin and fat",
            *("materialize", demo.rows, "--server", address, "--out", fat),
            *("--sequence-length", tenant.sequence_length, "--traits", ",".join(tenant.traits)),
        )
        wanted = Projection(tenant.sequence_length, traits=tenant.traits)
        with progress_bar() as progress:
            materialize(client, demo.rows, wanted, fat, progress)
        one = compare(demo.rows, address, fat, tenant, f"label_{recipe.target}")
        compared.append(one)
        out.print(
            f"All {one.events:,} events are equal in both. Thin rows take {one.thin_s:.2f} s into "
            f"tensors, fat rows {one.fat_s:.2f} s"
        )
    return compared


def train(demo: Demo, recipe: Recipe, address: str) -> list[Rung]:
    """Trains on the earlier requests at both lengths, and evaluates on the later ones."""
    from thinrow.demo.training import Split, Study

    demo.say(f"Train a small HSTU from the stream to predict each request's {recipe.target}")
    split = Split.of(demo.rows, demo.root)
    study = Study(split, address, recipe.target, repeats=recipe.repeats)
    rungs = []
    for length in recipe.lengths:
        with progress_bar() as progress:
            model, losses = study.train(
                length, progress=lambda step, steps: progress("Training", step, steps)
            )
        rung = Rung(sequence_length=length, quality=study.evaluate(model, length))
        rungs.append(rung)
        out.print(
            f"{row_count(split.train):,} examples, {rung.name} events, on {study.device}: loss "
            f"{losses[0]:.2f} → {losses[-1]:.2f}; of {row_count(split.held_out):,} later ones the "
            f"label is among ten guesses in {rung.quality.hit_rate:.1%}"
        )
    return rungs
