"""Fakes of our own protocols: a clock moved by hand, an engine in memory, permits that are counted.

They pass the contract suites that the real implementations pass, so a unit test that uses them cannot lie.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from sandbox_svc.clock import sleep
from sandbox_svc.errors import RuntimeUnavailable, SandboxLost
from sandbox_svc.runtime import Outcome, OutputSink, Program, RunLimits
from sandbox_svc.runtime.languages import Language, Manifest, Template
from sandbox_svc.runtime.protocol import Hello

T = TypeVar("T")

PLAIN = "plain"
PROGRAM = Program(source=b"def main(): return None", template=PLAIN, limits=RunLimits(wall_ms=10_000))


async def quiet() -> None:
    """Let every task run until all of them wait for something that only the test can bring about."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(0)
        if not loop._ready:  # type: ignore[attr-defined]  # nothing else says that no callback is due
            return


async def until(condition: Callable[[], bool]) -> None:
    """Run the loop step by step and stop at the first step after which the condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


class ManualTimer:
    """A timer of `ManualClock`."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that stands still until the test moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self._now

    def call_later(self, seconds: float, callback: Callable[[], None], /) -> ManualTimer:
        timer = ManualTimer(self._now + max(seconds, 0.0), callback)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Move time on, timer by timer, and let everything that follows from each happen before the next."""
        end = self._now + seconds
        await quiet()
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now = max(self._now, due)
                timer.callback()
                await quiet()
        self._now = end


class Stages:
    """What happens at each named await of a fake: nothing, a duration, a failure, or a hang until the test lets go."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        """Duration of a stage, by name; absent is at once."""
        self.calls: Counter[str] = Counter()
        self._errors: dict[str, deque[BaseException]] = {}
        self._hung: dict[str, list[asyncio.Future[None]]] = {}

    def hang(self, stage: str) -> None:
        """From now on whoever comes to this stage stays there, until `let_go` or cancelled."""
        self._hung.setdefault(stage, [])

    def hanging(self, stage: str) -> int:
        return len(self._hung.get(stage, ()))

    def takes_time(self, stage: str) -> bool:
        return stage in self._hung or stage in self.seconds

    def let_go(self, stage: str, error: BaseException | None = None) -> None:
        """Let those who hang there go on, or fail; and nobody hangs there any more."""
        for waiter in self._hung.pop(stage, []):
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def fail(self, stage: str, *errors: BaseException) -> None:
        """The next ones to come to this stage fail with these errors, in order."""
        self._errors.setdefault(stage, deque()).extend(errors)

    def mend(self, stage: str) -> None:
        """No more failures than there were."""
        self._errors.pop(stage, None)

    async def at(self, stage: str) -> None:
        self.calls[stage] += 1
        waiters = self._hung.get(stage)
        if waiters is not None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in waiters:
                    waiters.remove(waiter)
        seconds = self.seconds.get(stage)
        if seconds is not None:
            await sleep(self._clock, seconds)
        errors = self._errors.get(stage)
        if errors:
            raise errors.popleft()


def make_language(
    name: str = "python", *, image_id: str = "image-1", templates: tuple[str, ...] = (PLAIN, "numpy")
) -> Language:
    manifest = Manifest(
        language=name, source_name="main.py", templates=tuple(Template(name=template) for template in templates)
    )
    return Language(manifest=manifest, image_id=image_id)


class FakeEngine:
    """What exists outside of every service: images, and containers with the runtime that made them."""

    def __init__(self, *languages: Language) -> None:
        self.images = {language.name: language for language in languages or (make_language(),)}
        self.containers: dict[str, FakeSandbox | None] = {}
        """Containers by id; None while one is being created."""
        self.owners: dict[str, FakeRuntime] = {}
        self.peak = 0
        self.ids = (f"c{number}" for number in itertools.count(1))

    def find(self, language: Language) -> None:
        if all(language.image_id != known.image_id for known in self.images.values()):
            raise RuntimeUnavailable("no such image")

    def create(self, owner: FakeRuntime) -> str:
        container = next(self.ids)
        self.containers[container] = None
        self.owners[container] = owner
        self.peak = max(self.peak, len(self.containers))
        return container

    def delete(self, container: str) -> None:
        self.containers.pop(container, None)
        self.owners.pop(container, None)


Behaviour = Callable[["FakeSandbox", Program, OutputSink | None], Awaitable[Outcome]]
"""What a program does; by its source, see `FakeRuntime.programs`."""


class FakeSandbox:
    """A container that runs nothing, and can be killed or made to hang or fail in any stage."""

    def __init__(self, runtime: FakeRuntime, container: str, language: Language, templates: frozenset[str]) -> None:
        self.id = container
        self.language = language
        self.generation = language.image_id
        self.runs_left = runtime.runs_per_sandbox
        self.templates = templates
        self.stages = runtime.stages
        self.is_running = False
        self.is_dirty = False
        self.runs = 0
        self._runtime = runtime
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """What `docker kill` does: from now on every method raises `SandboxLost`."""
        if not self._lost.done():
            self._lost.set_result(None)

    def _check(self) -> None:
        if self._lost.done():
            raise SandboxLost("The sandbox was lost", started=False)

    async def _unless_lost(self, work: Awaitable[T]) -> T:
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        try:
            futures: list[asyncio.Future[Any]] = [task, self._lost]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise SandboxLost("The sandbox was lost", started=True)
            return task.result()
        finally:
            task.cancel()

    async def run(self, program: Program, on_output: OutputSink | None = None) -> Outcome:
        self._check()
        if self.is_running or self.is_dirty:
            raise RuntimeError("run() before settle()")
        self.is_running = self.is_dirty = True
        self.runs += 1
        self.runs_left -= 1
        try:
            behaviour = self._runtime.programs.get(program.source, _succeed)
            return await self._unless_lost(behaviour(self, program, on_output))
        finally:
            self.is_running = False

    async def settle(self) -> None:
        self._check()
        await self._unless_lost(self.stages.at("settle"))
        self.is_dirty = False

    async def ping(self) -> None:
        if self.is_running:
            raise RuntimeError("ping() during a run")
        self._check()
        await self._unless_lost(self.stages.at("ping"))

    async def wait_lost(self) -> None:
        await asyncio.shield(self._lost)

    async def remove(self) -> None:
        self.kill()
        await self.stages.at("remove")
        self._runtime.engine.delete(self.id)


async def _succeed(sandbox: FakeSandbox, program: Program, on_output: OutputSink | None) -> Outcome:
    await sandbox.stages.at("run")
    return Outcome(exit_code=0, result=b"null")


class FakeRuntime:
    """One service's view of a `FakeEngine`. Stages: languages, start, reap, run, settle, ping, remove, sweep, engine.

    `reap` is what a failed start leaves to be done; it is over at once unless it hangs or has a duration.
    """

    def __init__(self, engine: FakeEngine, clock: ManualClock) -> None:
        self.engine = engine
        self.stages = Stages(clock)
        self.runs_per_sandbox = 1000
        self.programs: dict[bytes, Behaviour] = {}
        self._hellos: dict[str, Hello] = {}
        self._reapers: dict[asyncio.Task[None], str] = {}
        """What removes the leftovers of failed starts, with the place that each was for."""
        self.is_alive = True
        """Set to False, and others may sweep what this one left."""

    @property
    def sandboxes(self) -> list[FakeSandbox]:
        """Its containers that were started and not removed, oldest first."""
        return [s for c, s in self.engine.containers.items() if s is not None and self.engine.owners[c] is self]

    async def languages(self) -> Mapping[str, Language]:
        await self.stages.at("languages")
        return dict(self.engine.images)

    def hello(self, language: Language) -> Hello | None:
        return self._hellos.get(language.image_id)

    async def start(
        self, language: Language, templates: tuple[str, ...] | None = None, *, place: str = ""
    ) -> FakeSandbox:
        container = self.engine.create(self)
        try:
            await self.stages.at("start")
            self.engine.find(language)
        except BaseException:
            if self.stages.takes_time("reap"):
                task = asyncio.create_task(self._reap(container), name=f"reap {container}")
                self._reapers[task] = place
                task.add_done_callback(self._reapers.pop)
            else:
                self.engine.delete(container)
            raise
        names = frozenset(template.name for template in language.manifest.templates)
        sandbox = FakeSandbox(self, container, language, names if templates is None else names & {*templates})
        self.engine.containers[container] = sandbox
        packages = ({"name": "made-up", "version": "1.2"},)
        self._hellos[language.image_id] = Hello(nonce="", version=f"1.0 of {language.image_id}", packages=packages)
        return sandbox

    async def _reap(self, container: str) -> None:
        await self.stages.at("reap")
        self.engine.delete(container)

    async def wait_gone(self, place: str) -> None:
        while tasks := [task for task, owner in self._reapers.items() if owner == place]:
            await asyncio.wait(tasks)

    async def sweep(self) -> int:
        await self.stages.at("sweep")
        dead = [container for container, owner in self.engine.owners.items() if not owner.is_alive]
        for container in dead:
            sandbox = self.engine.containers[container]
            if sandbox is not None:
                sandbox.kill()
            self.engine.delete(container)
        return len(dead)

    async def ping(self) -> None:
        await self.stages.at("engine")

    def hasten(self) -> None:
        return

    async def close(self) -> None:
        for sandbox in self.sandboxes:
            await sandbox.remove()


class FakePermit:
    """A permit of `FakePermits`."""

    def __init__(self, permits: FakePermits, language: str) -> None:
        self.language = language
        self.is_held = True
        self._permits = permits

    async def release(self) -> None:
        await self._permits.stages.at("release")
        self._permits.give_back(self)


class FakePermits:
    """At most `bound` permits per language at a time, first come first served. Stages: acquire, release."""

    def __init__(self, clock: ManualClock, bound: int = 1000) -> None:
        self.bound = bound
        self.stages = Stages(clock)
        self.held: list[FakePermit] = []
        self.lost = 0
        """How many were lost by `lose`; their containers may live on."""
        self.wanted = 0
        """How many of them other instances wait for; they should be given back."""
        self._waiting: deque[tuple[str, asyncio.Future[FakePermit]]] = deque()

    async def acquire(self, language: str) -> FakePermit:
        await self.stages.at("acquire")
        answer: asyncio.Future[FakePermit] = asyncio.get_running_loop().create_future()
        self._waiting.append((language, answer))
        self._grant()
        try:
            return await answer
        except BaseException:
            if answer.done() and not answer.cancelled():
                self.give_back(answer.result())
            raise

    def surplus(self, language: str) -> int:
        return self.wanted

    def lose(self, permit: FakePermit) -> None:
        """What happens to a permit whose holder could not renew it."""
        permit.is_held = False
        self.lost += 1
        self.give_back(permit)

    def give_back(self, permit: FakePermit) -> None:
        if permit in self.held:
            self.held.remove(permit)
            self.wanted = max(self.wanted - 1, 0)
        self._grant()

    def _grant(self) -> None:
        for language, answer in list(self._waiting):
            if answer.done():
                self._waiting.remove((language, answer))
            elif sum(permit.language == language for permit in self.held) < self.bound:
                self._waiting.remove((language, answer))
                permit = FakePermit(self, language)
                self.held.append(permit)
                answer.set_result(permit)
