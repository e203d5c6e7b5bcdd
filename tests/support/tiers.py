"""Mutable tiers, opened by themselves."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from support.worlds import DAY_MS, START_TS, new_world
from thinrow.online.records import batch_of
from thinrow.online.tier import MutableTier, TierConfig
from thinrow.schema import read_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def opened(folder: Path, now: list[int], **options: Any) -> Iterator[MutableTier]:  # noqa: ANN401
    options = {"commit_lead_ms": 0, "retention_ms": DAY_MS, **options}
    tier = MutableTier(TierConfig(folder=folder, wall=lambda: now[0], **options))
    tier.use_schema(read_schema(new_world(folder.parent, '[a]\nt = "string"\n').schema))
    try:
        yield tier
    finally:
        tier.close()


def append(tier: MutableTier, user: int, text: str, event_id: int) -> int:
    record_format = tier.format
    assert record_format is not None
    given = {
        "event_ts": np.array([START_TS]),
        "event_id": np.array([event_id]),
        "t": np.array([text], object),
    }
    columns = record_format.checked({k: column(v) for k, v in given.items()}, 1)
    [committed] = tier.commit([batch_of([user], columns, record_format)])
    return committed.arrival_ts


def column(values: np.ndarray[Any, Any]) -> Any:  # noqa: ANN401
    from thinrow.core.pointers import MutableColumn

    return MutableColumn(values)


def in_threads(*work: Callable[[], object]) -> None:
    errors: list[Exception] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
