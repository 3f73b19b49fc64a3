"""Spans of runs for OpenTelemetry; imported only where a collector is configured: the SDK is an optional extra."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sandbox_svc import __version__
from sandbox_svc.service.events import ABORTED
from sandbox_svc.trace_context import new_span_id, new_trace

if TYPE_CHECKING:
    from sandbox_svc.service.events import RunEnded

EXPORT_SECONDS: Final = 5.0
"""For one batch; who exports is a thread of its own, so that no run waits for it."""
CLOSE_SECONDS: Final = 2.0
"""For the last spans, and once more for giving them up."""

OUR_FAULTS: Final = frozenset({ABORTED, "internal", "sandbox_lost", "engine_unavailable", "protocol_error"})
"""Outcomes that are errors of the span; what a program did is not."""


class RunTracer:
    """Exports a span for each run, and below it the wait for a container and the program's own time.

    Spans are made when a run is over, from its event, so that tracing adds nothing to the run itself. The queue of the
    exporter is bounded and drops the oldest. Where the caller says that its trace is not sampled, nothing is exported.
    """

    def __init__(self) -> None:
        """The collector and everything else come from the standard OTEL_* variables."""
        self._exporter = OTLPSpanExporter(timeout=EXPORT_SECONDS)
        self._processor = BatchSpanProcessor(self._exporter)
        ours = Resource.create({"service.name": "sandbox-svc", "service.version": __version__})
        # Once more on top: what `create` is given wins over OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        self._resource = ours.merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("sandbox_svc", __version__)

    def run_ended(self, event: RunEnded) -> None:
        trace = event.trace or new_trace()
        if not trace.is_sampled:
            return
        run = _context(trace.trace_id, trace.span_id)
        parent = None if trace.parent_id is None else _context(trace.trace_id, trace.parent_id, is_remote=True)
        end = time.time_ns()
        start = end - _ns(event.total_seconds)
        is_fault = event.outcome in OUR_FAULTS
        attributes: dict[str, str | int] = {
            "sandbox.run_id": event.run_id,
            "sandbox.language": event.language,
            "sandbox.outcome": event.outcome,
        }
        if event.exit_code is not None:
            attributes["process.exit.code"] = event.exit_code
        self._emit(
            "run",
            run,
            parent,
            start,
            end,
            kind=SpanKind.SERVER,
            attributes=attributes,
            status=Status(StatusCode.ERROR, event.outcome) if is_fault else Status(StatusCode.UNSET),
        )
        if event.run_seconds is not None:
            # Queue, handing over, program, handing back follow each other up to the end of the run.
            began = end - _ns(event.start_seconds + event.run_seconds)
            self._emit("queue", self._child(run), run, began - _ns(event.queue_seconds), began)
            self._emit("program", self._child(run), run, began, began + _ns(event.start_seconds + event.run_seconds))

    def _child(self, run: SpanContext) -> SpanContext:
        return _context(f"{run.trace_id:032x}", new_span_id())

    def _emit(
        self, name: str, context: SpanContext, parent: SpanContext | None, start: int, end: int, **more: Any
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                start_time=start,
                end_time=end,
                instrumentation_scope=self._scope,
                **more,
            )
        )

    def close(self) -> None:
        """Export what is left, within a bound. Blocks; the last thing that the service does."""
        thread = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            # The processor would go on trying for half a minute; a closed exporter gives up at once.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the library leaves it untyped
            thread.join(CLOSE_SECONDS)


def _context(trace_id: str, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
