"""Engine of a job: this process, or a cluster of Apache Spark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from thinrow.core.settings import setting
from thinrow.errors import UsageError

__all__ = ["EngineConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine of a job.

    Raises:
        UsageError: Properties of Spark are given to another engine, or are none.
    """

    engine: Literal["embedded", "spark"] = field(
        default="embedded",
        metadata=setting("Where the job runs: in this process, or on Apache Spark."),
    )
    spark_conf: Sequence[str] = field(
        default=(),
        metadata=setting(
            "Property of Spark, such as spark.master=spark://HOST:7077; may be given repeatedly.",
            metavar="KEY=VALUE",
        ),
    )

    def __post_init__(self) -> None:
        if self.spark_conf and self.engine != "spark":
            raise UsageError("spark_conf sets properties of Spark: give --engine spark, too.")
        for each in self.spark_conf:
            key, equals, _ = each.partition("=")
            if not key.startswith("spark.") or not equals:
                raise UsageError(
                    f"spark_conf is {each!r}; write spark.NAME=VALUE, such as "
                    f"spark.executor.memory=4g."
                )

    @property
    def spark_properties(self) -> dict[str, str]:
        """The properties of Spark by name."""
        pairs = (each.partition("=") for each in self.spark_conf)
        return {key: value for key, _, value in pairs}
