"""Logs: one handler for everything, as text for people or as one JSON object a line, and the one line of every run."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from sandbox_svc.service.events import RunEnded

LogFormat = Literal["text", "json"]

run_logger = logging.getLogger("sandbox_svc.run")


def set_up(level: str, log_format: str) -> None:
    """Send all log records to stderr from now on; anything but `json` is text."""
    # What no format shows need not be looked up for every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(json_formatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def json_formatter() -> logging.Formatter:
    """Records as JSON: `timestamp`, `level`, `logger`, `event`, and the facts of a run where the line is one's."""
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            _add_run,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    )


def log_run(event: RunEnded) -> None:
    """The only line per run: ids and durations, never code, arguments or output."""
    if run_logger.isEnabledFor(logging.INFO):
        run_logger.info("%s", _RunLine(event), extra={"run": event})


class _RunLine:
    """The text of a run's line, made only where the format is text."""

    __slots__ = ("_event",)

    def __init__(self, event: RunEnded) -> None:
        self._event = event

    def __str__(self) -> str:
        return "run " + " ".join(f"{name}={value}" for name, value in run_fields(self._event).items())


def run_fields(event: RunEnded) -> dict[str, Any]:
    """What a run's line says, by the names that the documentation lists."""
    fields: dict[str, Any] = {
        "run_id": event.run_id,
        "tenant": event.tenant,
        "language": event.language,
        "outcome": event.outcome,
        "exit_code": event.exit_code,
        "signal": event.signal,
        "queue_ms": round(event.queue_seconds * 1e3, 3),
        "start_ms": round(event.start_seconds * 1e3, 3),
        "run_ms": round((event.run_seconds or 0.0) * 1e3, 3),
        "cpu_ms": round(event.cpu_seconds * 1e3, 3),
        "memory_kb": event.memory_kb,
        "total_ms": round(event.total_seconds * 1e3, 3),
    }
    if event.trace is not None:
        fields["trace_id"] = event.trace.trace_id
        fields["span_id"] = event.trace.span_id
    return fields


def _add_run(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event = getattr(entry["_record"], "run", None)
    if event is not None:
        entry["event"] = "run"
        entry.update(run_fields(event))
    return entry


_encoder: Final = msgspec.json.Encoder(enc_hook=repr)


def _to_json(entry: Any, **_: Any) -> str:
    return _encoder.encode(entry).decode()
