"""Limits and sleeps on a clock that tests can move."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_svc.clock import Limit, LoopClock, sleep
from tests.fakes import ManualClock, quiet


async def test_a_limit_ends_its_body_by_the_clock(clock: ManualClock):
    async def body() -> None:
        async with Limit(clock, 3):
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await clock.advance(2.9)
    assert not task.done()
    await clock.advance(0.1)
    assert isinstance(task.exception(), TimeoutError)


async def test_a_limit_can_be_ended_from_outside(clock: ManualClock):
    limits: list[Limit] = []

    async def body() -> None:
        async with Limit(clock, None) as limit:
            limits.append(limit)
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await quiet()
    limits[0].expire()
    limits[0].expire()
    await quiet()
    assert isinstance(task.exception(), TimeoutError)
    limits[0].expire()


async def test_a_body_that_is_done_is_not_ended(clock: ManualClock):
    async with Limit(clock, 1) as limit:
        pass
    limit.expire()
    await clock.advance(5)


async def test_cancelling_is_not_mistaken_for_the_limit(clock: ManualClock):
    """Both at once: the task was cancelled by somebody else, so it must end cancelled."""
    limits: list[Limit] = []

    async def body() -> None:
        async with Limit(clock, 1) as limit:
            limits.append(limit)
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await quiet()
    task.cancel()
    limits[0].expire()
    await quiet()
    assert task.cancelled()


async def test_a_sleep_that_is_cancelled_leaves_no_timer(clock: ManualClock):
    task = asyncio.create_task(sleep(clock, 10))
    await quiet()
    task.cancel()
    await quiet()
    assert task.cancelled()
    await clock.advance(20)


async def test_the_real_clock_moves_forward():
    clock = LoopClock()
    before = clock.time()
    with pytest.raises(TimeoutError):
        async with Limit(clock, 0.01):
            await sleep(clock, 5)
    assert 0.009 < clock.time() - before < 5
