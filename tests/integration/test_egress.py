"""Sandboxes on a network of a real engine: the filter comes first or the sandbox does not come, and it leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest

from sandbox_svc.egress import Egress
from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB, Program, RunLimits, docker_runtime, egress_filter
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.languages import LANGUAGE_LABEL, Language
from tests.integration.conftest import docker, why_no_engine
from tests.integration.test_docker_runtime import until
from tests.integration.test_doctor import examine

pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine())]

Containers = Callable[[], list[str]]

HOST = os.environ.get("DOCKER_HOST")
LANGUAGE = "python"
SLEEP = ("/usr/bin/python3", "-c", "import time; time.sleep(600)")
"""In the place of a filter."""
INTERFACES = Program(
    source=b"import socket\ndef main():\n    return [name for _, name in socket.if_nameindex()]",
    template="plain",
    limits=RunLimits(wall_ms=5_000),
)


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    name = f"egress-test-{secrets.token_hex(4)}"
    # Nothing leaves: what is sent by mistake meets no translation of addresses.
    option = "com.docker.network.bridge.enable_ip_masquerade=false"
    docker("network", "create", "--opt", option, name)
    yield name
    docker("network", "rm", name)


@pytest.fixture
async def runtime(instance_id: str, network: str, containers: Containers) -> AsyncIterator[DockerRuntime]:
    async with DockerRuntime.open(
        memory_bytes=256 * MIB,
        instance_id=instance_id,
        runtime="runc",
        docker_host=HOST,
        egress=Egress(networks={LANGUAGE: network}, resolvers=("203.0.113.10",)),
    ) as opened:
        yield opened
    assert containers() == []


@pytest.fixture
async def python(runtime: DockerRuntime) -> Language:
    return (await runtime.languages())[LANGUAGE]


async def test_a_sandbox_has_a_network_and_its_filter_is_gone(
    runtime: DockerRuntime, python: Language, network: str, containers: Containers
) -> None:
    sandbox = await runtime.start(python, ("plain",))
    assert containers() == [sandbox.id]
    assert json.loads((await sandbox.run(INTERFACES)).result or b"") == ["lo", "eth0"]
    found = json.loads(docker("inspect", sandbox.id).stdout)[0]
    assert list(found["NetworkSettings"]["Networks"]) == [network]


async def test_a_language_that_is_not_named_has_no_network(runtime: DockerRuntime) -> None:
    sandbox = await runtime.start((await runtime.languages())["nodejs"])
    names = Program(
        source=b"function main() { return Object.keys(require('os').networkInterfaces()); }",
        template="plain",
        limits=RunLimits(wall_ms=5_000),
    )
    assert set(json.loads((await sandbox.run(names)).result or b"")) <= {"lo"}


async def test_an_image_without_the_filter_is_not_started(
    runtime: DockerRuntime,
    stand_in: Callable[[str], Language],
    containers: Containers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that was built before there was a filter, or whose filter fails."""
    stranger = stand_in("complain")
    manifest = msgspec.structs.replace(stranger.manifest, language=LANGUAGE)
    with pytest.raises(RuntimeUnavailable, match="filter of a sandbox could not be set"):
        await runtime.start(Language(manifest=manifest, image_id=stranger.image_id))
    assert containers() == []
    assert "egress filter ended with 2" in caplog.text


async def test_a_filter_that_is_killed_fails_the_start(
    runtime: DockerRuntime, python: Language, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_filter, "_COMMAND", SLEEP)
    start = asyncio.create_task(runtime.start(python, ("plain",)))
    name = await running_filter(runtime)
    await asyncio.to_thread(docker, "kill", name)
    with pytest.raises(RuntimeUnavailable):
        await start
    assert containers() == []


async def test_a_filter_that_hangs_fails_the_start(
    runtime: DockerRuntime, python: Language, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_filter, "_COMMAND", SLEEP)
    monkeypatch.setattr(egress_filter, "FILTER_SECONDS", 2.0)
    started = time.monotonic()
    with pytest.raises(RuntimeUnavailable, match="did not end within"):
        await runtime.start(python, ("plain",))
    assert time.monotonic() - started < 2 + docker_runtime.REAP_SECONDS
    assert containers() == []


@pytest.mark.parametrize("milliseconds", [100, 150, 200, 250, 300, 350, 400])
async def test_a_start_cancelled_while_it_filters_leaves_nothing(
    runtime: DockerRuntime, python: Language, containers: Containers, milliseconds: int
) -> None:
    start = asyncio.create_task(runtime.start(python, ("plain",)))
    await asyncio.sleep(milliseconds / 1000)
    start.cancel()
    (result,) = await asyncio.gather(start, return_exceptions=True)
    if not isinstance(result, BaseException):
        await result.remove()
    await until(lambda: not runtime.owned)
    assert containers() == []


async def running_filter(runtime: DockerRuntime) -> str:
    """Wait until a filter runs, and return the name of its container."""
    async with asyncio.timeout(10):
        while True:
            for name in runtime.owned:
                if name.endswith(docker_runtime.FILTER_SUFFIX) and is_running(name):
                    return name
            await asyncio.sleep(0.02)


OWNER = """
import asyncio, os, sys
from sandbox_svc.egress import Egress
from sandbox_svc.runtime import egress_filter
from sandbox_svc.runtime.docker_runtime import DockerRuntime
egress_filter._COMMAND = ("/usr/bin/python3", "-c", "import time; time.sleep(600)")
async def main(instance, language, network):
    async with DockerRuntime.open(
        memory_bytes=2**28, instance_id=instance, runtime="runc", docker_host=os.environ.get("DOCKER_HOST"),
        egress=Egress(networks={language: network}, resolvers=("203.0.113.10",)),
    ) as runtime:
        await runtime.start((await runtime.languages())[language], ("plain",))
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_filter_is_swept_with_its_owner_and_is_no_sandbox(
    runtime: DockerRuntime, instance_id: str, network: str, containers: Containers
) -> None:
    """An instance that is killed while it filters leaves two containers, and whoever sweeps finds both."""
    arguments = [sys.executable, "-c", OWNER, instance_id, LANGUAGE, network]
    owner = await asyncio.to_thread(subprocess.Popen, arguments, env={**os.environ, "PYTHONPATH": "src"})
    try:
        await until(lambda: len(containers()) == 2 and all(map(is_running, containers())), 20)
        found = containers()
    finally:
        owner.kill()
        owner.wait(10)
    labels = [json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", name).stdout) for name in found]
    assert sorted(label.get(LANGUAGE_LABEL, "") for label in labels) == ["", LANGUAGE]
    async with DockerRuntime.open(
        memory_bytes=256 * MIB, instance_id="sweeper", runtime="runc", docker_host=HOST
    ) as sweeper:
        await sweeper.sweep()
    assert containers() == []


def is_running(name: str) -> bool:
    return docker("inspect", "--format", "{{.State.Running}}", name, check=False).stdout.strip() == "true"


async def test_a_network_that_is_not_there_is_named(instance_id: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="SANDBOX_EGRESS_NETWORKS names egress-nowhere"):
        async with DockerRuntime.open(
            memory_bytes=256 * MIB,
            instance_id=instance_id,
            runtime="runc",
            docker_host=HOST,
            egress=Egress(networks={LANGUAGE: "egress-nowhere"}),
        ):
            pass


async def test_an_id_of_a_network_is_no_name(network: str, instance_id: str) -> None:
    """The engine takes both; a name says what an operator meant."""
    number = docker("network", "inspect", "--format", "{{.Id}}", network).stdout.strip()
    with pytest.raises(RuntimeUnavailable, match="no bridge"):
        async with DockerRuntime.open(
            memory_bytes=256 * MIB,
            instance_id=instance_id,
            runtime="runc",
            docker_host=HOST,
            egress=Egress(networks={LANGUAGE: number}),
        ):
            pass


async def test_the_doctor_looks_at_the_network(network: str) -> None:
    good = {"SANDBOX_EGRESS_NETWORKS": f"python={network}", "SANDBOX_RUNTIME": "runc"}
    assert (await examine(**good))[1]["egress"] == "ok"
    code, states = await examine(**{**good, "SANDBOX_EGRESS_NETWORKS": "python=egress-nowhere"})
    assert (code, states["egress"]) == (1, "missing")
    assert (await examine())[1]["egress"] == "ok"
