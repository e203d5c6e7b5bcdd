"""Resolution of projections: from the names in a request to the traits of the store's schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from google.protobuf.message import DecodeError
from thinrow.errors import RequestError, UnknownTenantError
from thinrow.schema import EVENT_TS, Schema, Trait
from thinrow.store.history import Truncation
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from thinrow.access.tenants_file import Tenant

__all__ = [
    "ProjectionCache",
    "ResolvedProjection",
    "resolve",
    "resolve_projection",
    "resolve_tenant",
    "wire_groups",
    "wire_type",
]

T = TypeVar("T")
PROJECTIONS_MAX = 1024
"""Projections in a cache; clients send few."""
PROJECTION_BYTES_MAX = 4096
"""Larger projections are not cached, because clients choose their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedProjection:
    """A projection that fits a schema."""

    truncation: Truncation
    traits: tuple[Trait, ...]
    """The traits, in the order of the response's columns."""
    groups: frozenset[int]
    """Stored groups that hold them."""

    @property
    def event_bytes(self) -> int:
        """Bytes of one event's wanted traits, decoded; text counts as its index, a list as one
        element."""
        return sum(8 * trait.size for trait in self.traits)


class ProjectionCache(Generic[T]):
    """Values made of the projections that recent requests carried or named. Thread-safe.

    Values belong to one owner, such as a schema or a generation, and to one version of the tenants
    file; the cache is emptied if either changes, and if it is full.
    """

    def __init__(self) -> None:
        # Replaced as a whole, so that no thread sees the values of another owner.
        self._cached: tuple[object, object, dict[tuple[str, bytes | None], T]] = (None, None, {})

    def get(
        self,
        tenant: str,
        projection: bytes | None,
        owner: object,
        schema: Schema,
        tenants: Mapping[str, Tenant],
        make: Callable[[ResolvedProjection], T],
    ) -> T:
        """Returns the value for a request's projection.

        Args:
            tenant: The tenant that the request names; "" for none.
            projection: The encoded projection that the request carries; None for none.
            owner: The object to which all values belong.
            schema: The schema that the projection must fit.
            tenants: The tenants file as it is now.
            make: Makes the value if it is not cached.

        Raises:
            RequestError: The projection does not fit the schema, or is no message.
            UnknownTenantError: There is no such tenant.
        """
        cached_owner, cached_tenants, values = self._cached
        is_stale = cached_owner is not owner or cached_tenants is not tenants
        if is_stale or len(values) >= PROJECTIONS_MAX:
            values = {}
            self._cached = (owner, tenants, values)
        key = (tenant, projection)
        value = values.get(key)
        if value is None:
            value = make(resolve(tenant, projection, schema, tenants))
            if projection is None or len(projection) <= PROJECTION_BYTES_MAX:
                values[key] = value
        return value


def resolve(
    tenant: str, projection: bytes | None, schema: Schema, tenants: Mapping[str, Tenant]
) -> ResolvedProjection:
    """Resolves the projection of a request; without a tenant and a projection, every trait.

    Args:
        tenant: The tenant that the request names; "" for none.
        projection: The encoded projection that the request carries; None for none.
        schema: The schema that the projection must fit.
        tenants: The tenants by name.

    Raises:
        RequestError: An unknown trait or group, a negative length, bytes that are no message, or a
            tenant beside a projection.
        UnknownTenantError: There is no such tenant.
    """
    if not tenant:
        try:
            return resolve_projection(wire.Projection.FromString(projection or b""), schema)
        except DecodeError as error:
            raise RequestError("The bytes of the projection are no Projection.") from error
    if projection is not None:
        raise RequestError("A request names a tenant or carries a projection, not both.")
    configured = tenants.get(tenant)
    if configured is None:
        known = ", ".join(sorted(tenants)) or "none"
        raise UnknownTenantError(
            f"There is no tenant {tenant!r} at this server; it knows: {known}."
        )
    return resolve_tenant(configured, schema)


def resolve_tenant(tenant: Tenant, schema: Schema) -> ResolvedProjection:
    """A configured projection. Errors as :func:`resolve`."""
    return _resolved(
        Truncation(sequence_length=tenant.sequence_length, head=tenant.truncation == "head"),
        tenant.feature_groups,
        tenant.traits,
        schema,
        as_served=tenant.as_served,
    )


def resolve_projection(projection: wire.Projection, schema: Schema) -> ResolvedProjection:
    """A projection as it travels. Errors as :func:`resolve`."""
    if projection.sequence_length < 0:
        raise RequestError(
            f"sequence_length is {projection.sequence_length}; use 0 for no limit, or more."
        )
    if projection.truncation not in wire.Truncation.values():
        raise RequestError(f"There is no truncation {projection.truncation}.")
    truncation = Truncation(
        sequence_length=projection.sequence_length,
        head=projection.truncation == wire.TRUNCATION_HEAD,
    )
    return _resolved(
        truncation,
        projection.feature_groups,
        projection.traits,
        schema,
        as_served=projection.as_served,
    )


def _resolved(
    truncation: Truncation,
    group_names: Sequence[str],
    trait_names: Sequence[str],
    schema: Schema,
    *,
    as_served: bool,
) -> ResolvedProjection:
    groups = {group.name: group for group in schema.groups}
    for name in group_names:
        if name not in groups:
            raise RequestError(
                f"There is no feature group {name!r}; the store has {', '.join(groups)}."
            )
    for name in trait_names:
        if name not in schema.by_name:
            raise RequestError(
                f"There is no trait {name!r}; the store has {', '.join(schema.by_name)}."
            )
    if group_names or trait_names:
        wanted = {*trait_names}
        # A group that is named a thousand times costs no more than one.
        wanted.update(trait.name for name in {*group_names} for trait in groups[name].traits)
    else:
        wanted = {EVENT_TS.name, *(trait.name for trait in schema.traits)}
    traits = tuple(trait for trait in (*schema.built_in, *schema.traits) if trait.name in wanted)
    filled = [trait.name for trait in traits if trait.filled_before_ts is not None]
    if as_served and filled:
        raise RequestError(
            f"The projection is as_served, and {', '.join(filled)} was filled after events were "
            f"served; name traits without it, or leave as_served out."
        )
    return ResolvedProjection(
        truncation=truncation,
        traits=traits,
        groups=frozenset(schema.group_of[trait.name] for trait in traits),
    )


def wire_groups(schema: Schema) -> list[wire.FeatureGroup]:
    """A schema as DescribeStore and DescribeTier return it."""
    return [
        wire.FeatureGroup(name=group.name, traits=map(_wire_trait, group.traits))
        for group in schema.groups
    ]


def _wire_trait(trait: Trait) -> wire.Trait:
    message = wire.Trait(
        name=trait.name,
        type=wire_type(trait),
        vector_size=0 if trait.length_max else trait.size,
        list_length_max=trait.length_max,
        nullable=trait.nullable,
        sparse=trait.sparse,
        key=trait.key,
        unit=trait.unit or "",
        scale=trait.scale,
        buckets=trait.buckets or 0,
        filled_before_ts=trait.filled_before_ts,
    )
    if trait.coded is not None:
        message.vocabulary.codes_end = trait.codes_end
        message.vocabulary.values_max = trait.values_max
        message.vocabulary.value_type = wire_type(trait.carried)
    if isinstance(trait.default, str):
        message.default_string = trait.default
    elif trait.default is not None:
        message.default_word = trait.default_word
    return message


def wire_type(trait: Trait) -> wire.TraitType:
    """A trait's type in the wire's terms; both number the types alike."""
    return cast("wire.TraitType", trait.type.value)
