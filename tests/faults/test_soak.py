"""Mixed load with faults for a while: every answer is right or honest, and nothing grows.

`make test` runs three minutes of it, `make soak` an hour (`--soak=DURATION`).
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox_svc.admission.redis_link import MAX_CONNECTIONS
from sandbox_svc.notation import duration
from tests.faults.harness import HONEST, Load, ServiceProcess, Tally, until
from tests.faults.own_engine import OwnEngine
from tests.redis_server import RedisServer
from tests.slow_relay import SlowRelay, relaying

pytestmark = [pytest.mark.docker, pytest.mark.redis, pytest.mark.soak]

Start = Callable[..., ServiceProcess]
Report = Callable[..., None]

LANGUAGES = ("python", "nodejs")
POOL_SIZE = 3
CONTAINERS = POOL_SIZE * len(LANGUAGES)
IDLE_SECONDS = 17
"""aiohttp keeps an idle connection to the engine for 15 s, so what the load needed at a time is gone after it."""

# Programs that fail in every way, and the outcome that each must have.
FAILING: tuple[tuple[str, dict[str, int], str], ...] = (
    ("function main() { throw new Error('x'); }", {}, "program_error"),
    ("function main() { while (true) ; }", {"wall_ms": 300}, "time_limit"),
    ("function main() { process.kill(process.pid, 'SIGKILL'); }", {}, "signalled"),
    ("def main():\n    raise ValueError('x')\n", {}, "program_error"),
    ("import sys\ndef main():\n    sys.exit(7)\n", {}, "program_error"),
    ("def main():\n    while True: pass\n", {"wall_ms": 300}, "time_limit"),
    ("def main():\n    return len(bytearray(900_000_000))\n", {}, "memory_limit"),
    ("def main():\n    while True: print('x' * 1000)\n", {"output_bytes": 65536}, "output_limit"),
    ("def main(:\n", {}, "program_error"),
    ("import matplotlib.pyplot as plt\ndef main():\n    plt.plot([1, 2])\n    plt.savefig('artifacts/a.png')\n", {}, "success"),
    ("import pandas\ndef main():\n    return int(pandas.Series(range(10)).sum())\n", {}, "success"),
)  # fmt: skip


class FailingLoad(Load):
    """Programs that fail, requests that are none, and callers that hang up."""

    def _one(self, number: int) -> tuple[str, Any]:
        turn = number % (len(FAILING) + 2)
        if turn == len(FAILING):
            return self._malformed()
        if turn > len(FAILING):
            return self._hang_up()
        source, limits, expected = FAILING[turn]
        language = "nodejs" if source.startswith("function") else "python"
        connection = self._connect()
        if connection is None:
            return "refused", None
        try:
            connection.request("POST", "/v1/run", json.dumps({"code": source, "language": language, "limits": limits}))
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            return "lost", f"{type(error).__name__} {error}"
        finally:
            connection.close()
        if response.status == 200 and answer["outcome"] == expected:
            return "right", None
        if answer.get("code") in HONEST:
            return "honest", answer["code"]
        if answer.get("outcome") == "time_limit":
            return "honest", "time_limit"  # true of a program whose container or engine was stopped for a while
        return "wrong", (expected, answer)

    def _connect(self) -> http.client.HTTPConnection | None:
        """None when nobody listens, as while the service is started again."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=60)
        try:
            connection.connect()
        except OSError:
            return None
        return connection

    def _malformed(self) -> tuple[str, Any]:
        connection = self._connect()
        if connection is None:
            return "refused", None
        try:
            connection.request("POST", "/run", '{"code_b64": "?"}')
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return "lost", f"{type(error).__name__} {error}"
        finally:
            connection.close()
        return ("right", None) if status == 422 else ("wrong", status)

    def _hang_up(self) -> tuple[str, Any]:
        connection = self._connect()
        if connection is None:
            return "refused", None
        body = json.dumps({"code": "import time\ndef main():\n    time.sleep(5)\n"})
        with contextlib.suppress(OSError):
            connection.request("POST", "/v1/run", body)
            time.sleep(0.05)
        connection.close()
        return "right", None


class Size(msgspec.Struct, frozen=True):
    """What the service holds while nothing happens."""

    rss_mb: float
    descriptors: int
    """Without those to Redis: its pool keeps as many as were once needed at a time."""
    redis_connections: int
    threads: int
    tasks: int
    containers: int
    engine_processes: int

    @classmethod
    def of(cls, service: ServiceProcess, engine: OwnEngine, redis_port: int) -> Size:
        redis_connections = service.connections_to(redis_port)
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{service.pid}/status").read_text().splitlines() if ":" in line
        )
        return cls(
            rss_mb=int(status["VmRSS"].split()[0]) / 1024,
            descriptors=len(list(service.descriptors())) - redis_connections,
            redis_connections=redis_connections,
            threads=int(status["Threads"]),
            tasks=int(service.metric("sandbox_tasks")),
            containers=len(service.containers()),
            engine_processes=len(engine._descendants()),
        )


class Faults:
    """One fault after the other, in an order that differs from round to round."""

    def __init__(self, service: ServiceProcess, engine: OwnEngine, redis: RedisServer, relay: SlowRelay) -> None:
        self._service = service
        self._engine = engine
        self._redis = redis
        self._relay = relay
        self._rng = random.Random(7)
        self._generations = itertools.count(1)
        self.count = 0
        self._todo: list[Callable[[], None]] = []

    def strike(self) -> None:
        if not self.count:
            # Once, and before anything is measured: a process that is started again cannot be seen to grow.
            self._service_restarts()
        if not self._todo:
            self._todo = [
                self._kill, self._remove, self._pause, self._redis_dies, self._redis_hangs, self._redis_is_slow,
                self._redis_resets, self._engine_hangs, self._engine_restarts, self._new_image,
            ]  # fmt: skip
            self._rng.shuffle(self._todo)
        self._todo.pop()()
        self.count += 1

    def _service_restarts(self) -> None:
        self._service.signal(signal.SIGTERM)
        assert self._service.wait(60) == 0
        self._service.start(is_ready=False)

    def _container(self) -> str:
        return self._rng.choice(self._service.containers() or ["none-there"])

    def _kill(self) -> None:
        self._service.docker("kill", self._container(), check=False)

    def _remove(self) -> None:
        self._service.docker("rm", "--force", self._container(), check=False)

    def _pause(self) -> None:
        container = self._container()
        self._service.docker("pause", container, check=False)
        time.sleep(1)
        self._service.docker("unpause", container, check=False)

    def _redis_dies(self) -> None:
        self._redis.kill()
        time.sleep(1)
        self._redis.start()

    def _redis_hangs(self) -> None:
        self._redis.pause()
        time.sleep(1)
        self._redis.resume()

    def _redis_is_slow(self) -> None:
        self._relay.delay_seconds = self._rng.choice((0.05, 0.2, 0.24, 0.4))
        time.sleep(2)
        self._relay.delay_seconds = 0.0

    def _redis_resets(self) -> None:
        self._relay.reset()

    def _engine_hangs(self) -> None:
        self._engine.freeze()
        time.sleep(1.5)
        self._engine.thaw()

    def _engine_restarts(self) -> None:
        self._engine.terminate()
        self._engine.start()

    def _new_image(self) -> None:
        language = self._rng.choice(LANGUAGES)
        image, base_tag = f"sandbox-svc/{language}:latest", f"soak-base-{language}"
        base = self._engine.docker("image", "inspect", "--format", "{{.Id}}", base_tag).stdout.strip()
        self._engine.build(image, f"FROM {base}", labels={"generation": str(next(self._generations))})
        self._engine.docker("image", "prune", "--force")


def _work(service: ServiceProcess, faults: Faults, seconds: float) -> list[Tally]:
    loads = [
        Load(lambda: service.port, callers=4, languages=LANGUAGES, pauses=(0.0, 0.0, 0.0, 0.1)),
        FailingLoad(lambda: service.port, callers=2),
    ]
    for load in loads:
        load.start()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(2.5)
            faults.strike()
    finally:
        tallies = [load.stop(90) for load in loads]
    return tallies


def _rest(service: ServiceProcess, engine: OwnEngine, redis_port: int) -> Size:
    """Until everything that the load and the faults began is over; then what is left."""
    service.await_ready(120)
    until(lambda: len(service.containers()) == CONTAINERS, 60, service.containers)
    until(lambda: service.metric("sandbox_slots", state="ready") == CONTAINERS, 60, service.readiness)
    # No race is waited for: only what outlives its idle time is a leak.
    time.sleep(IDLE_SECONDS)
    return Size.of(service, engine, redis_port)


def _tidy(engine: OwnEngine) -> None:
    """The images are those of before."""
    engine.revive()
    for language in LANGUAGES:
        engine.docker("tag", f"soak-base-{language}", f"sandbox-svc/{language}:latest", check=False)
        engine.docker("rmi", f"soak-base-{language}", check=False)
    engine.docker("rmi", "--force", "sandbox-svc/nodejs:latest", check=False)


@pytest.mark.timeout(0)
def test_nothing_grows_and_nothing_is_lost(
    engine: OwnEngine, start_service: Start, report: Report, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """SF-17: mixed load and every fault in turn: memory, descriptors, tasks, containers, processes of the engine."""
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    seconds = duration(20, 86_400)(pytestconfig.getoption("--soak"))
    folder = tmp_path / "r"
    folder.mkdir()
    redis = RedisServer(folder, with_port=True)
    redis.start()
    engine.load("sandbox-svc/nodejs:latest")
    for language in LANGUAGES:
        engine.docker("tag", f"sandbox-svc/{language}:latest", f"soak-base-{language}")
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        stack.callback(_tidy, engine)
        stack.callback(redis.kill)
        relay = stack.enter_context(relaying(redis))
        service = start_service(
            engine.host,
            SANDBOX_POOL_SIZE=str(POOL_SIZE),
            SANDBOX_LANGUAGES=",".join(LANGUAGES),
            SANDBOX_REDIS_URL=f"redis://127.0.0.1:{relay.port}/0",
            SANDBOX_RATE_LIMIT="100000/second",
            SANDBOX_TIMEOUT="5s",
            SANDBOX_MAX_MEMORY="128m",
        )
        faults = Faults(service, engine, redis, relay)
        first = _work(service, faults, max(seconds / 4, 15))
        early = _rest(service, engine, relay.port)
        later = _work(service, faults, seconds * 3 / 4)
        late = _rest(service, engine, relay.port)
        service.end()
        assert service.containers() == []

    for tally in (*first, *later):
        tally.check()
    report(later[0], f"{faults.count} faults in {seconds:.0f} s")
    report(later[1], "programs that fail, malformed requests, callers that hang up")
    report(f"after a quarter: {early}")
    report(f"at the end: {late}")
    assert late.rss_mb < 1.15 * early.rss_mb + 8
    assert late.descriptors <= early.descriptors + 2
    assert late.redis_connections <= MAX_CONNECTIONS
    assert late.threads <= early.threads + 1
    assert late.tasks <= early.tasks + 2
    assert late.containers == early.containers == CONTAINERS
    assert late.engine_processes <= early.engine_processes + 1
    assert threading.active_count() <= threads
