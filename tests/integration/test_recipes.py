"""The programs of docs/guides/trainers.md, as written: to the end, and killed and resumed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.recipes import KILLED, PROGRAMS, Run
from support.thin_rows import rows_table
from support.worlds import built_world, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.worlds import Running

pytestmark = pytest.mark.recipes

ROWS = 101
BATCH_EXAMPLES, SAVE_STEPS, EPOCHS = 8, 3, 2
RANKS = {
    "plain.py": 1,
    "ddp.py": 2,
    "train_lightning.py": 2,
    "hugging_face.py": 2,
    "with_accelerate.py": 2,
    "with_torchrec.py": 2,
    "stateful.py": 1,
}
"""Processes of the programs that save checkpoints."""
NEEDED = {
    "train_lightning.py": ("lightning",),
    "hugging_face.py": ("transformers", "accelerate"),
    "with_accelerate.py": ("accelerate",),
    "with_torchrec.py": ("torchrec", "fbgemm_gpu"),
}
"""Packages beside torch; `make trainers` and `make torchrec` install them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = built_world(tmp_path_factory.mktemp("world"))
    with running_server(world.store) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, server: Running) -> Path:
    """A folder of all programs; only the place of the rows and the sizes are the test's own."""
    table = rows_table(ROWS)
    labels = pa.array(range(ROWS), pa.int64())
    pq.write_table(
        table.append_column("label_item_id", labels), tmp_path / "rows.parquet", row_group_size=10
    )
    for name, code in PROGRAMS.items():
        for written, used in (
            (".demo/completejourney/rows.parquet", str(tmp_path / "rows.parquet")),
            ("127.0.0.1:7878", server.address),
            (
                "BATCH_EXAMPLES, SAVE_STEPS = 256, 20",
                f"BATCH_EXAMPLES, SAVE_STEPS = {BATCH_EXAMPLES}, {SAVE_STEPS}",
            ),
        ):
            assert name != "ranker.py" or written in code
            code = code.replace(written, used)
        for copy in ("whole", "parts"):
            (tmp_path / copy).mkdir(exist_ok=True)
            (tmp_path / copy / name).write_text(code)
    return tmp_path


def whole_run(folder: Path, program: str, ranks: int) -> Run:
    """Runs a program to its end: in each epoch it trains on each row once, but for uneven ends."""
    missing = [name for name in NEEDED.get(program, ()) if find_spec(name) is None]
    if missing:
        pytest.skip(f"{program} needs {', '.join(missing)}: make trainers torchrec")
    whole = Run(program, folder / "whole", ranks)
    assert whole.exit_codes == [0] * ranks, whole.text
    steps = ROWS // (BATCH_EXAMPLES * ranks)
    assert [len(of) for of in whole.steps] == [steps * EPOCHS] * ranks
    for first in range(0, steps * EPOCHS, steps):
        labels = [
            label for of in whole.steps for step in of[first : first + steps] for label in step
        ]
        assert len(set(labels)) == len(labels) == steps * ranks * BATCH_EXAMPLES
    return whole


@pytest.mark.parametrize(("program", "ranks"), RANKS.items())
def test_a_killed_trainer_resumes_after_its_last_checkpoint(
    folder: Path, program: str, ranks: int
) -> None:
    whole = whole_run(folder, program, ranks)
    of_rank = [len(steps) for steps in whole.steps]
    # In the second epoch, and so that a checkpoint does not hold the last step before.
    killed_at = min(of_rank) // EPOCHS + SAVE_STEPS + 3
    killed = Run(program, folder / "parts", ranks, killed_at)
    assert KILLED in killed.exit_codes, killed.text
    resumed = Run(program, folder / "parts", ranks)
    assert resumed.exit_codes == [0] * ranks, resumed.text
    for rank in range(ranks):
        rest = len(resumed.steps[rank])
        assert killed_at - SAVE_STEPS <= len(whole.steps[rank]) - rest < killed_at
        assert resumed.steps[rank] == whole.steps[rank][-rest:]


def test_torch_compiles_once_whatever_the_lengths(folder: Path) -> None:
    run = Run("compiled.py", folder / "whole")
    assert run.exit_codes == [0], run.text
    assert run.graphs == [[1]]


def test_every_program_is_tried() -> None:
    assert {*RANKS, "ranker.py", "compiled.py"} == set(PROGRAMS)
