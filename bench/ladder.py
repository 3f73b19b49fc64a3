"""The service at 1 to 32 callers beside its alternatives, each once per round, so that noise meets all alike."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.accounting import container_memory_mib, process_memory_mib
from bench.engine import Bench, Engine, bare_argv
from bench.floor import starts
from bench.load import Load
from bench.programs import CASES, HEALTH, HEALTHY, NODEJS, PANDAS, PYTHON, SUCCESS, Case
from bench.service import Running
from bench.statistic import median, percentile

STEPS = (1, 2, 4, 8, 16, 32)
PAUSE_SECONDS = 0.05

_PYTHON = ["/usr/bin/python3", "-I", "-c"]
_BARE: dict[str, tuple[list[str], list[str] | None, int]] = {
    PYTHON.name: ([*_PYTHON, "pass"], [*_PYTHON, "pass"], 9),
    PANDAS.name: ([*_PYTHON, "import pandas"], None, 2),
    NODEJS.name: (["/usr/local/bin/node", "-e", "0"], ["node", "-e", "0"], 5),
}
"""Bare starts: in the image, on the host, and how many make a median."""


class Ladder:
    """Samples of one configuration of the service, round by round."""

    def __init__(self, service: Running, engine: Engine, floors: dict[str, Bench], *, seconds: float) -> None:
        self._service = service
        self._engine = engine
        self._floors = floors
        self._seconds = seconds
        self.latencies: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.rounds: list[dict[str, float]] = []
        """Per round: medians and rates by name."""

    def round(
        self, steps: Sequence[int] = STEPS, cases: Sequence[Case] = CASES, *, is_brief: bool = False
    ) -> dict[str, float]:
        """Measure everything once, in an order of its own, and return the figures by name.

        `is_brief` leaves out what is only told and not compared by the guard of the tests.
        """
        figures: dict[str, float] = {}
        # What is compared comes close together, since the noise of a shared machine lasts for seconds.
        for case in random.sample(cases, len(cases)):
            jobs: list[Callable[[dict[str, float], Case], None]] = [self._floor, self._paced]
            jobs += [partial(self._ours, callers=step) for step in steps]
            if not is_brief:
                jobs += [self._without_us, self._health]
            for job in random.sample(jobs, len(jobs)):
                job(figures, case)
        self.rounds.append(figures)
        return figures

    def _ours(self, figures: dict[str, float], case: Case, callers: int) -> None:
        key = f"{case.name}@{callers}"
        request = case.request()
        # The containers may have to load a template, and the connections have to be made.
        self._service.load.run(request, callers=callers, expect=SUCCESS, count=2 * callers)
        # Anew each time: a container whose uids are used up is replaced.
        self._service.accounts.watch(self._service.containers())
        before = self._service.accounts.read()
        load = self._service.load.run(request, callers=callers, expect=SUCCESS, seconds=self._seconds)
        cpu = self._service.accounts.read().since(before)
        expect_success(load, key)
        runs = len(load.latencies_ms)
        self.latencies[case.name, callers] += load.latencies_ms
        figures[f"{key} p50"] = median(load.latencies_ms)
        figures[f"{key} p99"] = percentile(load.latencies_ms, 0.99)
        figures[f"{key} rate"] = load.per_second
        for name, used in zip(cpu._fields, cpu, strict=True):
            figures[f"{key} cpu {name}"] = used / runs * 1e3
        figures[f"{key} cpu load"] = load.cpu_seconds / runs * 1e3

    def _paced(self, figures: dict[str, float], case: Case) -> None:
        """One caller that pauses, so that it always meets a parked process: the latency of a warm pool."""
        request = case.request()
        self._service.load.run(request, callers=1, expect=SUCCESS, count=2, pause_seconds=PAUSE_SECONDS)
        load = self._service.load.run(
            request, callers=1, expect=SUCCESS, seconds=max(1.0, self._seconds), pause_seconds=PAUSE_SECONDS
        )
        expect_success(load, f"{case.name}, paced")
        self.latencies[case.name, 0] += load.latencies_ms
        figures[f"{case.name} warm p50"] = median(load.latencies_ms)

    def _health(self, figures: dict[str, float], _case: Case) -> None:
        for callers in (1, 8):
            load = self._service.load.run(HEALTH, callers=callers, expect=HEALTHY, seconds=self._seconds / 2)
            expect_success(load, "healthz")
            figures[f"healthz@{callers} p50"] = median(load.latencies_ms)
            figures[f"healthz@{callers} rate"] = load.per_second

    def _without_us(self, figures: dict[str, float], case: Case) -> None:
        floor = self._floors[case.language]
        argv = bare_argv(case)
        figures[f"docker exec {case.name}"] = median([self._engine.exec_once(floor.name, argv) for _ in range(3)])
        figures[f"docker run {case.name}"] = median([self._engine.run_once(floor.image, argv) for _ in range(2)])

    def _floor(self, figures: dict[str, float], case: Case) -> None:
        """What the machine does at best for this program; on the host too, where it has the interpreter."""
        floor = self._floors[case.language]
        start, on_host, count = _BARE[case.name]
        figures[f"bare {case.name}"] = median(floor.ask("starts", argv=start, count=count))
        if on_host is not None and (program := shutil.which(on_host[0])):
            figures[f"host {case.name}"] = median(starts([program, *on_host[1:]], count))
        if case is NODEJS:
            figures["bare nodejs rate"] = floor.ask("start_rate", argv=start, seconds=self._seconds)
        else:
            figures[f"fork loop {case.name}"] = floor.ask(
                "fork_rate",
                source=case.source,
                arguments=dict(case.arguments),
                modules=["numpy", "pandas"] if case is PANDAS else [],
                seconds=self._seconds,
            )

    def table(self) -> list[dict[str, Any]]:
        """One row per program and number of callers: all samples of all rounds together."""
        rows = []
        for (name, callers), latencies in sorted(self.latencies.items()):
            key = f"{name}@{callers}"
            row: dict[str, Any] = {"program": name, "callers": callers or "1, pausing", "runs": len(latencies)}
            row |= {f"p{p}_ms": percentile(latencies, p / 100) for p in (50, 95, 99)}
            rows.append(row)
            if not callers:
                continue
            row["runs_per_second"] = self.figure(f"{key} rate")
            row["cpu_ms"] = {
                part: self.figure(f"{key} cpu {part}") for part in ("service", "engine", "containers", "load")
            }
        return rows

    def figure(self, name: str) -> float:
        """The median of the rounds."""
        return median([figures[name] for figures in self.rounds])

    def ratios(self, name: str, of: str) -> list[float]:
        """One ratio per round, both sides measured in the same round."""
        return [figures[name] / figures[of] for figures in self.rounds if name in figures and of in figures]

    def tail(self, name: str, callers: int) -> float:
        """p99 over p50 of all samples; a single round has too few."""
        latencies = self.latencies[name, callers]
        return percentile(latencies, 0.99) / median(latencies)

    def memory(self) -> dict[str, float]:
        """MiB per container by language, and of the service."""
        found = {
            language: median([container_memory_mib(pid) for pid in self._service.containers(language)])
            for language in (PYTHON.language, NODEJS.language)
        }
        return found | {"service": process_memory_mib(self._service.process.pid)}


def expect_success(load: Load, what: str) -> None:
    if load.failures:
        raise RuntimeError(f"{what}: not every answer was a success: {load.failures}")
