"""`Accept: text/event-stream` on `/v1/run`: output as it appears, then the same answer as without it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox_svc.errors import SandboxLost
from sandbox_svc.http.accept import prefers
from sandbox_svc.http.event_stream import KEEP_ALIVE_SECONDS, EventStream
from sandbox_svc.runtime import Outcome
from sandbox_svc.settings import default_settings
from tests.http_stack import MIB, Stack, running_stack
from tests.unit.test_api_compat import Judge, Limited, wait_until

HEAD = (
    b"POST /v1/run HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)
BODY = b'{"code": "x"}'
REQUEST = HEAD % (len(BODY), BODY)


@pytest.fixture(scope="module")
def shared_stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    shared_stack.outcome = Outcome(exit_code=0, result=b"null")
    shared_stack.behaviour = None
    shared_stack.killed = 0
    return shared_stack


def events(body: bytes) -> list[tuple[str, Any]]:
    """The events of a whole body, read as the standard says."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def stream(stack: Stack, **fields: Any) -> Any:
    headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
    return stack.request("POST", "/v1/run", json.dumps({"code": "x", **fields}), headers)


def test_output_comes_first_and_then_the_answer(stack):
    async def talk(_sandbox, _program, on_output):
        on_output("stdout", b"one\n")
        await asyncio.sleep(0.01)
        on_output("stderr", b"two\n")
        await asyncio.sleep(0.01)
        on_output("stdout", b"three\n")
        return Outcome(exit_code=0, result=b"[1]", stdout=b"one\nthree\n", stderr=b"two\n")

    stack.behaviour = talk

    reply = stream(stack)

    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert reply.headers["cache-control"] == "no-store"
    *outputs, (name, answer) = events(reply.body)
    assert outputs == [
        ("output", {"stream": "stdout", "text": "one\n"}),
        ("output", {"stream": "stderr", "text": "two\n"}),
        ("output", {"stream": "stdout", "text": "three\n"}),
    ]
    assert name == "result"
    assert (answer["outcome"], answer["stdout"], answer["result"]) == ("success", "one\nthree\n", {"value": [1]})
    assert answer["run_id"] == reply.headers["x-run-id"]


def test_output_is_sent_while_the_program_runs(stack):
    go_on = asyncio.Event()

    async def talk(_sandbox, _program, on_output):
        on_output("stdout", b"early")
        await go_on.wait()
        return Outcome(exit_code=0)

    stack.behaviour = talk

    with stack.connect() as peer:
        peer.sendall(REQUEST)
        seen = b""
        while b"early" not in seen:
            seen += peer.recv(4096)
        assert b"event: result" not in seen
        stack.loop.call_soon_threadsafe(go_on.set)
        while b"event: result" not in seen:
            seen += peer.recv(4096)


def test_characters_that_come_in_pieces_stay_whole(stack):
    text = "aä€😀\n"
    data = text.encode()

    async def drip(_sandbox, _program, on_output):
        for at in range(len(data)):
            on_output("stdout", data[at : at + 1])
            await asyncio.sleep(0.002)
        on_output("stdout", b"\xff\xe2\x82")
        return Outcome(exit_code=0, stdout=data + b"\xff\xe2\x82")

    stack.behaviour = drip

    *outputs, (_, answer) = events(stream(stack).body)

    assert "".join(one["text"] for _, one in outputs) == answer["stdout"] == text + "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("outcome", "outputs"),
    [
        (Outcome(exit_code=0, result=b"NaN"), [("stderr", "The result of main is not valid JSON.")]),
        (Outcome(exit_code=1, stderr=b"the input files cannot be placed\n"), [("stderr", "the input files cannot be placed\n")]),
        (Outcome(exit_code=0), []),
    ],
)  # fmt: skip
def test_what_the_service_says_of_a_run_comes_before_its_result(stack, outcome, outputs):
    stack.outcome = outcome

    *seen, (name, answer) = events(stream(stack).body)

    assert ([("output", {"stream": one, "text": text}) for one, text in outputs], "result") == (seen, name)
    assert answer["stderr"] == "".join(text for _, text in outputs)


def test_it_comes_behind_the_programs_own_output(stack):
    async def talk(_sandbox, _program, on_output):
        on_output("stdout", b"out")
        on_output("stderr", b"err \xe2\x82")
        await asyncio.sleep(0.01)
        return Outcome(exit_code=0, result=b"NaN", stdout=b"out", stderr=b"err \xe2\x82")

    stack.behaviour = talk

    *outputs, (_, answer) = events(stream(stack).body)

    assert answer["stderr"] == "err \ufffd\nThe result of main is not valid JSON."
    for name in ("stdout", "stderr"):
        assert "".join(one["text"] for _, one in outputs if one["stream"] == name) == answer[name]


def test_a_source_that_is_refused_for_its_syntax_is_output_too():
    with running_stack(analyser=Judge()) as stack:
        (first, output), (last, answer) = events(stream(stack, code="syntax").body)

    assert (first, last, output["stream"]) == ("output", "result", "stderr")
    assert output["text"] == answer["stderr"] and "SyntaxError" in output["text"]


def test_a_result_cannot_end_its_event(stack):
    """Line breaks between the tokens of a program's JSON would begin events of its own making."""
    stack.outcome = Outcome(exit_code=0, result=b'[1,\n\nevent: output\n"x"]'.replace(b"event: output", b""))

    assert events(stream(stack).body)[0][1]["result"] == {"value": [1, "x"]}

    stack.outcome = Outcome(exit_code=0, result=b'{"a":\r\n\r\n1,\r"b":2}')

    assert [name for name, _ in events(stream(stack).body)] == ["result"]


def test_what_is_refused_before_the_stream_begins_has_its_status(stack):
    reply = stream(stack, language="cobol")

    assert (reply.status, reply.headers["content-type"]) == (422, "application/problem+json")
    assert reply.json()["code"] == "unknown_language"


def test_a_rate_limit_is_a_429():
    with running_stack(admission=Limited()) as stack:
        statuses = [stream(stack).status for _ in range(3)]

    assert statuses == [200, 200, 429]


@contextmanager
def busy_stack(queue_seconds: float) -> Iterator[Stack]:
    """Its only container is taken."""

    async def hang(*_: object) -> Outcome:
        await asyncio.sleep(60)
        return Outcome(exit_code=0)

    with running_stack(pool_size=1, queue_seconds=queue_seconds) as stack:
        stack.behaviour = hang
        with stack.connect() as first:
            first.sendall(REQUEST)
            wait_until(lambda: stack.running == 1)
            yield stack


def test_a_queue_timeout_at_default_settings_is_a_503():
    """The first comment once was due at the same time: callers got a 200 for a pool that was busy."""
    assert default_settings().queue_timeout_seconds < KEEP_ALIVE_SECONDS
    with busy_stack(queue_seconds=0.2) as stack:
        reply = stream(stack)

    assert (reply.status, reply.json()["code"]) == (503, "pool_exhausted")
    assert int(reply.headers["retry-after"]) == reply.json()["retry_after_seconds"]


@pytest.mark.parametrize("keep_alive", [0.3, 0.1])
def test_a_queue_timeout_says_when_to_come_again_however_late_it_is(monkeypatch, keep_alive):
    """When both are due at once, either may come first."""
    monkeypatch.setitem(EventStream.__init__.__kwdefaults__, "keep_alive_seconds", keep_alive)
    with busy_stack(queue_seconds=0.3) as stack:
        reply = stream(stack)

    if reply.status == 503:
        assert keep_alive == 0.3
        problem = reply.json()
    else:
        [(name, problem)] = events(reply.body)
        assert (reply.status, name) == (200, "problem")
    assert (problem["code"], problem["retryable"]) == ("pool_exhausted", True)
    assert problem["retry_after_seconds"] >= 1


def test_what_fails_later_is_an_event(stack):
    async def fail(_sandbox, _program, on_output):
        on_output("stdout", b"so far")
        await asyncio.sleep(0.05)
        raise SandboxLost("gone", started=True)

    stack.behaviour = fail

    reply = stream(stack)

    assert reply.status == 200
    assert [name for name, _ in events(reply.body)] == ["output", "problem"]
    assert events(reply.body)[1][1]["code"] == "sandbox_lost"


def test_silence_is_filled_with_comments(stack, monkeypatch):
    monkeypatch.setitem(EventStream.__init__.__kwdefaults__, "keep_alive_seconds", 0.02)

    async def think(*_):
        await asyncio.sleep(0.2)
        return Outcome(exit_code=0)

    stack.behaviour = think

    body = stream(stack).body

    assert body.startswith(b":\n\n:\n\n")
    assert [name for name, _ in events(body)] == ["result"]


@pytest.mark.parametrize("begins", [True, False])
def test_a_caller_who_leaves_ends_the_run(stack, begins):
    async def hang(_sandbox, _program, on_output):
        if begins:
            on_output("stdout", b"x")
        await asyncio.sleep(60)

    stack.behaviour = hang
    with stack.connect() as peer:
        peer.sendall(REQUEST)
        if begins:
            while b"event: output" not in peer.recv(4096):
                pass
        wait_until(lambda: stack.running == 1)
    left = time.monotonic()
    wait_until(lambda: stack.killed == 1)

    assert time.monotonic() - left < 2


def test_a_caller_who_only_stops_sending_gets_its_answer(stack):
    async def talk(_sandbox, _program, on_output):
        on_output("stdout", b"x")
        await asyncio.sleep(1.2)
        return Outcome(exit_code=0, result=b'"there"')

    stack.behaviour = talk
    with stack.connect() as peer:
        peer.sendall(REQUEST)
        peer.shutdown(socket.SHUT_WR)
        seen = b""
        while chunk := peer.recv(4096):
            seen += chunk

    assert b"there" in seen and seen.endswith(b"0\r\n\r\n")


def test_a_slow_reader_keeps_no_program_waiting_and_misses_nothing(stack):
    piece = b"x" * 1023 + b"\n"

    async def flood(_sandbox, _program, on_output):
        for _ in range(16 * 1024):
            on_output("stdout", piece)
            await asyncio.sleep(0)
        return Outcome(exit_code=0, stdout=piece)

    stack.behaviour = flood
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(20)
        peer.connect(("127.0.0.1", stack.port))
        peer.sendall(REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"))
        wait_until(lambda: stack.running == 1)
        wait_until(lambda: stack.running == 0)
        seen = bytearray()
        while chunk := peer.recv(1 << 16):
            seen += chunk

    body = bytes(seen).partition(b"\r\n\r\n")[2]
    *outputs, (name, _) = events(body)
    assert name == "result"
    assert sum(len(one["text"]) for _, one in outputs) == 16 * MIB


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/event-stream", True),
        ("application/json, text/event-stream", True),
        ("application/json, text/event-stream; q=0.5", False),
        ("application/json; q=0.5, text/event-stream", True),
        ("application/json;q=0.8, text/event-stream;q=0.80", True),
        ("text/event-stream;q=0.9, */*;q=0.1", True),
        ("text/event-stream, */*", True),
        ("text/event-stream;q=0.5, */*", False),
        ("text/event-stream;q=0.5, application/*;q=0.4, */*", True),
        ("application/json;q=0, text/event-stream;q=0.1", True),
        ("text/*", False),
        ("text/event-stream;q=nonsense", True),
        ("text/event-stream;q=1.5, application/json", True),
        ("TEXT/Event-Stream;charset=utf-8", True),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream; q = 0.0", False),
        ("", False),
    ],
)
def test_events_are_asked_for_by_name(accept, wanted):
    headers = [(b"host", b"text/event-stream"), (b"accept", accept.encode())]

    assert prefers(headers, "text/event-stream", to="application/json") is wanted


def test_accept_may_come_in_several_headers():
    headers = [(b"accept", b"application/json;q=0.5"), (b"accept", b"text/event-stream")]

    assert prefers(headers, "text/event-stream", to="application/json")


def test_whoever_prefers_json_gets_json(stack):
    headers = {"Accept": "application/json, text/event-stream;q=0.5", "Content-Type": "application/json"}
    reply = stack.request("POST", "/v1/run", BODY, headers)

    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["outcome"] == "success"


def test_the_old_contract_has_no_events(stack):
    reply = stack.request(
        "POST", "/run", json.dumps({"code_b64": "eA=="}), {"Accept": "text/event-stream", "Content-Type": "text/json"}
    )

    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "text/html; charset=utf-8"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_the_page_is_for_whoever_prefers_it(stack, accept, media_type):
    assert stack.request("GET", "/", headers={"Accept": accept}).headers["content-type"] == media_type
