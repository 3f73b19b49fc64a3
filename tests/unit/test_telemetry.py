"""What operators are told: metrics with labels of fixed sets, one log line per run, trace ids, spans."""

from __future__ import annotations

import enum
import http.server
import io
import json
import logging
import re
import subprocess
import sys
import threading
from time import monotonic
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from sandbox_svc import errors
from sandbox_svc.admission.permits import PermitStats
from sandbox_svc.admission.rates import AdmissionStats
from sandbox_svc.admission.redis_link import LinkState, LinkStats
from sandbox_svc.clock import LoopClock
from sandbox_svc.pool import events
from sandbox_svc.pool.pool import Pool
from sandbox_svc.pool.slots import Retirement, SlotState
from sandbox_svc.runtime import Outcome
from sandbox_svc.runtime.engine_events import EngineCall, EngineErrorKind, EngineFailed
from sandbox_svc.service.events import ABORTED, RunEnded
from sandbox_svc.service.verdicts import Verdict
from sandbox_svc.telemetry.logs import json_formatter, log_run, run_fields, run_logger
from sandbox_svc.telemetry.metrics import FAMILIES, Metrics, Sources
from sandbox_svc.telemetry.tracing import CLOSE_SECONDS, RunTracer
from sandbox_svc.trace_context import TraceContext, read_traceparent
from tests.http_stack import running_stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def ended(**facts: Any) -> RunEnded:
    usual: dict[str, Any] = {"run_id": "r", "tenant": "acme", "language": "python", "outcome": "success"}
    return RunEnded(**usual | {"total_seconds": 0.5} | facts)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def full_metrics() -> Metrics:
    """With everything configured and every event told once for each value that it can have."""
    metrics = Metrics()
    metrics.read_from(
        Sources(
            pool=Pool({"python": 2, "nodejs": 1}, clock=LoopClock()),
            is_engine_up=lambda: True,
            connections=lambda: 7,
            shed=lambda: {"refused": 2, "cut": 3},
            tasks=lambda: 20,
            rates=lambda: AdmissionStats(allowed=5, refused=1, local=2, windows=1),
            redis=lambda: LinkStats(
                state=LinkState.DEGRADED,
                since_seconds=1,
                reason="timeout",
                ok_calls=6,
                refused_calls=3,
                failed_calls=4,
                outages=1,
            ),
            permits=lambda: {"python": PermitStats(bound=4, held=2, total=3, waiting=1, surplus=0)},
            are_keys_usable=lambda: False,
        )
    )
    for verdict in Verdict:
        metrics.run_ended(ended(outcome=verdict.value, run_seconds=0.01))
    for code in error_codes() | {ABORTED}:
        metrics.run_ended(ended(outcome=code))
        metrics.request_refused(code)
    for answer in events.QueueAnswer:
        metrics.pool_event(events.QueueWaited("python", answer, 0.1))
    for reason in Retirement:
        metrics.pool_event(events.SlotRetired("python", reason))
    metrics.pool_event(events.SlotStarted("python", 0.4))
    metrics.pool_event(events.StartFailed("python", "engine_unavailable", 3, 1.0))
    metrics.pool_event(events.ResetTook("python", 0.001))
    metrics.pool_event(events.SlotRemoved("python", 0.2))
    metrics.pool_event(events.RemovalFailed("python"))
    metrics.pool_event(events.OrphansSwept(3))
    metrics.pool_event(events.EngineChecked(False))
    metrics.engine_failed(EngineFailed(EngineCall.CREATE, EngineErrorKind.TIMEOUT))
    return metrics


def error_codes() -> set[str]:
    return {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SandboxServiceError)
    }


def values(kind: type[enum.Enum]) -> set[str]:
    return {member.value for member in kind}


def test_every_metric_of_the_table_is_exposed_and_no_other() -> None:
    families = {family.name for family in text_string_to_metric_families(full_metrics().render().decode())}
    own = {name for name in families if name.startswith("sandbox_")} - {"sandbox_build"}

    assert own - {"sandbox_build_info"} == {family.name.removesuffix("_total") for family in FAMILIES}


def test_labels_have_values_of_fixed_sets_only() -> None:
    """SF-21: a label that callers could choose would be a way to fill the memory of whoever scrapes."""
    allowed = {
        "language": {"python", "nodejs"},
        "outcome": values(Verdict) | error_codes() | {ABORTED},
        "code": error_codes() | {ABORTED},
        "answer": values(events.QueueAnswer),
        "state": values(SlotState),
        "reason": values(Retirement),
        "result": {"ok", "failed", "skipped"},
        "how": {"refused", "cut"},
        "kind": {"bound", "held", "total", "waiting"} | values(EngineErrorKind),
        "call": values(EngineCall),
        "decision": {"allowed", "refused"},
    }

    for name, labels in samples(full_metrics()):
        if name.startswith("sandbox_") and name != "sandbox_build_info":
            for label, value in labels:
                assert label == "le" or value in allowed[label], (name, label, value)


def test_figures_of_the_sources_are_read_when_asked_for() -> None:
    seen = samples(full_metrics())

    assert seen["sandbox_slots", (("language", "python"), ("state", "empty"))] == 2
    assert seen["sandbox_keys_usable", ()] == 0
    assert seen["sandbox_redis_up", ()] == 0
    assert seen["sandbox_redis_calls_total", (("result", "ok"),)] == 6
    assert seen["sandbox_permits", (("kind", "total"), ("language", "python"))] == 3
    assert seen["sandbox_orphans_swept_total", ()] == 3
    assert seen["sandbox_engine_errors_total", (("call", "create"), ("kind", "timeout"))] == 1
    assert seen["sandbox_engine_errors_total", (("call", "remove"), ("kind", "refused"))] == 0
    assert seen["sandbox_http_connections", ()] == 7
    assert seen["sandbox_http_connections_shed_total", (("how", "cut"),)] == 3


def test_counters_of_what_is_served_begin_at_zero_and_no_event_makes_another() -> None:
    """To Prometheus a series that begins at 4 never grew, so the first faults of a kind set off no alert."""
    metrics = Metrics(("python",))
    begun = {key for key in samples(metrics) if key[0].endswith("_total") and key[0].startswith("sandbox_")}

    for outcome in (values(Verdict) | error_codes() | {ABORTED}) - {
        # Of no language, or before there is a run.
        *("unknown_language", "unauthorized", "cross_origin", "settings"),
        *("malformed_request", "request_too_large", "request_timeout"),
    }:
        metrics.run_ended(ended(outcome=outcome))
    for reason in Retirement:
        metrics.pool_event(events.SlotRetired("python", reason))
    for code in ("engine_unavailable", "sandbox_lost", "protocol_error", "timeout"):
        metrics.pool_event(events.StartFailed("python", code, 3, 1.0))
    metrics.pool_event(events.RemovalFailed("python"))
    for is_up in (True, False):
        metrics.pool_event(events.EngineChecked(is_up))

    seen = samples(metrics)
    assert {key for key in seen if key[0].endswith("_total") and key[0].startswith("sandbox_")} == begun
    assert all(seen[key] for key in begun if key[0] == "sandbox_runs_total")


def test_runs_are_counted_by_what_became_of_them() -> None:
    with running_stack() as stack:
        stack.run()
        assert stack.request("POST", "/v1/run", '{"code": "x", "language": "cobol"}').status == 422
        assert stack.request("POST", "/run", "no json").status == 400
        stack.outcome = Outcome(exit_code=None, limit="time", wall_us=2_000_000)
        stack.run()
        seen = samples(stack.metrics)

        assert stack.request("GET", "/metrics").status == 200

    runs = {labels: value for (name, labels), value in seen.items() if name == "sandbox_runs_total"}
    assert runs == {
        (("language", "python"), ("outcome", "success")): 1,
        (("language", "python"), ("outcome", "time_limit")): 1,
        (("language", "-"), ("outcome", "unknown_language")): 1,
    }
    assert seen["sandbox_requests_refused_total", (("code", "malformed_request"),)] == 1
    assert seen["sandbox_run_seconds_count", (("language", "python"),)] == 2
    assert seen["sandbox_queue_seconds_count", (("answer", "served"), ("language", "python"))] == 2


# Logs


def logged(**facts: Any) -> dict[str, Any]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_formatter())
    run_logger.addHandler(handler)
    level = run_logger.level
    run_logger.setLevel("INFO")
    try:
        log_run(ended(**facts))
    finally:
        run_logger.removeHandler(handler)
        run_logger.setLevel(level)
    line: dict[str, Any] = json.loads(stream.getvalue())
    return line


def test_a_run_is_one_json_object_on_one_line() -> None:
    trace = TraceContext(TRACE, None, "b7ad6b7169203331", True)

    line = logged(exit_code=0, run_seconds=0.0125, queue_seconds=0.001, trace=trace)

    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    assert line == {
        "event": "run",
        "level": "info",
        "logger": "sandbox_svc.run",
        "run_id": "r",
        "tenant": "acme",
        "language": "python",
        "outcome": "success",
        "exit_code": 0,
        "signal": None,
        "queue_ms": 1.0,
        "start_ms": 0.0,
        "run_ms": 12.5,
        "cpu_ms": 0.0,
        "memory_kb": 0,
        "total_ms": 500.0,
        "trace_id": TRACE,
        "span_id": "b7ad6b7169203331",
    }


def test_other_records_are_json_too_with_their_traceback() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_formatter())
    logger = logging.getLogger("test-json")
    logger.propagate = False
    logger.addHandler(handler)

    try:
        int("of ours")
    except ValueError:
        logger.exception("it broke: %s\nsecond line", "here")

    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"]) == ("it broke: here\nsecond line", "error")
    assert "ValueError: invalid literal" in entry["exception"]


def test_the_facts_of_the_json_line_are_those_of_the_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    log_run(ended(exit_code=3))

    assert [record.getMessage() for record in caplog.records] == [
        "run " + " ".join(f"{name}={value}" for name, value in run_fields(ended(exit_code=3)).items())
    ]


@pytest.mark.parametrize("error", [RuntimeError("a slip"), errors.SandboxLost("died", started=True)])
def test_the_line_of_a_failure_names_its_run(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Of ten lost runs in one second nobody could tell which caller's each was."""

    async def fail(*_: object) -> Outcome:
        raise error

    with running_stack() as stack:
        stack.behaviour = fail
        answer = stack.v1()

    assert answer.status == 500
    (line,) = (record.getMessage() for record in caplog.records if record.name == "sandbox_svc.api")
    assert f"run {answer.headers['x-run-id']}" in line


# Trace context


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (TRACEPARENT, True),
        (f"00-{TRACE}-b7ad6b7169203331-00", False),
        (f"cc-{TRACE}-b7ad6b7169203331-03-of-later-versions", True),
    ],
)
def test_a_valid_traceparent_is_taken(header: str, is_sampled: bool) -> None:
    trace = read_traceparent([(b"host", b"x"), (b"traceparent", header.encode())])

    assert trace is not None
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE, "b7ad6b7169203331", is_sampled)
    assert trace.span_id not in (trace.parent_id, "0" * 16)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        TRACEPARENT.upper(),
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        TRACEPARENT + "-more",
        TRACEPARENT + "\xe9",
    ],
)
def test_an_invalid_traceparent_is_as_none(header: str) -> None:
    assert read_traceparent([(b"traceparent", header.encode("latin-1"))]) is None


def test_two_traceparents_are_as_none() -> None:
    assert read_traceparent([(b"traceparent", TRACEPARENT.encode())] * 2) is None


@pytest.mark.parametrize("path", ["/run", "/v1/run"])
def test_the_answer_names_the_run_and_its_span(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    body = json.dumps({"code_b64": "eA=="})
    with running_stack() as stack:
        answer = stack.request("POST", path, body, {"traceparent": TRACEPARENT})
        without = stack.request("POST", path, body)

    version, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    line = next(record.getMessage() for record in caplog.records if record.name == "sandbox_svc.run")
    assert f"run_id={answer.headers['x-run-id']}" in line
    assert f"trace_id={TRACE} span_id={span_id}" in line
    assert "traceresponse" not in without.headers


# Spans


class Collector(http.server.BaseHTTPRequestHandler):
    received: list[bytes]

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_spans_of_a_run_reach_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Mine", (Collector,), {"received": received}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        tracer = RunTracer()
        trace = TraceContext(TRACE, "b7ad6b7169203331", "00f067aa0ba902b7", True)
        tracer.run_ended(ended(run_seconds=0.2, queue_seconds=0.1, start_seconds=0.01, trace=trace, exit_code=0))
        tracer.run_ended(ended(trace=TraceContext(TRACE, None, "00f067aa0ba902b8", False)))
        tracer.run_ended(ended(outcome="sandbox_lost"))
        tracer.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    spans = [
        span
        for body in received
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in spans] == ["run", "queue", "program", "run"]
    run, queue, program, lost = spans
    assert (run.trace_id.hex(), run.span_id.hex(), run.parent_span_id.hex()) == (
        TRACE,
        "00f067aa0ba902b7",
        "b7ad6b7169203331",
    )
    assert queue.parent_span_id == program.parent_span_id == run.span_id
    assert queue.end_time_unix_nano == program.start_time_unix_nano
    assert program.end_time_unix_nano == run.end_time_unix_nano
    assert (run.status.code, lost.status.code) == (0, 2)


@pytest.mark.parametrize(("name", "shown"), [(None, "sandbox-svc"), ("sandboxes-of-acme", "sandboxes-of-acme")])
def test_the_service_is_named_by_the_operator_or_by_us(
    monkeypatch: pytest.MonkeyPatch, name: str | None, shown: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    if name is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    tracer = RunTracer()
    tracer.close()

    assert tracer._resource.attributes["service.name"] == shown
    assert tracer._resource.attributes["deployment.environment.name"] == "test"


def test_the_exporter_is_imported_only_where_a_collector_is_configured() -> None:
    # Its API and the SDK's metrics come with redis-py wherever they are installed.
    names = (
        "{'sandbox_svc.telemetry.tracing', 'opentelemetry.exporter', 'opentelemetry.sdk.trace', 'requests', 'google'}"
    )
    script = f"import sys, sandbox_svc.app; assert not {names} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_collector_that_is_away_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("opentelemetry").setLevel("CRITICAL")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    before = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    tracer = RunTracer()
    began = monotonic()
    for _ in range(5000):
        tracer.run_ended(ended())
    told = monotonic() - began
    tracer.close()

    assert told < 5
    assert monotonic() - began - told < CLOSE_SECONDS + 2
    # A thread that goes on trying would disturb whatever runs next in this process.
    assert [t.name for t in threading.enumerate() if t is not threading.main_thread() and t.is_alive()] == before
