"""The frozen contract of `POST /run`: what clients of the old executor manager send and expect.

They treat any HTTP status but 200 as a broken service, and any answer with output, artifacts or a result as a success.
So whatever a program or an overload does is a 200 with a `status`, and all but success has empty `stdout`, no
artifacts, no result and a sentence in `stderr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sandbox_svc import errors
from sandbox_svc.http.decoding import arguments_of, checked_source, decode, from_base64
from sandbox_svc.http.reply import JSON, Headers, Reply, error_headers, problem, rate_headers, sentence_of
from sandbox_svc.http.wire import (
    ArtifactItem,
    CompatAnswer,
    CompatRequest,
    CompatResult,
    encode,
    text_of,
)
from sandbox_svc.notation import show_duration, show_size
from sandbox_svc.service.runs import Report, RunRequest
from sandbox_svc.service.verdicts import Verdict, signal_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox_svc.runtime import Artifact

TIME_EXIT: Final = -124
MEMORY_EXIT: Final = -137
OUTPUT_EXIT: Final = -153
"""After SIGXFSZ, as -137 is after SIGKILL: the old executor manager knew no output limit."""
BUSY_EXIT: Final = -10
INTERNAL_EXIT: Final = -3
UNSAFE_EXIT: Final = -999
RATE_LIMITED_EXIT: Final = -429

MIME_TYPES: Final = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
    "csv": "text/csv",
    "json": "application/json",
    "html": "text/html",
}
"""What its clients know how to show; other files are not sent."""

_decoder = msgspec.json.Decoder(CompatRequest)


class CompatAdapter:
    """Between `POST /run` and the service."""

    def parse(self, body: bytes) -> RunRequest:
        """Raises `InvalidRequest`, the only error that its clients see as an HTTP status of their own doing."""
        request, cloak = decode(_decoder, body)
        return RunRequest(
            language=request.language,
            source=checked_source(from_base64(request.code_b64, "code_b64"), "code_b64"),
            arguments=arguments_of(request.arguments, cloak),
        )

    def answer(self, report: Report) -> Reply:
        return _reply(_answers[report.verdict](report), rate_headers(report.rate))

    def refuse(self, error: errors.SandboxServiceError) -> Reply:
        """Answer an error; what the caller did wrong is a problem document, everything else a 200."""
        if isinstance(error, errors.InvalidRequest | errors.Unauthorized | errors.CrossOrigin):
            return problem(error, says_status=False)
        return _reply(_failure(error), error_headers(error))


def _reply(answer: CompatAnswer, headers: Headers) -> Reply:
    return Reply(200, [JSON, *headers], encode(answer))


def _failure(error: errors.SandboxServiceError) -> CompatAnswer:
    match error:
        case errors.PoolExhausted():
            code, stderr, detail = BUSY_EXIT, "Container pool is busy", "no_available_container"
        case errors.PoolClosed():
            code, stderr, detail = BUSY_EXIT, "The service is shutting down", "draining"
        case errors.RateLimited():
            code, stderr, detail = RATE_LIMITED_EXIT, str(error), str(error)
        case errors.CodeRefused():
            lines = (f"Line {finding.line}: {finding.message}" for finding in error.findings)
            code, stderr, detail = UNSAFE_EXIT, "\n".join(lines) or str(error), "Code is unsafe"
        case errors.RuntimeUnavailable():
            code, stderr, detail = INTERNAL_EXIT, "The sandbox is not available at the moment", error.code
        case _:
            code, stderr, detail = INTERNAL_EXIT, sentence_of(error), error.code
    return CompatAnswer(status="program_runner_error", stderr=stderr, exit_code=code, detail=detail)


def _success(report: Report) -> CompatAnswer:
    outcome = report.outcome
    return CompatAnswer(
        status="success",
        stdout=text_of(outcome.stdout),
        stderr=text_of(outcome.stderr),
        exit_code=0,
        time_used_ms=outcome.wall_us / 1000,
        memory_used_kb=outcome.memory_kb,
        artifacts=_artifacts(outcome.artifacts) if outcome.artifacts else (),
        result=None if outcome.result is None else CompatResult(value=msgspec.Raw(outcome.result)),
    )


def _program_error(report: Report) -> CompatAnswer:
    code = report.outcome.exit_code
    if code:
        sentence = f"The program exited with code {code} and wrote nothing to stderr."
    else:
        # An error without an exit code of its own, such as a value that is no JSON.
        error = report.outcome.error
        sentence = "The program failed." if error is None else f"{error.type}: {error.message}"
    return CompatAnswer(
        status="program_error",
        stderr=_stderr(report) or sentence,
        exit_code=code or 1,
        time_used_ms=report.outcome.wall_us / 1000,
        memory_used_kb=report.outcome.memory_kb,
        runtime_error_type="nonzero_exit",
    )


def _signalled(report: Report) -> CompatAnswer:
    number = report.outcome.signal or 0
    return CompatAnswer(
        status="runtime_error",
        stderr=_with_reason(report, f"The program was killed by signal {number} ({signal_name(number)})."),
        # As a shell says it, and as the old executor manager passed it on from `timeout`.
        exit_code=128 + number,
        time_used_ms=report.outcome.wall_us / 1000,
        memory_used_kb=report.outcome.memory_kb,
        runtime_error_type="signalled",
    )


def _time_limit(report: Report) -> CompatAnswer:
    if report.verdict is Verdict.CPU_LIMIT:
        reason = (
            f"Execution timeout: the program used more than {show_duration(report.limits.cpu_ms / 1000)} of CPU time."
        )
    else:
        reason = f"Execution timeout: the program ran longer than {show_duration(report.limits.wall_ms / 1000)}."
    return CompatAnswer(
        status="resource_limit_exceeded",
        stderr=_with_reason(report, reason),
        exit_code=TIME_EXIT,
        time_used_ms=report.outcome.wall_us / 1000,
        memory_used_kb=report.outcome.memory_kb,
        resource_limit_type="time",
    )


def _memory_limit(report: Report) -> CompatAnswer:
    reason = f"Memory limit exceeded: the program used more than {show_size(report.limits.memory_bytes)}."
    return CompatAnswer(
        status="resource_limit_exceeded",
        stderr=_with_reason(report, reason),
        exit_code=MEMORY_EXIT,
        time_used_ms=report.outcome.wall_us / 1000,
        memory_used_kb=report.outcome.memory_kb,
        resource_limit_type="memory",
    )


def _output_limit(report: Report) -> CompatAnswer:
    error = report.outcome.error
    if error is not None and error.type == "ResultError":
        reason = f"Output limit exceeded: {error.message}"
    else:
        size = show_size(report.limits.output_bytes)
        reason = f"Output limit exceeded: the program wrote more than {size} to stdout and stderr."
    return CompatAnswer(
        status="resource_limit_exceeded",
        # Without the program's own stderr: that may be what was too large.
        stderr=reason,
        exit_code=OUTPUT_EXIT,
        time_used_ms=report.outcome.wall_us / 1000,
        memory_used_kb=report.outcome.memory_kb,
        resource_limit_type="output",
    )


def _cancelled(report: Report) -> CompatAnswer:
    return CompatAnswer(
        status="program_runner_error",
        stderr="The run was stopped before it ended",
        exit_code=INTERNAL_EXIT,
        detail="cancelled",
        time_used_ms=report.outcome.wall_us / 1000,
    )


_answers = {
    Verdict.SUCCESS: _success,
    Verdict.PROGRAM_ERROR: _program_error,
    Verdict.SIGNALLED: _signalled,
    Verdict.TIME_LIMIT: _time_limit,
    Verdict.CPU_LIMIT: _time_limit,
    Verdict.MEMORY_LIMIT: _memory_limit,
    Verdict.OUTPUT_LIMIT: _output_limit,
    Verdict.CANCELLED: _cancelled,
}


def _stderr(report: Report) -> str:
    """What the program wrote to stderr; empty when that is nothing but white space."""
    text = text_of(report.outcome.stderr)
    if report.outcome.stderr_truncated:
        text += "\n[stderr was cut here]"
    return text if text.strip() else ""


def _with_reason(report: Report, reason: str) -> str:
    own = _stderr(report)
    return f"{reason}\n{own}" if own else reason


def _artifacts(artifacts: Iterable[Artifact]) -> tuple[ArtifactItem, ...]:
    """The files its clients can show. The sandbox filters too, but names are the program's own and end up in URLs."""
    items = []
    for artifact in artifacts:
        name = artifact.name
        mime_type = MIME_TYPES.get(name.rpartition(".")[2].lower())
        is_safe = (
            name.isprintable()
            and not name.startswith(".")
            and "/" not in name
            and "\\" not in name
            and ".." not in name
        )
        if mime_type is not None and is_safe and artifact.content:
            items.append(
                ArtifactItem(name=name, mime_type=mime_type, size=len(artifact.content), content_b64=artifact.content)
            )
    return tuple(items)
