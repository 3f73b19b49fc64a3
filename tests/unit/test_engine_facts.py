"""What the service makes of an engine's answers about itself; the rest of the client meets a real engine."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB
from sandbox_svc.runtime.docker_engine import Engine, EngineFacts, RuntimeName
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from tests.stub_engine import StubEngine

RUNC: dict[str, Any] = {"runc": {"path": "runc"}}
BOTH: dict[str, Any] = {"runc": {"path": "runc"}, "runsc": {"path": "/usr/bin/runsc"}}


def facts_of(runtimes: dict[str, Any]) -> EngineFacts:
    return EngineFacts(
        id="",
        version="20.10.24",
        api_version="1.41",
        cgroup_version="1",
        cpus=2,
        memory_bytes=MIB,
        runtimes=tuple(sorted(runtimes)),
        skew_seconds=0,
        is_uid_mapped=False,
    )


@pytest.mark.parametrize(
    ("wanted", "installed", "expected"),
    [
        ("auto", BOTH, "runsc"),
        ("auto", RUNC, "runc"),
        ("auto", RUNC | {"kata": {}, "runsc-debug": {}}, "runc"),
        ("runc", BOTH, "runc"),
        ("runsc", BOTH, "runsc"),
        ("runc", RUNC, "runc"),
    ],
)
def test_runtime_is_the_one_that_was_named_and_auto_is_the_strongest(
    wanted: RuntimeName, installed: dict[str, Any], expected: str
) -> None:
    """ES-21, SF-06: `auto` takes gVisor wherever the engine has it, whatever the engine's default is."""
    assert facts_of(installed).choose_runtime(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "installed"),
    [
        ("runsc", RUNC),
        ("runc", {"runsc": {}}),
        ("runsc", {}),
        ("runc", {}),
        ("auto", {}),
        ("runsc", {"runsc-debug": {}}),
    ],
)
def test_runtime_that_is_missing_is_an_error_that_names_it(wanted: RuntimeName, installed: dict[str, Any]) -> None:
    """ES-21, SF-06: never another one in its place, not even a stronger one, or one that is called nearly the same."""
    with pytest.raises(RuntimeUnavailable, match="runc" if wanted == "auto" else wanted) as caught:
        facts_of(installed).choose_runtime(wanted)
    assert all(name in str(caught.value) for name in installed)


@pytest.mark.parametrize(
    ("wanted", "runtimes", "expected"), [("auto", BOTH, "runsc"), ("auto", RUNC, "runc"), ("runsc", BOTH, "runsc")]
)
async def test_engine_is_asked_what_it_has(
    tmp_path: pathlib.Path, wanted: RuntimeName, runtimes: dict[str, Any], expected: str
) -> None:
    """ES-21: the choice is made by the engine's own answer, and shown to the operator."""
    with StubEngine(tmp_path, Runtimes=runtimes) as stub:
        engine = Engine(stub.host)
        try:
            facts = await engine.facts(wanted)
        finally:
            await engine.close()
    assert (facts.runtime, facts.runtimes) == (expected, tuple(sorted(runtimes)))


async def test_nothing_is_created_on_an_engine_without_the_runtime(tmp_path: pathlib.Path) -> None:
    """ES-21, SF-06: whoever names gVisor counts on its isolation; the engine is asked and then left alone."""
    with StubEngine(tmp_path) as stub, pytest.raises(RuntimeUnavailable, match="runsc"):
        async with DockerRuntime.open(memory_bytes=MIB, instance_id="x", runtime="runsc", docker_host=stub.host):
            pass
    assert {asked.split()[0] for asked in stub.asked} == {"GET"}


@pytest.mark.parametrize("lacking", ["MemoryLimit", "PidsLimit"])
async def test_engine_that_does_not_enforce_a_limit_is_refused(tmp_path: pathlib.Path, lacking: str) -> None:
    """ES-21: the other way of getting less isolation than was asked for."""
    with StubEngine(tmp_path, **{lacking: False}) as stub:
        engine = Engine(stub.host)
        try:
            with pytest.raises(RuntimeUnavailable, match=lacking):
                await engine.facts("runc")
        finally:
            await engine.close()
