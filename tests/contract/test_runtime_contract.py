"""What pool and service count on from `Runtime` and `Sandbox`, on the fake and on real containers alike.

Real containers come through `docker_plug`: `open_runtime` opens an instance of its own on the engine in force, and `kill`
kills a container behind its back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import pytest

from sandbox_svc.clock import LoopClock
from sandbox_svc.errors import RuntimeUnavailable, SandboxLost
from sandbox_svc.runtime import Outcome, OutputSink, Program, RunLimits, Runtime, Sandbox, docker_runtime
from sandbox_svc.runtime.languages import Language
from sandbox_svc.runtime.protocol import ProgramError
from tests.contract.docker_plug import kill as kill_container
from tests.contract.docker_plug import open_runtime, runtimes, why_no_engine
from tests.fakes import FakeEngine, FakeRuntime, FakeSandbox, make_language
from tests.integration.conftest import docker

PATIENT_SECONDS = 20.0
PROMPT_SECONDS = 5.0
"""For what callers wait for; the real figures are milliseconds, and the machine may be busy."""

HELLO = b"def main(name):\n    print('hi')\n    return 'hello ' + name\n"
RAISES = b"def main(name):\n    raise ValueError('no')\n"
SLEEPS = b"import time\ndef main(name):\n    print('begun', flush=True)\n    time.sleep(60)\n"


def program(source: bytes, language: Language, *, wall_ms: int = 10_000) -> Program:
    return Program(
        source=source,
        template=language.manifest.templates[0].name,
        arguments=b'{"name": "Ada"}',
        limits=RunLimits(wall_ms=wall_ms),
    )


class Subject(msgspec.Struct, frozen=True):
    """A runtime under test, and what only its surroundings know."""

    runtime: Runtime
    language: Language
    kill: Callable[[Sandbox], None]
    count: Callable[[], int]
    """Containers of this instance that exist, in whatever state."""
    linger: Callable[[], None]
    """From now on starts fail, and what they leave is not gone at once."""

    async def start(self) -> Sandbox:
        return await self.runtime.start(self.language)

    def program(self, source: bytes, *, wall_ms: int = 10_000) -> Program:
        return program(source, self.language, wall_ms=wall_ms)

    async def expect_count(self, count: int) -> None:
        """Removal after a failed start may go on when the failure is already known; it ends soon."""
        async with asyncio.timeout(PATIENT_SECONDS):
            while self.count() != count:  # noqa: ASYNC110 - polls the engine
                await asyncio.sleep(0.05)


# The two kinds of surroundings


async def _hello(_sandbox: FakeSandbox, _program: Program, on_output: OutputSink | None) -> Outcome:
    if on_output is not None:
        on_output("stdout", b"hi\n")
    return Outcome(exit_code=0, result=b'"hello Ada"', stdout=b"hi\n")


async def _raises(*_: Any) -> Outcome:
    return Outcome(exit_code=1, error=ProgramError(type="ValueError", message="no", line=2))


async def _sleeps(_sandbox: FakeSandbox, program: Program, on_output: OutputSink | None) -> Outcome:
    if on_output is not None:
        on_output("stdout", b"begun\n")
    await asyncio.sleep(program.limits.wall_ms / 1000)
    return Outcome(exit_code=None, signal=9, limit="time", stdout=b"begun\n")


@asynccontextmanager
async def fake_subject() -> AsyncIterator[Subject]:
    engine = FakeEngine(make_language("python"))
    runtime = FakeRuntime(engine, LoopClock())  # type: ignore[arg-type]  # only its `sleep` is used
    runtime.programs.update({HELLO: _hello, RAISES: _raises, SLEEPS: _sleeps})
    runtime.stages.seconds["start"] = 0.05

    def kill(sandbox: Sandbox) -> None:
        assert isinstance(sandbox, FakeSandbox)
        sandbox.kill()

    def linger() -> None:
        runtime.stages.fail("start", RuntimeUnavailable("no answer"))
        runtime.stages.seconds["reap"] = 0.3

    yield Subject(runtime, engine.images["python"], kill, lambda: len(engine.containers), linger)
    await runtime.close()
    assert {} == engine.containers


@asynccontextmanager
async def docker_subject(name: Literal["runc", "runsc"], patch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    async with open_runtime(name) as runtime:

        def count() -> int:
            label = f"label=sandbox_svc.instance={runtime._instance_id}"
            return len(docker("ps", "-aq", "--filter", label).stdout.split())

        def linger() -> None:
            create = runtime._engine.create
            late: set[asyncio.Task[str]] = set()

            async def create_late(name: str, config: dict[str, Any]) -> str:
                """No answer comes in time, and the engine does what it was asked for long after."""

                async def go_on() -> str:
                    await asyncio.sleep(2)
                    return await create(name, config)

                late.add(asyncio.create_task(go_on()))
                raise RuntimeUnavailable("no answer")

            patch.setattr(runtime._engine, "create", create_late)
            patch.setattr(docker_runtime, "REAP_SECONDS", 0.1)

        language = (await runtime.languages())["python"]
        yield Subject(runtime, language, lambda sandbox: kill_container(sandbox.id), count, linger)


def _docker(name: str) -> Any:
    why = why_no_engine()
    return pytest.param(name, marks=[pytest.mark.docker, pytest.mark.skipif(bool(why), reason=why)])


@pytest.fixture(params=["fake", *map(_docker, runtimes() or ("runc",))])
async def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    async with fake_subject() if request.param == "fake" else docker_subject(request.param, monkeypatch) as subject:
        yield subject


# The contract


async def test_languages_are_known_by_name_and_image(subject: Subject):
    languages = await subject.runtime.languages()
    assert "python" == languages["python"].name
    assert languages["python"].image_id
    await subject.runtime.ping()


async def test_a_started_sandbox_is_ready(subject: Subject):
    sandbox = await subject.start()
    assert sandbox.id
    assert subject.language.image_id == sandbox.generation
    assert sandbox.runs_left > 0
    assert subject.language.manifest.templates[0].name in sandbox.templates
    assert 1 == subject.count()
    await sandbox.ping()
    await sandbox.settle()


async def test_what_an_image_says_of_itself_outlives_its_containers(subject: Subject):
    assert subject.runtime.hello(subject.language) is None
    sandbox = await subject.start()
    hello = subject.runtime.hello(subject.language)
    assert hello is not None
    assert hello.version
    assert hello.packages
    await sandbox.remove()
    assert hello == subject.runtime.hello(subject.language)
    rebuilt = Language(manifest=subject.language.manifest, image_id="sha256:" + 64 * "0")
    assert subject.runtime.hello(rebuilt) is None, "another image may bring something else"


async def test_a_program_runs_and_the_sandbox_settles_for_the_next(subject: Subject):
    sandbox = await subject.start()
    before = sandbox.runs_left
    for _ in range(3):
        outcome = await sandbox.run(subject.program(HELLO))
        assert outcome.is_success
        assert (b'"hello Ada"', b"hi\n") == (outcome.result, outcome.stdout)
        await sandbox.settle()
    assert before - 3 == sandbox.runs_left
    await sandbox.ping()


async def test_what_a_program_does_is_an_outcome_and_no_error(subject: Subject):
    sandbox = await subject.start()
    outcome = await sandbox.run(subject.program(RAISES))
    assert not outcome.is_success
    assert outcome.error is not None
    assert ("ValueError", "no", 2) == (outcome.error.type, outcome.error.message, outcome.error.line)
    await sandbox.settle()
    outcome = await sandbox.run(subject.program(SLEEPS, wall_ms=300))
    assert "time" == outcome.limit
    await sandbox.settle()
    assert (await sandbox.run(subject.program(HELLO))).is_success


async def test_output_arrives_while_the_program_runs(subject: Subject):
    sandbox = await subject.start()
    seen: list[tuple[str, bytes]] = []
    begun = asyncio.Event()

    def sink(stream: Literal["stdout", "stderr"], part: bytes) -> None:
        seen.append((stream, part))
        begun.set()

    run = asyncio.create_task(sandbox.run(subject.program(SLEEPS, wall_ms=2000), sink))
    async with asyncio.timeout(PATIENT_SECONDS):
        await begun.wait()
    assert not run.done()
    assert [("stdout", b"begun\n")] == seen
    await run


async def test_a_cancelled_run_leaves_a_usable_sandbox(subject: Subject):
    """Cancelling kills the program at once; the sandbox resets itself as after any run."""
    sandbox = await subject.start()
    begun = asyncio.Event()
    run = asyncio.create_task(sandbox.run(subject.program(SLEEPS, wall_ms=60_000), lambda *_: begun.set()))
    async with asyncio.timeout(PATIENT_SECONDS):
        await begun.wait()
    run.cancel()
    async with asyncio.timeout(PROMPT_SECONDS):
        with pytest.raises(asyncio.CancelledError):
            await run
        await sandbox.settle()
    assert (await sandbox.run(subject.program(HELLO))).is_success


async def test_a_sandbox_killed_while_idle_says_so_everywhere(subject: Subject):
    sandbox = await subject.start()
    watch = asyncio.create_task(sandbox.wait_lost())
    await asyncio.sleep(0.05)
    assert not watch.done()
    subject.kill(sandbox)
    async with asyncio.timeout(PROMPT_SECONDS):
        await watch
    for ask in (sandbox.ping, sandbox.settle):
        with pytest.raises(SandboxLost):
            await ask()
    with pytest.raises(SandboxLost) as lost:
        await sandbox.run(subject.program(HELLO))
    assert not lost.value.started, "the program may be run on another sandbox"
    await sandbox.remove()
    await subject.expect_count(0)


async def test_a_sandbox_killed_in_a_run_ends_it(subject: Subject):
    sandbox = await subject.start()
    begun = asyncio.Event()
    run = asyncio.create_task(sandbox.run(subject.program(SLEEPS, wall_ms=60_000), lambda *_: begun.set()))
    async with asyncio.timeout(PATIENT_SECONDS):
        await begun.wait()
    subject.kill(sandbox)
    async with asyncio.timeout(PROMPT_SECONDS):
        with pytest.raises(SandboxLost) as lost:
            await run
    assert lost.value.started, "it may have done something: never run it again"


async def test_removing_ends_everything_and_may_be_repeated(subject: Subject):
    sandbox = await subject.start()
    begun = asyncio.Event()
    run = asyncio.create_task(sandbox.run(subject.program(SLEEPS, wall_ms=60_000), lambda *_: begun.set()))
    watch = asyncio.create_task(sandbox.wait_lost())
    async with asyncio.timeout(PATIENT_SECONDS):
        await begun.wait()
    async with asyncio.timeout(PATIENT_SECONDS):
        await sandbox.remove()
        with pytest.raises(SandboxLost):
            await run
        await watch
    assert 0 == subject.count(), "remove returns when the engine confirmed"
    await sandbox.remove()


async def test_a_watch_may_be_given_up(subject: Subject):
    sandbox = await subject.start()
    watch = asyncio.create_task(sandbox.wait_lost())
    await asyncio.sleep(0.05)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert (await sandbox.run(subject.program(HELLO))).is_success


async def test_a_start_that_fails_leaves_nothing(subject: Subject):
    missing = Language(manifest=subject.language.manifest, image_id="sha256:" + 64 * "0")
    with pytest.raises(RuntimeUnavailable):
        await subject.runtime.start(missing)
    await subject.expect_count(0)


async def test_what_a_failed_start_leaves_can_be_waited_for(subject: Subject):
    """Permits count by it: what may still come into being is no free place."""
    await subject.runtime.wait_gone("python/0")
    subject.linger()
    with pytest.raises(RuntimeUnavailable):
        await subject.runtime.start(subject.language, place="python/0")
    async with asyncio.timeout(0.1):
        await subject.runtime.wait_gone("python/1")
    gone = asyncio.create_task(subject.runtime.wait_gone("python/0"))
    await asyncio.sleep(0.1)
    assert not gone.done()
    async with asyncio.timeout(PATIENT_SECONDS):
        await gone
    assert 0 == subject.count()
    await asyncio.sleep(0.5)
    assert 0 == subject.count()


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.04, 0.2])
async def test_a_cancelled_start_leaves_nothing(subject: Subject, seconds: float):
    start = asyncio.create_task(subject.start())
    await asyncio.sleep(seconds)
    start.cancel()
    async with asyncio.timeout(PROMPT_SECONDS):
        await asyncio.wait([start])
    if not start.cancelled():  # it was ready before
        await start.result().remove()
    await subject.expect_count(0)


async def test_a_sweep_leaves_the_living_alone(subject: Subject):
    sandbox = await subject.start()
    await subject.runtime.sweep()
    assert (await sandbox.run(subject.program(HELLO))).is_success


async def test_a_closed_runtime_has_no_containers(subject: Subject):
    await subject.start()
    starting = asyncio.create_task(subject.start())
    await asyncio.sleep(0.02)
    starting.cancel()
    await asyncio.wait([starting])
    await subject.runtime.close()
    await subject.expect_count(0)
