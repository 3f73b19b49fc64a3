"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.fakes import ManualClock

# Services that tests start use runc unless a test says otherwise: `auto` would take gVisor where the engine has it, and
# what a test shows would depend on the machine.
os.environ.setdefault("SANDBOX_RUNTIME", "runc")

# Times of single examples say how busy the machine is; what must be fast is measured where it is asserted.
hypothesis.settings.register_profile(
    "ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("ours")


@pytest.fixture
def service_loop() -> tuple[str, dict[str, bool]]:
    """The loop that the service has: others differ in what they raise where a connection has broken."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def anyio_backend(service_loop: tuple[str, dict[str, bool]]) -> tuple[str, dict[str, bool]]:
    return service_loop


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", default="180s", help="how long the soak takes, such as 1h")
