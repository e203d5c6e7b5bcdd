"""Thin rows as messages: what a logger sends and a trainer reads from a stream.

A message is an Arrow IPC stream of the columns that a file of thin rows has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.core.files.arrow import load_pyarrow, one_batch
from thinrow.core.files.arrow_sizes import require_bounded_arrays, require_bounded_message
from thinrow.core.files.rows import check, other_columns, to_thin_rows
from thinrow.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from thinrow.core.pointers import ThinRows

__all__ = ["MESSAGE_ROWS_MAX", "decode_thin_rows", "encode_thin_rows", "split_thin_rows"]

MESSAGE_ROWS_MAX = 1024
OWN = ("user_id", "request_ts", "uih", "mutable")
"""Columns that make a thin row."""


def encode_thin_rows(table: pa.Table) -> bytes:
    """Encodes at most MESSAGE_ROWS_MAX thin rows as one message.

    Raises InputError for a table that could not be read back as thin rows.
    """
    pa = load_pyarrow()
    check("The table", table.schema)
    require_few("The table", table)
    split_thin_rows("The table", table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.combine_chunks())
    message: bytes = sink.getvalue().to_pybytes()
    return message


def decode_thin_rows(where: str, message: bytes | None) -> pa.Table:
    """Decodes a message and checks that it has the form of thin rows, though not each value.

    Raises InputError, naming `where` it came from: also, before the memory is taken, for one that
    would become far larger than it is.
    """
    pa = load_pyarrow()
    message = message or b""
    try:
        require_bounded_message(where, message)
        with pa.ipc.open_stream(message) as stream:
            table = stream.read_all()
        require_few(where, table)
        # Otherwise offsets that point outside would be followed.
        table.validate(full=True)
        check(where, table.schema)
        require_bounded_arrays(where, table, len(message))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(where, error) from error
    return table


def split_thin_rows(where: str, table: pa.Table) -> tuple[ThinRows, pa.Table]:
    """Takes thin rows and a table of their other columns, user_id and request_ts among them.

    Raises InputError, naming `where` they came from.
    """
    pa = load_pyarrow()
    try:
        rows = to_thin_rows(where, one_batch(table.select(OWN)))
        return rows, table.select(other_columns(table.schema))
    except (ValueError, pa.ArrowException) as error:
        raise unreadable(where, error) from error


def unreadable(where: str, error: Exception) -> InputError:
    """Says that what is there cannot be read."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return InputError(
        f"{where} cannot be read as Arrow IPC: {reason}; send what encode_thin_rows returns."
    )


def require_few(where: str, table: pa.Table) -> None:
    """Refuses a message whose rows could not be numbered."""
    if len(table) > MESSAGE_ROWS_MAX:
        raise InputError(
            f"{where} has {len(table)} rows, but a message holds at most {MESSAGE_ROWS_MAX}; "
            f"send several."
        )
