"""The load generator: a process of its own that keeps a fixed number of requests under way and notes each latency.

`python load.py` reads one JSON order per line and answers each with one line. Raw sockets under one epoll: a request
costs it some 40 us, so that on few cores it takes little from what it measures.
"""

from __future__ import annotations

import contextlib
import gc
import json
import select
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, NamedTuple

ANSWER_SECONDS = 60.0


class Load(NamedTuple):
    """What came of an order."""

    latencies_ms: list[float]
    seconds: float
    cpu_seconds: float
    """Of the load generator itself."""
    failures: dict[str, int]
    """Answers without the expected text, by their beginning."""

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.seconds


class LoadGenerator:
    """The side of the benchmark: starts the process and gives it orders."""

    def __init__(self, host: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__)), host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        request: bytes,
        *,
        callers: int,
        expect: str,
        seconds: float | None = None,
        count: int | None = None,
        pause_seconds: float = 0.0,
    ) -> Load:
        """Send `request` over and over from `callers` connections, for some seconds or `count` times in all.

        `pause_seconds` passes between an answer and its caller's next request.
        """
        order = {
            "request": request.decode("latin-1"),
            "callers": callers,
            "expect": expect,
            "seconds": seconds,
            "count": count,
            "pause_seconds": pause_seconds,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"the load generator failed: {answer['error']}")
        return Load(**answer)

    def close(self) -> None:
        self._process.communicate(timeout=10)


class _Caller:
    """One connection with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.buffer = b""
        self.wanted = 0
        """Bytes of the whole answer, once its head is here."""

    def send(self, request: bytes) -> None:
        self.buffer = b""
        self.wanted = 0
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Take what is there; the answer's body once it is complete."""
        chunk = self.socket.recv(1 << 20)
        if not chunk:
            raise ConnectionError("the service closed the connection")
        self.buffer = self.buffer + chunk if self.buffer else chunk
        if not self.wanted:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = self.buffer[:end].lower()
            at = head.index(b"content-length:") + 15
            line_end = head.find(b"\r", at)
            self.wanted = end + 4 + int(head[at : line_end if line_end >= 0 else len(head)])
        if len(self.buffer) < self.wanted:
            return None
        return self.buffer[self.buffer.index(b"\r\n\r\n") + 4 :]


def _obey(order: dict[str, Any], callers: list[_Caller]) -> dict[str, Any]:
    request = order["request"].encode("latin-1")
    expect = order["expect"].encode()
    left = order["count"]
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    epoll = select.epoll()
    by_fd = {caller.socket.fileno(): caller for caller in callers}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    cpu = time.process_time()
    started = time.perf_counter()
    end = started + order["seconds"] if order["seconds"] is not None else float("inf")
    pause = order["pause_seconds"]
    resting: deque[tuple[float, _Caller]] = deque()
    under_way = 0
    for caller in callers:
        if left is None or left > 0:
            caller.send(request)
            under_way += 1
            left = None if left is None else left - 1
    while under_way or resting:
        while resting and resting[0][0] <= time.perf_counter():
            resting.popleft()[1].send(request)
            under_way += 1
        ready = epoll.poll(max(resting[0][0] - time.perf_counter(), 0.0) if resting else ANSWER_SECONDS)
        if not ready and not resting:
            raise TimeoutError("no answer")
        for fd, _ in ready:
            caller = by_fd[fd]
            body = caller.receive()
            if body is None:
                continue
            now = time.perf_counter()
            latencies.append((now - caller.sent_at) * 1e3)
            if expect not in body:
                failures[body[:200].decode(errors="replace")] += 1
            if now < end and (left is None or left > 0):
                left = None if left is None else left - 1
                if not pause:
                    caller.send(request)
                    continue
                resting.append((now + pause, caller))
            under_way -= 1
    seconds = time.perf_counter() - started
    epoll.close()
    return {
        "latencies_ms": latencies,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "failures": dict(failures),
    }


def main() -> None:
    address = (sys.argv[1], int(sys.argv[2]))
    gc.disable()
    callers: list[_Caller] = []
    for line in sys.stdin:
        order = json.loads(line)
        try:
            while len(callers) < order["callers"]:
                callers.append(_Caller(address))
            answer = _obey(order, callers[: order["callers"]])
        except (OSError, ValueError) as error:
            # Connections with answers under way are of no use to the next order.
            for caller in callers:
                with contextlib.suppress(OSError):
                    caller.socket.close()
            callers = []
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
