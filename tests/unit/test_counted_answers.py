"""A request that the rate limit counted says so in its answer, whatever became of it; and whose request it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_svc.errors import RuntimeUnavailable, SandboxLost
from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.runtime import Outcome
from sandbox_svc.service.tenants import Tenant
from tests.http_stack import Stack, running_stack
from tests.unit.test_api_compat import Judge

HEADERS = {"ratelimit-policy": '"runs";q=9;w=1', "ratelimit": '"runs";r=7;t=1'}


class Counted:
    """Counts everybody, lets everybody in, and notes who was named."""

    def __init__(self) -> None:
        self.credentials: list[str | None] = []

    def identify(self, credential: str | None, client: str | None) -> Tenant:
        self.credentials.append(credential)
        return Tenant()

    async def admit(self, tenant: Tenant) -> RateDecision | None:
        return RateDecision(is_allowed=True, limit=9, window_seconds=1, remaining=7, reset_seconds=0.4)


def ask(stack: Stack, path: str, source: str = "eA==") -> tuple[int, Any, dict[str, str]]:
    reply = stack.request("POST", path, json.dumps({"code_b64": source}))
    return reply.status, reply.json(), {name: reply.headers.get(name, "") for name in HEADERS}


@pytest.mark.parametrize(
    ("error", "exit_code", "status"),
    [
        (None, 0, 200),
        (SandboxLost("gone", started=True), -3, 500),
        (RuntimeUnavailable("away"), -3, 503),
        (RuntimeError("a slip of our own"), -3, 500),
    ],
)
def test_a_run_that_fails_for_our_sake_was_counted_all_the_same(
    error: Exception | None, exit_code: int, status: int
) -> None:
    """Only answers to successes and to refusals by the limit said what is left."""

    async def fail(*_: object) -> Outcome:
        if error is not None:
            raise error
        return Outcome(exit_code=0, result=b"null")

    with running_stack(admission=Counted()) as stack:
        stack.behaviour = fail
        old, old_answer, old_headers = ask(stack, "/run")
        new, _, new_headers = ask(stack, "/v1/run")
        assert (200, exit_code, status) == (old, old_answer["exit_code"], new)
        assert HEADERS == old_headers == new_headers


def test_a_refused_program_was_counted() -> None:
    with running_stack(admission=Counted(), analyser=Judge()) as stack:
        old, old_answer, old_headers = ask(stack, "/run", "YmFk")
        new, _, new_headers = ask(stack, "/v1/run", "YmFk")
        assert (200, -999, 422) == (old, old_answer["exit_code"], new)
        assert HEADERS == old_headers == new_headers


def test_a_full_queue_was_counted() -> None:
    with running_stack(admission=Counted(), pool_size=0) as stack:
        old, old_answer, old_headers = ask(stack, "/run")
        new, _, new_headers = ask(stack, "/v1/run")
        assert (200, -10, 503) == (old, old_answer["exit_code"], new)
        assert HEADERS == old_headers == new_headers


def test_what_is_no_request_was_not_counted() -> None:
    with running_stack(admission=Counted()) as stack:
        reply = stack.request("POST", "/v1/run", "{")
        assert 400 == reply.status
        assert "ratelimit" not in reply.headers


@pytest.mark.parametrize("is_key_first", [True, False])
def test_a_key_counts_before_a_bearer_token_in_whatever_order_they_come(is_key_first: bool) -> None:
    """Whichever header came last decided who the tenant was."""
    headers = ["X-API-Key: mine", "Authorization: Bearer theirs"]
    admission = Counted()
    with running_stack(admission=admission) as stack, stack.connect() as client:
        lines = headers if is_key_first else headers[::-1]
        client.sendall(
            f"POST /run HTTP/1.1\r\nHost: x\r\n{lines[0]}\r\n{lines[1]}\r\nContent-Length: 1\r\n\r\n{{".encode()
        )
        assert client.recv(100)
    assert ["mine"] == admission.credentials
