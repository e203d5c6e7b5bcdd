"""Arrow messages that declare more than they hold."""

from __future__ import annotations

import pyarrow as pa

MAKE = """
import numpy as np, pyarrow as pa
from thinrow.core.files.arrow import load_pyarrow
load_pyarrow()  # whose libraries take more memory than what reads a message
from thinrow.core.files.message import decode_thin_rows, split_thin_rows

def rows(count=1):
    numbers = pa.array([1] * count)
    uih = pa.StructArray.from_arrays(
        [numbers, numbers, numbers, pa.array([0] * count, pa.uint64())],
        names=["start_ts", "end_ts", "max_length", "digest"],
    )
    return {"user_id": numbers, "request_ts": numbers, "uih": uih}

def mutable(fields, lengths):
    events = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), events)

def encoded(columns, compression=None):
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()

def times(count):
    return pa.array(np.zeros(count, np.int64))

def decoded(message):
    return len(split_thin_rows("m", decode_thin_rows("m", message))[0])
"""


def thin_rows(events: int = 2) -> pa.Table:
    uih = {"start_ts": 0, "end_ts": 9, "max_length": 0, "digest": 0}
    event = {"event_ts": 9, "arrival_ts": 9, "event_id": None, "brand": "a", "liked": True}
    row = {"user_id": 1, "request_ts": 10, "uih": uih, "mutable": [event] * events, "label": "x"}
    return pa.Table.from_pylist([row] * 3)
