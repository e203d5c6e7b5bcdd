"""The trainer's side: batches of histories as tensors, from thin rows.

::

    from thinrow.client.torch import LoaderConfig, Projection, ThinRowLoader

    with ThinRowLoader(
        "rows/*.parquet",
        "localhost:7878",
        Projection(sequence_length=100),
        LoaderConfig(batch_examples=512),
        device="cuda",
    ) as loader:
        for batch in loader:
            ...
        print(loader.starvation)
"""

from thinrow.errors import UsageError

try:
    import torch as _  # noqa: F401
except ImportError as error:
    raise UsageError("The trainer's side needs PyTorch: pip install 'thinrow[torch]'.") from error

from thinrow.client.torch.batch import TensorBatch
from thinrow.client.torch.config import LoaderConfig
from thinrow.client.torch.dataset import ThinRowDataset
from thinrow.client.torch.loader import ThinRowLoader
from thinrow.client.torch.rows.file_source import FileSource
from thinrow.client.torch.rows.files import RowFiles
from thinrow.client.torch.source import RowChunk, RowSource
from thinrow.client.torch.starvation import Starvation
from thinrow.client.torch.tracked import TrackedLoader
from thinrow.core.pointers import Projection

__all__ = [
    "FileSource",
    "LoaderConfig",
    "Projection",
    "RowChunk",
    "RowFiles",
    "RowSource",
    "Starvation",
    "TensorBatch",
    "ThinRowDataset",
    "ThinRowLoader",
    "TrackedLoader",
]
