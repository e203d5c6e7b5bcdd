"""Server reflection, in the version that tools use today (v1) and in the one before (v1alpha)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import FileDescriptor

__all__ = ["ALPHA", "STABLE", "add_reflection"]

ALPHA = reflection.SERVICE_NAME
STABLE = ALPHA.replace("v1alpha", "v1")
"""Both have the same messages; grpcio-reflection serves the first alone."""


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]
    """Finds methods by their names, too, as the protocol says; the library finds none."""

    def _file_containing_symbol(
        self, request: reflection_pb2.ServerReflectionRequest, name: str
    ) -> reflection_pb2.ServerReflectionResponse:
        with suppress(KeyError):
            name = self._pool.FindMethodByName(name).containing_service.full_name
        return super()._file_containing_symbol(request, name)


def add_reflection(server: grpc.Server, services: Iterable[str]) -> None:
    """Serves reflection of services, by full name, of itself, and of the details of errors."""
    services = (*services, ALPHA)
    pool = DescriptorPool()
    for name in services:
        _add_with_imports(pool, Default().FindFileContainingSymbol(name))
    _add_with_imports(pool, error_details_pb2.DESCRIPTOR)
    pool.Add(_stable_file())
    servicer = _Reflection((*services, STABLE), pool=pool)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in (ALPHA, STABLE):
        server.add_registered_method_handlers(service, {"ServerReflectionInfo": method})


def _add_with_imports(pool: DescriptorPool, file: FileDescriptor) -> None:
    for imported in file.dependencies:
        _add_with_imports(pool, imported)
    pool.AddSerializedFile(file.serialized_pb)


def _stable_file() -> FileDescriptorProto:
    """Returns v1alpha's file under the names of v1."""
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file).replace("v1alpha", "v1")
    return text_format.Parse(text, FileDescriptorProto())
