"""The ladder: every figure comes from the rows at that length."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from support.small_disks import run
from support.thin_rows import rows_table
from thinrow.demo import ladder
from thinrow.demo.ladder import FULL, parse_lengths, run_ladder
from thinrow.demo.model import ModelConfig, NextItemModel
from thinrow.demo.sample_data import complete_journey
from thinrow.demo.training import Split, Study
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.demo.sample_data import SampleData


def every_tenth() -> SampleData:
    sample = complete_journey()
    return replace(sample, events=sample.events.filter(pl.col("user_id") % 10 == 0))


@pytest.mark.server
def test_figures_come_from_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "complete_journey", every_tenth)
    lengths = [64, FULL, 4]
    rungs = run_ladder(
        tmp_path, None, [], target="store_id", lengths=lengths, epochs=1, seeds=1, examples_max=700
    )
    assert [rung.name for rung in rungs] == ["4", "64", "full"]
    events = pl.read_parquet(tmp_path / "events.parquet")
    requests = pl.read_parquet(tmp_path / "train-rows.parquet").select("user_id", "request_ts")
    counted = (
        requests.with_row_index()
        .join(events, on="user_id")
        .filter(pl.col("event_ts") < pl.col("request_ts"))
        .group_by("index")
        .len()["len"]
    )
    for rung in rungs:
        kept = counted.clip(upper_bound=rung.sequence_length or None)
        assert rung.events == pytest.approx(kept.sum() / len(requests))
        assert rung.longest == kept.max()
        for quality in rung.qualities:
            assert 0 < quality.popularity_hit_rate < quality.hit_rate <= 1
    for shorter, longer in pairwise(rungs):
        assert shorter.thin_bytes == longer.thin_bytes
        for order in ladder.ORDERS:
            assert shorter.wire_bytes[order] < longer.wire_bytes[order]
            assert shorter.fat_bytes[order] < longer.fat_bytes[order]
    table = (tmp_path / "ladder.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][2:] == [
        "| 4",
        "| 64",
        "| full",
    ]
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_model_sees_whole_histories_one_by_one() -> None:
    config = ModelConfig(recent=4)
    torch.manual_seed(0)
    model = NextItemModel(config, torch.arange(50)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.zeros_(model.forgetting)
    histories = [torch.randint(1, 50, (length,)) for length in (30, 0, 1, 4, 5)]

    def likely(*of: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([0, *map(len, of)])
        return model.probabilities(
            torch.cat(of).to(model.device), lengths.cumsum(0).to(model.device)
        )

    together = likely(*histories)
    assert together.shape == (5, 50)
    torch.testing.assert_close(together.sum(1), together.new_ones(5))
    for history, expected in zip(histories, together, strict=True):
        torch.testing.assert_close(likely(history)[0], expected)
    other = histories[0].clone()
    other[0] = other[0] % 49 + 1  # far beyond the newest few
    assert not torch.allclose(likely(other)[0], together[0])


def test_lengths() -> None:
    assert parse_lengths("16, 256,full") == [16, 256, FULL]
    for wrong in ("", "0", "-1", "many", "16,"):
        with pytest.raises(UsageError, match="16,256,full"):
            parse_lengths(wrong)


def test_a_label_is_needed(tmp_path: Path) -> None:
    pq.write_table(rows_table(20), tmp_path / "rows.parquet")
    split = Split(**dict.fromkeys(("train", "held_out", "newest"), tmp_path / "rows.parquet"))
    with pytest.raises(UsageError, match="no column label_item_id of integers"):
        Study(split, "localhost:1", "item_id")
    with pytest.raises(InputError, match="requests of one moment"):
        Split.of(tmp_path / "rows.parquet", tmp_path)


def test_rows_need_their_server(tmp_path: Path) -> None:
    result = run("ladder", "--rows", tmp_path / "rows.parquet", "--out", tmp_path)
    assert result.exit_code == 2
    assert "give both or neither" in result.stderr
