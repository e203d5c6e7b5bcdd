"""Fat rows of a data set, made thin by the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from support.worlds import DAY_MS, START_TS
from thinrow.client import Projection, connect
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.jobs.config import SlimConfig
from thinrow.jobs.layout import FatLayout
from thinrow.jobs.materialize import materialize
from thinrow.jobs.slim import slim
from thinrow.jobs.verify import verify
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.events.units import TimeUnit
    from thinrow.jobs.slim_plan import SlimReport


SCHEMA = '[item]\nitem_id = { type = "int64", key = true }\n'


AS_THEY_STAND = FatLayout(order="arrival", padding="none")
"""Rows with late events, in the order in which they arrived, and with values of any kind."""


@dataclass
class Slimmed:
    """Output of a run of slim."""

    folder: Path
    report: SlimReport
    fat: list[Path]
    layout: FatLayout
    time_unit: TimeUnit | None

    @property
    def events(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "events.parquet")

    @property
    def rows(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "rows.parquet")

    def check(self, cadence_ms: int = DAY_MS, cadence_offset_ms: int = 0) -> None:
        """Builds the store, and holds what it answers against the fat rows."""
        store = self.folder / "store"
        compacted = compact(
            CompactionConfig(
                store=store,
                events=[self.folder / "events.parquet"],
                schema=self.folder / "schema.toml",
                watermark_ts=self.report.watermark_ts,
                shards=2,
                cadence_ms=cadence_ms,
                cadence_offset_ms=cadence_offset_ms,
                time_unit=self.time_unit,
            )
        )
        assert compacted.duplicates == 0
        whole = self.folder / "whole.parquet"
        times = pl.col("request_ts").cast(pl.Int64)
        tables = [pl.read_parquet(path).with_columns(times) for path in self.fat]
        pl.concat(tables).write_parquet(whole)
        config = ServerConfig(store=store, listen="127.0.0.1:0", metrics=None)
        with Server(config) as server, connect(server.address) as client:
            rows, again = self.folder / "rows.parquet", self.folder / "again.parquet"
            report = verify(client, rows, whole, layout=self.layout)
            assert report.rows_that_differ == 0, report.differences
            if self.report.facts.rows:
                materialize(client, rows, Projection(), again)
        if self.report.facts.rows:
            expected, got = pl.read_parquet(whole), pl.read_parquet(again)
            columns = [name for name in expected.columns if name not in ("uih_status", "event_id")]
            kinds = got.select(columns).schema
            assert got.select(columns).equals(expected.select(columns).cast(kinds))
            assert set(got["uih_status"]) == {"OK"}


def slimmed(
    folder: Path,
    fat: Sequence[Path],
    schema: str | None = SCHEMA,
    **options: Any,  # noqa: ANN401
) -> Slimmed:
    """Runs slim; without a schema it derives one."""
    if schema is not None:
        (folder / "schema.toml").write_text(schema, encoding="utf-8")
        options["schema"] = folder / "schema.toml"
    outputs = {"events": folder / "events.parquet", "rows": folder / "rows.parquet"}
    config = SlimConfig(fat=list(fat), **{**outputs, "layout": AS_THEY_STAND, **options})
    return Slimmed(folder, slim(config), list(fat), FatLayout.of(config.layout), config.time_unit)


def hour_ts(hour: float) -> int:
    return START_TS + int(hour * 3_600_000)
