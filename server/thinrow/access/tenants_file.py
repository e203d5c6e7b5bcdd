"""The tenants file: named projections, the tokens that may use them, and quotas."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from thinrow.core.files.io_errors import failure_reason
from thinrow.errors import InputError, UsageError
from thinrow.store.durations import duration_ms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TOKENS_MAX", "Sha256", "Tenant", "read_tenants"]

TOKENS_MAX = 16
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _duration_ms(value: object) -> int:
    try:
        return duration_ms(value)
    except UsageError as error:  # pydantic adds the key to the message of a ValueError
        raise ValueError(str(error).removesuffix(".")) from error


class Tenant(BaseModel):
    """A named projection, its tokens, and its quotas."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    sequence_length: Annotated[int, Field(ge=0)] = 0
    truncation: Literal["newest", "head"] = "newest"
    feature_groups: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    as_served: bool = False
    """True refuses traits with values that were filled after the events were served."""
    projections: Literal["own", "any"] = "own"
    """Projections that a token of this tenant may use; "any" also allows Inspect."""
    online: tuple[Literal["append", "export"], ...] = ()
    """Rights of this tenant's tokens at the online service, beside snapshots."""
    token_sha256: Annotated[tuple[Sha256, ...], Field(max_length=TOKENS_MAX)] = ()
    """SHA-256 of its tokens, in hexadecimal; several while one takes the place of another."""
    calls_max: Annotated[int, Field(ge=1)] | None = None
    """Most single calls at once, more are refused; None for half of the server's."""
    streams_max: Annotated[int, Field(ge=1)] | None = None
    """Most streams open at once, more are refused; None for half of the server's."""
    work_bytes_max: Annotated[int, Field(ge=1)] | None = None
    """Most decoded bytes at once, others wait; None for half of the server's."""
    lag_max_ms: Annotated[
        int | None, BeforeValidator(_duration_ms), Field(ge=1, alias="lag_max")
    ] = None
    """Longest lag of snapshots from a topic; beyond it they are refused. None for the server's."""


def read_tenants(path: Path | None) -> Mapping[str, Tenant]:
    """Reads a file of tenants: a TOML table per tenant, with the fields of `Tenant`.

    Raises:
        InputError: The file is unusable; the message names the key at fault and the remedy.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"Cannot read the tenants file {path}: {failure_reason(error)}."
        ) from error
    try:
        tenants = TypeAdapter(dict[str, Tenant]).validate_python(tables)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}.") from error
    owners: dict[str, str] = {}
    for name, tenant in tenants.items():
        for token_sha256 in tenant.token_sha256:
            owner = owners.setdefault(token_sha256, name)
            if owner != name:
                raise InputError(
                    f"{path}: {owner} and {name} have the same token; give each tenant its own."
                )
    return tenants
