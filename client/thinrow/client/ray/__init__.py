"""Histories through Ray Data: tasks of a cluster look rows up, and the trainer widens the answers.

::

    import ray
    from thinrow.client import Projection
    from thinrow.client.ray import RayBatches, ThinRowDatasource

    source = ThinRowDatasource("rows/*.parquet", "localhost:7878", Projection())
    for batch in RayBatches(ray.data.read_datasource(source)):
        train(batch)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from thinrow.client.ray.datasource import ThinRowDatasource
from thinrow.client.ray.example_ids import ExampleIds
from thinrow.client.ray.scaling import ScalingLimits, wanted_actors

if TYPE_CHECKING:
    from thinrow.client.ray.batches import RayBatches
    from thinrow.client.ray.pool import LookupPool

__all__ = [
    "ExampleIds",
    "LookupPool",
    "RayBatches",
    "ScalingLimits",
    "ThinRowDatasource",
    "wanted_actors",
]

TRAINER_MODULES = {"LookupPool": "pool", "RayBatches": "batches"}
"""Modules that import PyTorch, which takes seconds: processes that look rows up do without."""


def __getattr__(name: str) -> object:
    """Imports a class of the trainer at its first use."""
    if name not in TRAINER_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{TRAINER_MODULES[name]}"), name)
