"""The tenants of a server: their file, followed as it changes, tokens, rights and quotas."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
from typing import TYPE_CHECKING, Literal, Self

from thinrow.access.projection import resolve_tenant
from thinrow.access.tenants_file import Tenant, read_tenants
from thinrow.errors import InputError, PermissionDeniedError, RequestError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from thinrow.access.config import ServiceConfig
    from thinrow.schema import Schema

__all__ = ["BEARER", "TOKEN_BYTES", "Right", "Tenants", "new_token", "sha256", "version_of"]

log = logging.getLogger("thinrow.materialization")

TOKEN_BYTES = 32
"""Entropy of a token: enough that it cannot be guessed, even from its unsalted hash."""
BEARER = "Bearer "
Right = Literal["append", "export", "inspect"]
"""A right that methods need whose requests name no tenant."""


def new_token() -> tuple[str, str]:
    """Returns a token for a client, and its hash for the tenants file."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, sha256(token)


def sha256(token: str) -> str:
    """Returns a token's hash as the tenants file has it."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tenants:
    """Follows a tenants file; a context manager. Thread-safe.

    Once one tenant has a token, every call must carry a token, and is made by the token's tenant.
    If a new version of the file is unusable, the earlier one stays in use, and the log says why.

    Args:
        config: Path of the file, and limits of the server.
        schema: Returns the schema that projections must fit.

    Raises:
        InputError: The file is unusable.
    """

    def __init__(self, config: ServiceConfig, schema: Callable[[], Schema]) -> None:
        self._config = config
        self._schema = schema
        self._version = version_of(config.tenants)
        self.by_name: Mapping[str, Tenant] = self._read()
        self.usable = True
        """False while an earlier version of the file is in use."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="thinrow-tenants", daemon=True)

    def __enter__(self) -> Self:
        if self._config.tenants is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def guarded(self) -> bool:
        """True if calls must carry a token."""
        return any(tenant.token_sha256 for tenant in self.by_name.values())

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
        """Returns the tenant whose token a call carries; None if no token is required.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
        """
        tenants = self.by_name
        if not any(tenant.token_sha256 for tenant in tenants.values()):
            return None
        carried = str(dict(metadata).get("authorization", ""))
        if not carried.startswith(BEARER):
            raise UnauthenticatedError(
                "This server wants a token; send it as `authorization: Bearer …`, in ThinRow's "
                "client with ClientConfig(token=…)."
            )
        token_sha256 = sha256(carried.removeprefix(BEARER))
        found = None
        # All are compared, so that the time taken reveals nothing.
        for name, tenant in tenants.items():
            for known in tenant.token_sha256:
                if hmac.compare_digest(known, token_sha256):
                    found = name
        if found is None:
            raise UnauthenticatedError(
                "This server does not know the token; get a new one if yours was replaced."
            )
        return found

    def authorize_tenant(self, caller: str | None, tenant: str) -> str:
        """Returns the tenant whose limits hold for a request.

        Args:
            caller: The authenticated tenant; None if no token is required.
            tenant: The tenant that the request names; "" if it carries a projection.

        Raises:
            PermissionDeniedError: The caller's token does not allow the request.
        """
        if caller is None or caller == tenant:
            return tenant
        if tenant:
            raise PermissionDeniedError(
                f"The token is of tenant {caller!r} and the request names another; name {caller!r}."
            )
        self.require_any(caller)
        return caller

    def require_any(self, caller: str | None) -> None:
        """Raises PermissionDeniedError if the caller may only use its own projection."""
        if caller is None:
            return
        tenant = self.by_name.get(caller)
        if tenant is None or tenant.projections != "any":
            raise PermissionDeniedError(
                f"The tenant {caller!r} may only use its own projection; name the tenant, or have "
                f'projections = "any" put into the tenants file.'
            )

    def require(self, caller: str, right: Right) -> None:
        """Checks a right that does not depend on the request.

        Raises:
            PermissionDeniedError: The caller's token lacks it.
        """
        if right == "inspect":
            self.require_any(caller)
            return
        tenant = self.by_name.get(caller)
        if tenant is None or right not in tenant.online:
            raise PermissionDeniedError(
                f"The tenant {caller!r} may not {right} events; have {right!r} put into its "
                f"`online` in the tenants file."
            )

    def calls_max(self, tenant: str) -> int:
        """Returns the quota of a tenant's concurrent single calls."""
        return self._most("calls_max", tenant)

    def streams_max(self, tenant: str) -> int:
        """Returns the quota of a tenant's concurrent streams."""
        return self._most("streams_max", tenant)

    def work_bytes_max(self, tenant: str) -> int:
        """Returns the quota of decoded bytes that a tenant's requests hold together."""
        return self._most("work_bytes_max", tenant)

    def _most(self, limit: str, tenant: str) -> int:
        whole: int = getattr(self._config, limit)
        tenants = self.by_name
        own: int | None = getattr(tenants.get(tenant), limit, None)
        if own is not None:
            return min(own, whole)
        # Without tenants, no one else needs the rest.
        return max(1, whole // 2) if tenants else whole

    def _read(self) -> Mapping[str, Tenant]:
        tenants = read_tenants(self._config.tenants)
        for name, tenant in tenants.items():
            try:
                # A fill must not keep a server from starting: requests of the tenant are refused.
                resolve_tenant(tenant.model_copy(update={"as_served": False}), self._schema())
            except RequestError as error:
                raise InputError(f"{self._config.tenants}: {name}: {error}") from error
        return tenants

    def _follow(self) -> None:
        while not self._stop.wait(self._config.poll_s):
            version = version_of(self._config.tenants)
            if version == self._version:
                continue
            self._version = version
            try:
                read = self._read()
                if self.guarded and not any(tenant.token_sha256 for tenant in read.values()):
                    # An empty or half-written file must not open the server to every client.
                    raise InputError(
                        f"{self._config.tenants} has no token any more; start the server again "
                        f"to serve without."
                    )
                self.by_name = read
                self.usable = True
            except Exception as error:  # those known before go on; nothing may end the following
                self.usable = False
                log.error("tenants file cannot be used", extra={"reason": str(error)})
            else:
                log.info("tenants read", extra={"tenants": sorted(self.by_name)})


def version_of(path: Path | None) -> tuple[int, ...] | None:
    """Returns a value that changes with a file's state; None without a file."""
    try:
        state = path.stat() if path is not None else None
    except OSError:
        return None
    return None if state is None else (state.st_mtime_ns, state.st_size, state.st_ino)
