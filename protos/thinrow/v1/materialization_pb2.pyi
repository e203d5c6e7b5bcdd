from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OK: _ClassVar[Status]
    STATUS_NOT_READY: _ClassVar[Status]
    STATUS_EXPIRED: _ClassVar[Status]
    STATUS_DIGEST_MISMATCH: _ClassVar[Status]
    STATUS_ERASED: _ClassVar[Status]
    STATUS_INVALID: _ClassVar[Status]
    STATUS_ELSEWHERE: _ClassVar[Status]

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_NEWEST: _ClassVar[Truncation]
    TRUNCATION_HEAD: _ClassVar[Truncation]

class TraitType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAIT_TYPE_UNSPECIFIED: _ClassVar[TraitType]
    TRAIT_TYPE_INT8: _ClassVar[TraitType]
    TRAIT_TYPE_INT16: _ClassVar[TraitType]
    TRAIT_TYPE_INT32: _ClassVar[TraitType]
    TRAIT_TYPE_INT64: _ClassVar[TraitType]
    TRAIT_TYPE_UINT8: _ClassVar[TraitType]
    TRAIT_TYPE_UINT16: _ClassVar[TraitType]
    TRAIT_TYPE_UINT32: _ClassVar[TraitType]
    TRAIT_TYPE_UINT64: _ClassVar[TraitType]
    TRAIT_TYPE_FLOAT16: _ClassVar[TraitType]
    TRAIT_TYPE_FLOAT32: _ClassVar[TraitType]
    TRAIT_TYPE_FLOAT64: _ClassVar[TraitType]
    TRAIT_TYPE_BOOL: _ClassVar[TraitType]
    TRAIT_TYPE_CATEGORICAL: _ClassVar[TraitType]
    TRAIT_TYPE_STRING: _ClassVar[TraitType]

class IdKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ID_KIND_UNSPECIFIED: _ClassVar[IdKind]
    ID_KIND_INT64: _ClassVar[IdKind]
    ID_KIND_UINT64: _ClassVar[IdKind]
    ID_KIND_UUID: _ClassVar[IdKind]
    ID_KIND_STRING: _ClassVar[IdKind]
STATUS_UNSPECIFIED: Status
STATUS_OK: Status
STATUS_NOT_READY: Status
STATUS_EXPIRED: Status
STATUS_DIGEST_MISMATCH: Status
STATUS_ERASED: Status
STATUS_INVALID: Status
STATUS_ELSEWHERE: Status
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_NEWEST: Truncation
TRUNCATION_HEAD: Truncation
TRAIT_TYPE_UNSPECIFIED: TraitType
TRAIT_TYPE_INT8: TraitType
TRAIT_TYPE_INT16: TraitType
TRAIT_TYPE_INT32: TraitType
TRAIT_TYPE_INT64: TraitType
TRAIT_TYPE_UINT8: TraitType
TRAIT_TYPE_UINT16: TraitType
TRAIT_TYPE_UINT32: TraitType
TRAIT_TYPE_UINT64: TraitType
TRAIT_TYPE_FLOAT16: TraitType
TRAIT_TYPE_FLOAT32: TraitType
TRAIT_TYPE_FLOAT64: TraitType
TRAIT_TYPE_BOOL: TraitType
TRAIT_TYPE_CATEGORICAL: TraitType
TRAIT_TYPE_STRING: TraitType
ID_KIND_UNSPECIFIED: IdKind
ID_KIND_INT64: IdKind
ID_KIND_UINT64: IdKind
ID_KIND_UUID: IdKind
ID_KIND_STRING: IdKind

class Projection(_message.Message):
    __slots__ = ("sequence_length", "truncation", "feature_groups", "traits", "as_served")
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_GROUPS_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    AS_SERVED_FIELD_NUMBER: _ClassVar[int]
    sequence_length: int
    truncation: Truncation
    feature_groups: _containers.RepeatedScalarFieldContainer[str]
    traits: _containers.RepeatedScalarFieldContainer[str]
    as_served: bool
    def __init__(self, sequence_length: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., feature_groups: _Optional[_Iterable[str]] = ..., traits: _Optional[_Iterable[str]] = ..., as_served: _Optional[bool] = ...) -> None: ...

class MaterializeRequest(_message.Message):
    __slots__ = ("tenant", "projection", "user_ids", "start_ts", "end_ts", "max_lengths", "digests", "request_ts", "mutable_lengths", "user_id_kind", "user_texts", "map_version")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    START_TS_FIELD_NUMBER: _ClassVar[int]
    END_TS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TS_FIELD_NUMBER: _ClassVar[int]
    MUTABLE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    USER_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    projection: Projection
    user_ids: _containers.RepeatedScalarFieldContainer[int]
    start_ts: _containers.RepeatedScalarFieldContainer[int]
    end_ts: _containers.RepeatedScalarFieldContainer[int]
    max_lengths: _containers.RepeatedScalarFieldContainer[int]
    digests: _containers.RepeatedScalarFieldContainer[int]
    request_ts: _containers.RepeatedScalarFieldContainer[int]
    mutable_lengths: _containers.RepeatedScalarFieldContainer[int]
    user_id_kind: IdKind
    user_texts: _containers.RepeatedScalarFieldContainer[str]
    map_version: int
    def __init__(self, tenant: _Optional[str] = ..., projection: _Optional[_Union[Projection, _Mapping]] = ..., user_ids: _Optional[_Iterable[int]] = ..., start_ts: _Optional[_Iterable[int]] = ..., end_ts: _Optional[_Iterable[int]] = ..., max_lengths: _Optional[_Iterable[int]] = ..., digests: _Optional[_Iterable[int]] = ..., request_ts: _Optional[_Iterable[int]] = ..., mutable_lengths: _Optional[_Iterable[int]] = ..., user_id_kind: _Optional[_Union[IdKind, str]] = ..., user_texts: _Optional[_Iterable[str]] = ..., map_version: _Optional[int] = ...) -> None: ...

class MaterializeResponse(_message.Message):
    __slots__ = ("generation", "watermark_ts", "statuses", "view_starts", "view_lengths", "block_lengths", "columns", "sequence_length", "truncation", "server_us", "map_version")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_TS_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    VIEW_STARTS_FIELD_NUMBER: _ClassVar[int]
    VIEW_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    SERVER_US_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    watermark_ts: int
    statuses: _containers.RepeatedScalarFieldContainer[Status]
    view_starts: _containers.RepeatedScalarFieldContainer[int]
    view_lengths: _containers.RepeatedScalarFieldContainer[int]
    block_lengths: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    sequence_length: int
    truncation: Truncation
    server_us: int
    map_version: int
    def __init__(self, generation: _Optional[int] = ..., watermark_ts: _Optional[int] = ..., statuses: _Optional[_Iterable[_Union[Status, str]]] = ..., view_starts: _Optional[_Iterable[int]] = ..., view_lengths: _Optional[_Iterable[int]] = ..., block_lengths: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., sequence_length: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., server_us: _Optional[int] = ..., map_version: _Optional[int] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("trait", "type", "vector_size", "nullable", "bases", "widths", "data", "present", "dictionary", "strings", "default_word", "default_string", "list_length_max", "list_lengths", "filled", "codes_end")
    TRAIT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_SIZE_FIELD_NUMBER: _ClassVar[int]
    NULLABLE_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    WIDTHS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WORD_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STRING_FIELD_NUMBER: _ClassVar[int]
    LIST_LENGTH_MAX_FIELD_NUMBER: _ClassVar[int]
    LIST_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    FILLED_FIELD_NUMBER: _ClassVar[int]
    CODES_END_FIELD_NUMBER: _ClassVar[int]
    trait: str
    type: TraitType
    vector_size: int
    nullable: bool
    bases: _containers.RepeatedScalarFieldContainer[int]
    widths: bytes
    data: bytes
    present: bytes
    dictionary: _containers.RepeatedScalarFieldContainer[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    default_word: int
    default_string: str
    list_length_max: int
    list_lengths: bytes
    filled: bool
    codes_end: int
    def __init__(self, trait: _Optional[str] = ..., type: _Optional[_Union[TraitType, str]] = ..., vector_size: _Optional[int] = ..., nullable: _Optional[bool] = ..., bases: _Optional[_Iterable[int]] = ..., widths: _Optional[bytes] = ..., data: _Optional[bytes] = ..., present: _Optional[bytes] = ..., dictionary: _Optional[_Iterable[int]] = ..., strings: _Optional[_Iterable[str]] = ..., default_word: _Optional[int] = ..., default_string: _Optional[str] = ..., list_length_max: _Optional[int] = ..., list_lengths: _Optional[bytes] = ..., filled: _Optional[bool] = ..., codes_end: _Optional[int] = ...) -> None: ...

class MaterializeStreamRequest(_message.Message):
    __slots__ = ("cursor", "request", "traceparent")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    request: MaterializeRequest
    traceparent: str
    def __init__(self, cursor: _Optional[int] = ..., request: _Optional[_Union[MaterializeRequest, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class MaterializeStreamResponse(_message.Message):
    __slots__ = ("cursor", "response")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    response: MaterializeResponse
    def __init__(self, cursor: _Optional[int] = ..., response: _Optional[_Union[MaterializeResponse, _Mapping]] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("user_id", "as_of_ts", "projection", "user")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AS_OF_TS_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    user_id: int
    as_of_ts: int
    projection: Projection
    user: str
    def __init__(self, user_id: _Optional[int] = ..., as_of_ts: _Optional[int] = ..., projection: _Optional[_Union[Projection, _Mapping]] = ..., user: _Optional[str] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("generation", "watermark_ts", "status", "end_ts", "event_count", "digest", "events")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_TS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    END_TS_FIELD_NUMBER: _ClassVar[int]
    EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    watermark_ts: int
    status: Status
    end_ts: int
    event_count: int
    digest: int
    events: _containers.RepeatedCompositeFieldContainer[InspectedEvent]
    def __init__(self, generation: _Optional[int] = ..., watermark_ts: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., end_ts: _Optional[int] = ..., event_count: _Optional[int] = ..., digest: _Optional[int] = ..., events: _Optional[_Iterable[_Union[InspectedEvent, _Mapping]]] = ...) -> None: ...

class InspectedEvent(_message.Message):
    __slots__ = ("event_ts", "event_time", "visible_ts", "event_id", "traits", "event_id_text")
    EVENT_TS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_TS_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    event_ts: int
    event_time: str
    visible_ts: int
    event_id: int
    traits: _containers.RepeatedCompositeFieldContainer[InspectedTrait]
    event_id_text: str
    def __init__(self, event_ts: _Optional[int] = ..., event_time: _Optional[str] = ..., visible_ts: _Optional[int] = ..., event_id: _Optional[int] = ..., traits: _Optional[_Iterable[_Union[InspectedTrait, _Mapping]]] = ..., event_id_text: _Optional[str] = ...) -> None: ...

class InspectedTrait(_message.Message):
    __slots__ = ("name", "code", "int_value", "uint_value", "float_value", "bool_value", "string_value", "vector_value", "int_vector_value", "uint_vector_value", "string_vector_value", "filled")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    UINT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VECTOR_VALUE_FIELD_NUMBER: _ClassVar[int]
    UINT_VECTOR_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VECTOR_VALUE_FIELD_NUMBER: _ClassVar[int]
    FILLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    code: int
    int_value: int
    uint_value: int
    float_value: float
    bool_value: bool
    string_value: str
    vector_value: FloatVector
    int_vector_value: IntVector
    uint_vector_value: UintVector
    string_vector_value: StringVector
    filled: bool
    def __init__(self, name: _Optional[str] = ..., code: _Optional[int] = ..., int_value: _Optional[int] = ..., uint_value: _Optional[int] = ..., float_value: _Optional[float] = ..., bool_value: _Optional[bool] = ..., string_value: _Optional[str] = ..., vector_value: _Optional[_Union[FloatVector, _Mapping]] = ..., int_vector_value: _Optional[_Union[IntVector, _Mapping]] = ..., uint_vector_value: _Optional[_Union[UintVector, _Mapping]] = ..., string_vector_value: _Optional[_Union[StringVector, _Mapping]] = ..., filled: _Optional[bool] = ...) -> None: ...

class FloatVector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class IntVector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class StringVector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class UintVector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribeStoreRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeStoreResponse(_message.Message):
    __slots__ = ("generation", "watermark_ts", "watermarks", "shards", "event_count", "user_count", "stored_bytes", "feature_groups", "tenants", "limits", "server_version", "user_id_kind", "event_id_kind")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_TS_FIELD_NUMBER: _ClassVar[int]
    WATERMARKS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    USER_COUNT_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_GROUPS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    generation: int
    watermark_ts: int
    watermarks: _containers.RepeatedScalarFieldContainer[int]
    shards: int
    event_count: int
    user_count: int
    stored_bytes: int
    feature_groups: _containers.RepeatedCompositeFieldContainer[FeatureGroup]
    tenants: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    server_version: str
    user_id_kind: IdKind
    event_id_kind: IdKind
    def __init__(self, generation: _Optional[int] = ..., watermark_ts: _Optional[int] = ..., watermarks: _Optional[_Iterable[int]] = ..., shards: _Optional[int] = ..., event_count: _Optional[int] = ..., user_count: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., feature_groups: _Optional[_Iterable[_Union[FeatureGroup, _Mapping]]] = ..., tenants: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ..., user_id_kind: _Optional[_Union[IdKind, str]] = ..., event_id_kind: _Optional[_Union[IdKind, str]] = ...) -> None: ...

class FeatureGroup(_message.Message):
    __slots__ = ("name", "traits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    traits: _containers.RepeatedCompositeFieldContainer[Trait]
    def __init__(self, name: _Optional[str] = ..., traits: _Optional[_Iterable[_Union[Trait, _Mapping]]] = ...) -> None: ...

class Trait(_message.Message):
    __slots__ = ("name", "type", "vector_size", "nullable", "sparse", "key", "default_word", "default_string", "unit", "scale", "buckets", "vocabulary", "list_length_max", "filled_before_ts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_SIZE_FIELD_NUMBER: _ClassVar[int]
    NULLABLE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WORD_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STRING_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    LIST_LENGTH_MAX_FIELD_NUMBER: _ClassVar[int]
    FILLED_BEFORE_TS_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: TraitType
    vector_size: int
    nullable: bool
    sparse: bool
    key: bool
    default_word: int
    default_string: str
    unit: str
    scale: int
    buckets: int
    vocabulary: Vocabulary
    list_length_max: int
    filled_before_ts: int
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[TraitType, str]] = ..., vector_size: _Optional[int] = ..., nullable: _Optional[bool] = ..., sparse: _Optional[bool] = ..., key: _Optional[bool] = ..., default_word: _Optional[int] = ..., default_string: _Optional[str] = ..., unit: _Optional[str] = ..., scale: _Optional[int] = ..., buckets: _Optional[int] = ..., vocabulary: _Optional[_Union[Vocabulary, _Mapping]] = ..., list_length_max: _Optional[int] = ..., filled_before_ts: _Optional[int] = ...) -> None: ...

class Vocabulary(_message.Message):
    __slots__ = ("codes_end", "values_max", "value_type")
    CODES_END_FIELD_NUMBER: _ClassVar[int]
    VALUES_MAX_FIELD_NUMBER: _ClassVar[int]
    VALUE_TYPE_FIELD_NUMBER: _ClassVar[int]
    codes_end: int
    values_max: int
    value_type: TraitType
    def __init__(self, codes_end: _Optional[int] = ..., values_max: _Optional[int] = ..., value_type: _Optional[_Union[TraitType, str]] = ...) -> None: ...

class LookUpCodesRequest(_message.Message):
    __slots__ = ("trait", "strings", "integers", "codes_end_min", "tenant")
    TRAIT_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    CODES_END_MIN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    trait: str
    strings: _containers.RepeatedScalarFieldContainer[str]
    integers: _containers.RepeatedScalarFieldContainer[int]
    codes_end_min: int
    tenant: str
    def __init__(self, trait: _Optional[str] = ..., strings: _Optional[_Iterable[str]] = ..., integers: _Optional[_Iterable[int]] = ..., codes_end_min: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...

class LookUpCodesResponse(_message.Message):
    __slots__ = ("generation", "codes_end", "codes")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CODES_END_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    codes_end: int
    codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, generation: _Optional[int] = ..., codes_end: _Optional[int] = ..., codes: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribeClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeClusterResponse(_message.Message):
    __slots__ = ("map_version", "shards", "groups", "map_lifetime_ms", "group", "generation", "watermark_ts", "open_shards", "user_id_kind")
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MAP_LIFETIME_MS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_TS_FIELD_NUMBER: _ClassVar[int]
    OPEN_SHARDS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_KIND_FIELD_NUMBER: _ClassVar[int]
    map_version: int
    shards: int
    groups: _containers.RepeatedCompositeFieldContainer[ClusterGroup]
    map_lifetime_ms: int
    group: str
    generation: int
    watermark_ts: int
    open_shards: _containers.RepeatedScalarFieldContainer[int]
    user_id_kind: IdKind
    def __init__(self, map_version: _Optional[int] = ..., shards: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[ClusterGroup, _Mapping]]] = ..., map_lifetime_ms: _Optional[int] = ..., group: _Optional[str] = ..., generation: _Optional[int] = ..., watermark_ts: _Optional[int] = ..., open_shards: _Optional[_Iterable[int]] = ..., user_id_kind: _Optional[_Union[IdKind, str]] = ...) -> None: ...

class ClusterGroup(_message.Message):
    __slots__ = ("name", "targets", "serving", "loading", "leaving")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    name: str
    targets: _containers.RepeatedScalarFieldContainer[str]
    serving: _containers.RepeatedScalarFieldContainer[int]
    loading: _containers.RepeatedScalarFieldContainer[int]
    leaving: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., targets: _Optional[_Iterable[str]] = ..., serving: _Optional[_Iterable[int]] = ..., loading: _Optional[_Iterable[int]] = ..., leaving: _Optional[_Iterable[int]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("examples_max", "response_bytes_max", "streams_max", "request_bytes_max", "calls_max", "inspect_events_max")
    EXAMPLES_MAX_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    STREAMS_MAX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    CALLS_MAX_FIELD_NUMBER: _ClassVar[int]
    INSPECT_EVENTS_MAX_FIELD_NUMBER: _ClassVar[int]
    examples_max: int
    response_bytes_max: int
    streams_max: int
    request_bytes_max: int
    calls_max: int
    inspect_events_max: int
    def __init__(self, examples_max: _Optional[int] = ..., response_bytes_max: _Optional[int] = ..., streams_max: _Optional[int] = ..., request_bytes_max: _Optional[int] = ..., calls_max: _Optional[int] = ..., inspect_events_max: _Optional[int] = ...) -> None: ...
