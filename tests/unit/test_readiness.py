"""What readiness says: which check fails, why, and that a detail names what an operator can do something about."""

from __future__ import annotations

from typing import Any, cast

from sandbox_svc.http.wire import Check
from sandbox_svc.view import View
from tests.stage import Stage, on_stage


def check(stage: Stage, name: str, *, permits: object = None) -> Check:
    unused = cast("Any", None)
    view = View(
        pool=stage.pool,
        keeper=stage.keeper,
        names=unused,
        service=unused,
        link=None,
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
