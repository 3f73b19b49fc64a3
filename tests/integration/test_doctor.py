"""`sandbox-svc doctor` on the machine's engine and a Redis of the test's own: every line, and the exit code."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sandbox_svc import doctor
from tests.integration.conftest import why_no_engine
from tests.redis_server import RedisServer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]


async def examine(**environ: str) -> tuple[int, dict[str, str]]:
    """Return the exit code and the state of each subject."""
    output = io.StringIO()
    code = await doctor.main(environ, output)
    lines = [line for line in output.getvalue().splitlines() if not line.startswith(" ")]
    return code, {line[9:].partition(":")[0]: line[:8].strip() for line in lines}


async def test_everything_is_looked_at(tmp_path: Path) -> None:
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    folder = tmp_path / "r"
    folder.mkdir()
    with RedisServer(folder, with_port=True) as redis:
        code, states = await examine(SANDBOX_REDIS_URL=redis.url.reveal(), SANDBOX_POOL_SIZE="1")

    assert code == 0
    for subject in ("settings", "descriptors", "engine", "isolation", "limits", "time", "memory", "redis"):
        assert states[subject] == "ok", states
    assert {"image python", "image nodejs"} <= states.keys()


async def test_a_missing_image_makes_the_exit_code_1() -> None:
    code, states = await examine(SANDBOX_LANGUAGES="python,cobol")

    assert code == 1
    assert states["image cobol"] == "missing"


async def test_a_redis_that_is_away_is_a_warning() -> None:
    code, states = await examine(SANDBOX_REDIS_URL="redis://127.0.0.1:1/0")

    assert code == 0
    assert states["redis"] == "warning"
