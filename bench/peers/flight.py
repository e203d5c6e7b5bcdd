"""Arrow Flight, sending batches that are assembled already: what a transport can do at best.

As the documentation advises, `do_get` streams record batches; they lie in a memory-mapped,
uncompressed Arrow file, so that sending them costs no decoding and no copy. Run as a script, this
file is that server.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import flight

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from expected import Examples
    from sides import Tensors


class Server(flight.FlightServerBase):  # type: ignore[misc]
    """Sends Arrow files of a folder by name."""

    def __init__(self, folder: Path) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.folder = folder

    def do_get(
        self,
        _context: flight.ServerCallContext,
        ticket: flight.Ticket,
    ) -> flight.GeneratorStream:
        """One file, batch by batch."""
        file = pa.ipc.open_file(pa.memory_map(str(self.folder / ticket.ticket.decode())))
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
        return flight.GeneratorStream(file.schema, batches)


class Assembled:
    """Batches from a Flight server."""

    def __init__(self, name: str, address: str, pid: int, file: str) -> None:
        self.name = name
        self.pids: Sequence[int] = (pid,)
        self.address = address
        self.file = file

    def batches(self) -> Iterator[Tensors]:
        """Read ahead in a thread."""
        from sides import ahead

        return ahead(self.tensors())

    def tensors(self) -> Iterator[Tensors]:
        """Batches as they come; int64 columns become tensors without a copy."""
        from peers.parquet import int64_tensors

        with flight.connect(self.address) as client:
            for chunk in client.do_get(flight.Ticket(self.file)):
                columns = chunk.data.columns
                offsets = columns[0].offsets.to_numpy().astype(np.int64)
                values = [column.flatten().to_numpy() for column in columns]
                yield int64_tensors(offsets - offsets[0], values)


@contextmanager
def assembled(examples: Examples, folder: Path) -> Iterator[list[Assembled]]:
    """A server with the batches of some examples, as int64 and in their own types."""
    folder.mkdir()
    kinds = {"int64": np.int64, "own types": None}
    for kind, dtype in kinds.items():
        writer = None
        for places in examples.places:
            batch = examples.record_batch(places, dtype)
            if writer is None:
                writer = pa.ipc.new_file(str(folder / kind), batch.schema)
            writer.write_batch(batch)
        assert writer is not None
        writer.close()
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        address = f"grpc://127.0.0.1:{int(server.stdout.readline())}"
        yield [Assembled(f"Flight, {kind}", address, server.pid, kind) for kind in kinds]
    finally:
        server.terminate()
        server.wait()
        for file in folder.iterdir():
            file.unlink()


if __name__ == "__main__":
    serving = Server(Path(sys.argv[1]))
    print(serving.port, flush=True)
    serving.serve()
