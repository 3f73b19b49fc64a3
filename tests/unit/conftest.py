"""What the unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """asyncio's own loop, which shows whether a callback is due: tests with a manual clock wait until none is."""
    return "asyncio"
