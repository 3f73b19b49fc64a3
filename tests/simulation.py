"""Simulated load on the real pool and keeper: a clock moved by hand, containers that take as long as real ones."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

from sandbox_svc.clock import sleep
from sandbox_svc.errors import PoolExhausted
from sandbox_svc.pool.events import SlotRetired
from sandbox_svc.pool.pool import PoolSettings, Reuse
from tests.fakes import PLAIN, FakeEngine, make_language
from tests.stage import Stage

START_SECONDS = 0.25
REMOVE_SECONDS = 0.075
RESET_SECONDS = 0.001
"""As measured with runc on two quiet cores."""
QUEUE_TIMEOUT_SECONDS = 10.0


class Load(NamedTuple):
    """Callers of one tenant that ask again and again."""

    tenant: str
    callers: int
    run_seconds: float
    pause_seconds: float = 0.0
    """Mean pause of a caller between answer and next request; 0 asks again at once."""
    share: int | None = None
    language: str = "python"


class Scenario(NamedTuple):
    name: str
    loads: tuple[Load, ...]
    slots: int = 4
    reuse: Reuse = Reuse.TENANT
    queue_size: int = 64
    seconds: float = 30.0


class Seen(NamedTuple):
    """What one tenant got."""

    tenant: str
    waits: tuple[float, ...]
    """Seconds in the queue of each run, sorted."""
    refused: int
    waited_in_vain: int
    """Of the refused, those that were not refused at once."""
    slot_seconds: float

    @property
    def runs(self) -> int:
        return len(self.waits)

    def wait(self, quantile: float) -> float:
        return self.waits[min(int(len(self.waits) * quantile), len(self.waits) - 1)] if self.waits else float("inf")


class Result(NamedTuple):
    scenario: Scenario
    seen: tuple[Seen, ...]
    replaced: int
    """Containers removed in the measured time."""

    def of(self, tenant: str) -> Seen:
        return next(seen for seen in self.seen if seen.tenant == tenant)

    def merged(self, prefix: str) -> Seen:
        """All tenants whose names begin so, as one."""
        some = [seen for seen in self.seen if seen.tenant.startswith(prefix)]
        return Seen(
            prefix,
            tuple(sorted(wait for seen in some for wait in seen.waits)),
            sum(seen.refused for seen in some),
            sum(seen.waited_in_vain for seen in some),
            sum(seen.slot_seconds for seen in some),
        )


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1/n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if any(values) else 0.0


class _Tally:
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.refused = 0
        self.waited_in_vain = 0
        self.slot_seconds = 0.0


@functools.cache
def play(scenario: Scenario) -> Result:
    """Play a scenario; the same one gives the same figures each time."""
    return asyncio.run(_simulate(scenario))


async def _simulate(scenario: Scenario) -> Result:
    names = sorted({load.language for load in scenario.loads})
    stage = Stage(
        sizes=dict.fromkeys(names, scenario.slots),
        engine=FakeEngine(*(make_language(name, image_id=f"image of {name}") for name in names)),
        pool_settings=PoolSettings(queue_size=scenario.queue_size, reuse=scenario.reuse),
    )
    stage.runtime.stages.seconds.update(start=START_SECONDS, remove=REMOVE_SECONDS, settle=RESET_SECONDS)
    await stage.start()
    await stage.clock.advance(10)
    stage.events.clear()
    tallies = {load.tenant: _Tally() for load in scenario.loads}
    callers = [
        asyncio.create_task(_call(stage, load, tallies[load.tenant], random.Random(f"{load.tenant} {number}")))
        for load in scenario.loads
        for number in range(load.callers)
    ]
    await stage.clock.advance(scenario.seconds)
    replaced = len(stage.seen(SlotRetired))
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await stage.end()
    seen = tuple(
        Seen(tenant, tuple(sorted(tally.waits)), tally.refused, tally.waited_in_vain, tally.slot_seconds)
        for tenant, tally in tallies.items()
    )
    return Result(scenario, seen, replaced)


async def _call(stage: Stage, load: Load, tally: _Tally, rng: random.Random) -> None:
    while True:
        if load.pause_seconds:
            await sleep(stage.clock, rng.expovariate(1 / load.pause_seconds))
        lease = stage.pool.lease(
            load.language,
            tenant=load.tenant,
            template=PLAIN,
            timeout_seconds=QUEUE_TIMEOUT_SECONDS,
            share=load.share,
        )
        try:
            async with lease:
                tally.waits.append(lease.queued_seconds)
                began = stage.clock.time()
                try:
                    await sleep(stage.clock, load.run_seconds * rng.uniform(0.8, 1.2))
                finally:
                    tally.slot_seconds += stage.clock.time() - began
        except PoolExhausted as error:
            tally.refused += 1
            tally.waited_in_vain += stage.clock.time() > lease.asked_at
            await sleep(stage.clock, error.retry_after_seconds * rng.uniform(0.5, 1.5))


def small(count: int, *, run_seconds: float = 0.01, pause_seconds: float = 1.0) -> tuple[Load, ...]:
    """Tenants with one caller each that asks now and then."""
    return tuple(Load(f"small-{number}", 1, run_seconds, pause_seconds) for number in range(count))


GREEDY_SHORT = Load("greedy", 40, 0.1)
GREEDY_LONG = Load("greedy", 20, 5.0)

SCENARIOS = (
    Scenario("greedy alone", (GREEDY_SHORT,)),
    Scenario("and 3 small ones, 1/s each", (GREEDY_SHORT, *small(3))),
    Scenario("and 3 small ones, 5/s each", (GREEDY_SHORT, *small(3, pause_seconds=0.2))),
    Scenario("and 10 small ones, 1/s each", (GREEDY_SHORT, *small(10))),
    Scenario("greedy with 150 callers", (GREEDY_SHORT._replace(callers=150), *small(3))),
    Scenario("greedy with runs of 5 s", (GREEDY_LONG, *small(3)), seconds=120),
    Scenario("the same, its share 2 of 4", (GREEDY_LONG._replace(share=2), *small(3)), seconds=120),
    Scenario("`SANDBOX_REUSE=never`", (GREEDY_SHORT, *small(3)), reuse=Reuse.NEVER),
    Scenario("small ones in another language", (GREEDY_SHORT, *(s._replace(language="nodejs") for s in small(3)))),
)
"""One greedy tenant and several small ones, on four slots."""

EQUALS = Scenario("equals", tuple(Load(f"tenant-{number}", 5, 0.02) for number in range(6)), slots=2, seconds=60)
"""Six tenants that all want more than there is, on two slots."""

LIGHT = tuple(
    Scenario(f"{count} tenants, each every {pause:g} s", small(count, pause_seconds=pause), seconds=300)
    for count, pause in ((3, 5.0), (10, 60.0), (10, 10.0), (10, 5.0), (10, 1.0))
)
"""Nobody is greedy, but there are more tenants than slots (four)."""


def one_name(scenario: Scenario) -> Scenario:
    """The same load without tenants: everybody in one line, first come first served."""
    return scenario._replace(loads=tuple(load._replace(tenant="default") for load in scenario.loads))
