"""An engine on another machine that loses its power: no end of a connection comes, no answer, and no refusal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.harness import ServiceProcess, until
from tests.faults.relay import SocketRelay
from tests.faults.test_containers import SLOW
from tests.integration.conftest import why_no_engine

SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
    pytest.mark.skipif(not SOCKET.startswith("unix://"), reason="the engine is a remote one already"),
]

Start = Callable[..., ServiceProcess]
Report = Callable[..., None]


def test_half_open_connections_end_at_our_deadlines(start_service: Start, report: Report) -> None:
    """SF-23: what was asked of the engine, and a run whose stream leads through it, are given up in time; callers are told;
    when it is back everything is as before, by itself."""
    with SocketRelay(SOCKET.removeprefix("unix://")) as relay:
        service = start_service(
            f"tcp://127.0.0.1:{relay.port}",
            SANDBOX_POOL_SIZE="2",
            SANDBOX_TIMEOUT="1s",
            SANDBOX_QUEUE_TIMEOUT="2s",
        )
        service.docker_host = None  # for the tests' own questions
        answers: list[tuple[float, int, Any]] = []

        def call() -> None:
            began = time.monotonic()
            status, answer = service.run(SLOW, seconds=0.8)
            answers.append((time.monotonic() - began, status, answer))

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers[:2]:
            caller.start()
        until(lambda: service.metric("sandbox_slots", state="leased") == 2, 10)
        time.sleep(0.2)
        relay.hold()
        callers[2].start()
        for caller in callers:
            caller.join(40)
        assert service.ask("GET", "/healthz") == (200, {"status": "ok"})
        assert service.metric("process_open_fds") < 100
        relay.let_go()
        seconds = service.await_ready(60)
        assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
        until(lambda: len(service.containers()) == 2, 30, service.containers)
        service.end()
        assert service.containers() == []

    slowest = max(took for took, _, _ in answers)
    # The limit of the run, and what the supervisor may take over its end and its artifacts.
    assert slowest < 1 + 6 + 2
    assert sorted((status, answer.get("code")) for _, status, answer in answers) == [
        (500, "sandbox_lost"),
        (500, "sandbox_lost"),
        (503, "pool_exhausted"),
    ]
    report(f"3 sent, 3 honest errors, the slowest after {slowest:.1f} s", f"full {seconds:.1f} s after it was back")
