"""Which runtimes the tests with containers ran under: one line instead of a skip per test."""

from __future__ import annotations

import pytest

from tests.integration.conftest import runtimes, why_no_engine

pytestmark = pytest.mark.docker


def test_every_runtime_is_there_to_be_tested() -> None:
    if why_no_engine():
        pytest.skip(why_no_engine())
    if "runsc" not in runtimes():
        pytest.skip("gVisor is not installed (scripts/gvisor.sh), so no test ran under it")
    assert ("runc", "runsc") == runtimes()
