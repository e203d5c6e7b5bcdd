"""Histories as a DataFrame of Spark.

::

    from thinrow.client.spark import register

    register(spark)
    frame = (
        spark.read.format("thinrow")
        .option("rows", "rows/*.parquet")
        .option("target", "localhost:7878")
        .load()
    )
"""

from __future__ import annotations

from typing import Any

from thinrow.errors import UsageError

__all__ = ["register"]


def register(spark: Any) -> None:  # noqa: ANN401 - pyspark may not be installed
    """Makes `spark.read.format("thinrow")` known to a session of Spark.

    Raises:
        UsageError: pyspark is missing or too old.
    """
    try:
        from thinrow.client.spark.datasource import ThinRowDataSource
    except ImportError as error:
        raise UsageError(
            "The reader for Spark needs pyspark 4.1 or later on the driver and on the executors: "
            "pip install 'thinrow[spark]'."
        ) from error
    spark.dataSource.register(ThinRowDataSource)
