"""Every error this service raises on its own account; what a program did is an `Outcome`, never an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox_svc.analysis.findings import Finding
    from sandbox_svc.rate_decision import RateDecision


class SandboxServiceError(Exception):
    """Root of all our errors.

    `code` is stable and public: it appears in problem documents, logs and metrics. `str(error)` is a sentence that may
    be shown to a caller; it holds no host path, container id, secret or submitted text.
    """

    code = "internal"
    rate: RateDecision | None = None
    """What the rate limit said about the request that ended so; None where it was not counted."""


class SettingsError(SandboxServiceError):
    """A `SANDBOX_*` variable has a value that cannot be used; the message starts with the variable's name."""

    code = "settings"


class InvalidRequest(SandboxServiceError):
    """The request is malformed; the message names the field and what would be right. No sandbox was touched."""

    code = "invalid_request"


class MalformedRequest(InvalidRequest):
    """The request body is no JSON at all, so no field can be named."""

    code = "malformed_request"


class RequestTooLarge(InvalidRequest):
    """The request body exceeds the configured bound."""

    code = "request_too_large"


class RequestTimeout(InvalidRequest):
    """The request body did not arrive within its deadline."""

    code = "request_timeout"


class UnknownLanguage(InvalidRequest):
    """No image of that language, alias or profile is installed or enabled."""

    code = "unknown_language"


class Unauthorized(SandboxServiceError):
    """API keys are configured and the request carries none that is known."""

    code = "unauthorized"


class CrossOrigin(SandboxServiceError):
    """A page of another site, in a browser that reaches the service, tried to run something."""

    code = "cross_origin"


class RateLimited(SandboxServiceError):
    """The tenant used up its rate limit; `retry_after_seconds` says when a slot in the window is free again."""

    code = "rate_limited"

    def __init__(self, message: str, rate: RateDecision) -> None:
        super().__init__(message)
        self.rate = rate
        self.retry_after_seconds = rate.reset_seconds


class CodeRefused(SandboxServiceError):
    """Static analysis is set to refuse programs that do what this one does; `findings` says where. Nothing was run."""

    code = "code_refused"

    def __init__(self, findings: tuple[Finding, ...], message: str = "Code is unsafe") -> None:
        super().__init__(message)
        self.findings = findings


class PoolExhausted(SandboxServiceError):
    """No sandbox became free in time; root of the two ways in which that happens."""

    code = "pool_exhausted"

    def __init__(self, message: str = "Container pool is busy", *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(PoolExhausted):
    """The waiting queue of the language holds as many requests as it may; answered at once."""


class QueueTimeout(PoolExhausted):
    """The request waited its full time in the queue, or it was already clear that it would."""


class PoolClosed(SandboxServiceError):
    """The service is draining: it finishes what runs and takes nothing new."""

    code = "draining"

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RuntimeUnavailable(SandboxServiceError):
    """The container engine does not answer, refuses, or lacks what was configured (image, runtime)."""

    code = "engine_unavailable"


class SandboxLost(SandboxServiceError):
    """A sandbox died, broke the protocol or missed a deadline; it is removed and never used again.

    `started` tells whether user code may have run: only when it is False may the run be tried on another sandbox.
    """

    code = "sandbox_lost"

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class ProtocolError(SandboxServiceError):
    """Bytes from a sandbox are not a frame of our protocol; its sandbox cannot be trusted any more."""

    code = "protocol_error"
