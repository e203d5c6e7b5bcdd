"""Leaves out of thin rows what readers derive, so that Parquet stores and decodes less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.rows import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

__all__ = ["LeanRows"]


class LeanRows:
    """The least that holds the pointers and mutable events of a file: first `add` all rows of it.

    `mutable` has no `event_id` if all are null, and no `arrival_ts` if each is null or equals
    `event_ts`. What is never null is declared so, in `uih` too: Parquet then has fewer levels to
    decode, which takes half the time.

    Args:
        nullable: Traits that events may lack. They are declared so in every file, so that files of
            one schema have one type.
    """

    def __init__(self, nullable: Iterable[str] = ()) -> None:
        self._derivable = {"event_id", "arrival_ts"}
        self._nullable = {f"mutable.{name}" for name in ("event_id", *nullable)}
        """Names of the columns, and of their fields, with a null."""

    def add(self, thin: pa.Table) -> None:
        """Takes note of some rows' columns ``uih`` and ``mutable``."""
        compute = load_pyarrow().compute
        for chunk in thin.column("uih").chunks:
            self._note("uih", chunk)
            for name, values in fields(chunk).items():
                self._note(f"uih.{name}", values)
        for chunk in thin.column("mutable").chunks:
            self._note("mutable", chunk)
            events = chunk.flatten()
            self._note("mutable[]", events)
            columns = fields(events)
            for name, values in columns.items():
                self._note(f"mutable.{name}", values)
            given = columns.get("event_id")
            if given is not None and given.null_count < len(given):
                self._derivable.discard("event_id")
            arrival = columns.get("arrival_ts")
            if arrival is not None:
                equal = compute.equal(arrival, columns["event_ts"])
                if not compute.all(equal, min_count=0).as_py():
                    self._derivable.discard("arrival_ts")

    def found(self) -> dict[str, list[str]]:
        """Returns what was noted so far, for `add_found` of another object."""
        return {"derivable": sorted(self._derivable), "nullable": sorted(self._nullable)}

    def add_found(self, found: Mapping[str, list[str]]) -> None:
        """Takes note of the rows that another object has seen."""
        self._derivable &= {*found["derivable"]}
        self._nullable |= {*found["nullable"]}

    def schema(self, thin: pa.Schema) -> pa.Schema:
        """Returns the fields ``uih`` and ``mutable`` of the rows, from those that they have."""
        pa = load_pyarrow()
        pointer, snapshots = (thin.field(name).type for name in ("uih", "mutable"))
        uih = pa.struct([self._field("uih.", field) for field in pointer])
        kept = [field for field in snapshots.value_type if field.name not in self._derivable]
        events = pa.struct([self._field("mutable.", field) for field in kept])
        mutable = pa.list_(pa.field("element", events, "mutable[]" in self._nullable))
        return pa.schema(
            [self._field("", pa.field(*column)) for column in (("uih", uih), ("mutable", mutable))]
        )

    def convert(self, thin: pa.Table) -> pa.Table:
        """Returns the columns ``uih`` and ``mutable`` of some rows, of the schema."""
        pa = load_pyarrow()
        schema = self.schema(thin.schema)
        uih, mutable = [], []
        kind = schema.field("mutable").type
        for chunk in thin.column("uih").chunks:
            null = chunk.is_null() if chunk.null_count else None
            columns = list(fields(chunk).values())
            pointers = list(schema.field("uih").type)
            uih.append(pa.StructArray.from_arrays(columns, fields=pointers, mask=null))
        for chunk in thin.column("mutable").chunks:
            events = chunk.values
            null = events.is_null() if events.null_count else None
            has = fields(events)
            columns = [has[field.name] for field in kind.value_type]
            lean = pa.StructArray.from_arrays(columns, fields=list(kind.value_type), mask=null)
            null = chunk.is_null() if chunk.null_count else None
            mutable.append(pa.ListArray.from_arrays(chunk.offsets, lean, type=kind, mask=null))
        columns = [
            pa.chunked_array(chunks, field.type)
            for chunks, field in zip((uih, mutable), schema, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def _note(self, name: str, values: pa.Array) -> None:
        if values.null_count:
            self._nullable.add(name)

    def _field(self, prefix: str, field: pa.Field) -> pa.Field:
        return field.with_nullable(prefix + field.name in self._nullable)
