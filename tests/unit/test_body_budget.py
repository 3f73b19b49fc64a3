"""What callers make the service hold: bounded for all together, and none of them keeps the others out."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from sandbox_svc.errors import PoolExhausted
from sandbox_svc.http.body import BodyBudget
from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.service.tenants import Tenant
from tests.http_stack import MIB, Stack, running_stack


def shares(budget: BodyBudget, caller: str, size: int) -> int:
    """How many pieces of a size the caller gets."""
    taken = 0
    while True:
        try:
            budget.take(caller, size)
        except PoolExhausted:
            return taken
        taken += 1


def test_one_caller_gets_half_and_the_next_half_of_the_rest():
    budget = BodyBudget(16)

    assert [8, 4, 2, 1, 0] == [shares(budget, caller, 1) for caller in "abcde"]


def test_what_is_given_back_can_be_taken_again():
    budget = BodyBudget(8)
    for _ in range(3):
        with budget.share() as share:
            share.caller = "a"
            share.take(4)
            with pytest.raises(PoolExhausted):
                share.take(1)
    assert {} == budget._held
    assert 8 == budget._left


class ByKey:
    """Every key is a tenant of its own; nobody is limited."""

    def identify(self, credential: str | None, client: str | None) -> Tenant:
        return Tenant(name=credential or "nobody")

    async def admit(self, tenant: Tenant) -> RateDecision | None:
        return None


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack(admission=ByKey()) as stack:
        yield stack


def begin_upload(stack: Stack, tenant: str, path: str = "/v1/run") -> socket.socket:
    """All of the largest body there may be, but for its last byte."""
    upload = stack.connect()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {tenant}\r\nContent-Length: {MIB}\r\n\r\n"
    upload.sendall(head.encode() + b" " * (MIB - 1))
    return upload


@pytest.mark.parametrize("path", ["/run", "/v1/run"])
def test_a_caller_with_unfinished_uploads_keeps_nobody_else_out(stack: Stack, path: str):
    """Eight uploads that never end locked out every tenant, in every language, without ever meeting a rate limit."""
    uploads = [begin_upload(stack, "greedy", path) for _ in range(12)]
    assert 12 - 4 == answered(uploads, expected=8), "it may hold half of eight"
    for language in ("python", "nodejs"):
        large = json.dumps({"code": "x", "language": language, "env": {"A": "x" * 30_000}})
        reply = stack.request("POST", "/v1/run", large, {"X-API-Key": "small"})
        assert 200 == reply.status, reply
    for upload in uploads:
        upload.close()
    # All of it comes back: as much again is taken as before.
    until(lambda: stack.server.connections == 0)
    again = [begin_upload(stack, "greedy", path) for _ in range(4)]
    assert 0 == answered(again, expected=0)
    for upload in again:
        upload.close()


def answered(uploads: list[socket.socket], *, expected: int) -> int:
    """How many have an answer; waits for as many as expected, and a little for more."""
    deadline = time.monotonic() + 5
    while len(select.select(uploads, [], [], 0)[0]) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    return len(select.select(uploads, [], [], 0)[0])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
