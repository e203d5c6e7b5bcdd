"""The demo that docker-compose.yaml runs: builds a store of real events, then trains from it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
import typer
from thinrow.demo.recipes import RECIPES
from thinrow.demo.steps import Demo
from thinrow.errors import UsageError
from thinrow.jobs.console import one_sentence, out
from thinrow.store.times import DAY_MS

if TYPE_CHECKING:
    from thinrow.demo.sample_data import SampleData

EXAMPLES_MAX = 20_000
LAST_SCRAPE_S = 10.0
"""Time that the metrics stay available after training, since Prometheus scrapes every 5 s."""

RECIPE = RECIPES["completejourney"]
SEQUENCE_LENGTH = RECIPE.lengths[-1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def recent() -> SampleData:
    """The sample moved by whole days, so that its last midnight was today's."""
    sample = RECIPE.load()
    last_ts = int(sample.events["event_ts"].to_numpy().max())
    moved_ms = (int(time.time() * 1000) // DAY_MS - last_ts // DAY_MS) * DAY_MS
    return replace(sample, events=sample.events.with_columns(pl.col("event_ts") + moved_ms))


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Folder for events and thin rows.")],
    store: Annotated[Path, typer.Argument(help="Folder for the store.")],
) -> None:
    """Make what `train` and the servers need; what is there already stays."""
    with one_sentence():
        demo = Demo(folder)
        demo.store = store
        if demo.rows.exists():
            out.print(f"{demo.rows} is there already")
            return
        if (store / "CURRENT").exists():
            raise UsageError("An earlier build was cut short; remove both volumes and try again.")
        demo.write_inputs(recent(), EXAMPLES_MAX)
        demo.compact()
        demo.backfill()


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Output of `build`.")],
    model_folder: Annotated[Path, typer.Argument(help="Folder for model.pt.")],
    server: Annotated[list[str], typer.Option(metavar="HOST:PORT", help="A replica.")],
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of /metrics.")],
) -> None:
    """Train as `thinrow demo` does, and let Prometheus see what the trainer waits for."""
    with one_sentence():
        import torch
        from prometheus_client import CollectorRegistry, start_http_server
        from thinrow.access.address import split_address
        from thinrow.client import Projection
        from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
        from thinrow.demo.training import BATCH_EXAMPLES, Split, Study

        registry = CollectorRegistry()

        class ObservedStudy(Study):
            def loader(self, rows: Path, sequence_length: int = 0, seed: int = 0) -> ThinRowLoader:
                return ThinRowLoader(
                    RowFiles(rows, order=self.order, seed=seed),
                    self.server,
                    Projection(sequence_length, traits=(self.target,)),
                    LoaderConfig(batch_examples=BATCH_EXAMPLES, columns=(self.label,)),
                    device=self.device,
                    registry=registry if rows == self.split.train else None,
                )

        host, port = split_address(metrics)
        start_http_server(port, host, registry)
        split = Split.of(Demo(folder).rows, model_folder)
        study = ObservedStudy(split, server, RECIPE.target, repeats=RECIPE.repeats)
        model, losses = study.train(SEQUENCE_LENGTH)
        quality = study.evaluate(model, SEQUENCE_LENGTH)
        torch.save(model.state_dict(), model_folder / "model.pt")
        out.print(
            f"Trained: loss {losses[0]:.2f} → {losses[-1]:.2f}; of later requests the label is "
            f"among ten guesses in {quality.hit_rate:.1%}, among the ten most popular in "
            f"{quality.popularity_hit_rate:.1%}. The model is {model_folder / 'model.pt'}"
        )
        time.sleep(LAST_SCRAPE_S)


if __name__ == "__main__":
    app()
