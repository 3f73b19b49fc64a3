"""Fixtures of the fault tests, and the table of what became of all requests at the end of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Load, ServiceProcess, Tally
from tests.faults.own_engine import OwnEngine
from tests.integration.conftest import why_no_engine

RESULTS: list[tuple[str, str]] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep a line for the table at the end, which docs/reliability.md quotes."""

    def keep(what: Load | Tally | str, note: str = "") -> None:
        line = str(what.tally if isinstance(what, Load) else what)
        RESULTS.append((request.node.name, f"{line}; {note}" if note else line))

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if RESULTS:
        terminalreporter.section("what became of the requests")
        for name, line in RESULTS:
            terminalreporter.write_line(f"{name}: {line}")


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Start services; whatever is left of them at the end is ended, and then they left no container."""
    services: list[ServiceProcess] = []

    def start(docker_host: str | None = None, *, is_ready: bool = True, **settings: str) -> ServiceProcess:
        folder = tmp_path / f"service-{len(services)}"
        folder.mkdir()
        service = ServiceProcess(folder, docker_host, **settings)
        services.append(service)
        service.start(is_ready=is_ready)
        return service

    yield start
    for service in services:
        service.end()


@pytest.fixture(scope="session")
def warm_engine() -> Iterator[OwnEngine]:
    """One engine for all tests that break engines, with the Python image in it."""
    reason = why_no_engine() or OwnEngine.why_not()
    if reason:
        pytest.skip(reason)
    engine = OwnEngine()
    try:
        engine.start()
        engine.load("sandbox-svc/python:latest")
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(warm_engine: OwnEngine) -> OwnEngine:
    """The engine of the session, answering, with the Python image in it."""
    warm_engine.revive()
    return warm_engine
