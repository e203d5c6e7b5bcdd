"""Histories through Ray Data: tasks of a cluster look rows up, and the trainer widens the answers.

::

    import ray
    from thinrow.client import Projection
    from thinrow.client.ray import RayBatches, ThinRowDatasource

    source = ThinRowDatasource("rows/*.parquet", "localhost:7878", Projection())
    for batch in RayBatches(ray.data.read_datasource(source)):
        train(batch)
"""

from thinrow.client.ray.batches import RayBatches
from thinrow.client.ray.datasource import ThinRowDatasource
from thinrow.client.ray.example_ids import ExampleIds
from thinrow.client.ray.pool import LookupPool
from thinrow.client.ray.scaling import ScalingLimits, wanted_actors

__all__ = [
    "ExampleIds",
    "LookupPool",
    "RayBatches",
    "ScalingLimits",
    "ThinRowDatasource",
    "wanted_actors",
]
