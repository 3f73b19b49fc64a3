"""The one use case: admit a request, look at the program, lease a sandbox, run, report what happened."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from sandbox_svc.errors import CodeRefused, InvalidRequest, RateLimited, SandboxLost, SandboxServiceError
from sandbox_svc.runtime import Program, RunLimits
from sandbox_svc.service.events import ABORTED, RunEnded, ignore
from sandbox_svc.service.runs import Report, new_run_id
from sandbox_svc.service.tenants import Unlimited
from sandbox_svc.service.verdicts import Verdict, judge, refused_source, settle

if TYPE_CHECKING:
    from sandbox_svc.analysis.findings import Analysis, Finding
    from sandbox_svc.pool.pool import Pool
    from sandbox_svc.rate_decision import RateDecision
    from sandbox_svc.runtime import Outcome, OutputSink
    from sandbox_svc.service.events import RunObserver
    from sandbox_svc.service.naming import LanguageNames, Served
    from sandbox_svc.service.runs import LimitRequest, RunRequest
    from sandbox_svc.service.tenants import Admission, Tenant
    from sandbox_svc.trace_context import TraceContext


class Analyser(Protocol):
    """Looks at a source before it is run; the front of `analysis` implements it."""

    async def analyse(self, analyser: str, source: bytes) -> Analysis:
        """Never raises for what the source holds. Bounded in time; cancelling leaves nothing behind."""
        ...


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
        word = SandboxServiceError.code  # unless it is one that we know, a bug of ours
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
            raise RateLimited("Too many requests, please try again later", rate)
        try:
            return await self._run_admitted(request, tenant, entry, limits, rate, on_output, run_id, wait)
        except SandboxServiceError as error:
            # It was counted whatever became of it, and its answer says so.
            error.rate = rate
            raise
        except Exception as error:
            failure = SandboxServiceError("The run could not be completed")
            failure.rate = rate
            raise failure from error

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
                    outcome=refused_source(error, request.source_name or entry.language.manifest.source_name),
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
        outcome = settle(outcome, limits)
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


def _within(field: str, asked: int | None, maximum: int) -> int:
    if asked is None:
        return maximum
    # 0 is "no bound of its own" among limits.
    if maximum and asked > maximum:
        raise InvalidRequest(f"limits.{field} must be at most {maximum}")
    return asked
