"""The real runtime as the contract suite sees it: opened on the engine in force, with a way to kill a container."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandbox_svc.runtime import MIB
from sandbox_svc.runtime.docker_engine import RuntimeName
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from tests.integration.conftest import docker, runtimes, why_no_engine

__all__ = ["kill", "open_runtime", "runtimes", "why_no_engine"]


@asynccontextmanager
async def open_runtime(runtime: RuntimeName = "runc") -> AsyncIterator[DockerRuntime]:
    """Open an instance of its own; its containers are gone afterwards, whatever the test did."""
    instance_id = f"contract-{secrets.token_hex(6)}"
    async with DockerRuntime.open(
        memory_bytes=256 * MIB, instance_id=instance_id, runtime=runtime, docker_host=os.environ.get("DOCKER_HOST")
    ) as opened:
        yield opened
    left = docker("ps", "-aq", "--filter", f"label=sandbox_svc.instance={instance_id}").stdout.split()
    assert left == []


def kill(sandbox_id: str) -> None:
    """Kill a container from outside, as an operator or the kernel would."""
    docker("kill", sandbox_id)
