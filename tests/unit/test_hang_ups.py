"""Callers who leave before their program runs: what they held comes back, whatever the service waited for."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from sandbox_svc.analysis.findings import Analysis
from sandbox_svc.pool.slots import SlotState
from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.service.tenants import Tenant
from tests.http_stack import Stack, running_stack
from tests.unit.test_api_compat import wait_until

MAX_BODY = 64 * 1024
LARGE = json.dumps({"code_b64": "eA==", "arguments": {"a": "x" * (MAX_BODY - 200)}}).encode()
"""Four of these are all that one caller may hold."""


class Stuck:
    """A limit, or an analyser, that answers nobody for as long as it is stuck."""

    def __init__(self) -> None:
        self.is_stuck = True
        self.waiting = 0

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            if self.is_stuck:
                await asyncio.Event().wait()
        finally:
            self.waiting -= 1


class StuckLimit(Stuck):
    """As with a Redis that does not answer."""

    def identify(self, credential: str | None, client: str | None) -> Tenant:
        return Tenant()

    async def admit(self, tenant: Tenant) -> RateDecision | None:
        await self._wait()
        return None


class StuckAnalyser(Stuck):
    """As with an analysis that takes its full time."""

    async def analyse(self, analyser: str, source: bytes) -> Analysis:
        await self._wait()
        return Analysis()


@pytest.mark.parametrize("where", ["admission", "analyser"])
@pytest.mark.parametrize("path", ["/run", "/v1/run"])
def test_a_caller_who_leaves_while_the_service_waits_leaves_nothing(where: str, path: str) -> None:
    stuck = StuckLimit() if where == "admission" else StuckAnalyser()
    parts: dict[str, Any] = {where: stuck}
    with running_stack(max_body_bytes=MAX_BODY, **parts) as stack:
        for _ in range(3):
            # Each time all that the caller may hold, so what did not come back would be missed.
            callers = [_ask(stack, path) for _ in range(4)]
            wait_until(lambda: stuck.waiting == 4)
            for caller in callers:
                caller.close()
            wait_until(lambda: stuck.waiting == 0, seconds=1)
        assert 0 == stack.pool.stats()["python"].queued
        assert {SlotState.READY, SlotState.RESERVE} == {slot.state for slot in stack.pool.slots}
        assert [] == stack.programs
        stuck.is_stuck = False
        assert 200 == stack.request("POST", path, LARGE).status
        assert 1 == len(stack.programs)


def _ask(stack: Stack, path: str) -> socket.socket:
    caller = stack.connect()
    caller.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE)
    return caller
