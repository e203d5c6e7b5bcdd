"""`thinrow demo`: what it measures is true, and what it says follows from what it measures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import polars as pl
import pytest
import torch
from thinrow.demo.comparison import Compared, check_equal
from thinrow.demo.demo import run_demo
from thinrow.demo.findings import Findings, Rung
from thinrow.demo.recipes import RECIPES, Dataset
from thinrow.demo.sample_data import longest
from thinrow.demo.training import Quality
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("dataset", get_args(Dataset))
def test_demo_ends_in_a_trained_model(
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The figures are those of the rows, recounted from the events."""
    recipe = RECIPES[dataset]
    few = replace(recipe, load=lambda: longest(recipe.load(), users=5))
    monkeypatch.setitem(RECIPES, dataset, few)
    found = run_demo(tmp_path, dataset, examples_max=200)
    shown = capsys.readouterr().out
    for step in ("thinrow backfill", "thinrow serve", "thinrow verify", "hit rate@10"):
        assert step in shown
    root = tmp_path / dataset
    for meaning in (found.bytes_meaning(), found.speed_meaning(), found.quality_meaning()):
        assert meaning.split()[-1] in shown
    assert (root / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert str(root / "demo.png") in shown.replace("\n", "")

    requests = pl.read_parquet(root / "rows.parquet").with_row_index("row")
    counted = (
        requests.select("row", "user_id", "request_ts")
        .join(pl.read_parquet(root / "events.parquet"), on="user_id")
        .filter(pl.col("event_ts") < pl.col("request_ts"))
        .group_by("row")
        .len()["len"]
    )
    assert [each.tenant for each in found.tenants] == list(recipe.tenants)
    for each in found.tenants:
        kept = counted.clip(upper_bound=each.tenant.sequence_length or None)
        assert (each.examples, each.events) == (len(requests), kept.sum())
        fat = root / f"fat-{each.tenant.name}.parquet"
        assert each.fat_bytes == fat.stat().st_size
        assert set(each.tenant.traits) <= set(pl.read_parquet_schema(fat))
    assert [rung.sequence_length for rung in found.rungs] == list(recipe.lengths)
    if recipe.cadence_ms is None:  # as of `thinrow research`: histories are in the store
        assert requests["mutable"].list.len().sum() == 0


def test_a_value_that_differs_is_seen() -> None:
    batch = {"offsets": torch.tensor([0, 2, 3]), "item_id": torch.tensor([7, 8, 9])}
    assert check_equal([batch], [dict(batch)]) == (2, 3)
    for name in batch:
        other = batch[name].clone()
        other[1] += 1
        with pytest.raises(ThinRowError, match=f"differ in {name}, in examples 0 to 1"):
            check_equal([batch], [{**batch, name: other}])
    with pytest.raises(ValueError, match="longer"):
        check_equal([batch], [batch, batch])


def test_each_table_says_who_wins() -> None:
    short, *_, whole = RECIPES["completejourney"].tenants

    def findings(fat_bytes: int, fat_s: float, hit_rate: float) -> Findings:
        figures: dict[str, Any] = {"examples": 10, "events": 1000, "thin_s": 1.0}
        return Findings(
            rows_bytes=400,
            store_bytes=600,
            tenants=[
                Compared(tenant=short, fat_bytes=500, fat_s=0.5, **figures),
                Compared(tenant=whole, fat_bytes=fat_bytes, fat_s=fat_s, **figures),
            ],
            rungs=[
                Rung(sequence_length=16, quality=Quality(0.1, 0.05, 0.9)),
                Rung(sequence_length=0, quality=Quality(hit_rate, 0.05, 0.9)),
            ],
        )

    won, lost = findings(3000, 2.0, 0.2), findings(1000, 0.9, 0.1)
    assert (won.smaller, won.faster) == (3.0, 2.0)
    assert "of “whole” alone take 3.0 times as many bytes" in won.bytes_meaning()
    assert "“short” were the only model, its fat rows would take fewer" in won.bytes_meaning()
    assert "Thin rows win for “whole”" in won.speed_meaning()
    assert "Fat rows win for “short”" in won.speed_meaning()
    assert "predicts better" in won.quality_meaning()
    assert "thin rows save nothing here" in lost.bytes_meaning()
    assert "Thin rows win" not in lost.speed_meaning()
    assert "Fat rows win for “short” and “whole”" in lost.speed_meaning()
    assert "predicts no better" in lost.quality_meaning()
