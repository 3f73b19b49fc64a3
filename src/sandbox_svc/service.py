"""The one use case: admit a request, look at the program, lease a sandbox, run, report what happened."""

from __future__ import annotations

import asyncio
import enum
import secrets
import signal
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from sandbox_svc.errors import CodeRefused, InvalidRequest, RateLimited, SandboxLost, SandboxServiceError
from sandbox_svc.run_events import ABORTED, RunEnded, ignore
from sandbox_svc.runtime import MIB, InputFile, Outcome, OutputSink, Program, RunLimits
from sandbox_svc.runtime.protocol import MAX_TEXT_CHARS, ProgramError, TracebackFrame
from sandbox_svc.strict_json import clean_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox_svc.analysis.findings import Analysis, Finding, SourceError
    from sandbox_svc.naming import LanguageNames, Served
    from sandbox_svc.pool.pool import Pool
    from sandbox_svc.run_events import RunObserver
    from sandbox_svc.trace_context import TraceContext

MAX_ESCAPED_OUTPUT_FACTOR: Final = 2
"""How much larger than its limit an output may become when JSON escapes it; a flood of NULs would grow sixfold."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request is served for. A container never serves two of them."""

    name: str = "default"
    rate_key: str = ""
    """What shares one rate limit: the tenant, or the caller's address where there are no keys."""
    share: int | None = None
    """Slots of a language it may lease at once while others wait; None: as many as there are."""
    maxima: RunLimits | None = None
    """Largest limits of one run; None: those of the service."""

    @property
    def caller(self) -> str:
        """Who is counted as one by whatever bounds a caller: rates, and bytes of requests."""
        return self.rate_key or f"tenant/{self.name}"


class RateDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What the rate limit says about one request."""

    is_allowed: bool
    limit: int
    window_seconds: int
    remaining: int
    reset_seconds: float
    """Until the window has room again; callers who were refused wait that long."""


def note_rate(error: Exception, rate: RateDecision | None) -> None:
    """Attach what the rate limit said to the error that ends a counted request, for `rate_noted`."""
    error.__dict__[_RATE] = rate


def rate_noted(error: BaseException) -> RateDecision | None:
    """What the rate limit said about the request that ended in this error; None where it was not counted."""
    rate: RateDecision | None = error.__dict__.get(_RATE)
    return rate


_RATE: Final = "sandbox_svc_rate"


class Admission(Protocol):
    """Names tenants and counts their requests; `admission` implements it, `Unlimited` where nothing is configured."""

    def identify(self, credential: str | None, client: str | None) -> Tenant:
        """Return the tenant of an API key and a peer address. Raises `Unauthorized`. Never waits."""
        ...

    async def admit(self, tenant: Tenant) -> RateDecision | None:
        """Count one run and say whether it may start; None when no limit applies.

        Waits for Redis at most a fraction of a second; cancelling it may leave the run counted.
        """
        ...


class Unlimited:
    """Admits everyone as the tenant `default`: no keys, no limits."""

    _tenant = Tenant()

    def identify(self, credential: str | None, client: str | None) -> Tenant:  # noqa: ARG002 - the protocol's
        return self._tenant

    async def admit(self, tenant: Tenant) -> RateDecision | None:  # noqa: ARG002 - the protocol's
        return None


class Analyser(Protocol):
    """Looks at a source before it is run; the front of `analysis` implements it."""

    async def analyse(self, analyser: str, source: bytes) -> Analysis:
        """Never raises for what the source holds. Bounded in time; cancelling leaves nothing behind."""
        ...


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


class Verdict(enum.Enum):
    """An outcome in one word; the same for every API, logs and metrics."""

    SUCCESS = "success"
    PROGRAM_ERROR = "program_error"
    """An exception, a non-zero exit code, or a value that cannot be a result."""
    SIGNALLED = "signalled"
    TIME_LIMIT = "time_limit"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"


_LIMIT_VERDICTS = {
    "time": Verdict.TIME_LIMIT,
    "cpu": Verdict.CPU_LIMIT,
    "memory": Verdict.MEMORY_LIMIT,
    "output": Verdict.OUTPUT_LIMIT,
}


def judge(outcome: Outcome) -> Verdict:
    """Name an outcome by its facts; a limit outranks the signal that enforced it."""
    if outcome.limit is not None:
        return _LIMIT_VERDICTS[outcome.limit]
    if outcome.cancelled:
        return Verdict.CANCELLED
    if outcome.signal is not None:
        return Verdict.SIGNALLED
    return Verdict.SUCCESS if outcome.is_success else Verdict.PROGRAM_ERROR


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


class _Wait:
    """How long a run waited for a sandbox, also one that never got it."""

    seconds = 0.0


class Service:
    """Runs programs for tenants. The adapters of the APIs call `run`; nothing else starts a program.

    `refuses` says whether findings of the analyser keep a program from being run, or are only reported with it.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        names: LanguageNames,
        maxima: RunLimits,
        queue_timeout_seconds: float,
        admission: Admission | None = None,
        analyser: Analyser | None = None,
        refuses: bool = True,
        observer: RunObserver = ignore,
    ) -> None:
        self._observer = observer
        self._pool = pool
        self._names = names
        self._maxima = maxima
        self._queue_timeout_seconds = queue_timeout_seconds
        self._admission = admission if admission is not None else Unlimited()
        self._analyser = analyser
        self._refuses = refuses

    @property
    def queue_timeout_seconds(self) -> float:
        """How long a request may wait for a sandbox."""
        return self._queue_timeout_seconds

    def maxima(self, tenant: Tenant) -> RunLimits:
        """The largest limits a run of this tenant may have; they are also what it gets unless it asks for less."""
        return tenant.maxima if tenant.maxima is not None else self._maxima

    async def run(
        self,
        request: RunRequest,
        *,
        tenant: Tenant,
        on_output: OutputSink | None = None,
        run_id: str | None = None,
        trace: TraceContext | None = None,
    ) -> Report:
        """Run a program once and report what it did.

        Raises `InvalidRequest`, `RateLimited`, `CodeRefused`, `UnknownLanguage`, `PoolExhausted`, `PoolClosed`,
        `RuntimeUnavailable` and `SandboxLost`. Waits for the queue timeout plus the run's own limits at most.
        Cancelling gives up the place in the queue or kills the program. `run_id` and `trace` name it in what is
        told of it.
        """
        run_id = run_id or new_run_id()
        started = time.monotonic()
        word = SandboxServiceError.code  # unless it is one that we know, a bug of ours that the adapter logs
        report: Report | None = None
        wait = _Wait()
        try:
            report = await self._run(request, tenant, on_output, run_id, wait)
            word = report.verdict.value
            return report
        except SandboxServiceError as error:
            word = error.code
            raise
        except asyncio.CancelledError:
            word = ABORTED
            raise
        finally:
            self._observer(
                _ended(
                    report,
                    queue_seconds=wait.seconds,
                    run_id=run_id,
                    tenant=tenant.name,
                    language=self._names.name_of(request.language, request.profile),
                    outcome=word,
                    total_seconds=time.monotonic() - started,
                    trace=trace,
                )
            )

    async def _run(
        self, request: RunRequest, tenant: Tenant, on_output: OutputSink | None, run_id: str, wait: _Wait
    ) -> Report:
        entry = self._names.resolve(request.language, request.profile)
        limits = self._limits(request.limits, tenant)
        rate = await self._admission.admit(tenant)
        if rate is not None and not rate.is_allowed:
            raise RateLimited(
                "Too many requests, please try again later",
                retry_after_seconds=rate.reset_seconds,
                limit=rate.limit,
                window_seconds=rate.window_seconds,
            )
        try:
            return await self._run_admitted(request, tenant, entry, limits, rate, on_output, run_id, wait)
        except Exception as error:
            # It was counted whatever became of it, and its answer says so.
            note_rate(error, rate)
            raise

    async def _run_admitted(
        self,
        request: RunRequest,
        tenant: Tenant,
        entry: Served,
        limits: RunLimits,
        rate: RateDecision | None,
        on_output: OutputSink | None,
        run_id: str,
        wait: _Wait,
    ) -> Report:
        findings: tuple[Finding, ...] = ()
        kind = entry.language.manifest.analyser
        if self._analyser is not None and kind is not None:
            analysis = await self._analyser.analyse(kind, request.source)
            findings = analysis.findings
            error = analysis.source_error
            if error is not None:
                return Report(
                    run_id=run_id,
                    language=entry.name,
                    outcome=_refused_source(error, request.source_name or entry.language.manifest.source_name),
                    verdict=Verdict.PROGRAM_ERROR,
                    was_started=False,
                    limits=limits,
                    rate=rate,
                )
            if findings and self._refuses:
                raise CodeRefused(findings)
        program = Program(
            source=request.source,
            template=entry.chooser.choose(request.source),
            limits=limits,
            arguments=request.arguments,
            call_main=request.call_main,
            stdin=request.stdin,
            args=request.args,
            env=request.env,
            source_name=request.source_name,
            files=request.files,
            artifact_globs=request.artifact_globs,
            keep_artifacts=request.keep_artifacts,
        )
        outcome, ran = await self._run_in_a_sandbox(program, entry, tenant, on_output, wait)
        outcome = _settle(outcome, limits)
        return Report(
            run_id=run_id,
            language=entry.name,
            outcome=outcome,
            verdict=judge(outcome),
            limits=limits,
            queue_seconds=wait.seconds,
            start_seconds=max(ran - outcome.wall_us / 1e6, 0.0),
            findings=findings,
            rate=rate,
        )

    async def _run_in_a_sandbox(
        self, program: Program, entry: Served, tenant: Tenant, on_output: OutputSink | None, wait: _Wait
    ) -> tuple[Outcome, float]:
        """Return the outcome and the seconds spent in the sandbox that ran the program; `wait` is told those before."""
        deadline = time.monotonic() + self._queue_timeout_seconds
        is_retry = False
        while True:
            asked, waited = time.monotonic(), None
            lease = self._pool.lease(
                entry.name,
                tenant=tenant.name,
                template=program.template,
                timeout_seconds=max(deadline - time.monotonic(), 0.0),
                share=tenant.share,
            )
            try:
                async with lease:
                    waited = lease.queued_seconds
                    began = time.monotonic()
                    outcome = await lease.sandbox.run(program, on_output)
                    return outcome, time.monotonic() - began
            except SandboxLost as error:
                # Found dead on the way in: the program did not start, so trying once more cannot run it twice.
                if error.started or is_retry:
                    raise
                is_retry = True
            finally:
                wait.seconds += time.monotonic() - asked if waited is None else waited

    def _limits(self, asked: LimitRequest | None, tenant: Tenant) -> RunLimits:
        maxima = self.maxima(tenant)
        if asked is None:
            return maxima
        return RunLimits(
            wall_ms=_within("wall_ms", asked.wall_ms, maxima.wall_ms),
            cpu_ms=_within("cpu_ms", asked.cpu_ms, maxima.cpu_ms),
            memory_bytes=_within("memory_bytes", asked.memory_bytes, maxima.memory_bytes),
            output_bytes=_within("output_bytes", asked.output_bytes, maxima.output_bytes),
            result_bytes=maxima.result_bytes,
        )


def _ended(report: Report | None, **facts: Any) -> RunEnded:
    if report is None:
        return RunEnded(**facts)
    outcome = report.outcome
    return RunEnded(
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        start_seconds=report.start_seconds,
        run_seconds=outcome.wall_us / 1e6 if report.was_started else None,
        cpu_seconds=outcome.cpu_us / 1e6,
        memory_kb=outcome.memory_kb,
        **facts,
    )


def _refused_source(error: SourceError, source_name: str) -> Outcome:
    """What the interpreter would have made of the source, had it been started."""
    traceback: tuple[TracebackFrame, ...] = ()
    if error.line is not None:
        text = error.source_line.strip()[:MAX_TEXT_CHARS]
        traceback = (TracebackFrame(file=source_name, line=error.line, function="<module>", text=text),)
    return Outcome(
        exit_code=1,
        error=ProgramError(type=error.type, message=error.message, line=error.line, traceback=traceback),
        stderr=error.text_for(source_name).encode(errors="replace"),
    )


def _within(field: str, asked: int | None, maximum: int) -> int:
    if asked is None:
        return maximum
    # 0 is "no bound of its own" among limits.
    if maximum and asked > maximum:
        raise InvalidRequest(f"limits.{field} must be at most {maximum}")
    return asked


def signal_name(number: int) -> str:
    """Return `SIGKILL` for 9; numbers without a name, such as real-time signals, as a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def new_run_id() -> str:
    """Return an id that no other run of any instance has."""
    return secrets.token_hex(8)


def default_maxima(*, timeout_seconds: float, memory_bytes: int) -> RunLimits:
    """The limits of a run where no tenant has its own."""
    return RunLimits(
        wall_ms=round(timeout_seconds * 1000), memory_bytes=memory_bytes, output_bytes=MIB, result_bytes=MIB
    )


def _settle(outcome: Outcome, limits: RunLimits) -> Outcome:
    """Apply what only the service can judge: the result is hostile bytes, and output grows when JSON escapes it."""
    if outcome.is_success:
        if _is_escaped_too_large(outcome, limits):
            return msgspec.structs.replace(outcome, limit="output", result=None)
        if outcome.result is not None:
            try:
                result = clean_result(outcome.result, max_bytes=limits.result_bytes)
            except ValueError as error:
                sentence = f"The result of main {error}."
                gap = b"" if not outcome.stderr or outcome.stderr.endswith(b"\n") else b"\n"
                return msgspec.structs.replace(
                    outcome,
                    exit_code=1,
                    error=ProgramError(type="ResultError", message=sentence),
                    result=None,
                    stderr=outcome.stderr + gap + sentence.encode(),
                )
            if result is not outcome.result:
                return msgspec.structs.replace(outcome, result=result)
        return outcome
    return outcome if outcome.result is None else msgspec.structs.replace(outcome, result=None)


_text_encoder = msgspec.json.Encoder()


def _is_escaped_too_large(outcome: Outcome, limits: RunLimits) -> bool:
    bound = MAX_ESCAPED_OUTPUT_FACTOR * limits.output_bytes
    if 6 * (len(outcome.stdout) + len(outcome.stderr)) <= bound:
        return False
    return (
        sum(len(_text_encoder.encode(out.decode(errors="replace"))) for out in (outcome.stdout, outcome.stderr)) > bound
    )
