"""Authorization of every request, and the quota of its tenant."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pool import Default
from thinrow.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from thinrow.access.identity import CallContext
    from thinrow.access.quotas import TenantQuotas
    from thinrow.access.tenants import Right, Tenants

    Handler = grpc.RpcMethodHandler[Any, Any]
    TenantPath = tuple[tuple[str, bool], ...]

__all__ = ["AuthInterceptor", "AuthorizedRequests", "tenant_paths"]


class AuthInterceptor(grpc.ServerInterceptor):
    """Authorizes each request of each method before the method sees it.

    Args:
        services: Full names of the services.
        rights: For each method whose requests name no tenant, the right that a token needs; None
            if every token may call it. Requests of all other methods name the tenant.
        tenants: The tenants and their tokens.
        quotas: Counts calls of tenants that no token named when the call started.
    """

    def __init__(
        self,
        services: Collection[str],
        rights: Mapping[str, Right | None],
        tenants: Tenants,
        quotas: TenantQuotas,
    ) -> None:
        self._quotas = quotas
        self._policies = {
            f"/{service}/{method.name}": MethodPolicy(method, rights, tenants)
            for service in services
            for method in Default().FindServiceByName(service).methods
        }

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Implements grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        policy = self._policies.get(handler_call_details.method)
        if handler is None or policy is None:
            return handler
        handle: Any = handler.stream_stream or handler.unary_stream or handler.unary_unary
        assert handle is not None, "no service has a method of this kind"

        def respond(requests: Iterator[Any], context: CallContext) -> Iterator[Any]:
            with ExitStack() as quota:
                authorized = AuthorizedRequests(policy, self._quotas, context, requests, quota)
                argument = authorized if handler.request_streaming else authorized.only()
                if handler.response_streaming:
                    yield from handle(argument, context)
                else:
                    yield handle(argument, context)

        # A call with one request, or one response, is a stream of one message.
        return grpc.stream_stream_rpc_method_handler(
            respond,
            handler.request_deserializer,
            handler.response_serializer,
        )


class MethodPolicy:
    """Rules for the requests of one method."""

    def __init__(
        self, method: MethodDescriptor, rights: Mapping[str, Right | None], tenants: Tenants
    ) -> None:
        self.is_stream = method.client_streaming or method.server_streaming
        self.request_name = method.input_type.name
        self._tenants = tenants
        self._right = rights.get(method.name)
        self.paths = () if method.name in rights else tenant_paths(method.input_type)
        if method.name not in rights and not self.paths:
            raise AssertionError(f"{method.full_name} names no tenant: give the right it needs")

    @property
    def has_tenants(self) -> bool:
        """True if the server has tenants; without them every request is allowed."""
        return bool(self._tenants.by_name)

    def check_right(self, context: CallContext) -> None:
        """Checks the right that the method needs.

        Raises:
            PermissionDeniedError: The caller's token lacks it.
        """
        authenticated = context.identity.authenticated
        if authenticated is not None and self._right is not None:
            self._tenants.require(authenticated, self._right)

    def authorize(self, context: CallContext, request: Any) -> None:  # noqa: ANN401
        """Checks one request, and sets the identity's effective tenant.

        Raises:
            PermissionDeniedError: The caller's token does not allow the request.
        """
        self.check_right(context)
        identity = context.identity
        named = {tenant for path in self.paths for tenant in tenants_named(request, path)}
        if identity.authenticated is None:
            identity.effective = named.pop() if len(named) == 1 else ""
            return
        for tenant in named:
            self._tenants.authorize_tenant(identity.authenticated, tenant)


class AuthorizedRequests:
    """The requests of one call, each authorized before its method sees it.

    Args:
        policy: Rules of the method.
        quotas: Counts the call, unless its token was counted when it started.
        context: The call.
        requests: The requests as they arrive.
        quota: Holds the quota; closed when the call ends.
    """

    def __init__(
        self,
        policy: MethodPolicy,
        quotas: TenantQuotas,
        context: CallContext,
        requests: Iterator[Any],
        quota: ExitStack,
    ) -> None:
        self._policy = policy
        self._quotas = quotas
        self._context = context
        self._requests = requests
        self._quota = quota
        self._counted: str | None = context.identity.authenticated
        policy.check_right(context)
        if not policy.paths:
            # Its requests may be read by another thread, and they name no tenant.
            self._count()

    def __iter__(self) -> AuthorizedRequests:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - of any method
        """Waits for the next request.

        Raises:
            UnauthenticatedError: The token was withdrawn.
            PermissionDeniedError: The token does not allow the request.
            TenantLimitError: The tenant that the request names is at its quota.
        """
        request = next(self._requests)
        if self._policy.has_tenants:
            self._context.authenticate()
            self._policy.authorize(self._context, request)
        self._count()
        return request

    def only(self) -> Any:  # noqa: ANN401 - of any method
        """Returns the request of a call that has one.

        Raises:
            RequestError: The call has none.
        """
        for request in self:
            return request
        raise RequestError(f"The call ended without its {self._policy.request_name}.")

    def _count(self) -> None:
        """Counts the call as its effective tenant's."""
        tenant = self._context.identity.effective
        if self._counted == tenant:
            return
        self._quota.close()
        self._quota.enter_context(self._quotas.admit(tenant, is_stream=self._policy.is_stream))
        self._counted = tenant


def tenant_paths(request: Descriptor) -> tuple[TenantPath, ...]:
    """Returns the fields that lead to each message of a request that names a tenant.

    Each field has its name, and True if it is repeated.
    """
    if "tenant" in request.fields_by_name:
        return ((),)
    return tuple(
        ((field.name, field.is_repeated), *path)
        for field in request.fields
        if field.message_type is not None
        for path in tenant_paths(field.message_type)
    )


def tenants_named(request: Any, path: TenantPath) -> Iterator[str]:  # noqa: ANN401
    """Yields the tenants named at the end of a path; a message that is absent names ""."""
    if not path:
        yield request.tenant
        return
    (name, is_repeated), *rest = path
    part = getattr(request, name)
    for each in part if is_repeated else (part,):
        yield from tenants_named(each, tuple(rest))
