"""The one use case without HTTP: what becomes of a program whose sandbox is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandbox_svc.errors import PoolExhausted, SandboxLost, SandboxServiceError
from sandbox_svc.runtime import MIB, Outcome, OutputSink, Program
from sandbox_svc.service.events import RunEnded
from sandbox_svc.service.naming import LanguageNames
from sandbox_svc.service.runs import RunRequest, default_maxima
from sandbox_svc.service.service import Service
from sandbox_svc.service.tenants import Tenant
from tests.fakes import Behaviour, FakeSandbox, quiet
from tests.stage import Stage, lost, on_stage

REQUEST = RunRequest(language="python", source=b"program")


class Losses:
    """Loses the sandbox of each of the first attempts as told, and counts all of them."""

    def __init__(self, *errors: SandboxLost) -> None:
        self._errors = list(errors)
        self.sandboxes: list[str] = []

    async def __call__(self, sandbox: FakeSandbox, program: Program, on_output: OutputSink | None) -> Outcome:
        self.sandboxes.append(sandbox.id)
        if self._errors:
            raise self._errors.pop(0)
        return Outcome(exit_code=0, result=b'"done"')


@asynccontextmanager
async def served(
    behaviour: Behaviour, *, containers: int = 3, queue_seconds: float = 5.0
) -> AsyncIterator[tuple[Service, Stage, list[RunEnded]]]:
    ended: list[RunEnded] = []
    async with on_stage(sizes={"python": containers}) as stage:
        stage.runtime.programs[REQUEST.source] = behaviour
        service = Service(
            pool=stage.pool,
            names=LanguageNames(("python",), lambda: stage.keeper.languages),
            maxima=default_maxima(timeout_seconds=10, memory_bytes=256 * MIB),
            queue_timeout_seconds=queue_seconds,
            observer=ended.append,
        )
        yield service, stage, ended
        await quiet()


async def test_program_whose_sandbox_was_found_dead_runs_once_on_another() -> None:
    """PR-22: it did not start, so a second try cannot run it twice; the caller hears nothing of it."""
    behaviour = Losses(lost(started=False))
    async with served(behaviour) as (service, _, ended):
        report = await service.run(REQUEST, tenant=Tenant())
    assert report.outcome.result == b'"done"'
    assert len(set(behaviour.sandboxes)) == 2
    assert [event.outcome for event in ended] == ["success"]


async def test_program_is_not_tried_a_third_time() -> None:
    """PR-22: two dead sandboxes in a row are no accident, and a caller's time is not ours to spend on a third."""
    behaviour = Losses(lost(started=False), lost(started=False))
    async with served(behaviour) as (service, _, ended):
        with pytest.raises(SandboxLost) as caught:
            await service.run(REQUEST, tenant=Tenant())
    assert not caught.value.started
    assert len(set(behaviour.sandboxes)) == 2
    assert [event.outcome for event in ended] == ["sandbox_lost"]


async def test_program_that_may_have_started_is_never_tried_again() -> None:
    """PR-22: neither at the first try nor at the second, whatever it did is done."""
    for errors in ((lost(started=True),), (lost(started=False), lost(started=True))):
        behaviour = Losses(*errors)
        async with served(behaviour) as (service, _, ended):
            with pytest.raises(SandboxLost) as caught:
                await service.run(REQUEST, tenant=Tenant())
        assert caught.value.started
        assert len(behaviour.sandboxes) == len(errors)
        assert [event.outcome for event in ended] == ["sandbox_lost"]


async def test_sandbox_that_lost_a_program_is_handed_to_nobody() -> None:
    """PR-22: whether the program had started or not, the container is destroyed and another takes its place."""
    for error in (lost(started=False), lost(started=True)):
        behaviour = Losses(error)
        async with served(behaviour, containers=1) as (service, stage, _):
            before = stage.sandboxes[0].id
            try:
                await service.run(REQUEST, tenant=Tenant())
            except SandboxLost:
                assert error.started
            await quiet()
            assert [sandbox.id for sandbox in stage.sandboxes] != [before]
            assert before not in stage.engine.containers


async def test_a_bug_of_ours_is_told_from_a_caller_who_hung_up() -> None:
    """Both were counted as `aborted`, so that no alert could ever see the former."""

    async def slip(*_: object) -> Outcome:
        raise RuntimeError("a slip")

    async with served(slip) as (service, _, ended):
        with pytest.raises(SandboxServiceError, match="could not be completed"):
            await service.run(REQUEST, tenant=Tenant())
    assert [event.outcome for event in ended] == ["internal"]


async def test_a_caller_who_hangs_up_is_counted_as_such() -> None:
    async def hang(*_: object) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(hang) as (service, _, ended):
        run = asyncio.create_task(service.run(REQUEST, tenant=Tenant()))
        await quiet()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert [event.outcome for event in ended] == ["aborted"]


async def test_who_waited_in_vain_is_said_to_have_waited() -> None:
    """The line of a run that found the pool busy said `queue_ms` 0, after ten seconds in the queue."""

    async def hang(*_: object) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(hang, containers=1, queue_seconds=0.05) as (service, stage, ended):
        run = asyncio.create_task(service.run(REQUEST, tenant=Tenant()))
        await quiet()
        waiting = asyncio.create_task(service.run(REQUEST, tenant=Tenant()))
        await quiet()
        await stage.clock.advance(1)
        with pytest.raises(PoolExhausted):
            await waiting
        run.cancel()
        await asyncio.wait([run])
    busy, aborted = ended
    assert busy.outcome == "pool_exhausted"
    assert 0 < busy.queue_seconds <= busy.total_seconds
    assert aborted.queue_seconds < busy.total_seconds
