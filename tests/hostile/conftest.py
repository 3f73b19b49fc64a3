"""Fixtures: the service on each runtime, started once, and the invariants after every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.hostile.harness import Service, running
from tests.integration.conftest import runtimes, why_no_engine

RUNTIMES: Final = runtimes() or ("runc",)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    again = []
    for item in items:
        if "/hostile/" in str(item.path) and "runtime" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.hostile)
            item.add_marker(pytest.mark.docker)
            # What becomes of a malformed request does not depend on what would have run it.
            if item.get_closest_marker("http") and item.callspec.params["runtime"] != RUNTIMES[0]:  # type: ignore[attr-defined]
                again.append(item)
    if again:
        items[:] = [item for item in items if item not in again]
        config.hook.pytest_deselected(items=again)


@pytest.fixture(scope="session", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """Every test that attacks runs under each runtime that the engine has."""
    if why_no_engine():
        pytest.skip(why_no_engine())
    return str(request.param)


@pytest.fixture(scope="session")
def shared_service(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One container per language, so that runs of a language follow each other in it."""
    with running(tmp_path_factory.mktemp(f"service-{runtime}"), runtime) as service:
        yield service


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """The service under attack; whatever a test does to it, it must be as before afterwards."""
    yield shared_service
    shared_service.check_invariants()


@pytest.fixture(scope="session")
def shared_wide_service(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Three containers of python, for what happens side by side."""
    folder = tmp_path_factory.mktemp(f"wide-{runtime}")
    with running(folder, runtime, SANDBOX_POOL_SIZE="3", SANDBOX_LANGUAGES="python") as service:
        yield service


@pytest.fixture
def wide_service(shared_wide_service: Service) -> Iterator[Service]:
    yield shared_wide_service
    shared_wide_service.check_invariants()
