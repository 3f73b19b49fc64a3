"""`/openapi.json` is valid, and the service does what it says there whatever it is sent.

The tools bring some forty packages, so `make test` puts them into an environment of their own (scripts/openapi_tools.sh).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.harness import Service, running
from tests.integration.conftest import why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

TOOLS = Path(__file__).parents[2] / ".venv-openapi" / "bin"
TOOL_SECONDS = 90
"""Ten are enough on a quiet machine."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(
        tmp_path_factory.mktemp("openapi"), "runc", SANDBOX_ANALYSIS="standard", SANDBOX_POOL_SIZE="2"
    ) as service:
        yield service


def run_tool(name: str, *arguments: str, folder: Path) -> None:
    if not (TOOLS / name).exists():
        pytest.skip(f"{name} is not installed (scripts/openapi_tools.sh)")
    done = subprocess.run(
        [TOOLS / name, *arguments], cwd=folder, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_document_is_valid_openapi(service, tmp_path):
    (tmp_path / "openapi.json").write_bytes(service.get("/openapi.json").body)

    run_tool("openapi-spec-validator", "--schema", "3.1", "openapi.json", folder=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--max-examples=25",), id="JSON"),
        pytest.param(
            ("--max-examples=10", "--include-path=/v1/run", "--header=Accept: text/event-stream"), id="events"
        ),
    ],
)
def test_the_service_keeps_to_its_document(service, tmp_path, options):
    """One check is left out: what a schema cannot say (a language that exists, one source out of three) is a 422."""
    run_tool(
        "schemathesis",
        "run",
        f"http://127.0.0.1:{service.port}/openapi.json",
        "--seed=1",
        "--workers=1",
        "--exclude-checks=positive_data_acceptance",
        *options,
        folder=tmp_path,
    )

    assert "Traceback" not in service.new_log().decode()
