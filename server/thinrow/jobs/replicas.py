"""Requests to every replica of a cluster for a report about itself."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
from thinrow.client.calls import describe_cluster
from thinrow.client.channel import open_channel
from thinrow.client.credentials import bearer_metadata
from thinrow.cluster.cluster_map import GROUP_NAME
from thinrow.cluster.replica_report import ReplicaReport
from thinrow.core.cluster_map import ServerState
from thinrow.core.shards import SHARDS_MAX
from thinrow.core.wire.malformed import MalformedError, require
from thinrow.remote.threads import map_in_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.client import ClientConfig
    from thinrow.jobs.connecting import Access
    from thinrow.v1 import materialization_pb2 as wire

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
    shown = "".join(
        each if each.isprintable() else " " for each in details[:PROBLEM_CHARACTERS_MAX]
    )
    return f"{code.name}: {shown}".strip(": ")


def _report(target: str, config: ClientConfig) -> ReplicaReport:
    started_s = time.perf_counter()
    channel = open_channel(target, config)
    try:
        encoded = describe_cluster(channel)(
            b"", timeout=REPORT_TIMEOUT_S, metadata=bearer_metadata(config)
        )
        response_ms = (time.perf_counter() - started_s) * 1000
        return _checked(target, ServerState.read(encoded).message, response_ms)
    except MalformedError as error:
        return ReplicaReport(target, problem=f"its report is malformed: {error.reason}")
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a server without clusters
            return ReplicaReport(target)
        return ReplicaReport(target, problem=_problem(error.code(), error.details() or ""))
    finally:
        channel.close()


def _checked(
    target: str, response: wire.DescribeClusterResponse, response_ms: float
) -> ReplicaReport:
    """Returns a report; raises MalformedError if no server has such a group, or such shards."""
    group, shards = response.group, np.unique(np.array(response.open_shards, np.int64))
    require(not group or re.fullmatch(GROUP_NAME, group) is not None, "its group has no such name")
    require(not len(shards) or shards[-1] < SHARDS_MAX, f"it has a shard beyond {SHARDS_MAX:,}")
    return ReplicaReport(
        target,
        group=group,
        map_version=response.map_version,
        generation=response.generation,
        watermark_ts=response.watermark_ts,
        open_shards=frozenset(shards.tolist()),
        response_ms=response_ms,
    )
