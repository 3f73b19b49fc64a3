"""What grows with use: idle slots, ten thousand runs, large arguments, outputs and artifacts, bursts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bench.accounting import container_memory_mib, process_memory_mib
from bench.ladder import expect_success
from bench.programs import PYTHON, SUCCESS, Case
from bench.service import Running
from bench.statistic import median, percentile

MIB = 2**20
IDLE_SLOTS = (2, 8, 32)
BURST_FACTOR = 4

LARGE = (
    Case("1 MiB argument", "python", "def main(text): return len(text)\n", "plain", {"text": "x" * MIB}),
    Case("1 MiB result", "python", "def main(): return 'x' * (2**20 - 2)\n", "plain", {}),
    Case("1 MiB output", "python", "def main(): print('x' * (2**20 - 1))\n", "plain", {}),
    Case(
        "10 MiB artifact",
        "python",
        "def main():\n    with open('artifacts/large.csv', 'wb') as file: file.write(b'x' * 10 * 2**20)\n",
        "plain",
        {},
    ),
)


def idle_slots(*, seconds: float) -> list[dict[str, float]]:
    """The same load on pools of different sizes."""
    rows = []
    for slots in IDLE_SLOTS:
        with Running(SANDBOX_LANGUAGES="python", SANDBOX_POOL_SIZE=str(slots)) as service:
            row: dict[str, float] = {"slots": slots}
            before, began = service.accounts.read(), time.perf_counter()
            time.sleep(2 * seconds)
            idle = service.accounts.read().since(before)
            row["idle cpu percent"] = (idle.service + idle.containers) / (time.perf_counter() - began) * 100
            request = PYTHON.request()
            service.load.run(request, callers=8, expect=SUCCESS, count=64)
            for callers in (1, 8):
                load = service.load.run(request, callers=callers, expect=SUCCESS, seconds=seconds)
                expect_success(load, f"{slots} slots")
                row[f"p50@{callers}"] = median(load.latencies_ms)
                row[f"rate@{callers}"] = load.per_second
            row["service mib"] = process_memory_mib(service.process.pid)
            row["container mib"] = median([container_memory_mib(pid) for pid in service.containers()])
            rows.append(row)
    return rows


def endurance(*, runs: int) -> list[dict[str, float]]:
    """Memory, descriptors, threads and containers after each tenth of `runs` runs, from 8 callers."""
    rows = []
    with Running(SANDBOX_LANGUAGES="python") as service:
        for part in range(11):
            latencies: list[float] = [0.0]
            if part:
                load = service.load.run(PYTHON.request(), callers=8, expect=SUCCESS, count=runs // 10)
                expect_success(load, "endurance")
                latencies = load.latencies_ms
                time.sleep(0.5)  # for containers that are being replaced, and for what a garbage collection frees
            proc = Path(f"/proc/{service.process.pid}")
            rows.append(
                {
                    "runs": part * runs // 10,
                    "p50 ms": median(latencies),
                    "service mib": process_memory_mib(service.process.pid),
                    "descriptors": len(os.listdir(proc / "fd")),
                    "threads": len(os.listdir(proc / "task")),
                    "containers": len(service.containers()),
                    "container mib": median([container_memory_mib(pid) for pid in service.containers()] or [0.0]),
                }
            )
    return rows


def large(*, seconds: float) -> list[dict[str, Any]]:
    """One caller, large messages."""
    rows = []
    with Running(SANDBOX_LANGUAGES="python") as service:
        for case in (PYTHON, *LARGE):
            request = case.request()
            service.load.run(request, callers=1, expect=SUCCESS, count=4)
            before = service.accounts.read()
            load = service.load.run(request, callers=1, expect=SUCCESS, seconds=seconds)
            cpu = service.accounts.read().since(before)
            expect_success(load, case.name)
            runs = len(load.latencies_ms)
            rows.append(
                {
                    "program": case.name,
                    "p50_ms": median(load.latencies_ms),
                    "p99_ms": percentile(load.latencies_ms, 0.99),
                    "cpu_ms": {name: used / runs * 1e3 for name, used in zip(cpu._fields, cpu, strict=True)},
                }
            )
    return rows


def refill(*, rounds: int) -> list[dict[str, float | str]]:
    """A burst of four requests per slot on a full pool, for each setting of reuse, until the pool is full again."""
    rows: list[dict[str, float | str]] = []
    for reuse in ("tenant", "never"):
        with Running(SANDBOX_LANGUAGES="python", SANDBOX_REUSE=reuse) as service:
            burst = BURST_FACTOR * service.pool_size
            lasts, firsts, full = [], [], []
            for _ in range(rounds):
                began = time.perf_counter()
                load = service.load.run(PYTHON.request(), callers=burst, expect=SUCCESS, count=burst)
                expect_success(load, f"burst, {reuse}")
                lasts.append(max(load.latencies_ms))
                firsts.append(percentile(load.latencies_ms, 1 / BURST_FACTOR))
                service.await_ready(settle_seconds=0)
                full.append((time.perf_counter() - began) * 1e3)
                time.sleep(2)  # templates load in idle containers
            rows.append(
                {
                    "reuse": reuse,
                    "burst": burst,
                    "first quarter ms": median(firsts),
                    "last ms": median(lasts),
                    "full again ms": median(full),
                }
            )
    return rows
