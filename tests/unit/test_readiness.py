"""What readiness says: which check fails, why, and that a detail names what an operator can do something about."""

from __future__ import annotations

import types
from typing import Any, cast

import pytest

from sandbox_svc.admission.permits import PermitStats
from sandbox_svc.http.wire import Check
from sandbox_svc.view import View
from tests.fakes import FakePermits, ManualClock, make_language
from tests.stage import Stage, on_stage


def check(stage: Stage, name: str, *, permits: object = None, link: object = None) -> Check:
    unused = cast("Any", None)
    view = View(
        pool=stage.pool,
        keeper=stage.keeper,
        runtime=unused,
        names=unused,
        egress=unused,
        service=unused,
        link=cast("Any", link),
        keys=None,
        permits=cast("Any", permits),
    )
    return view.readiness()[name]


async def test_an_engine_that_is_silent_once_is_degraded_and_twice_failing():
    """It said `degraded` for ever, and load balancers went on sending requests of which none could succeed."""
    async with on_stage() as stage:
        stage.runtime.stages.hang("engine")
        await stage.clock.advance(9.9)
        assert Check(status="ok") == check(stage, "engine")
        await stage.clock.advance(0.2)
        assert "degraded" == check(stage, "engine").status
        assert 0 == stage.runtime.stages.hanging("ping")
        await stage.clock.advance(5)
        # Frozen at the worst moment, just after it had answered, it takes 15 s.
        assert "degraded" == check(stage, "engine").status
        await stage.clock.advance(0.5)
        failing = check(stage, "engine")
        assert "failing" == failing.status
        assert "no sign of life for 16 s" in failing.detail
        assert "ok" == check(stage, "language python").status
        stage.runtime.stages.let_go("engine")
        await stage.clock.advance(1)
        assert Check(status="ok") == check(stage, "engine")


async def test_a_silence_between_answers_is_no_failure():
    async with on_stage() as stage:
        for _ in range(4):
            stage.runtime.stages.fail("engine", TimeoutError())
            await stage.clock.advance(5)
            assert "degraded" == check(stage, "engine").status
            await stage.clock.advance(5)
            assert "ok" == check(stage, "engine").status


async def test_a_redis_that_is_away_is_degraded_and_says_why():
    """A wrong password looked like a cable that was pulled."""
    away = types.SimpleNamespace(stats=lambda: types.SimpleNamespace(reason="not authorised"))
    back = types.SimpleNamespace(stats=lambda: types.SimpleNamespace(reason=None))
    async with on_stage() as stage:
        degraded = check(stage, "redis", link=away)

        assert Check(status="ok") == check(stage, "redis", link=back)
    assert "degraded" == degraded.status
    assert "away (not authorised)" in degraded.detail


class Counted:
    """Permits of a stage, as Redis would count them."""

    def __init__(self, stage: Stage) -> None:
        self._permits = stage.permits

    def stats(self) -> dict[str, PermitStats]:
        held = len(self._permits.held)
        waiting = len(self._permits._waiting)
        bound = self._permits.bound
        return {"python": PermitStats(bound=bound, held=held, total=held, waiting=waiting, surplus=0)}


@pytest.mark.parametrize(
    ("bound", "status", "detail"),
    [
        (0, "failing", "0 of 4 containers, 4 waiting for a permit (bound 0)"),
        (3, "ok", "3 of 4 containers, 1 waiting for a permit (bound 3)"),
        (4, "ok", "4 of 4 containers"),
    ],
)
async def test_places_that_wait_for_a_permit_are_named(bound, status, detail):
    """It said `0 of 4 containers` and no more, while the log and the engine knew nothing of a failure."""
    clock = ManualClock()
    async with on_stage(sizes={"python": 4}, clock=clock, permits=FakePermits(clock, bound=bound)) as stage:
        assert Check(status=status, detail=detail) == check(stage, "language python", permits=Counted(stage))


async def test_an_old_container_that_has_to_stay_is_named():
    clock = ManualClock()
    async with on_stage(clock=clock, permits=FakePermits(clock, bound=1)) as stage:
        stage.engine.images["python"] = make_language(image_id="image-9")
        await clock.advance(20)
        says = "1 of 1 containers, one that is old goes on serving: no permit to start another beside it"
        assert Check(status="degraded", detail=says) == check(stage, "language python")
        says += " (bound 1)"
        assert Check(status="degraded", detail=says) == check(stage, "language python", permits=Counted(stage))
        # The old image is wanted again.
        stage.engine.images["python"] = make_language()
        await clock.advance(20)
        assert Check(status="ok", detail="1 of 1 containers") == check(stage, "language python")
