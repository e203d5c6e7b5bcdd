"""Meta's DlrmHSTU, unchanged, trains from thin rows, and is given the very events of fat rows."""

from __future__ import annotations

import importlib
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from support.paths import ROOT
from support.worlds import DAY_MS, START_TS, as_of, int64, running_server
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor

torch = pytest.importorskip("torch")

SCHEMA = '[item]\nitem_id = { type = "int64", key = true }\n[feedback]\nrating = "float32"\n'
DAYS = 4
USERS = 8
STEPS_MIN = 10


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """examples/dlrm_hstu.py as a module; skips the test where what it imports is not at hand."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    if checkout := os.environ.get("GENERATIVE_RECOMMENDERS"):
        monkeypatch.syspath_prepend(checkout)
    needed = ("generative_recommenders", "torchrec", "fbgemm_gpu", "tensordict", "triton")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        pytest.skip(
            f"DlrmHSTU is not at hand for want of {', '.join(missing)}: git clone "
            "https://github.com/meta-recsys/generative-recommenders, name the checkout in "
            "GENERATIVE_RECOMMENDERS, and pip install what examples/dlrm_hstu.py lists."
        )
    yield importlib.import_module("dlrm_hstu")
    sys.modules.pop("dlrm_hstu")


def some_ratings() -> pl.DataFrame:
    """Ratings over whole days; user 8's are fewer than a history of the model."""
    rng = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, count: int) -> list[int]:
        drawn: list[int] = torch.randint(low, high, (count,), generator=rng).tolist()
        return drawn

    count = 1200
    users = [
        user if user < USERS or place % 9 == 0 else 1
        for place, user in enumerate(draw(1, USERS + 1, count))
    ]
    return pl.DataFrame(
        {
            "user_id": int64(users),
            "event_ts": int64(draw(START_TS, START_TS + DAYS * DAY_MS, count)),
            "item_id": int64(draw(1, 300, count)),
            "rating": pl.Series(draw(1, 6, count), dtype=pl.Float32),
        }
    )


def fat_rows(events: pl.DataFrame, requests: pl.DataFrame) -> list[dict[str, Any]]:
    """Each request with the events before it, joined from the raw events in plain Python."""
    everything = sorted(
        events.iter_rows(named=True),
        key=lambda row: (row["event_ts"], row["item_id"], row["rating"]),
    )
    return [
        request
        | {
            "history": [
                event
                for event in everything
                if event["user_id"] == request["user_id"]
                and event["event_ts"] < request["request_ts"]
            ]
        }
        for request in requests.iter_rows(named=True)
    ]


def by_example(kjt: KeyedJaggedTensor) -> list[dict[str, list[int]]]:
    """Values of each example, by key."""
    columns = {key: tensor.to_dense() for key, tensor in kjt.to_dict().items()}
    return [{key: of[n].tolist() for key, of in columns.items()} for n in range(kjt.stride())]


# torchrec, fbgemm and triton warn of their own age at every import.
@pytest.mark.filterwarnings("ignore")
def test_trains_and_sees_what_fat_rows_hold(example: Any, tmp_path: Path) -> None:  # noqa: ANN401
    events = some_ratings()
    requests = events.select(
        "user_id",
        pl.col("event_ts").alias("request_ts"),
        pl.col("item_id", "rating").name.prefix("label_"),
    )
    paths = {name: tmp_path / f"{name}.parquet" for name in ("events", "requests", "rows")}
    events.write_parquet(paths["events"])
    requests.write_parquet(paths["requests"])
    (tmp_path / "schema.toml").write_text(SCHEMA)
    compact(
        CompactionConfig(
            store=tmp_path / "store",
            events=[paths["events"]],
            schema=tmp_path / "schema.toml",
            watermark_ts=as_of(DAYS - 1),
            cadence_ms=DAY_MS,
        )
    )
    backfill(
        BackfillConfig(
            requests=paths["requests"],
            store=tmp_path / "store",
            events=[paths["events"]],
            rows=paths["rows"],
            cadence_ms=DAY_MS,
        )
    )
    torch.manual_seed(0)
    model = example.make_model()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with (
        running_server(tmp_path / "store") as server,
        example.make_loader(str(paths["rows"]), server.address) as loader,
    ):
        batches = list(loader)
        losses = list(example.train(model, batches))

    assert len(losses) >= STEPS_MIN
    assert all(map(math.isfinite, losses))
    # A network for features that this configuration does not have gets no gradient.
    used = {name: now for name, now in model.named_parameters() if now.grad is not None}
    assert {"movie_id", "user_id"} == {name.split(".")[2] for name in used if "_collection" in name}
    assert len(used) > len(before) / 2
    assert [name for name, now in used.items() if torch.equal(before[name], now)] == []

    rows = fat_rows(events, requests)
    newest = example.SEQUENCE_LENGTH
    assert {len(row["history"]) > newest for row in rows} == {False, True}
    assert any(not row["history"] for row in rows)
    seen = 0
    for batch in batches:
        samples = example.to_samples(batch)
        uih, candidates = map(
            by_example, (samples.uih_features_kjt, samples.candidates_features_kjt)
        )
        for number, history, candidate in zip(
            batch.example_ids.tolist(), uih, candidates, strict=True
        ):
            row = rows[number]
            kept = row["history"][-newest:]
            assert history == {
                "user_id": [row["user_id"]],
                "movie_id": [event["item_id"] for event in kept],
                "action_timestamp": [event["event_ts"] // 1000 for event in kept],
                "item_weights": [2 ** (int(event["rating"]) - 1) for event in kept],
                "movie_rating": [int(event["rating"]) for event in kept],
            }
            assert candidate == {
                "item_movie_id": [row["label_item_id"]],
                "item_query_time": [row["request_ts"] // 1000],
                "item_action_weights": [int(row["label_rating"] >= 4)],
                "item_movie_rating": [int(row["label_rating"])],
            }
            seen += 1
    assert seen == len(rows)
