"""Feature groups and traits: what an event consists of."""

from thinrow.core.traits import LIST_LENGTH_MAX, VECTOR_SIZE_MAX, TraitType
from thinrow.schema.evolution import GROUP_NUMBERS, TRAIT_NUMBERS, evolve
from thinrow.schema.groups import (
    DIRECTORY_GROUP,
    EVENT_GROUP,
    FIRST_GROUP,
    USER_GROUP,
    FeatureGroup,
    Schema,
)
from thinrow.schema.stored import from_stored, to_stored
from thinrow.schema.toml_file import (
    GROUPS_MAX,
    TRAITS_MAX,
    parse_schema,
    read_schema,
)
from thinrow.schema.traits import (
    BUILT_IN_NAMES,
    EVENT_ID,
    EVENT_TS,
    FIRST_NUMBER,
    LABELS,
    NAME_BYTES_MAX,
    RESERVED,
    VISIBLE_TS,
    Trait,
    is_trait_name,
)

__all__ = [
    "BUILT_IN_NAMES",
    "DIRECTORY_GROUP",
    "EVENT_GROUP",
    "EVENT_ID",
    "EVENT_TS",
    "FIRST_GROUP",
    "FIRST_NUMBER",
    "GROUPS_MAX",
    "GROUP_NUMBERS",
    "LABELS",
    "LIST_LENGTH_MAX",
    "NAME_BYTES_MAX",
    "RESERVED",
    "TRAITS_MAX",
    "TRAIT_NUMBERS",
    "USER_GROUP",
    "VECTOR_SIZE_MAX",
    "VISIBLE_TS",
    "FeatureGroup",
    "Schema",
    "Trait",
    "TraitType",
    "evolve",
    "from_stored",
    "is_trait_name",
    "parse_schema",
    "read_schema",
    "to_stored",
]
