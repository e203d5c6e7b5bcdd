"""Traces: off unless configured, and then whole from the trainer to the stages of the server."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import thin_rows
from support.server_processes import AT_ONCE, TWO, until
from support.worlds import ALL, World, built_world, days, pointers_to, running_server
from thinrow.client import ClientConfig, Projection, connect
from thinrow.client.online import connect_online
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.core.tracing import find_provider, tracing
from thinrow.errors import RequestError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan

STAGES = ["wait", "plan", "room", "read", "assemble"]
SERVED = "thinrow.v1.MaterializationService"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = built_world(tmp_path_factory.mktemp("world"))
    tenants = '[ranker]\nsequence_length = 3\ntraits = ["brand"]\n'
    (world.folder / "tenants.toml").write_text(tenants, encoding="utf-8")
    return world


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """Provider as if the program had set it; a real one could be set only once in a process."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("thinrow.core.tracing.find_provider", lambda _: provider)
    tracing.cache_clear()
    yield provider
    tracing.cache_clear()


@pytest.fixture
def made(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@contextmanager
def serving(world: World) -> Iterator[str]:
    config = ServerConfig(
        store=world.store,
        listen="127.0.0.1:0",
        metrics=None,
        tenants=world.folder / "tenants.toml",
    )
    with Server(config) as server:
        yield server.address


def by_name(spans: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = defaultdict(list)
    for span in spans.get_finished_spans():
        found[span.name].append(span)
    return found


def identity(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def is_error(span: ReadableSpan) -> bool:
    return span.status.status_code is trace.StatusCode.ERROR


def test_a_call_and_its_stages(
    world: World, made: InMemorySpanExporter, provider: TracerProvider
) -> None:
    step = provider.get_tracer("mine").start_as_current_span("step")
    with serving(world) as address, connect(address, AT_ONCE) as client, step:
        batch = client.materialize(pointers_to(days(3)), "ranker")
    spans = by_name(made)
    [requested], [served], [outer] = (
        spans[name] for name in ("thinrow.request", f"{SERVED}/Materialize", "step")
    )
    assert parent(outer) is None
    assert parent(requested) == identity(outer)
    assert parent(served) == identity(requested)
    assert requested.kind is trace.SpanKind.CLIENT
    assert served.kind is trace.SpanKind.SERVER
    assert served.attributes is not None
    reported = dict(served.attributes)
    assert reported.pop("thinrow.bytes") > 0  # type: ignore[operator]
    assert reported == {
        "thinrow.tenant": "ranker",
        "thinrow.examples": 6,
        "thinrow.events": int(batch.offsets[-1]),
        "thinrow.cursor": 0,
        "thinrow.generation": 1,
    }
    before = served.start_time
    for stage in STAGES:
        [span] = spans[f"thinrow.{stage}"]
        assert parent(span) == identity(served)
        assert before is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert before <= span.start_time <= span.end_time
        before = span.end_time
    assert served.end_time is not None
    assert before is not None
    assert before <= served.end_time
    # The client's question whether there is a cluster belongs to no request.
    [discovered] = spans.pop(f"{SERVED}/DescribeCluster")
    assert parent(discovered) is None
    rest = [span.context for named in spans.values() for span in named]
    assert len({context.trace_id for context in rest if context}) == 1


def test_a_stream_and_its_requests(world: World, made: InMemorySpanExporter) -> None:
    with serving(world) as address, connect(address, AT_ONCE) as client:
        assert len(list(client.stream([pointers_to(days(3))] * 5, ALL))) == 5
    spans = by_name(made)
    [stream] = spans["thinrow.stream"]
    requested, served = spans["thinrow.request"], spans[f"{SERVED}/MaterializeStream"]
    assert {parent(span) for span in requested} == {identity(stream)}
    # Each request's work lies below that very request.
    assert list(map(parent, served)) == list(map(identity, requested))
    for each in (requested, served):
        assert [dict(span.attributes or {})["thinrow.cursor"] for span in each] == [1, 2, 3, 4, 5]
    server_us = [dict(span.attributes or {})["thinrow.server_us"] for span in requested]
    assert all(isinstance(each, int) and 0 < each < 60_000_000 for each in server_us)
    stages = Counter(parent(span) for stage in STAGES for span in spans[f"thinrow.{stage}"])
    assert stages == {identity(span): len(STAGES) for span in served}
    assert not any(map(is_error, made.get_finished_spans()))


def test_requests_of_one_stream_may_be_of_several_traces(
    world: World, made: InMemorySpanExporter
) -> None:
    """A client may decide; one that says nothing is in the trace of its call, or in none."""
    named = f"00-{7:032x}-{9:016x}-01"
    request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3))

    def requests() -> Iterator[wire.MaterializeStreamRequest]:
        for cursor, traceparent in enumerate([named, "", "not one"]):
            yield wire.MaterializeStreamRequest(
                cursor=cursor, request=request, traceparent=traceparent
            )

    with serving(world) as address, grpc.insecure_channel(address) as channel:
        stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        assert len(list(stub.MaterializeStream(requests(), timeout=60))) == 3
    first, *others = by_name(made)[f"{SERVED}/MaterializeStream"]
    assert parent(first) == 9
    assert first.context is not None
    assert first.context.trace_id == 7
    assert list(map(parent, others)) == [None, None]


def test_the_online_service(
    world: World, made: InMemorySpanExporter, provider: TracerProvider, tmp_path: Path
) -> None:
    config = OnlineConfig(
        store=world.store, data=tmp_path / "online", listen="127.0.0.1:0", metrics=None
    )
    traits = {"item_id": [1], "brand": ["a"], "rating": [5], "price": [0.5]}
    step = provider.get_tracer("mine").start_span("step")
    name = f"00-{step.get_span_context().trace_id:032x}-{step.get_span_context().span_id:016x}-01"
    with OnlineServer(config) as server, connect_online(server.address) as client:
        client.append([1], event_ts=days(3), event_ids=[-1], traits=traits)
        client.snapshot(1, ALL, request_ts=client.describe().now_ts + 50)
        made.clear()
        request = online_pb2.SnapshotBatchRequest(
            user_ids=[1, 2], request_ts=client.describe().now_ts + 50
        )
        client.stub.SnapshotBatch(request, metadata=[("traceparent", name)])
    spans = by_name(made)
    [served] = spans["thinrow.v1.OnlineService/SnapshotBatch"]
    [taken] = spans["thinrow.snapshot"]
    assert parent(served) == step.get_span_context().span_id
    assert parent(taken) == identity(served)
    assert [parent(span) for span in spans["thinrow.read"]] == [identity(taken)] * 2
    assert [parent(span) for span in spans["thinrow.encode"]] == [identity(taken)]
    assert dict(taken.attributes or {})["thinrow.users"] == 2


def test_failures_are_reported(world: World, made: InMemorySpanExporter) -> None:
    with serving(world) as address, connect(address, AT_ONCE) as client:
        with pytest.raises(RequestError):
            client.materialize(pointers_to(days(3)), "nobody")
        with pytest.raises(RequestError):
            list(client.stream([pointers_to(days(3))], Projection(traits=("colour",))))
    spans = by_name(made)
    for name in ("thinrow.request", f"{SERVED}/Materialize", f"{SERVED}/MaterializeStream"):
        assert spans[name]
        assert all(map(is_error, spans[name])), name


def test_a_stream_that_is_left_ends_its_spans(world: World, made: InMemorySpanExporter) -> None:
    with serving(world) as address, connect(address, ClientConfig()) as client:
        stream = client.stream(iter([pointers_to(days(3))] * 100), ALL)
        next(stream)
        stream.close()
    spans = by_name(made)
    assert len(spans["thinrow.stream"]) == 1
    assert {is_error(span) for span in spans["thinrow.request"]} == {False, True}
    assert all(span.end_time for span in made.get_finished_spans())


def test_a_store_in_the_process_has_the_stages_below_the_request(
    world: World, made: InMemorySpanExporter, provider: TracerProvider
) -> None:
    step = provider.get_tracer("mine").start_as_current_span("step")
    with connect(world.store) as client, step:
        list(client.stream([pointers_to(days(3))] * 2, Projection(3)))
    spans = by_name(made)
    [outer] = spans["step"]
    requests = spans["thinrow.request"]
    assert {parent(request) for request in requests} == {identity(outer)}
    assert [dict(request.attributes or {}) for request in requests] == [
        {"thinrow.tenant": "", "thinrow.examples": 6}
    ] * 2
    for stage in STAGES:
        assert [parent(span) for span in spans[f"thinrow.{stage}"]] == list(map(identity, requests))


def test_a_loader_says_what_the_trainer_waited_for(
    world: World, made: InMemorySpanExporter, provider: TracerProvider
) -> None:
    rows = world.write("rows.parquet", thin_rows.rows_table(40))
    projection = Projection(3, traits=("item_id",))
    tracer = provider.get_tracer("mine")
    with (
        serving(world) as address,
        ThinRowLoader(rows, address, projection, LoaderConfig(batch_examples=10)) as loader,
    ):
        for _ in loader:
            pass
        apart = by_name(made)
        made.clear()
        with tracer.start_as_current_span("epoch") as epoch:
            batches = iter(loader)
            for _ in range(4):
                with tracer.start_as_current_span("step"):
                    next(batches)
            assert next(batches, None) is None
    [whole] = apart["thinrow.pass"]
    assert parent(whole) is None
    assert {parent(span) for name in ("stream", "batch") for span in apart[f"thinrow.{name}"]} == {
        identity(whole)
    }
    assert len(apart["thinrow.batch"]) == 5
    for span in apart["thinrow.batch"]:
        reported = dict(span.attributes or {})
        assert "thinrow.wait_us.copy" in reported
        assert span.end_time is not None
        assert span.start_time is not None
        waited_us = sum(each for each in reported.values() if isinstance(each, int))
        assert abs(waited_us - (span.end_time - span.start_time) / 1000) < 20_000
    within = by_name(made)
    [whole] = within["thinrow.pass"]
    steps = {identity(span) for span in within["step"]}
    assert parent(whole) in steps, "it begins with the first batch requested"
    last = epoch.get_span_context().span_id
    assert {parent(span) for span in within["thinrow.batch"]} == steps | {last}
    assert len({span.context.trace_id for span in made.get_finished_spans() if span.context}) == 1


class Collector:
    """Takes spans by OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, SentSpan]] = []
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                    [service] = [
                        it.value.string_value
                        for it in one.resource.attributes
                        if it.key == "service.name"
                    ]
                    received.extend(
                        (service, span) for scope in one.scope_spans for span in scope.spans
                    )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.mark.parametrize("options", [(), TWO], ids=["one", "two"])
def test_a_server_sends_its_spans(
    world: World,
    made: InMemorySpanExporter,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
) -> None:
    """Spans go where the standard variables say, and continue the client's trace."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with running_server(world.store, *options) as server:
        for _ in range(5):
            with connect(server.address, AT_ONCE) as client:
                client.materialize(pointers_to(days(3)), ALL)
                list(client.stream([pointers_to(days(3))] * 3, ALL))
        until(lambda: len(collector.spans) >= 5)
        assert server.stop() == 0
    assert {service for service, _ in collector.spans} == {"thinrow-server"}
    sent = [span for _, span in collector.spans]
    discovered = [span for span in sent if span.name == f"{SERVED}/DescribeCluster"]
    assert len(discovered) == 5
    sent = [span for span in sent if span not in discovered]
    assert len(sent) == 5 * 4 * (1 + len(STAGES))
    own = {identity(span): span for span in made.get_finished_spans()}
    for span in sent:
        if span.name.startswith(SERVED):
            requested = own[int.from_bytes(span.parent_span_id, "big")]
            assert requested.context is not None
            assert span.trace_id == requested.context.trace_id.to_bytes(16, "big")
            assert requested.name == "thinrow.request"
    for stage in STAGES:
        assert sum(span.name == f"thinrow.{stage}" for span in sent) == 20


@pytest.mark.usefixtures("made")
def test_a_collector_that_is_away_stops_no_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with running_server(world.store) as server:
        with connect(server.address, AT_ONCE) as client:
            assert len(client.materialize(pointers_to(days(3)), ALL)) == 6
        assert server.stop() == 0


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**environment, "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


USE = """
import logging, sys
logging.basicConfig()
from pathlib import Path
from thinrow.client import connect
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.materialization.server import Server
from thinrow.materialization.config import ServerConfig
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub
from support.worlds import ALL, days, pointers_to
config = ServerConfig(store=Path(sys.argv[1]), listen="127.0.0.1:0", metrics=None)
with Server(config) as server, connect(server.address) as client:
    assert len(client.materialize(pointers_to(days(3)), ALL)) == 6
    assert len(list(client.stream([pointers_to(days(3))] * 3, ALL))) == 3
print(*sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def test_nothing_is_imported_unless_requested(world: World) -> None:
    assert run(USE, str(world.store)).stdout.strip() == ""
    assert "opentelemetry.sdk" in run(USE, str(world.store), OTEL_TRACES_EXPORTER="console").stdout


def test_without_the_packages_work_goes_on(world: World) -> None:
    """The environment of a whole cluster may request traces."""
    missing = "import sys; sys.modules['opentelemetry.sdk'] = None\n" + USE
    result = run(missing, str(world.store), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert "pip install 'thinrow[tracing]'" in result.stderr
    result = run(USE, str(world.store), OTEL_TRACES_EXPORTER="no-such")
    assert "No traces are sent" in result.stderr


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_TRACES_EXPORTER": "none",
            },
            False,
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"},
            False,
        ),
    ],
)
def test_variables_that_request_traces(
    environment: dict[str, str], *, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in environment.items():
        monkeypatch.setenv(name, setting)
    provider = find_provider("x")
    assert (provider is not None) == wanted
    if provider is not None:
        assert isinstance(provider, TracerProvider)
        assert provider.resource.attributes["service.name"] == "x"
        provider.shutdown()


def test_a_program_may_bring_its_own() -> None:
    script = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from thinrow.core.tracing import find_provider
assert find_provider("x") is None
trace.set_tracer_provider(provider := TracerProvider())
assert find_provider("x") is provider
"""
    run(script)
