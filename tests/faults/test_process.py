"""The service's own end: SIGTERM under load, a second signal, SIGKILL and the start after it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox_svc.runtime.container_spec import HOST_LABEL, INSTANCE_LABEL, SERVICE, SERVICE_LABEL
from tests.faults.harness import Load, ServiceProcess, under_load, until
from tests.faults.test_containers import SLOW
from tests.integration.conftest import docker, why_no_engine
from tests.redis_server import RedisServer
from tests.slow_relay import relaying

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

Start = Callable[..., ServiceProcess]
Report = Callable[..., None]


def test_sigterm_under_load(start_service: Start, report: Report) -> None:
    """SF-11: runs finish, those who wait are told, nothing is left, and the exit code is 0."""
    service = start_service(SANDBOX_POOL_SIZE="2", SANDBOX_LANGUAGES="python,nodejs")
    load = Load(lambda: service.port, callers=8, languages=("python", "nodejs"), pauses=(0.5, 1.0, 0.0))
    load.start()
    until(lambda: load.tally.right > 10, 30)

    began = time.monotonic()
    service.signal(signal.SIGTERM)
    code = service.wait(30)
    took = time.monotonic() - began
    load.stop()

    load.tally.check()
    assert set(load.tally.honest) <= {"draining"}
    assert code == 0
    assert service.containers() == []
    report(load, f"exit code 0 after {took:.1f} s, 0 containers left")


def test_a_second_signal(start_service: Start, report: Report) -> None:
    """SF-12: runs are cut short and answered, the containers are removed all the same."""
    service = start_service()
    answers: list[tuple[int, dict[str, object]]] = []
    callers = [threading.Thread(target=lambda: answers.append(service.run(SLOW, seconds=9))) for _ in range(3)]
    for caller in callers:
        caller.start()
    until(lambda: service.metric("sandbox_slots", state="leased") == 3, 10)

    began = time.monotonic()
    service.signal(signal.SIGTERM)
    until(lambda: service.readiness()[0] == 503, 5)
    service.signal(signal.SIGTERM)
    code = service.wait(30)
    took = time.monotonic() - began
    for caller in callers:
        caller.join(10)

    assert [(status, answer["code"]) for status, answer in answers] == [(500, "sandbox_lost")] * 3
    assert code == 0
    assert took < 8
    assert service.containers() == []
    report(f"3 sent, 3 honest errors, exit code 0 after {took:.1f} s, 0 containers left")


def test_sigkill_and_start_again(start_service: Start, report: Report) -> None:
    """SF-13, SF-16: what the dead process left is gone; what others own is not touched, whatever it is called."""
    other = start_service(SANDBOX_POOL_SIZE="1")
    service = start_service()
    image = docker("image", "inspect", "--format", "{{.Id}}", "sandbox-svc/python:latest").stdout.strip()
    foreign = [
        # Somebody else's container of the same image, and one that looks like ours but whose owner nobody knows.
        docker("run", "-d", "--network", "none", "--entrypoint", "/bin/sleep", image, "120").stdout.strip(),
        docker(
            "run", "-d", "--network", "none", "--label", f"{SERVICE_LABEL}={SERVICE}", "--label",
            f"{INSTANCE_LABEL}=elsewhere", "--label", f"{HOST_LABEL}=another-boot pid:[1] 1 1", "--entrypoint",
            "/bin/sleep", image, "120",
        ).stdout.strip(),
    ]  # fmt: skip
    try:
        of_other = other.containers()
        load = Load(lambda: service.port, callers=4, pauses=(0.2,))
        load.start()
        until(lambda: load.tally.right > 5, 30)
        dead = service.pid
        orphans = service.containers()
        assert len(orphans) >= 3

        service.signal(signal.SIGKILL)
        service.wait(5)
        load.stop()
        service.start()
        seconds = until(lambda: not service.containers(dead), 30)

        # Connections that were cut are all that a killed process can leave; nobody was answered wrongly.
        assert not load.tally.wrong
        assert len(load.tally.lost) <= 4
        assert len(service.containers()) == 3
        assert other.containers() == of_other
        assert other.run(SLOW, seconds=0)[1]["outcome"] == "success"
        running = docker("ps", "-q", "--no-trunc").stdout.split()
        assert set(foreign) <= set(running)
        report(
            load,
            f"cut connections are the killed process's; {len(orphans)} orphans gone {seconds:.1f} s after the start",
        )
    finally:
        docker("rm", "--force", *foreign, check=False)


@pytest.mark.redis
def test_connections_to_redis_are_reset(start_service: Start, report: Report, tmp_path: Path) -> None:
    """By a proxy in between that is started again. The service ended where its connections were idle just then."""
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    folder = tmp_path / "r"
    folder.mkdir()
    with RedisServer(folder) as redis, relaying(redis) as relay:
        address = f"redis://127.0.0.1:{relay.port}/0"
        service = start_service(SANDBOX_REDIS_URL=address, SANDBOX_RATE_LIMIT="100000/second")
        for _ in range(5):
            relay.reset()
            time.sleep(1)  # not a wait: within it Redis is asked again, which is when it showed
        with under_load(service, callers=4) as load:
            for _ in range(5):
                relay.reset()
                time.sleep(0.5)
        until(lambda: service.readiness()[1]["checks"]["redis"]["status"] == "ok", 10)
        assert service.metric("sandbox_redis_outages_total") > 0
        assert service.is_full()

    assert load.tally.honest.total() == load.tally.refused == 0
    report(load, "idle and under load, ten times")


@pytest.mark.redis
def test_redis_killed_restarted_and_stuck_under_load(start_service: Start, report: Report, tmp_path: Path) -> None:
    """Callers do not notice but for a quarter of a second; what instances share is in tests/contract and integration."""
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    folder = tmp_path / "r"
    folder.mkdir()
    redis = RedisServer(folder, with_port=True)
    redis.start()
    try:
        service = start_service(SANDBOX_REDIS_URL=redis.url.reveal(), SANDBOX_RATE_LIMIT="100000/second")
        with under_load(service, callers=4) as load:
            time.sleep(1)
            redis.kill()
            until(lambda: service.readiness()[1]["checks"]["redis"]["status"] == "degraded", 10)
            assert service.readiness()[0] == 200
            time.sleep(1)
            redis.start()
            until(lambda: service.readiness()[1]["checks"]["redis"]["status"] == "ok", 10)
            redis.pause()
            until(lambda: service.readiness()[1]["checks"]["redis"]["status"] == "degraded", 10)
            time.sleep(1)
            redis.resume()
            until(lambda: service.readiness()[1]["checks"]["redis"]["status"] == "ok", 10)
            time.sleep(0.5)
        assert service.metric("sandbox_redis_outages_total") == 2
    finally:
        redis.kill()

    assert load.tally.honest.total() == load.tally.refused == 0
    report(load, "Redis killed, restarted, stuck, going on")
