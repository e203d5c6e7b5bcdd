from thinrow.v1 import materialization_pb2 as _materialization_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventBatch(_message.Message):
    __slots__ = ("user_ids", "columns", "user_texts")
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    USER_TEXTS_FIELD_NUMBER: _ClassVar[int]
    user_ids: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[_materialization_pb2.Column]
    user_texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_ids: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[_materialization_pb2.Column, _Mapping]]] = ..., user_texts: _Optional[_Iterable[str]] = ...) -> None: ...

class AppendEventsRequest(_message.Message):
    __slots__ = ("cursor", "events")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    events: EventBatch
    def __init__(self, cursor: _Optional[int] = ..., events: _Optional[_Union[EventBatch, _Mapping]] = ...) -> None: ...

class AppendEventsResponse(_message.Message):
    __slots__ = ("cursor", "appended", "duplicates", "arrival_ts", "refused")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_TS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    appended: int
    duplicates: int
    arrival_ts: int
    refused: str
    def __init__(self, cursor: _Optional[int] = ..., appended: _Optional[int] = ..., duplicates: _Optional[int] = ..., arrival_ts: _Optional[int] = ..., refused: _Optional[str] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("user_id", "request_ts", "lookback_ms", "max_length", "tenant", "projection", "user_text")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TS_FIELD_NUMBER: _ClassVar[int]
    LOOKBACK_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    USER_TEXT_FIELD_NUMBER: _ClassVar[int]
    user_id: int
    request_ts: int
    lookback_ms: int
    max_length: int
    tenant: str
    projection: _materialization_pb2.Projection
    user_text: str
    def __init__(self, user_id: _Optional[int] = ..., request_ts: _Optional[int] = ..., lookback_ms: _Optional[int] = ..., max_length: _Optional[int] = ..., tenant: _Optional[str] = ..., projection: _Optional[_Union[_materialization_pb2.Projection, _Mapping]] = ..., user_text: _Optional[str] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("request_ts", "start_ts", "end_ts", "max_length", "digest", "mutable", "immutable", "as_of_ts", "lag_ms")
    REQUEST_TS_FIELD_NUMBER: _ClassVar[int]
    START_TS_FIELD_NUMBER: _ClassVar[int]
    END_TS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MUTABLE_FIELD_NUMBER: _ClassVar[int]
    IMMUTABLE_FIELD_NUMBER: _ClassVar[int]
    AS_OF_TS_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    request_ts: int
    start_ts: int
    end_ts: int
    max_length: int
    digest: int
    mutable: MutableEvents
    immutable: _materialization_pb2.MaterializeResponse
    as_of_ts: int
    lag_ms: int
    def __init__(self, request_ts: _Optional[int] = ..., start_ts: _Optional[int] = ..., end_ts: _Optional[int] = ..., max_length: _Optional[int] = ..., digest: _Optional[int] = ..., mutable: _Optional[_Union[MutableEvents, _Mapping]] = ..., immutable: _Optional[_Union[_materialization_pb2.MaterializeResponse, _Mapping]] = ..., as_of_ts: _Optional[int] = ..., lag_ms: _Optional[int] = ...) -> None: ...

class MutableEvents(_message.Message):
    __slots__ = ("arrival_ts", "columns")
    ARRIVAL_TS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    arrival_ts: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[_materialization_pb2.Column]
    def __init__(self, arrival_ts: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[_materialization_pb2.Column, _Mapping]]] = ...) -> None: ...

class SnapshotBatchRequest(_message.Message):
    __slots__ = ("user_ids", "request_ts", "lookback_ms", "max_length", "tenant", "projection", "user_texts")
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TS_FIELD_NUMBER: _ClassVar[int]
    LOOKBACK_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    USER_TEXTS_FIELD_NUMBER: _ClassVar[int]
    user_ids: _containers.RepeatedScalarFieldContainer[int]
    request_ts: int
    lookback_ms: int
    max_length: int
    tenant: str
    projection: _materialization_pb2.Projection
    user_texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_ids: _Optional[_Iterable[int]] = ..., request_ts: _Optional[int] = ..., lookback_ms: _Optional[int] = ..., max_length: _Optional[int] = ..., tenant: _Optional[str] = ..., projection: _Optional[_Union[_materialization_pb2.Projection, _Mapping]] = ..., user_texts: _Optional[_Iterable[str]] = ...) -> None: ...

class SnapshotBatchResponse(_message.Message):
    __slots__ = ("request_ts", "start_ts", "end_ts", "max_length", "digests", "mutable", "immutable", "mutable_lengths", "as_of_ts", "lag_ms")
    REQUEST_TS_FIELD_NUMBER: _ClassVar[int]
    START_TS_FIELD_NUMBER: _ClassVar[int]
    END_TS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    MUTABLE_FIELD_NUMBER: _ClassVar[int]
    IMMUTABLE_FIELD_NUMBER: _ClassVar[int]
    MUTABLE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_TS_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    request_ts: int
    start_ts: int
    end_ts: int
    max_length: int
    digests: _containers.RepeatedScalarFieldContainer[int]
    mutable: MutableEvents
    immutable: _materialization_pb2.MaterializeResponse
    mutable_lengths: _containers.RepeatedScalarFieldContainer[int]
    as_of_ts: int
    lag_ms: int
    def __init__(self, request_ts: _Optional[int] = ..., start_ts: _Optional[int] = ..., end_ts: _Optional[int] = ..., max_length: _Optional[int] = ..., digests: _Optional[_Iterable[int]] = ..., mutable: _Optional[_Union[MutableEvents, _Mapping]] = ..., immutable: _Optional[_Union[_materialization_pb2.MaterializeResponse, _Mapping]] = ..., mutable_lengths: _Optional[_Iterable[int]] = ..., as_of_ts: _Optional[int] = ..., lag_ms: _Optional[int] = ...) -> None: ...

class SnapshotStreamRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[StreamedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[StreamedRequest, _Mapping]]] = ...) -> None: ...

class StreamedRequest(_message.Message):
    __slots__ = ("cursor", "request", "deadline_ms")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    request: SnapshotRequest
    deadline_ms: int
    def __init__(self, cursor: _Optional[int] = ..., request: _Optional[_Union[SnapshotRequest, _Mapping]] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class SnapshotStreamResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[StreamedAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[StreamedAnswer, _Mapping]]] = ...) -> None: ...

class StreamedAnswer(_message.Message):
    __slots__ = ("cursor", "response", "error")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    response: SnapshotResponse
    error: CallError
    def __init__(self, cursor: _Optional[int] = ..., response: _Optional[_Union[SnapshotResponse, _Mapping]] = ..., error: _Optional[_Union[CallError, _Mapping]] = ...) -> None: ...

class CallError(_message.Message):
    __slots__ = ("code", "name", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    name: str
    message: str
    def __init__(self, code: _Optional[int] = ..., name: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ExportEventsRequest(_message.Message):
    __slots__ = ("watermark_ts", "from_ts")
    WATERMARK_TS_FIELD_NUMBER: _ClassVar[int]
    FROM_TS_FIELD_NUMBER: _ClassVar[int]
    watermark_ts: int
    from_ts: int
    def __init__(self, watermark_ts: _Optional[int] = ..., from_ts: _Optional[int] = ...) -> None: ...

class ExportEventsResponse(_message.Message):
    __slots__ = ("from_ts", "arrival_ts", "events")
    FROM_TS_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_TS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    from_ts: int
    arrival_ts: _containers.RepeatedScalarFieldContainer[int]
    events: EventBatch
    def __init__(self, from_ts: _Optional[int] = ..., arrival_ts: _Optional[_Iterable[int]] = ..., events: _Optional[_Union[EventBatch, _Mapping]] = ...) -> None: ...

class LookUpEventCodesRequest(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _materialization_pb2.LookUpCodesRequest
    def __init__(self, values: _Optional[_Union[_materialization_pb2.LookUpCodesRequest, _Mapping]] = ...) -> None: ...

class LookUpEventCodesResponse(_message.Message):
    __slots__ = ("codes",)
    CODES_FIELD_NUMBER: _ClassVar[int]
    codes: _materialization_pb2.LookUpCodesResponse
    def __init__(self, codes: _Optional[_Union[_materialization_pb2.LookUpCodesResponse, _Mapping]] = ...) -> None: ...

class DescribeTierRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeTierResponse(_message.Message):
    __slots__ = ("now_ts", "sealed_ts", "generation", "watermark_ts", "kept_from_ts", "feature_groups", "batch_events_max", "batch_users_max", "server_version", "limits", "user_id_kind", "event_id_kind", "topic", "partition_count", "partitions")
    NOW_TS_FIELD_NUMBER: _ClassVar[int]
    SEALED_TS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_TS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FROM_TS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_GROUPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_EVENTS_MAX_FIELD_NUMBER: _ClassVar[int]
    BATCH_USERS_MAX_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    now_ts: int
    sealed_ts: int
    generation: int
    watermark_ts: int
    kept_from_ts: int
    feature_groups: _containers.RepeatedCompositeFieldContainer[_materialization_pb2.FeatureGroup]
    batch_events_max: int
    batch_users_max: int
    server_version: str
    limits: _materialization_pb2.Limits
    user_id_kind: _materialization_pb2.IdKind
    event_id_kind: _materialization_pb2.IdKind
    topic: str
    partition_count: int
    partitions: _containers.RepeatedCompositeFieldContainer[TierPartition]
    def __init__(self, now_ts: _Optional[int] = ..., sealed_ts: _Optional[int] = ..., generation: _Optional[int] = ..., watermark_ts: _Optional[int] = ..., kept_from_ts: _Optional[int] = ..., feature_groups: _Optional[_Iterable[_Union[_materialization_pb2.FeatureGroup, _Mapping]]] = ..., batch_events_max: _Optional[int] = ..., batch_users_max: _Optional[int] = ..., server_version: _Optional[str] = ..., limits: _Optional[_Union[_materialization_pb2.Limits, _Mapping]] = ..., user_id_kind: _Optional[_Union[_materialization_pb2.IdKind, str]] = ..., event_id_kind: _Optional[_Union[_materialization_pb2.IdKind, str]] = ..., topic: _Optional[str] = ..., partition_count: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[TierPartition, _Mapping]]] = ...) -> None: ...

class TierPartition(_message.Message):
    __slots__ = ("number", "as_of_ts", "lag_ms")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AS_OF_TS_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    number: int
    as_of_ts: int
    lag_ms: int
    def __init__(self, number: _Optional[int] = ..., as_of_ts: _Optional[int] = ..., lag_ms: _Optional[int] = ...) -> None: ...
