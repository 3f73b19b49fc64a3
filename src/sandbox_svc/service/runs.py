"""A run from request to report, in words that no API owns."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from sandbox_svc.runtime import MIB, InputFile, Outcome, RunLimits

if TYPE_CHECKING:
    from sandbox_svc.analysis.findings import Finding
    from sandbox_svc.rate_decision import RateDecision
    from sandbox_svc.service.verdicts import Verdict


class LimitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Limits a caller asks for; None takes the tenant's maximum, and more than that is refused."""

    wall_ms: int | None = None
    cpu_ms: int | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request, whichever API it came from."""

    language: str
    """Name or alias, as the caller wrote it."""
    profile: str | None = None
    source: bytes
    arguments: bytes = b"{}"
    call_main: bool = True
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    source_name: str = ""
    """The path of the source, where it is a file beside `files`; empty: it is none."""
    files: tuple[InputFile, ...] = ()
    artifact_globs: tuple[str, ...] = ()
    keep_artifacts: bool = False
    limits: LimitRequest | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request that reached the program, or would have but for an error in its source."""

    run_id: str
    language: str
    outcome: Outcome
    """Its result, when there is one, is strict JSON that any decoder reads."""
    verdict: Verdict
    was_started: bool = True
    """False when an error in the source was found without starting it."""
    limits: RunLimits
    queue_seconds: float = 0.0
    """Waiting for a sandbox."""
    start_seconds: float = 0.0
    """From having the sandbox to having the outcome, without the program's own wall time."""
    findings: tuple[Finding, ...] = ()
    """What analysis would have refused in a stricter mode."""
    rate: RateDecision | None = None


def new_run_id() -> str:
    """Return an id that no other run of any instance has."""
    return secrets.token_hex(8)


def default_maxima(*, timeout_seconds: float, memory_bytes: int) -> RunLimits:
    """The limits of a run where no tenant has its own."""
    return RunLimits(
        wall_ms=round(timeout_seconds * 1000), memory_bytes=memory_bytes, output_bytes=MIB, result_bytes=MIB
    )
