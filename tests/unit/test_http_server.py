"""Connections: whatever a peer sends or does not send, others are served and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from sandbox_svc.http.connection import Deadlines
from sandbox_svc.runtime import Artifact, Outcome
from tests.fakes import Behaviour
from tests.http_stack import MIB, Stack, running_stack
from tests.unit.test_api_compat import run_request, wait_until

QUICK = Deadlines(
    head_seconds=0.3, idle_seconds=0.5, write_seconds=0.3, answer_seconds=2.0, linger_seconds=0.5, probe_seconds=0.1
)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def shared_stack() -> Iterator[Stack]:
    with running_stack(deadlines=QUICK, body_seconds=0.5) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    shared_stack.outcome = Outcome(exit_code=0, result=b"null")
    shared_stack.behaviour = None
    shared_stack.programs.clear()
    shared_stack.killed = 0
    yield shared_stack
    wait_until(lambda: shared_stack.server.connections == 0)
    assert shared_stack.running == 0


def read_all(peer: socket.socket) -> bytes:
    data = b""
    while chunk := peer.recv(65536):
        data += chunk
    return data


def read_answer(peer: socket.socket) -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(peer)
    answer.begin()
    return answer.status, answer.read()


def reset(peer: socket.socket) -> None:
    """Close as a process that is killed does, with a reset instead of an end."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def hang(*_: object) -> Outcome:
    await asyncio.sleep(60)
    return Outcome(exit_code=0)


def take(seconds: float) -> Behaviour:
    async def behave(*_: object) -> Outcome:
        await asyncio.sleep(seconds)
        return Outcome(exit_code=0, result=b"1")

    return behave


# Health and paths


def test_health_is_ok(stack):
    for path in ("/", "/healthz"):
        reply = stack.request("GET", path)
        assert (reply.status, reply.body) == (200, b'{"status":"ok"}')
        head = stack.request("HEAD", path)
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "15")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/run", 405),
        ("DELETE", "/run", 405),
        ("OPTIONS", "/healthz", 405),
        ("POST", "/healthz", 405),
        ("BREW", "/run", 405),
        ("GET", "/nothing", 404),
        ("POST", "//run", 404),
        ("POST", "/run/", 404),
        ("POST", "/%2e/run", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("GET", "/%00", 404),
        ("GET", "/%ff", 404),
        ("GET", "/" + "a" * 8000, 404),
        ("GET", "http://other/healthz", 404),
    ],
)
def test_what_is_not_there_is_a_problem_document(stack, method, path, status):
    reply = stack.request(method, path)

    assert reply.status == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] == {404: "not_found", 405: "method_not_allowed"}[status]
    assert ("allow" in reply.headers) == (status == 405)


def test_readiness_names_its_checks():
    with running_stack() as stack:
        reply = stack.request("GET", "/readyz")
        assert (reply.status, reply.json()) == (
            200,
            {"status": "ready", "checks": {"pool": {"status": "ok", "detail": ""}}},
        )

        stack.loop.call_soon_threadsafe(stack.pool.close)
        wait_until(lambda: stack.pool.is_closed)

        reply = stack.request("GET", "/readyz")
        assert (reply.status, reply.json()["status"]) == (503, "not_ready")
        assert stack.request("GET", "/healthz").status == 200


def test_pages_of_other_sites_cannot_run_anything(stack):
    """A browser lets any page POST plain text to a loopback address; it says so in this header."""
    body = b'{"code_b64":"eA=="}'
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert stack.request("POST", "/run", body, {"Sec-Fetch-Site": site}).status == status


# Bodies


def test_a_large_body_is_refused_before_it_is_sent(stack):
    with stack.connect() as peer:
        peer.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n")
        status, body = read_answer(peer)

    assert status == 413
    assert json.loads(body)["code"] == "request_too_large"


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_caller_that_sends_all_of_it_still_reads_the_413(stack, is_chunked):
    """Closing at once would reset the connection, and clients report that instead."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
    body = [b"x" * 65536] * 64
    if is_chunked:
        connection.request("POST", "/run", iter(body), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    else:
        connection.request("POST", "/run", b"".join(body))
    answer = connection.getresponse()

    assert answer.status == 413
    assert answer.getheader("connection") == "close"
    connection.close()


def test_a_body_in_many_tiny_chunks_to_a_route_that_reads_none(stack):
    """With hypercorn's own queue this blocks the connection for ever: nobody takes the messages any more."""
    with stack.connect() as peer:
        peer.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                peer.sendall(b"1\r\nx\r\n" * 1000)
        assert peer.recv(12) == b"HTTP/1.1 404"


def test_a_body_in_many_tiny_chunks_is_read(stack):
    body = b'{"code_b64":"eA==","arguments":{"pad":"' + b"p" * 5000 + b'"}}'
    with stack.connect() as peer:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        peer.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert read_answer(peer)[0] == 200


def test_a_slow_body_has_a_deadline(stack):
    with stack.connect() as peer:
        peer.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        started = time.monotonic()
        while time.monotonic() - started < 0.4:
            peer.sendall(b" ")
            time.sleep(0.05)
        status, body = read_answer(peer)

        assert status == 408
        assert json.loads(body)["code"] == "request_timeout"
        assert read_all(peer) == b""


def test_a_body_that_never_ends_by_itself_ends_with_its_caller(stack):
    with stack.connect() as peer:
        peer.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        peer.shutdown(socket.SHUT_WR)
        peer.settimeout(5)
        read_all(peer)
    assert stack.programs == []


def test_bodies_are_bounded_together():
    """A body may be as large as the bound, eight of them may be held at once, and the ninth caller is told to wait."""
    with running_stack(max_body_bytes=65536) as stack:
        head = b"POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n"
        peers = [stack.connect() for _ in range(8)]
        for peer in peers:
            peer.sendall(head + b" " * 65000)
        time.sleep(0.3)

        with stack.connect() as ninth:
            ninth.sendall(head + b" " * 65000)
            status, body = read_answer(ninth)

        assert status == 503
        assert json.loads(body)["code"] == "pool_exhausted"
        for peer in peers:
            peer.close()
        wait_until(lambda: stack.server.connections == 0)
        assert stack.v1(arguments={"x": "y" * 60000}).status == 200


def test_expect_100_continue(stack):
    with stack.connect() as peer:
        body = b'{"code_b64":"eA=="}'
        peer.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert peer.recv(12) == b"HTTP/1.1 100"
        peer.sendall(body)
        data = b""
        while b'"success"' not in data:
            data += peer.recv(65536)


def test_a_compressed_body_is_refused(stack):
    reply = stack.request("POST", "/run", b"\x1f\x8b", {"Content-Encoding": "gzip"})

    assert (reply.status, reply.json()["code"]) == (422, "invalid_request")


# Malformed HTTP


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /healthz\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n: novalue\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"A" * 100_000,
    ],
)
def test_malformed_requests_get_400_and_the_connection_ends(stack, request_bytes):
    with stack.connect() as peer:
        with contextlib.suppress(ConnectionError):
            peer.sendall(request_bytes + HEALTH)
        answer = read_all(peer)

    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")), answer[:200]
    assert answer.count(b"HTTP/1.1") == 1  # what follows is not taken for a request
    assert b"Traceback" not in answer
    assert stack.request("GET", "/healthz").status == 200


def test_length_and_chunks_together_do_not_smuggle(stack):
    with stack.connect() as peer:
        peer.sendall(
            b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        peer.shutdown(socket.SHUT_WR)
        answer = read_all(peer)

    # By the standard the chunks count, so a second request is one that the caller sent in plain sight.
    assert answer.count(b"HTTP/1.1") <= 2


def test_pipelined_requests_are_answered_in_order(stack):
    with stack.connect() as peer:
        peer.sendall(HEALTH * 50 + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + HEALTH * 49)
        peer.shutdown(socket.SHUT_WR)
        answers = read_all(peer).split(b"HTTP/1.1 ")[1:]

    assert len(answers) == 100
    assert [index for index, answer in enumerate(answers) if answer.startswith(b"404")] == [50]


def test_offers_to_switch_protocols_are_ignored(stack):
    with stack.connect() as peer:
        peer.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
        )
        assert read_answer(peer)[0] == 200


def test_http_1_0_is_answered_and_closed(stack):
    with stack.connect() as peer:
        peer.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        answer = read_all(peer)

    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b'{"status":"ok"}')


# Time


def test_a_slow_head_has_a_deadline(stack):
    """A byte now and then does not put it off, nor does a request that was answered before."""
    for prelude in (b"", HEALTH):
        with stack.connect() as peer:
            if prelude:
                peer.sendall(prelude)
                assert read_answer(peer)[0] == 200
            started = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for byte in HEALTH[:-2]:
                    peer.sendall(bytes([byte]))
                    time.sleep(0.05)
                assert peer.recv(1) == b""
            assert time.monotonic() - started < 1.5


def test_an_idle_connection_ends(stack):
    with stack.connect() as peer:
        peer.sendall(HEALTH)
        assert read_answer(peer)[0] == 200
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert peer.recv(1) == b""
        assert 0.3 < time.monotonic() - started < 3


def test_slow_peers_do_not_hold_up_others(stack):
    slow = [stack.connect() for _ in range(200)]
    for peer in slow:
        peer.sendall(b"POST /run HTTP/1.1\r\nHo")
    started = time.monotonic()

    assert stack.run()["status"] == "success"

    assert time.monotonic() - started < 1
    for peer in slow:
        peer.close()


def test_a_flood_of_idle_connections_keeps_nobody_out():
    with running_stack(max_connections=20) as stack:
        flood = [stack.connect() for _ in range(60)]

        assert stack.request("GET", "/healthz").status == 200
        assert stack.server.connections <= 20
        for peer in flood:
            peer.close()


def test_requests_that_never_end_keep_nobody_out(caplog):
    """They are not idle, and cost their caller one byte; the deadline of a body is half a minute."""
    with running_stack(max_connections=20) as stack, contextlib.ExitStack() as peers:
        for _ in range(20):
            peer = peers.enter_context(stack.connect())
            peer.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        wait_until(lambda: stack.server.connections == 20)

        for _ in range(30):
            assert stack.request("GET", "/healthz").status == 200
        assert stack.run()["status"] == "success"

        assert stack.server.shed["cut"] > 0
        assert stack.server.shed["refused"] == 0
    assert [message for message in caplog.messages if "all 20 connections are in use" in message] == caplog.messages[
        -1:
    ]


def test_who_sends_steadily_is_not_cut_for_who_is_silent():
    with running_stack(max_connections=20) as stack, contextlib.ExitStack() as peers:
        request = run_request("x")
        steady = peers.enter_context(stack.connect())
        steady.sendall(request[:-10])
        for _ in range(19):
            peer = peers.enter_context(stack.connect())
            peer.sendall(request[:-10])
        wait_until(lambda: stack.server.connections == 20)
        steady.sendall(request[-10:-5])
        time.sleep(0.1)

        assert stack.request("GET", "/healthz").status == 200

        steady.sendall(request[-5:])
        assert read_answer(steady)[0] == 200


def test_who_waits_for_an_answer_is_not_cut_for_who_comes():
    with running_stack(max_connections=2) as stack:
        stack.behaviour = take(0.5)
        with stack.connect() as first, stack.connect() as second:
            first.sendall(run_request("x"))
            second.sendall(run_request("x"))
            wait_until(lambda: stack.running == 2)

            with stack.connect() as late, contextlib.suppress(ConnectionError):
                late.sendall(HEALTH)
                assert late.recv(1) == b""

            assert read_answer(first)[0] == read_answer(second)[0] == 200
            assert stack.server.shed == {"refused": 1, "cut": 0}


def test_an_answer_that_is_never_read_is_given_up(stack):
    """Its slot is free at once, and its memory after the deadline."""
    stack.outcome = Outcome(
        exit_code=0, result=b"1", artifacts=tuple(Artifact(f"{n}.png", b"x" * 4 * MIB) for n in range(8))
    )
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", stack.port))
        peer.sendall(run_request("x"))
        wait_until(lambda: stack.programs and not stack.running)

        wait_until(lambda: stack.server.connections == 0, seconds=3)


def test_answers_that_are_not_taken_are_bounded_together():
    """Each alone would be waited for; who has waited longest gives way, and the others get theirs."""
    deadlines = Deadlines(write_seconds=20)
    with running_stack(deadlines=deadlines, max_unsent_bytes=40 * MIB) as stack:
        content = b"x" * 8 * MIB
        stack.outcome = Outcome(exit_code=0, result=b"1", artifacts=(Artifact("a.png", content),))
        peers = []
        for count in range(1, 7):
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(("127.0.0.1", stack.port))
            peer.sendall(run_request("x"))
            peers.append(peer)
            wait_until(lambda count=count: len(stack.programs) == count and not stack.running)

        wait_until(lambda: stack.server.connections < 6)
        assert len(read_answer(peers[-1])[1]) > len(content)
        for peer in peers:
            peer.close()
        wait_until(lambda: stack.server.connections == 0)


def test_a_slow_but_steady_reader_gets_all_of_a_large_answer(stack):
    content = b"x" * 2 * MIB
    stack.outcome = Outcome(exit_code=0, result=b"1", artifacts=(Artifact("a.png", content),))
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.connect(("127.0.0.1", stack.port))
        peer.sendall(run_request("x"))
        data = b""
        while b'"result":' not in data:
            data += peer.recv(65536)
            time.sleep(0.01)

    assert len(data) > len(content) * 4 // 3


# Callers who leave


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_a_caller_who_leaves_takes_the_run_along(stack, leave):
    stack.behaviour = hang
    peer = stack.connect()
    peer.sendall(run_request("x"))
    wait_until(lambda: stack.running == 1)

    leave(peer)

    wait_until(lambda: stack.running == 0, seconds=1)
    assert stack.killed == 1


def test_a_caller_who_leaves_the_queue_gives_up_the_place():
    with running_stack(deadlines=QUICK, pool_size=1) as stack:
        stack.behaviour = hang
        first, second = stack.connect(), stack.connect()
        first.sendall(run_request("x"))
        wait_until(lambda: stack.running == 1)
        second.sendall(run_request("y"))
        wait_until(lambda: stack.pool.stats()["python"].queued == 1)

        second.close()

        wait_until(lambda: stack.pool.stats()["python"].queued == 0, seconds=1)
        assert stack.running == 1
        first.close()
        wait_until(lambda: stack.running == 0)


def test_a_half_closed_connection_gets_its_answer(stack):
    """The end of sending is not the end of the caller; what is sent meanwhile are interim answers that clients skip."""
    stack.behaviour = take(0.5)
    with stack.connect() as peer:
        peer.sendall(run_request("x"))
        peer.shutdown(socket.SHUT_WR)
        data = read_all(peer)

    assert data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"HTTP/1.1 200" in data
    assert stack.killed == 0


def test_a_quick_run_over_a_half_closed_connection_has_no_interim_answer(stack):
    with stack.connect() as peer:
        peer.sendall(run_request("x"))
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer).startswith(b"HTTP/1.1 200")


def test_http_1_0_over_a_half_closed_connection_has_no_interim_answer(stack):
    stack.behaviour = take(0.3)
    with stack.connect() as peer:
        peer.sendall(run_request("x").replace(b"HTTP/1.1", b"HTTP/1.0"))
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer).startswith(b"HTTP/1.1 200")


def test_who_half_closes_and_then_leaves_takes_the_run_along(stack):
    stack.behaviour = hang
    peer = stack.connect()
    peer.sendall(run_request("x"))
    wait_until(lambda: stack.running == 1)
    peer.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    assert stack.running == 1

    peer.close()

    wait_until(lambda: stack.running == 0, seconds=1)
    assert stack.killed == 1


# The end


def test_answers_under_way_are_sent_before_the_end():
    with running_stack() as stack:
        stack.behaviour = take(0.2)
        with stack.connect() as peer, stack.connect() as idle:
            idle.sendall(HEALTH)
            assert read_answer(idle)[0] == 200
            peer.sendall(run_request("x"))
            wait_until(lambda: stack.running == 1)

            stack.call(stack.server.stop_listening())

            assert idle.recv(1) == b""
            assert b'"success"' in read_all(peer)  # and closed after it
            with pytest.raises(ConnectionError):
                stack.connect()


def test_whoever_waits_in_the_kernels_queue_is_answered_before_the_listener_closes():
    """The kernel completes handshakes by itself; a listener that is closed resets those whom nobody took yet."""
    with running_stack() as stack, contextlib.ExitStack() as peers:
        stack.loop.call_soon_threadsafe(time.sleep, 0.3)  # takes no connection meanwhile
        time.sleep(0.05)
        waiting = [peers.enter_context(stack.connect()) for _ in range(40)]

        end = asyncio.run_coroutine_threadsafe(stack.server.stop_listening(), stack.loop)
        for peer in waiting:
            peer.sendall(run_request("x"))

        for peer in waiting:
            answer = read_all(peer)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
        end.result(5)


def test_whoever_comes_while_the_queue_is_emptied_is_refused_and_not_reset():
    with running_stack() as stack:
        stack.behaviour = take(0.3)
        with stack.connect() as early:
            early.sendall(run_request("x"))
            wait_until(lambda: stack.running == 1)
            end = asyncio.run_coroutine_threadsafe(stack.server.stop_listening(), stack.loop)
            stack.call(asyncio.sleep(0))  # a turn of the loop later it has begun
            with pytest.raises(ConnectionRefusedError):
                stack.connect()  # its kernel asks twice, the second time after the listener was closed
            assert end.done()
            assert b'"success"' in read_all(early)


def test_a_request_whose_head_is_on_its_way_is_answered_at_the_end():
    with running_stack() as stack, stack.connect() as peer:
        request = run_request("x")
        peer.sendall(request[:20])
        wait_until(lambda: stack.server.connections == 1)

        stack.call(stack.server.stop_listening())
        peer.sendall(request[20:])

        assert b'"success"' in read_all(peer)


def test_whoever_has_connected_and_not_asked_yet_is_answered_at_the_end():
    """Between connecting and sending a thread may lose its turn; a connection closed under its request is reset."""
    with running_stack() as stack, stack.connect() as peer:
        wait_until(lambda: stack.server.connections == 1)

        stack.call(stack.server.stop_listening())
        time.sleep(0.1)
        peer.sendall(run_request("x"))

        answer = read_all(peer)
        assert b'"success"' in answer
        assert b"connection: close" in answer


def test_whoever_connects_and_never_asks_does_not_hold_up_the_end():
    with running_stack(deadlines=Deadlines(first_seconds=0.2)) as stack, stack.connect() as peer:
        wait_until(lambda: stack.server.connections == 1)
        stack.call(stack.server.stop_listening())
        started = time.monotonic()

        stack.call(stack.server.finish(5))

        assert peer.recv(1) == b""
        assert 0.1 < time.monotonic() - started < 2


def test_answers_at_the_end_are_the_last_of_their_connections_and_say_so():
    with running_stack() as stack, stack.connect() as peer:
        peer.sendall(HEALTH)
        assert read_answer(peer)[0] == 200

        stack.call(stack.server.stop_keeping_alive())
        peer.sendall(HEALTH)

        assert b"connection: close" in read_all(peer)


def test_what_does_not_end_in_time_is_cut():
    with running_stack() as stack:
        stack.behaviour = hang
        with stack.connect() as peer:
            peer.sendall(run_request("x"))
            wait_until(lambda: stack.running == 1)
            stack.call(stack.server.stop_listening())
            started = time.monotonic()

            stack.call(stack.server.finish(0.2))

            assert time.monotonic() - started < 1
            assert stack.server.connections == 0


def test_a_plain_old_request_leaves_no_error_in_the_log(stack, caplog):
    """HTTP/1.0 ends the connection with the answer; waiting for its peer then found a socket without a descriptor."""
    for _ in range(50):
        with stack.connect() as peer:
            peer.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b'{"status":"ok"}' in read_all(peer)

    wait_until(lambda: stack.server.connections == 0)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
