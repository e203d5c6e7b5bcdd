"""The logger's tables: those of the journal and of the outputs, and the conversion to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import pyarrow as pa
from thinrow.client.logger.config import never_null
from thinrow.client.logger.forms import forms_of, with_forms, without_forms
from thinrow.client.logger.values import (
    UNFIT,
    exact,
    integers,
    mappings_array,
    snapshots_array,
)
from thinrow.core.files.arrow import mutable_type as arrow_mutable_type
from thinrow.core.files.arrow import uih_type
from thinrow.core.files.rows import to_thin_rows
from thinrow.core.files.user_columns import user_type
from thinrow.core.ids import canonical_text, from_wire_kind, id_type, is_text_kind
from thinrow.core.thin_row import EventView
from thinrow.core.wire.columns import form_of
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from thinrow.client.logger.config import LoggerConfig
    from thinrow.client.logger.journal import Entries
    from thinrow.core.ids import IdKind
    from thinrow.core.thin_row import ThinRow
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["Tables", "fitting", "mutable_type"]

Entry = TypeVar("Entry")

UIH = uih_type()


class Described(Protocol):
    """The response of `client.describe_store()`, or of the online half's `describe()`."""

    @property
    def feature_groups(self) -> Iterable[wire.FeatureGroup]:
        """The schema, in order."""

    @property
    def event_id_kind(self) -> wire.IdKind:
        """The kind of the events' ids."""


def mutable_type(store: Described) -> pa.DataType:
    """Returns the Arrow type of the column `mutable`, from the schema that a server describes.

    Its fields know units and scales, so that the logger takes times and decimals for them.
    """
    traits = [trait for group in store.feature_groups for trait in group.traits]
    kind = arrow_mutable_type(
        (
            (t.name, t.vocabulary.value_type or t.type, t.vector_size, t.list_length_max)
            for t in traits
        ),
        id_type(from_wire_kind(store.event_id_kind)),
    )
    # Rows have values where the store has codes of a vocabulary.
    return with_forms(kind, {t.name: form_of(t) for t in traits if not t.HasField("vocabulary")})


class Tables:
    """Schemas of one configuration, and the conversion of Python values to record batches."""

    def __init__(self, config: LoggerConfig) -> None:
        self._config = config
        own = [
            pa.field("request_id", pa.string()),
            pa.field("user_id", user_type(config.user_ids)),
            pa.field("request_ts", pa.int64()),
        ]
        self._mutable = without_forms(config.mutable)
        self._forms = forms_of(config.mutable)
        thin = [pa.field("uih", UIH), pa.field("mutable", self._mutable)]
        features, labels = list(config.features), list(config.labels)
        logged = pa.field("logged_ts", pa.int64())
        self.rows = pa.schema([logged, *own, *features, *thin])
        """Schema of rows in the journal."""
        self.labels = pa.schema([logged, own[0], *labels])
        """Schema of labels in the journal; null where a call did not give one."""
        self.joined = pa.schema([*own, *features, *labels, *thin]).remove_metadata()
        """Schema of the outputs."""

    def row_batch(
        self, rows: Sequence[tuple[int, str, ThinRow, Mapping[str, object]]]
    ) -> pa.RecordBatch:
        """Converts (logged_ts, request_id, row, features); raises one of UNFIT."""
        config = self._config
        logged_ts, request_ids, thin, features = zip(*rows, strict=True)
        mutable = [row.mutable for row in thin]
        columns = [
            pa.array(logged_ts, pa.int64()),
            pa.array(request_ids, pa.string()),
            users_array([row.user_id for row in thin], config.user_ids),
            integers([row.request_ts for row in thin]),
        ]
        for feature in config.features:
            column = exact([values[feature.name] for values in features], feature)
            if column.null_count and never_null(feature.type):
                raise InputError(f"feature {feature.name} must not be None")
            columns.append(column)
        pointers = [
            integers([getattr(row, field.name) for row in thin], field.type) for field in UIH
        ]
        columns.append(pa.StructArray.from_arrays(pointers, fields=list(UIH)))
        columns.append(self._snapshots(mutable))
        batch = pa.RecordBatch.from_arrays(columns, schema=self.rows)
        # A row that the trainer's reader rejects must not get into a file.
        to_thin_rows("it", batch)
        require_size(batch, config.row_bytes_max)
        return batch

    def label_batch(
        self, labels: Sequence[tuple[int, str, Mapping[str, object]]]
    ) -> pa.RecordBatch:
        """Converts (logged_ts, request_id, labels); raises one of UNFIT."""
        logged_ts, request_ids, values = zip(*labels, strict=True)
        columns = [pa.array(logged_ts, pa.int64()), pa.array(request_ids, pa.string())]
        for label in self._config.labels:
            columns.append(exact([given.get(label.name) for given in values], label))  # noqa: PERF401
        batch = pa.RecordBatch.from_arrays(columns, schema=self.labels)
        require_size(batch, self._config.label_bytes_max)
        return batch

    def conformed(self, entries: Entries) -> pa.RecordBatch:
        """Returns a frame's rows with the columns of this configuration.

        Columns are found by name, and new ones are null.

        Raises:
            UsageError: A column has another type, or a new one cannot be null.
        """
        batch = entries.rows
        if batch is None or batch.schema.equals(self.rows):
            return batch
        columns = []
        for field in self.rows:
            if field.name in batch.schema.names:
                try:
                    columns.append(batch.column(field.name).cast(field.type))
                except pa.ArrowException as error:
                    raise UsageError(
                        f"The journal has a column {field.name} of "
                        f"{batch.schema.field(field.name).type}, not {field.type}; start the "
                        f"logger with the columns it had, call drain(), then change them."
                    ) from error
            elif never_null(field.type):
                raise UsageError(
                    f"The journal has rows without the feature {field.name}; start the logger "
                    f"without it, call drain(), then add it."
                )
            else:
                columns.append(pa.nulls(len(batch), field.type))
        return pa.RecordBatch.from_arrays(columns, schema=self.rows)

    def join(
        self, rows: pa.RecordBatch, labels: Sequence[Mapping[str, object] | None]
    ) -> pa.RecordBatch:
        """Joins labels to rows of the journal."""
        defaults = self._config.label_defaults
        columns = []
        for field in self.joined:
            if field.name in self.labels.names and field.name != "request_id":
                default = defaults.get(field.name)
                values = [(given or {}).get(field.name, default) for given in labels]
                try:
                    columns.append(pa.array(values, field.type))
                except UNFIT as error:
                    raise UsageError(
                        f"The journal has labels {field.name} that are no {field.type}; start the "
                        f"logger with the labels it had, call drain(), then change them."
                    ) from error
            else:
                columns.append(rows.column(field.name))
        return pa.RecordBatch.from_arrays(columns, schema=self.joined)

    def _snapshots(self, snapshots: Sequence[Sequence[Mapping[str, object]]]) -> pa.ListArray:
        """Converts the mutable events of some rows; those of the online client are columns."""
        views = [snapshot for snapshot in snapshots if isinstance(snapshot, EventView)]
        if len(views) == len(snapshots):
            return snapshots_array(views, self._mutable)
        return mappings_array(snapshots, self._mutable, self._forms)


def users_array(users: Sequence[int | str], kind: IdKind) -> pa.Array:
    """Converts users; raises one of UNFIT for those of another kind."""
    if not is_text_kind(kind):
        return integers(cast("Sequence[int]", users), user_type(kind))
    return pa.array([canonical_text(cast("str", user), kind) for user in users], pa.string())


def require_size(batch: pa.RecordBatch, bytes_max: int) -> None:
    """Rejects a batch with a row that is too large."""
    if batch.nbytes > bytes_max:
        for place in range(len(batch)):
            size = batch.slice(place, 1).nbytes
            if size > bytes_max:
                raise InputError(f"it has {size} bytes, but at most {bytes_max} are taken")


def fitting(
    entries: list[Entry], convert: Callable[[list[Entry]], pa.RecordBatch]
) -> tuple[pa.RecordBatch | None, list[Entry], list[tuple[Entry, Exception]]]:
    """Converts the entries that fit; bisection finds the others, so that neighbours lose little.

    Returns:
        The batch, its entries, and the other entries with their errors.
    """
    if not entries:
        return None, [], []
    try:
        return convert(entries), entries, []
    except UNFIT as error:
        if len(entries) == 1:
            return None, [], [(entries[0], error)]
    middle = len(entries) // 2
    parts = [fitting(half, convert) for half in (entries[:middle], entries[middle:])]
    batches = [batch for batch, _, _ in parts if batch is not None]
    return (
        pa.concat_batches(batches) if batches else None,
        [entry for _, taken, _ in parts for entry in taken],
        [refused for _, _, others in parts for refused in others],
    )
