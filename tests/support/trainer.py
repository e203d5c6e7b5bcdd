"""A trainer in a process of its own, to be killed: writes down what it got, and its state.

Every batch is a line of the log, with the state behind it; a trainer that finds a log goes on
behind the last whole line, as one would that saves a checkpoint with each step.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowDataset, ThinRowLoader

__all__ = ["Trainer", "lines"]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """One run of the trainer: one epoch, or what is left of it."""

    paths: str
    server: list[str]
    log: str
    workers: int | None = None
    """None: ThinRowLoader; otherwise StatefulDataLoader with that many."""
    start: str = "fork"
    batch_examples: int = 8
    batch_events: int | None = None
    pause_s: float = 0.0
    batches_max: int | None = None
    """Leaves after that many."""

    def command(self) -> list[str]:
        return [sys.executable, __file__, json.dumps(asdict(self))]

    def loader(self) -> Any:  # noqa: ANN401
        config = LoaderConfig(
            batch_examples=self.batch_examples, batch_events=self.batch_events, lookup_examples=10
        )
        files = RowFiles(self.paths, window_rows=50)
        projection = Projection(sequence_length=20)
        if self.workers is None:
            return ThinRowLoader(files, self.server, projection, config)
        with warnings.catch_warnings():
            # It sets what torch no longer has.
            warnings.simplefilter("ignore")
            from torchdata.stateful_dataloader import StatefulDataLoader

            return StatefulDataLoader(
                ThinRowDataset(files, self.server, projection, config),
                batch_size=None,
                num_workers=self.workers,
                multiprocessing_context=self.start if self.workers else None,
            )

    def run(self) -> None:
        log = Path(self.log)
        done = lines(log)
        log.write_text("".join(json.dumps(line) + "\n" for line in done), encoding="utf-8")
        loader = self.loader()
        if done:
            loader.load_state_dict(done[-1]["state"])
            # A second resume must not start from zero.
            assert loader.state_dict() is not None
        with log.open("a", encoding="utf-8") as sink:
            for number, batch in enumerate(loader, start=1):
                line = {"ids": batch.example_ids.tolist(), "state": loader.state_dict()}
                sink.write(json.dumps(line) + "\n")
                sink.flush()
                if number == self.batches_max:
                    return
                time.sleep(self.pause_s)


def lines(log: Path) -> list[dict[str, Any]]:
    """The batches written down; a line half written is none."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n")[:-1]]


if __name__ == "__main__":
    Trainer(**json.loads(sys.argv[1])).run()
