"""Worker processes of DataLoaders whose test has used gRPC, after which a process must not fork."""

from __future__ import annotations

import multiprocessing

__all__ = ["FORKSERVER"]

FORKSERVER = multiprocessing.get_context("forkserver")
# Importing these takes longer than a test: workers are forked from a process that has them.
FORKSERVER.set_forkserver_preload(["thinrow.client.torch", "torchdata.stateful_dataloader"])
