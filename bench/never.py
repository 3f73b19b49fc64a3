"""A new container for every run: what the first answer costs, and how near the rate comes to what the engine allows."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from bench.engine import Engine
from bench.ladder import expect_success
from bench.programs import PYTHON, SUCCESS
from bench.service import Running
from bench.statistic import median
from sandbox_svc.runtime import seccomp
from sandbox_svc.runtime.container_spec import ContainerLimits, container_config

CALLERS = 8
FIRST_ANSWERS = 8
SETTLE_SECONDS = 1.0
"""A pool that was just filled loads its templates in the background."""


def measure(engine: Engine, *, rounds: int, seconds: float, runtime: str = "runc") -> dict[str, Any]:
    """First answers and sustained rates of both settings of reuse, and the rate of bare containers, interleaved."""
    python = {"SANDBOX_LANGUAGES": "python", "SANDBOX_RUNTIME": runtime}
    figures: list[dict[str, float]] = []
    request = PYTHON.request()
    with Running(SANDBOX_REUSE="tenant", **python) as tenant, Running(SANDBOX_REUSE="never", **python) as never:
        for _ in range(rounds):
            found = {}
            for name, service in (("tenant", tenant), ("never", never)):
                latencies = []
                for _ in range(FIRST_ANSWERS):
                    service.await_ready(settle_seconds=SETTLE_SECONDS)
                    load = service.load.run(request, callers=1, expect=SUCCESS, count=1)
                    expect_success(load, f"first answers, {name}")
                    latencies += load.latencies_ms
                found[f"{name} first p50"] = median(latencies)
            before = never.accounts.read(all_containers=True)
            load = never.load.run(request, callers=CALLERS, expect=SUCCESS, seconds=seconds)
            cpu = never.accounts.read(all_containers=True).since(before)
            expect_success(load, "sustained, never")
            found["never rate"] = load.per_second
            found["never p50"] = median(load.latencies_ms)
            for part, used in zip(cpu._fields, cpu, strict=True):
                found[f"never cpu {part}"] = used / len(load.latencies_ms) * 1e3
            never.await_ready()
            found["bare containers"] = container_rate(engine, seconds=seconds, at_once=never.pool_size, runtime=runtime)
            figures.append(found)
    result: dict[str, Any] = {name: median([found[name] for found in figures]) for name in figures[0]}
    result["first ratio"] = [found["never first p50"] / found["tenant first p50"] for found in figures]
    result["rate ratio"] = [found["never rate"] / found["bare containers"] for found in figures]
    return result


def container_rate(engine: Engine, *, seconds: float, at_once: int, runtime: str) -> float:
    """Containers per second that the engine creates, starts and removes, configured like ours, `at_once` together."""
    image = engine.call("GET", "/images/sandbox-svc/python:latest/json")["Id"]
    config = container_config(
        language="python",
        image_id=image,
        baseline_bytes=192 * 2**20,
        limits=ContainerLimits(memory_bytes=256 * 2**20),
        runtime=runtime,
        seccomp=seccomp.profile_json(),
        labels={},
    )
    # Not of any service, lest one of them sweeps it.
    config["Labels"] = {}
    done: list[int] = []
    failures: list[BaseException] = []
    began = time.perf_counter()

    def work() -> None:
        own = Engine()
        try:
            while time.perf_counter() - began < seconds:
                name = f"sandbox-svc-bench-{secrets.token_hex(6)}"
                own.call("POST", f"/containers/create?name={name}", config)
                own.call("POST", f"/containers/{name}/start")
                own.call("DELETE", f"/containers/{name}?force=1&v=1")
                done.append(1)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that can say it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(done) / (time.perf_counter() - began)
