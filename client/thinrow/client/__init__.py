"""The client: looks up the histories that thin rows point at.

::

    from thinrow.client import Pointers, Projection, connect

    with connect("localhost:7878") as client:
        batch = client.materialize(
            Pointers(user_ids=[7], end_ts=[1_700_000_000_000]), Projection(sequence_length=100)
        )
        batch.to_lists("item_id")
"""

from thinrow.client.client import Client, connect
from thinrow.client.config import ClientConfig, StoreConfig
from thinrow.client.credentials import tls_credentials
from thinrow.core.files.rows import read_thin_rows, row_count
from thinrow.core.lookup.answer import Answer
from thinrow.core.lookup.batch import Batch
from thinrow.core.pointers import MutableColumn, MutableEvents, Pointers, Projection, ThinRows
from thinrow.core.wire.widen import ColumnKind

__all__ = [
    "Answer",
    "Batch",
    "Client",
    "ClientConfig",
    "ColumnKind",
    "MutableColumn",
    "MutableEvents",
    "Pointers",
    "Projection",
    "StoreConfig",
    "ThinRows",
    "connect",
    "read_thin_rows",
    "row_count",
    "tls_credentials",
]
