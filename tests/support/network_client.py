"""A trainer at the other end of the wire, as a process: checks every example, shows what it saw.

`python network_client.py QUESTIONS ADDRESS RUNS`. QUESTIONS is a pickled list of users, end_ts and
the right answer, requested one after the other and from the first again. RUNS is JSON, a list: one
client after the other. Prints a JSON line for each batch that came, and one at each run's end.
"""

from __future__ import annotations

import itertools
import json
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.errors import ThinRowError

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.peak import peak_bytes

if TYPE_CHECKING:
    from thinrow.client import Batch

    Question = tuple[list[int], list[int], list[tuple[int, dict[str, list[Any] | None]]]]

ALL = Projection()


def main() -> None:
    """Makes each run."""
    questions = pickle.loads(Path(sys.argv[1]).read_bytes())  # noqa: S301 - our own
    for number, run in enumerate(json.loads(sys.argv[3])):
        call(sys.argv[2], questions, number, **run)


def call(
    address: str,
    questions: list[Question],
    number: int,
    kind: str,
    batches: int,
    config: dict[str, Any],
    pause_s: float = 0.0,
) -> None:
    """Requests until all has come, or an error."""
    came, wrong, error, began_s = 0, 0, None, time.monotonic()

    def report(**more: object) -> None:
        result = {"run": number, "came": came, "peak_bytes": peak_bytes(), **more}
        print(json.dumps(result), flush=True)

    requested = (
        Pointers(user_ids=users, end_ts=end_ts)
        for users, end_ts, _ in itertools.islice(itertools.cycle(questions), batches)
    )
    with connect(address, ClientConfig(**config)) as client:
        if kind == "stream":
            answers = client.stream(requested, ALL)
        else:
            answers = (client.materialize(pointers, ALL) for pointers in requested)
        try:
            for batch in answers:
                wrong += shown(batch) != questions[came % len(questions)][2]
                came += 1
                report()
                time.sleep(pause_s)
        except ThinRowError as caught:
            error = f"{type(caught).__name__}: {caught}"
    report(wrong=wrong, error=error, seconds=time.monotonic() - began_s)


def shown(batch: Batch) -> list[tuple[int, dict[str, list[Any] | None]]]:
    """Same as worlds.shown, which would bring the whole server along."""
    lists = {trait: batch.to_lists(trait) for trait in batch.values}
    return [
        (status, {trait: column[n] for trait, column in lists.items()})
        for n, status in enumerate(batch.statuses.tolist())
    ]


if __name__ == "__main__":
    main()
