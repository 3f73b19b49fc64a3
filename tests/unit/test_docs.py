"""What the documents say is what the code has: settings, routes, error codes, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from sandbox_svc import __version__, errors
from sandbox_svc.http.api import create_api
from sandbox_svc.http.openapi import PATHS, openapi_document
from sandbox_svc.http.reply import STATUS, status_of
from sandbox_svc.runtime import MIB
from sandbox_svc.service.events import RunEnded
from sandbox_svc.service.verdicts import Verdict
from sandbox_svc.settings import VARIABLES, markdown_table
from sandbox_svc.telemetry.logs import run_fields
from sandbox_svc.telemetry.metrics import markdown_table as metrics_table
from sandbox_svc.trace_context import TraceContext
from supervisor import artifacts

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

NAMES = {variable.name for variable in VARIABLES.values()}


def error_classes() -> list[type[errors.SandboxServiceError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SandboxServiceError)
    ]


def routes() -> dict[str, set[str]]:
    unused: Any = None
    api = create_api(
        service=unused,
        admission=unused,
        max_body_bytes=1,
        readiness=dict,
        languages=unused,
        metrics=unused,
        on_refused=unused,
    )
    return {route.path: (route.methods or set()) - {"HEAD"} for route in api.routes if isinstance(route, Route)}


def test_the_readme_has_the_table_of_settings():
    """`python -m sandbox_svc.settings` prints what belongs between the markers."""
    table = README.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]

    assert table == markdown_table()


def test_operations_has_the_table_of_metrics():
    """`python -m sandbox_svc.telemetry.metrics` prints what belongs between the markers."""
    table = OPERATIONS.partition("<!-- metrics -->\n")[2].partition("<!-- /metrics -->")[0]

    assert table == metrics_table()


def test_operations_has_every_field_of_a_runs_log_line():
    trace = TraceContext("t", None, "s", True)
    event = RunEnded(run_id="r", tenant="t", language="l", outcome="o", total_seconds=1.0, trace=trace)

    for field in run_fields(event):
        assert f'"{field}"' in OPERATIONS, field


def test_every_fault_test_stands_in_the_table_of_faults_and_no_other():
    written = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests" / "faults").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`faults/(test_\w+\.py::test_\w+)`", RELIABILITY))

    assert named == written


def test_other_tests_that_reliability_names_exist():
    for path, name in re.findall(
        r"`((?:contract|integration|unit|hostile)/test_\w+\.py)(?:::(test_\w+))?`", RELIABILITY
    ):
        assert f"def {name}" in (ROOT / "tests" / path).read_text(encoding="utf-8"), (path, name)


def test_every_setting_that_is_named_anywhere_exists():
    for path in [
        ROOT / "README.md",
        ROOT / "compose.yaml",
        ROOT / ".env.example",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "SECURITY.md",
    ]:
        # SANDBOX_STACK_*, SANDBOX_BUILD_* and SANDBOX_CLIENT_* are for compose, the build and callers; they reach no service.
        named = set(re.findall(r"\bSANDBOX_(?!STACK_|BUILD_|CLIENT_)[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
        assert named <= NAMES, path


def test_compose_hands_on_every_setting():
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")

    assert {name for name in NAMES if f"      {name}:" not in compose} == set()


def test_every_route_is_in_the_openapi_document():
    described = {path: {method.upper() for method in item} for path, item in PATHS.items()}

    assert routes() == described


@pytest.mark.parametrize("path", sorted(PATHS))
def test_every_route_is_documented(path):
    for document in (README, API):
        assert re.search(rf"`(?:GET|POST) {re.escape(path)}`", document)


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_every_error_code_is_documented_with_its_status(kind):
    if kind is errors.SettingsError:
        assert "`settings`" in API
        return
    rows = [row for row in API.splitlines() if row.startswith("|") and f"`{kind.code}`" in row]

    assert any(row.startswith(f"| {status_of(kind.__new__(kind))} ") for row in rows)


def test_every_error_has_a_status():
    assert errors.SandboxServiceError in STATUS


def test_the_bounds_on_artifacts_are_documented():
    assert (
        f"at most {artifacts.MAX_FILES} files, each of {artifacts.MAX_FILE_BYTES // MIB} MiB at most and "
        f"{artifacts.MAX_TOTAL_BYTES // MIB} MiB together"
    ) in API


def test_every_outcome_is_documented():
    for verdict in Verdict:
        assert f"`{verdict.value}`" in API


def test_references_of_the_openapi_document_lead_somewhere():
    document = openapi_document()
    text = repr(document)

    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]
    assert document["info"]["version"] == __version__


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["version"] == __version__
