"""Containers that somebody kills, removes or pauses: idle, busy, half-created. On the machine's engine; only our own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.faults.harness import ServiceProcess, under_load, until
from tests.integration.conftest import why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

Start = Callable[..., ServiceProcess]
Report = Callable[..., None]

SLOW = "import time\ndef main(seconds):\n    time.sleep(seconds)\n    return 'done'\n"


def test_killed_while_idle(start_service: Start, report: Report) -> None:
    """SF-03: nobody asks for anything meanwhile: the pool notices by itself and fills up again."""
    service = start_service()
    before = service.containers()
    for container in before:
        service.docker("kill", container)

    seconds = until(lambda: not set(before) & set(service.containers()) and service.is_full(), 60, service.log)

    assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
    assert service.metric("sandbox_containers_retired_total", reason="lost") == 3
    report("3 of 3 containers killed", f"full again after {seconds:.1f} s")


def test_killed_under_load(start_service: Start, report: Report) -> None:
    """SF-03: one container after another, busy or not: whoever's program ran there is told so, and nobody else notices."""
    service = start_service()
    rng = random.Random(1)
    killed = 0
    with under_load(service, callers=4) as load:
        end = time.monotonic() + 8
        while time.monotonic() < end:
            if containers := service.containers():
                service.docker("kill", rng.choice(containers), check=False)
                killed += 1
            time.sleep(0.6)
        seconds = service.await_ready()

    # A container takes one run with it at the most.
    assert load.tally.honest.total() <= killed
    assert load.tally.right > 10 * killed
    report(load, f"{killed} containers killed, full again after {seconds:.1f} s")


def test_killed_while_busy(start_service: Start, report: Report) -> None:
    """SF-03: the caller is told within seconds, the next one is served."""
    service = start_service(SANDBOX_POOL_SIZE="1")
    answers: list[tuple[float, int, dict[str, object]]] = []

    def call() -> None:
        status, answer = service.run(SLOW, seconds=8)
        answers.append((time.monotonic(), status, answer))

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: service.metric("sandbox_slots", state="leased") == 1, 10)
    time.sleep(0.3)
    killed_at = time.monotonic()
    service.docker("kill", service.containers()[0])
    caller.join(20)

    answered_at, status, answer = answers[0]
    assert (status, answer["code"]) == (500, "sandbox_lost")
    assert answered_at - killed_at < 3
    seconds = service.await_ready()
    assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
    report(
        f"1 sent, 1 honest error {answered_at - killed_at:.2f} s after the kill", f"full again after {seconds:.1f} s"
    )


def test_removed_while_half_created(start_service: Start, report: Report) -> None:
    """SF-03: every container is removed as soon as the engine lists it, for a while: starts fail, nothing is left over."""
    service = start_service(is_ready=False)
    removed = set()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        for container in service.containers():
            removed.add(container)
            service.docker("rm", "--force", container, check=False)

    seconds = service.await_ready()

    assert removed
    assert not removed & set(service.containers())
    assert len(service.containers()) == 3
    assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
    report(f"{len(removed)} half-created containers removed", f"full {seconds:.1f} s after the last")


def test_paused_under_a_run(start_service: Start, report: Report) -> None:
    """SF-03: a frozen container cannot even report a time limit; the deadline on our side answers."""
    service = start_service(SANDBOX_POOL_SIZE="1", SANDBOX_TIMEOUT="2s")
    service.docker("pause", service.containers()[0])
    began = time.monotonic()

    status, answer = service.run(SLOW, seconds=0)

    took = time.monotonic() - began
    assert (status, answer.get("code")) == (500, "sandbox_lost"), answer
    assert took < 15
    seconds = service.await_ready()
    assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
    report(f"1 sent, 1 honest error after {took:.1f} s (limit 2 s)", f"full again after {seconds:.1f} s")


@pytest.mark.slow
def test_paused_while_idle(start_service: Start, report: Report) -> None:
    """The health check finds it within half a minute, before a program does."""
    service = start_service()
    paused = service.containers()[0]
    service.docker("pause", paused)

    seconds = until(lambda: paused not in service.containers() and service.is_full(), 60, service.log)

    assert service.metric("sandbox_containers_retired_total", reason="unhealthy") == 1
    report("1 of 3 containers paused", f"replaced after {seconds:.1f} s")
