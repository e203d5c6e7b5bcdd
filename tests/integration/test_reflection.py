"""Reflection, as tools of today and of yesterday use it, at both services."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from support.grpcurl import GRPCURL
from support.worlds import World, built_world
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
OWN = {
    "serve": "thinrow.v1.MaterializationService",
    "online": "thinrow.v1.OnlineService",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(params=OWN)
def served(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[list[str]]:
    """An address, and the names of the services there."""
    listen = "127.0.0.1:0"
    server: Server | OnlineServer
    if request.param == "serve":
        server = Server(ServerConfig(store=world.store, listen=listen, metrics=None))
    else:
        server = OnlineServer(
            OnlineConfig(store=world.store, data=tmp_path, listen=listen, metrics=None)
        )
    with server:
        yield [server.address, *sorted((OWN[request.param], "grpc.health.v1.Health", *VERSIONS))]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_service_can_be_read_and_built(served: list[str], version: str) -> None:
    """Performs the steps of a tool that knows only the address."""
    address, *services = served
    requested = reflection_pb2.ServerReflectionRequest
    symbols = [*services, "google.rpc.ErrorInfo", "google.rpc.RetryInfo"]
    requests = [
        requested(list_services=""),
        *(requested(file_containing_symbol=s) for s in symbols),
    ]
    with grpc.insecure_channel(address) as channel:
        listed, *files = channel.stream_stream(
            f"/{version}/ServerReflectionInfo",
            requested.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )(iter(requests))
    assert sorted(each.name for each in listed.list_services_response.service) == services
    known: dict[str, FileDescriptorProto] = {}
    for answer in files:
        assert not answer.HasField("error_response"), answer
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            known[file.name] = file
    pool = DescriptorPool()

    def add(name: str) -> None:
        file = known.pop(name, None)
        if file is not None:
            for imported in file.dependency:
                add(imported)
            pool.Add(file)

    for name in list(known):
        add(name)
    for service in services:
        for method in pool.FindServiceByName(service).methods:
            assert method.input_type.full_name.startswith(service.rpartition(".")[0])


def test_grpcurl_describes_everything(served: list[str]) -> None:
    address, *services = served
    ran = subprocess.run(
        [*GRPCURL, address, "describe"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for service in services:
        assert f"{service} is a service" in ran.stdout


@pytest.mark.parametrize("method", ["grpc.health.v1.Health.Check", "grpc.health.v1.Health.None"])
def test_grpcurl_describes_a_method(served: list[str], method: str) -> None:
    ran = subprocess.run(
        [*GRPCURL, served[0], "describe", method],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    is_known = method.endswith("Check")
    assert (ran.returncode == 0) is is_known, ran.stderr
    assert ("is a method" in ran.stdout) is is_known
