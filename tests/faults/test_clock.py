"""A wall clock that jumps by an hour, forth and back, under the real service, with a real engine and a real Redis."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, ServiceProcess, under_load, until
from tests.integration.conftest import why_no_engine
from tests.redis_server import RedisServer

pytestmark = [
    pytest.mark.docker,
    pytest.mark.redis,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

JUMPS = ("+3600", "+0", "-3600", "+0")

# Python runs it before anything else, and all that is said of the time in the process goes through it.
SITECUSTOMIZE = f"""
import itertools, os, signal, time

real_time, real_time_ns = time.time, time.time_ns
jumps = itertools.cycle({JUMPS!r})
ahead = 0

def jump(number, frame):
    global ahead
    words = next(jumps)
    ahead = int(words)
    os.write(2, f"the clock is {{words}} s off\\n".encode())

time.time = lambda: real_time() + ahead
time.time_ns = lambda: real_time_ns() + ahead * 10**9
signal.signal(signal.SIGUSR1, jump)
"""


def test_a_clock_that_jumps_changes_nothing(
    start_service: Callable[..., ServiceProcess], report: Callable[..., None], tmp_path: Path
) -> None:
    """No limit ends early or late, no permit is lost, no container is taken for old, nothing took less than no time."""
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    clock, folder = tmp_path / "clock", tmp_path / "r"
    clock.mkdir()
    folder.mkdir()
    (clock / "sitecustomize.py").write_text(SITECUSTOMIZE)
    with RedisServer(folder, with_port=True) as redis:
        service = start_service(
            PYTHONPATH=f"{clock}:{ROOT / 'src'}",
            SANDBOX_REDIS_URL=redis.url.reveal(),
            SANDBOX_RATE_LIMIT="100000/minute",
        )
        before = set(service.containers())
        with under_load(service, callers=4, pauses=(0.0, 0.0, 0.3)) as load:

            def is_redis_there_throughout() -> bool:
                outages = service.metric("sandbox_redis_outages_total")
                for jump in JUMPS:
                    said = service.log().count("the clock is")
                    service.signal(signal.SIGUSR1)
                    until(lambda said=said: service.log().count("the clock is") == said + 1, 5)  # type: ignore[misc]
                    right = load.tally.right
                    # A step of the permits and a look at Redis come between two jumps, or across one.
                    time.sleep(2)
                    assert load.tally.right > right + 10, jump
                    assert service.readiness()[0] == 200
                return service.metric("sandbox_redis_outages_total") == outages

            # On a busy machine a call may take longer than it has; a jump that mattered would do so in every go.
            assert any(is_redis_there_throughout() for _ in range(3))
        assert set(service.containers()) == before
        (holders,) = redis.command("KEYS", "*:python:holders").split()
        assert redis.command("ZCARD", holders) == "3"
        assert service.metric("sandbox_containers_retired_total") == 0
        negative = service.negative_metrics()
    assert load.tally.honest.total() == load.tally.refused == 0
    assert load.tally.slowest < 10
    runs = [json.loads(line) for line in service.log().splitlines() if '"event":"run"' in line]
    assert len(runs) == load.tally.sent
    times = [value for run in runs for name, value in run.items() if name.endswith("_ms")]
    assert (min(times) >= 0, negative) == (True, [])
    report(load, f"{len(JUMPS)} jumps of an hour, no container replaced, no permit lost")
