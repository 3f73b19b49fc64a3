"""`/openapi.json` is valid, and the service does what it says there whatever it is sent.

Neither tool is among the locked dependencies, for they bring some forty others; `pip install schemathesis
openapi-spec-validator` anywhere on PATH makes these run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.hostile.harness import Service
from tests.integration.conftest import why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("openapi"), "runc", SANDBOX_ANALYSIS="standard", SANDBOX_POOL_SIZE="2")
    try:
        service.start()
        yield service
    finally:
        service.stop()


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_the_document_is_valid_openapi(service, tmp_path):
    file = tmp_path / "openapi.json"
    file.write_bytes(service.get("/openapi.json").body)

    done = subprocess.run(
        [tool("openapi-spec-validator"), "--schema", "3.1", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_keeps_to_its_document(service, tmp_path):
    """One check is left out: what a schema cannot say (a language that exists, one source out of three) is a 422."""
    done = subprocess.run(
        [
            tool("schemathesis"),
            "run",
            f"http://127.0.0.1:{service.port}/openapi.json",
            "--max-examples=50",
            "--seed=1",
            "--workers=1",
            "--exclude-checks=positive_data_acceptance",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-8000:]
    assert "Traceback" not in service.new_log().decode()
