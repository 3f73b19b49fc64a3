"""No limit, deadline or age goes by the wall clock, so that a clock that jumps changes none: whoever reads it says why here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}
WALL |= {("date", "today")}

MAY_READ_IT = {
    "src/sandbox_svc/admission/keys.py": "the creation date that is written beside a key",
    "src/sandbox_svc/admission/windows.py": "the interface of `limits`, beside our own that is monotonic",
    "src/sandbox_svc/admission/permits.py": "first number of the steps of an instance; only their order counts",
    "src/sandbox_svc/doctor.py": "compares clocks",
    "src/sandbox_svc/runtime/docker_engine.py": "compares clocks, for the doctor",
    "src/sandbox_svc/telemetry/tracing.py": "spans carry dates",
}


def readers(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if (owner, node.attr) in WALL:
                    yield str(path.relative_to(ROOT))
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {alias.name for alias in node.names} & {"time", "time_ns"}, path


def test_the_service_reads_the_wall_clock_only_where_dates_are_meant() -> None:
    """SF-15: clocks that jump move no deadline."""
    assert set(readers(ROOT / "src" / "sandbox_svc")) == set(MAY_READ_IT)


def test_what_runs_in_a_sandbox_never_does() -> None:
    """SF-15: nor inside."""
    assert set(readers(ROOT / "images" / "supervisor")) == set()
    assert set(readers(ROOT / "images" / "python" / "runner")) == set()
