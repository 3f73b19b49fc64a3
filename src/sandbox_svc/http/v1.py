"""`POST /v1/run`: the service's own contract, honest HTTP codes and everything that is known about a run."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox_svc.errors import InvalidRequest
from sandbox_svc.http.decoding import arguments_of, checked_source, decode, from_base64
from sandbox_svc.http.reply import JSON, Reply, problem, rate_headers, warnings_of
from sandbox_svc.http.wire import (
    ArtifactItem,
    ErrorDetail,
    FileContent,
    ResultValue,
    RunAnswer,
    RunBody,
    TracebackFrame,
    Truncated,
    encode,
    text_of,
)
from sandbox_svc.runtime import InputFile
from sandbox_svc.service.runs import LimitRequest, Report, RunRequest
from sandbox_svc.service.verdicts import Verdict, signal_name

if TYPE_CHECKING:
    from sandbox_svc.errors import SandboxServiceError
    from sandbox_svc.runtime.protocol import ProgramError

MAX_HEAD_BYTES: Final = 192 * 1024
"""Three quarters of what the protocol takes; the rest is ours."""
MAX_PATH_BYTES: Final = 512
MAX_NAME_BYTES: Final = 200

_PACKED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}
"""Types by what `mimetypes` calls an encoding."""

_decoder = msgspec.json.Decoder(RunBody)


class V1Adapter:
    """Between `POST /v1/run` and the service."""

    def parse(self, body: bytes) -> RunRequest:
        """Raises `InvalidRequest` that names the field."""
        request, cloak = decode(_decoder, body)
        files = tuple(InputFile(_path(path), _content(content, "files")) for path, content in request.files.items())
        if len({file.path for file in files}) != len(files):
            raise InvalidRequest("files must have different paths")
        source, source_name, files = _source(request, files)
        call_main = request.mode == "main"
        arguments = arguments_of(request.arguments, cloak)
        if call_main and (request.stdin or request.args):
            raise InvalidRequest('stdin and args need mode "script"')
        if not call_main and request.arguments is not msgspec.UNSET:
            raise InvalidRequest('arguments need mode "main"')
        if cloak is not None and cloak.hidden != cloak.restored:
            # They pass in the arguments, which stay JSON; other text that holds one could not be written down.
            raise InvalidRequest("Lone surrogates are only allowed in arguments")
        if any("\0" in text for text in (*request.args, *request.env.values(), *request.artifacts)):
            raise InvalidRequest("args, env and artifacts must not hold NUL characters")
        if request.args or request.env or request.artifacts or files:
            _check_head(request, files)
        return RunRequest(
            language=request.language,
            profile=request.profile,
            source=source,
            arguments=arguments,
            call_main=call_main,
            stdin=_content(request.stdin, "stdin"),
            args=request.args,
            env=request.env,
            source_name=source_name,
            files=files,
            artifact_globs=request.artifacts,
            keep_artifacts=True,
            limits=_limits(request),
        )

    def answer(self, report: Report) -> Reply:
        return Reply(200, [JSON, *rate_headers(report.rate)], encode(_answer(report)))

    def refuse(self, error: SandboxServiceError) -> Reply:
        return problem(error)


def _source(request: RunBody, files: tuple[InputFile, ...]) -> tuple[bytes, str, tuple[InputFile, ...]]:
    """The source, its path where it is one of the files, and the others."""
    if (request.code is not None) + (request.code_b64 is not None) + (request.entry_point is not None) != 1:
        raise InvalidRequest("Exactly one of code, code_b64 and entry_point must be given")
    if request.code is not None:
        return checked_source(request.code.encode(), "code"), "", files
    if request.code_b64 is not None:
        return checked_source(from_base64(request.code_b64, "code_b64"), "code_b64"), "", files
    for file in files:
        if file.path == request.entry_point:
            others = tuple(other for other in files if other is not file)
            return checked_source(file.content, "entry_point"), file.path, others
    raise InvalidRequest("entry_point must name one of files")


def _check_head(request: RunBody, files: tuple[InputFile, ...]) -> None:
    """Texts that describe a run travel to the sandbox in one bounded JSON head. Raises `InvalidRequest`."""
    head = (request.args, request.env, request.artifacts, [file.path for file in files])
    if len(encode(head)) > MAX_HEAD_BYTES:
        raise InvalidRequest(
            f"args, env, artifacts and the paths of files must not exceed {MAX_HEAD_BYTES} bytes together, as JSON"
        )


def _path(path: str) -> str:
    """A relative path that stays where it is put, as written. Raises `InvalidRequest`."""
    parts = path.split("/")
    if (
        len(path.encode()) > MAX_PATH_BYTES
        or not path.isprintable()
        or "\\" in path
        or any(part in ("", ".", "..") or len(part.encode()) > MAX_NAME_BYTES for part in parts)
    ):
        raise InvalidRequest(
            f"files must have relative paths of at most {MAX_PATH_BYTES} bytes, printable and without . or .."
        )
    return path


def _content(content: str | FileContent, field: str) -> bytes:
    return content.encode() if isinstance(content, str) else from_base64(content.b64, field)


def _limits(request: RunBody) -> LimitRequest | None:
    asked = request.limits
    if asked is None:
        return None
    return LimitRequest(
        wall_ms=asked.wall_ms,
        cpu_ms=asked.cpu_ms,
        memory_bytes=asked.memory_bytes,
        output_bytes=asked.output_bytes,
    )


def _answer(report: Report) -> RunAnswer:
    outcome = report.outcome
    error = outcome.error
    return RunAnswer(
        run_id=report.run_id,
        language=report.language,
        outcome=report.verdict.value,
        exit_code=outcome.exit_code,
        signal=None if outcome.signal is None else signal_name(outcome.signal),
        result=None if outcome.result is None else ResultValue(value=msgspec.Raw(outcome.result)),
        stdout=text_of(outcome.stdout),
        stderr=text_of(outcome.stderr),
        truncated=Truncated(stdout=outcome.stdout_truncated, stderr=outcome.stderr_truncated),
        artifacts=tuple(
            ArtifactItem(
                name=artifact.name,
                mime_type=_mime_type(artifact.name),
                size=len(artifact.content),
                content_b64=artifact.content,
            )
            for artifact in outcome.artifacts
        ),
        artifacts_skipped=outcome.artifacts_skipped,
        error=None if error is None else _error(error),
        warnings=warnings_of(report.findings),
        queue_ms=round(report.queue_seconds * 1000, 3),
        start_ms=round(report.start_seconds * 1000, 3),
        run_ms=outcome.wall_us / 1000,
        cpu_ms=outcome.cpu_us / 1000,
        memory_kb=outcome.memory_kb,
        # A program ends as it ends, but one that was stopped from outside may be given another try.
        retryable=report.verdict is Verdict.CANCELLED,
    )


def _error(error: ProgramError) -> ErrorDetail:
    traceback = tuple(
        TracebackFrame(file=frame.file, line=frame.line, function=frame.function, text=frame.text)
        for frame in error.traceback
    )
    return ErrorDetail(type=error.type, message=error.message, line=error.line, traceback=traceback)


def _mime_type(name: str) -> str:
    kind, packed_by = mimetypes.guess_type(name)
    if packed_by is not None:  # what is inside is not what the bytes are
        kind = _PACKED.get(packed_by)
    return kind or "application/octet-stream"
