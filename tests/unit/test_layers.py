"""Imports go one way, so that each layer can be read and tested without those above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sandbox_svc"

# A package is a layer of its own name; modules beside the packages belong to these.
MODULES = {
    "root": {"__main__", "app", "doctor", "run_command", "view"},
    # What others install to call the service; it shares nothing with it.
    "client": {"client"},
    "leaf": {
        "client_address",
        "clock",
        "egress",
        "errors",
        "notation",
        "rate_decision",
        "settings",
        "strict_json",
        "trace_context",
    },
}

MAY_IMPORT = {
    "root": {"root", "client", "http", "admission", "telemetry", "service", "analysis", "pool", "runtime", "leaf"},
    "client": set(),
    "http": {"http", "service", "analysis", "runtime", "leaf"},
    # Fits the protocols of `service` and the keeper; only the root names what is in it.
    "admission": {"admission", "service", "runtime", "leaf"},
    # Fed by events of the layers below, which know nothing of it.
    "telemetry": {"telemetry", "admission", "service", "pool", "runtime", "leaf"},
    "service": {"service", "analysis", "pool", "runtime", "leaf"},
    "analysis": {"analysis", "leaf"},
    "pool": {"pool", "runtime", "leaf"},
    "runtime": {"runtime", "leaf"},
    "leaf": {"leaf"},
}

EXCEPTIONS = {("errors", "analysis")}
"""The type of what `CodeRefused` carries."""

ONLY_IN = {
    "aiodocker": {"runtime/docker_engine"},
    "aiohttp": {"runtime/docker_engine"},
    "h11": {"http/connection"},
    "httpx": {"client"},
    "hypercorn": {"http/connection", "http/server"},
    "limits": {"admission/rates", "admission/windows", "admission/redis_link"},
    "opentelemetry": {"telemetry/tracing"},
    "prometheus_client": {"telemetry/metrics"},
    "redis": {"admission/windows", "admission/redis_link", "admission/permits", "admission/liveness"},
    "starlette": {"http/api", "app", "client_address"},
    "structlog": {"telemetry/logs"},
    "uvloop": {"__main__"},
}
"""Which library is known where; aiodocker's status numbers, for one, end in `runtime/docker_engine`."""


def modules() -> list[tuple[str, Path]]:
    return [
        (str(path.relative_to(SOURCE).with_suffix("")), path)
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "__init__.py"
    ]


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, also those for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "sandbox_svc":
                yield from (f"sandbox_svc.{alias.name}" for alias in node.names)
            else:
                yield node.module


def layer_of(module: str) -> str:
    """Layer of a path below the package; fails for a module that was given none."""
    top = module.partition("/")[0]
    if (SOURCE / top).is_dir():
        return top
    return next(layer for layer, names in MODULES.items() if top in names)


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value)[-40:])
def test_a_module_imports_only_to_the_right(module, path):
    allowed = MAY_IMPORT[layer_of(module)]

    for name in imports(path):
        top, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if top == "sandbox_svc" and imported and imported != "__version__" and (module, imported) not in EXCEPTIONS:
            assert layer_of(imported) in allowed, f"{module} imports {name}, which is to the left of it"


def test_each_library_has_its_place():
    strangers = [
        (module, name)
        for module, path in modules()
        for name in imports(path)
        if name.partition(".")[0] in ONLY_IN and module not in ONLY_IN[name.partition(".")[0]]
    ]

    assert strangers == []


def test_only_the_command_reads_the_environment():
    """And the analysis hands a few variables on to its worker processes, without looking at them."""
    readers = {
        module
        for module, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }

    assert readers <= {"__main__", "analysis/lane", "analysis/worker"}
