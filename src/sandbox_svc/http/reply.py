"""Answers to errors that are ours: one table from error to HTTP status, and the problem documents of RFC 9457."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox_svc import errors
from sandbox_svc.http.wire import FindingInfo, Problem, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox_svc.analysis.findings import Finding
    from sandbox_svc.rate_decision import RateDecision

Headers = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
PROBLEM: Final = (b"content-type", b"application/problem+json")


class Reply(NamedTuple):
    """A whole answer; `Content-Length` is added when it is sent."""

    status: int
    headers: Headers
    body: bytes


STATUS: Final[dict[type[errors.SandboxServiceError], int]] = {
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.CrossOrigin: 403,
    errors.RequestTimeout: 408,
    errors.RequestTooLarge: 413,
    errors.InvalidRequest: 422,
    errors.CodeRefused: 422,
    errors.RateLimited: 429,
    errors.PoolExhausted: 503,
    errors.PoolClosed: 503,
    errors.RuntimeUnavailable: 503,
    errors.SandboxLost: 500,
    errors.SandboxServiceError: 500,
}
"""Looked up along the error's ancestry, so that a new leaf has its parent's status."""

_REFUSED: Final = (errors.RateLimited, errors.PoolExhausted, errors.PoolClosed, errors.RuntimeUnavailable)


def status_of(error: errors.SandboxServiceError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def is_retryable(error: errors.SandboxServiceError) -> bool:
    """Whether the same request may be sent again and do better: the program was not started."""
    return isinstance(error, _REFUSED) or (isinstance(error, errors.SandboxLost) and not error.started)


def sentence_of(error: errors.SandboxServiceError) -> str:
    """What a caller is told. The texts of errors that no caller caused may name what is behind the service."""
    if status_of(error) < 500 or isinstance(error, _REFUSED):
        return str(error)
    if not isinstance(error, errors.SandboxLost):
        return "The run could not be completed"
    if error.started:
        return "The container was lost during the run; the program may have begun, so it was not repeated"
    return "The container was lost before the program began, and so was the next one"


def retry_after_seconds(error: errors.SandboxServiceError) -> int | None:
    """What `Retry-After` says, in whole seconds."""
    match error:
        case errors.RateLimited(retry_after_seconds=seconds) | errors.PoolExhausted(retry_after_seconds=seconds):
            return max(math.ceil(seconds), 1)
        case errors.PoolClosed(retry_after_seconds=seconds):
            # The rest of the drain, and time for another one to start.
            return min(math.ceil(seconds), 60) + 5
        case errors.RuntimeUnavailable():
            return 5
    return None


def error_headers(error: errors.SandboxServiceError) -> Headers:
    """The headers that belong to an error, whatever the shape of its body."""
    headers: Headers = []
    seconds = retry_after_seconds(error)
    if seconds is not None:
        headers.append((b"retry-after", b"%d" % seconds))
    headers += rate_headers(error.rate)
    if isinstance(error, errors.Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, errors.RequestTimeout | errors.RequestTooLarge):
        headers.append((b"connection", b"close"))
    return headers


def rate_headers(decision: RateDecision | None) -> Headers:
    """`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers) of a request that was counted."""
    if decision is None:
        return []
    return [
        (b"ratelimit-policy", b'"runs";q=%d;w=%d' % (decision.limit, decision.window_seconds)),
        (b"ratelimit", b'"runs";r=%d;t=%d' % (decision.remaining, math.ceil(decision.reset_seconds))),
    ]


def problem(error: errors.SandboxServiceError, *, says_status: bool = True) -> Reply:
    """The problem document of one of our errors; RFC 9457 leaves it open whether the document repeats the status."""
    status = status_of(error)
    findings = warnings_of(error.findings) if isinstance(error, errors.CodeRefused) else ()
    return problem_reply(
        status,
        error.code,
        sentence_of(error),
        error_headers(error),
        retryable=is_retryable(error),
        retry_seconds=retry_after_seconds(error),
        findings=findings,
        says_status=says_status,
    )


def problem_reply(
    status: int,
    code: str,
    detail: str,
    headers: Headers | None = None,
    *,
    retryable: bool = False,
    retry_seconds: int | None = None,
    findings: tuple[FindingInfo, ...] = (),
    says_status: bool = True,
) -> Reply:
    document = Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status if says_status else None,
        code=code,
        detail=detail,
        retryable=retryable,
        retry_after_seconds=retry_seconds,
        findings=findings,
    )
    return Reply(status, [PROBLEM, *(headers or [])], encode(document))


def warnings_of(findings: Iterable[Finding]) -> tuple[FindingInfo, ...]:
    return tuple(FindingInfo(line=f.line, column=f.column, rule=f.rule, message=f.message) for f in findings)
