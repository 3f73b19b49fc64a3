"""Two real services, one engine, one Redis: what they share, and what becomes of it when one of them or Redis dies."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.integration.conftest import docker, why_no_engine
from tests.redis_server import RedisServer

pytestmark = [
    pytest.mark.docker,
    pytest.mark.redis,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

POOL_SIZE = 3
BOUND = 4


ELSEWHERE = """
import sys, msgspec
from sandbox_svc.runtime.instances import Birthmark
mark = msgspec.structs.replace(Birthmark.of_this_process(), namespace="pid:[elsewhere]")
Birthmark.of_this_process = classmethod(lambda cls: mark)
from sandbox_svc.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A service whose process cannot be seen from those of the test, as on another host or in another container."""


class Instance:
    """A service process, with its output in a file."""

    def __init__(
        self, folder: Path, redis: RedisServer, number: int, *, is_elsewhere: bool = False, **settings: str
    ) -> None:
        self._log = folder / f"service-{number}.log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        environ |= {
            "SANDBOX_REDIS_URL": redis.url.reveal(),
            "SANDBOX_POOL_SIZE": str(POOL_SIZE),
            "SANDBOX_MAX_CONTAINERS": str(BOUND),
            "SANDBOX_LANGUAGES": "python",
            "SANDBOX_RATE_LIMIT": "10/minute",
            "SANDBOX_RUNTIME": "runc",
        } | settings
        program = ["-c", ELSEWHERE] if is_elsewhere else ["-m", "sandbox_svc"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--port", "0"], env=environ, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> int:
        match = re.search(r"listening on http://[^ ]*:(\d+)", self.log)
        if match is None:
            assert self.process.poll() is None, self.log
            return 0
        return int(match[1])

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, http.client.HTTPMessage, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), {"content-type": "application/json"}
            )
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read())
        finally:
            connection.close()

    def check(self, name: str) -> Any:
        return self.ask("GET", "/readyz")[2]["checks"][name]

    @property
    def containers(self) -> int:
        """How many of its own it says are alive."""
        match = re.match(r"\d+", self.check("language python")["detail"])
        return int(match[0]) if match is not None else 0

    def run(self, seconds: float = 0) -> tuple[int, float]:
        """Run a program that takes so long; return the exit code and the seconds it took."""
        source = f"import time\ndef main():\n    time.sleep({seconds})\n    return 1\n"
        code = base64.b64encode(source.encode()).decode()
        began = time.monotonic()
        status, _, answer = self.ask("POST", "/run", {"code_b64": code, "language": "python"})
        assert status == 200
        return answer["exit_code"], time.monotonic() - began

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(60)


def count(*instances: Instance) -> int:
    """Containers of these processes on the engine, in whatever state; others may use it at the same time."""
    listed = docker("ps", "-a", "--format", '{{.Label "sandbox_svc.host"}}', "--filter", "label=sandbox_svc.host")
    pids = {str(instance.process.pid) for instance in instances}
    return sum(len(words) == 4 and words[2] in pids for line in listed.stdout.splitlines() if (words := line.split()))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    with TemporaryDirectory(prefix="redis-") as folder, RedisServer(Path(folder)) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, redis: RedisServer) -> Iterator[Callable[..., Instance]]:
    instances: list[Instance] = []

    def start_one(*, is_elsewhere: bool = False, **settings: str) -> Instance:
        instances.append(Instance(tmp_path, redis, len(instances), is_elsewhere=is_elsewhere, **settings))
        until(lambda: instances[-1].port > 0)
        return instances[-1]

    yield start_one
    for instance in instances:
        instance.end(signal.SIGTERM)


def until(condition: Callable[[], bool], *, seconds: float = 40, watch: Callable[[], None] = lambda: None) -> float:
    """Wait for a condition and return the seconds it took; `watch` must hold all the while."""
    began = time.monotonic()
    while not condition():
        watch()
        assert time.monotonic() - began < seconds
        time.sleep(0.1)
    return time.monotonic() - began


def test_the_containers_of_an_engine_are_divided_and_those_of_a_killed_instance_come_back(
    start: Callable[[], Instance],
) -> None:
    """SF-14: two instances on one engine, of which one dies."""
    one = start()
    until(lambda: one.containers == POOL_SIZE)
    two = start()

    def watch() -> None:
        assert count(one, two) <= BOUND

    # Came second, and gets its half all the same.
    until(lambda: (one.containers, two.containers) == (2, 2), watch=watch)
    assert (one.run()[0], two.run()[0]) == (0, 0)
    one.end(signal.SIGKILL)
    # Its containers are removed first, then their permits are free: within the 30 s that a lease may last.
    assert until(lambda: two.containers == POOL_SIZE, seconds=30, watch=watch) < 30
    assert count(one) == 0
    # Who comes back on the same host is served at once again.
    three = start()
    until(lambda: three.containers == 2, watch=lambda: _at_most(two, three))
    for instance in (two, three):
        instance.end(signal.SIGTERM)
    assert count(two, three) == 0


def test_an_instance_under_load_gives_the_other_its_share(start: Callable[..., Instance]) -> None:
    """No container of the first one is ever found idle: it gave nothing back for as long as its callers went on."""
    one = start(SANDBOX_RATE_LIMIT="", SANDBOX_POOL_SIZE=str(BOUND))
    until(lambda: one.containers == BOUND)
    is_over = threading.Event()
    codes: set[int] = set()

    def ask_again_and_again() -> None:
        while not is_over.is_set():
            codes.add(one.run()[0])

    callers = [threading.Thread(target=ask_again_and_again) for _ in range(3 * BOUND)]
    for caller in callers:
        caller.start()
    try:
        until(lambda: codes == {0})
        two = start(SANDBOX_RATE_LIMIT="", SANDBOX_POOL_SIZE=str(BOUND))
        until(lambda: two.containers == BOUND // 2, watch=lambda: _at_most(one, two))
        assert two.run()[0] == 0
    finally:
        is_over.set()
        for caller in callers:
            caller.join(30)
    assert codes == {0}, "and no run of the first one was lost for it"


def test_of_instances_that_cannot_be_seen_the_killed_are_swept_and_the_silent_serve_on(
    start: Callable[..., Instance], redis: RedisServer
) -> None:
    """Cut off from Redis and out of sight, an instance had its containers killed in the middle of their runs."""
    redis.command("ACL", "SETUSER", "two", "on", ">word", "~*", "+@all")
    settings = {"SANDBOX_POOL_SIZE": "2", "SANDBOX_MAX_CONTAINERS": "6", "SANDBOX_TIMEOUT": "60s"}
    two = start(is_elsewhere=True, SANDBOX_REDIS_URL=f"unix://two@{redis.socket}?db=0&password=word", **settings)
    one, three = start(**settings), start(is_elsewhere=True, **settings)
    until(lambda: [instance.containers for instance in (one, two, three)] == [2, 2, 2])
    results: list[tuple[int, float]] = []
    caller = threading.Thread(target=lambda: results.append(two.run(20)))
    caller.start()
    redis.command("ACL", "SETUSER", "two", "off")
    redis.command("CLIENT", "KILL", "USER", "two")
    three.end(signal.SIGKILL)
    # 10 s of silence, at most 5 s until somebody looks; its containers have ended by then.
    assert until(lambda: count(three) == 0, watch=lambda: _is_whole(two)) < 25
    caller.join(40)
    assert [0] == [code for code, _ in results], two.log
    assert two.check("redis")["status"] == "degraded"
    assert count(two) == 2
    # It is taken in again, and gives back what is above the bound by then.
    redis.command("ACL", "SETUSER", "two", "on")
    until(lambda: two.check("redis")["status"] == "ok", seconds=10)
    until(lambda: count(one, two) <= 6)


def _is_whole(instance: Instance) -> None:
    assert count(instance) == 2, instance.log


def test_services_go_on_while_redis_is_away_and_share_again_when_it_is_back(
    start: Callable[[], Instance], redis: RedisServer
) -> None:
    one, two = start(), start()
    until(lambda: one.containers + two.containers == BOUND)
    # The rate is one for both.
    codes = [instance.run()[0] for _ in range(8) for instance in (one, two)]
    assert (codes.count(0), codes.count(-429)) == (10, 6), one.log + two.log
    redis.kill()
    outcomes = [instance.run() for _ in range(8) for instance in (one, two)]
    # Each has seen five runs of its own pass, so five more of each go by its own window.
    assert [code for code, _ in outcomes].count(0) == 10
    assert max(seconds for _, seconds in outcomes) < 2
    until(lambda: one.check("redis")["status"] == two.check("redis")["status"] == "degraded")
    assert one.ask("GET", "/readyz")[0] == 200
    assert count(one, two) <= BOUND
    redis.start()
    until(lambda: one.check("redis")["status"] == two.check("redis")["status"] == "ok", seconds=10)
    codes = [instance.run()[0] for _ in range(8) for instance in (one, two)]
    assert (codes.count(0), codes.count(-429)) == (10, 6)
    until(lambda: one.containers + two.containers == BOUND, watch=lambda: _at_most(one, two))
    assert "away" in one.log


def _at_most(*instances: Instance) -> None:
    assert count(*instances) <= BOUND
