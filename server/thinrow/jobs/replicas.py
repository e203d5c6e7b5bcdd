"""Requests to every replica of a cluster for a report about itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
from thinrow.client.channel import open_channel
from thinrow.client.credentials import bearer_metadata
from thinrow.cluster.replica_report import ReplicaReport
from thinrow.remote.threads import map_in_threads
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.client import ClientConfig
    from thinrow.jobs.connecting import Access

__all__ = ["REPORT_TIMEOUT_S", "replica_reports"]

REPORT_TIMEOUT_S = 5.0
"""Time for a replica to answer; one that hangs counts as one that does not respond."""
REPORTS_AT_ONCE = 32
PROBLEM_CHARACTERS_MAX = 200
CONNECTION_FAILURES = {
    "Connection refused": "connection refused",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is of no authority in the file of --ca",
    "Hostname Verification": "its certificate is for other addresses",
    "WRONG_VERSION_NUMBER": "it serves without TLS; leave --ca out",
    "Socket closed": "it closed the connection; give --ca if it serves over TLS",
}
"""Reasons by a part of gRPC's text, which is for programmers."""


def replica_reports(targets: Sequence[str], access: Access) -> dict[str, ReplicaReport]:
    """Requests a report of each replica; one that does not answer has a problem in its report.

    Raises:
        UsageError: A token would travel unencrypted to another machine.
    """
    config = access.config()
    found = map_in_threads(lambda target: _report(target, config), targets, REPORTS_AT_ONCE)
    return dict(zip(targets, found, strict=True))


def _problem(code: grpc.StatusCode, details: str) -> str:
    """Returns the reason for which a replica gives no report, as a part of a sentence."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"nothing came within {REPORT_TIMEOUT_S:g} s"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return "it rejects the token; give one of its tenants' with --token-file"
    for mark, reason in CONNECTION_FAILURES.items():
        if code is grpc.StatusCode.UNAVAILABLE and mark in details:
            return reason
    return f"{code.name}: {details[:PROBLEM_CHARACTERS_MAX]}".strip(": ")


def _report(target: str, config: ClientConfig) -> ReplicaReport:
    started_s = time.perf_counter()
    channel = open_channel(target, config)
    try:
        stub = materialization_pb2_grpc.MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        response: wire.DescribeClusterResponse = stub.DescribeCluster(
            wire.DescribeClusterRequest(),
            timeout=REPORT_TIMEOUT_S,
            metadata=bearer_metadata(config),
        )
        response_ms = (time.perf_counter() - started_s) * 1000
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a server without clusters
            return ReplicaReport(target)
        return ReplicaReport(target, problem=_problem(error.code(), error.details() or ""))
    finally:
        channel.close()
    return ReplicaReport(
        target,
        group=response.group,
        map_version=response.map_version,
        generation=response.generation,
        watermark_ts=response.watermark_ts,
        open_shards=frozenset(response.open_shards),
        response_ms=response_ms,
    )
