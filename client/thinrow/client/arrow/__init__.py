"""Histories as Arrow data, for Polars, DuckDB, pandas, Daft and any engine that reads Arrow.

::

    import polars as pl
    from thinrow.client import Projection
    from thinrow.client.arrow import read

    frame = pl.from_arrow(read("rows/*.parquet", "localhost:7878", Projection()))
"""

from thinrow.client.arrow.config import ReadConfig
from thinrow.client.arrow.reader import read

__all__ = ["ReadConfig", "read"]
