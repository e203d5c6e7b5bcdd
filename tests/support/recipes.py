"""Runs the programs of docs/guides/trainers.md, each rank in a process of its own."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import runpy
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = (ROOT / "docs/guides/trainers.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, str] = {
    name: code for code, name in re.findall(r"```python\n(# (\S+)\n.*?)```", PAGE, re.DOTALL)
}
"""Programs of the page, by the name in their first line."""

KILLED = 9
TIMEOUT_S = 240
# Importing these takes longer than a program: processes are forked from one that has them.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "thinrow.client.torch",
        "torch._dynamo",
        "torchdata.stateful_dataloader",
        "lightning.pytorch",
        "transformers.trainer",
        "torchrec.distributed.train_pipeline",
    ]
)


class Run:
    """The steps that each rank of a program took.

    Attributes:
        steps: By rank, the labels of each step it began to train on.
        exit_codes: By rank.
        text: What the ranks printed.
        graphs: By rank, the graphs that torch.compile made.
    """

    def __init__(self, program: str, folder: Path, ranks: int = 1, killed_at: int = 0) -> None:
        """Runs a program in a folder, which has all programs; kills it when step N begins."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        logs = [folder / f"{program}-{rank}.log" for rank in range(ranks)]
        processes = [
            SERVER.Process(
                target=run_rank, args=(program, folder, log, (rank, ranks), port, killed_at)
            )
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_S)
            process.kill()
            process.join()
        self.exit_codes = [process.exitcode for process in processes]
        self.text = "".join(log.read_text(encoding="utf-8") for log in logs)
        lines = [log.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines() for log in logs]
        records = [[json.loads(line) for line in of] for of in lines]
        self.steps = [[record for record in of if isinstance(record, list)] for of in records]
        self.graphs = [
            [record["graphs"] for record in of if isinstance(record, dict)] for of in records
        ]


def run_rank(
    program: str, folder: Path, log: Path, rank: tuple[int, int], port: int, killed_at: int
) -> None:
    """Runs a program in this process, as torchrun starts it."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [program]
    with log.open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    # A process that no forkserver started.
    multiprocessing.set_start_method("fork", force=True)
    os.environ["ACCELERATE_USE_CPU"] = "true"  # As `accelerate launch --cpu` sets.
    if rank[1] > 1:
        for name, value in (
            ("RANK", rank[0]),
            ("LOCAL_RANK", rank[0]),
            ("WORLD_SIZE", rank[1]),
            ("LOCAL_WORLD_SIZE", rank[1]),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", port),
            ("TORCHELASTIC_RUN_ID", program),
        ):
            os.environ[name] = str(value)
    with log.with_suffix(".jsonl").open("w", encoding="utf-8") as records:
        steps = 0

        def record(labels: Any) -> None:  # noqa: ANN401
            nonlocal steps
            steps += 1
            if steps == killed_at:
                records.flush()
                os._exit(KILLED)
            print(json.dumps(labels.tolist()), file=records, flush=True)

        observe(program, record)
        runpy.run_path(program, run_name="__main__")
        if "compiled" in program:
            from torch._dynamo.utils import counters

            print(json.dumps({"graphs": counters["stats"]["unique_graphs"]}), file=records)


def observe(program: str, record: Callable[[Any], None]) -> None:
    """Has the labels of each step recorded, where the program reaches its model."""
    if "torchrec" in program:
        from torchrec.distributed.train_pipeline import TrainPipelineSparseDist as Pipeline

        progress = Pipeline.progress

        def progress_and_record(self: Any, batches: Any) -> Any:  # noqa: ANN401
            labels = progress(self, batches)
            record(labels)
            return labels

        Pipeline.progress = progress_and_record
    elif "compiled" in program:
        import torch

        # Which graphs are made is decided before the backend, whose own takes a minute.
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    else:
        from ranker import Ranker  # type: ignore[import-not-found]

        forward = Ranker.forward

        @functools.wraps(forward)
        def forward_and_record(model: Any, **batch: Any) -> Any:  # noqa: ANN401
            if model.training:
                record(batch["label_item_id"])
            return forward(model, **batch)

        Ranker.forward = forward_and_record
